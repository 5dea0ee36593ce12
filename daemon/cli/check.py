"""``outrider check``: is the configuration sound, and does it fit the database? Sends nothing to anybody."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, TypedDict

import typer

from daemon.cli import queries
from daemon.cli.database import address, dial, read_settings
from daemon.cli.options import RUNNING, ConfigOption, JsonOption, examples
from daemon.cli.render import console, say_json, table
from daemon.cli.trouble import BAD_CONFIGURATION, FAILED, Trouble, plain_words

if TYPE_CHECKING:
    from pathlib import Path

    from daemon.settings import Settings

CLOCK_LIMIT_S = 1.0  # the lease is judged by the database's clock; a larger difference shows in every latency


class Findings(TypedDict):
    """What was found, as it stands in the JSON."""

    config: str
    database: str
    reachable: bool
    pooler: str
    schema: str
    clock_difference_s: float | None
    services: list[dict[str, object]]
    senders: list[dict[str, object]]
    providers: list[dict[str, object]]
    problems: list[str]


def add_to(app: typer.Typer) -> None:
    """Give *app* the command of this file."""
    app.command(
        rich_help_panel=RUNNING,
        epilog=examples("outrider check", "outrider check --config new.toml && systemctl reload outrider"),
    )(check)


def check(*, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """
    Validate the configuration and look at the database.

    Prints which service speaks through which senders and how fast, whether secrets were found, how the schema stands.
    No provider is called. Exit 78 when the configuration or the schema is wrong, 1 when the database cannot be reached.
    """
    with plain_words():
        settings, place = read_settings(config)
        found = summary(settings, place)
        code = asyncio.run(_look_at_database(settings, found))
    if as_json:
        say_json(found)
    else:
        _show(found)
    raise typer.Exit(code)


def summary(settings: Settings, place: Path) -> Findings:
    """What the configuration says, without asking anybody."""
    from daemon.settings.shapes import mask_dsn

    senders: list[dict[str, object]] = [
        {
            "address": sender.address,
            "provider": sender.provider,
            "type": str(sender.type),
            "country": sender.country,
            "rate": sender.rate,
            "services": [name for name, service in settings.services.items() if sender.address in service.senders],
        }
        for sender in settings.senders
    ]
    services: list[dict[str, object]] = [
        {
            "name": name,
            "senders": list(service.senders),
            "rate": sum(sender.rate for sender in settings.senders if sender.address in service.senders),
            "validity": str(service.validity) if service.validity else None,
        }
        for name, service in settings.services.items()
    ]
    providers: list[dict[str, object]] = [
        {
            "name": name,
            "kind": provider.kind,
            "base_url": str(provider.base_url or "inside the daemon"),
            "secrets": bool(provider.auth_token.get_secret_value()),
        }
        for name, provider in settings.providers.items()
    ]
    return Findings(
        config=str(place),
        database=mask_dsn(settings.database.url),
        reachable=False,
        pooler="unknown",
        schema="unknown",
        clock_difference_s=None,
        services=services,
        senders=senders,
        providers=providers,
        problems=[],
    )


async def _look_at_database(settings: Settings, found: Findings) -> int:
    """Fill in what the database says; returns the exit code."""
    from daemon import migrate
    from daemon.database import DatabaseDown
    from daemon.embedded import EmbeddedError
    from daemon.pooler import TransactionPooler

    if settings.database.embedded and not (settings.daemon.state / "postgres").exists():
        found["schema"] = "none yet: the first run makes it"
        return 0
    try:
        async with address(settings) as dsn:
            connection = await dial(dsn, pooled=True)  # so it is asked well in either case
            try:
                await _ask_for_pooler(settings, dsn, found)
                before = time.time()
                theirs = await connection.fetchval(queries.CLOCK)
                found["reachable"] = True
                found["clock_difference_s"] = round(theirs.timestamp() - (before + time.time()) / 2, 3)
                await migrate.check(connection)
                found["schema"] = "as it should be"
            except (DatabaseDown, TransactionPooler) as misled:
                found["problems"].append(str(misled))
                return BAD_CONFIGURATION if isinstance(misled, TransactionPooler) else FAILED
            except migrate.SchemaError as mismatch:
                found["schema"] = "wrong"
                found["problems"] += str(mismatch).splitlines()
                return BAD_CONFIGURATION
            finally:
                await connection.close()
    except Trouble as unreachable:
        found["problems"] += unreachable.lines[:1]
        return FAILED
    except EmbeddedError as missing:
        found["problems"] += str(missing).splitlines()
        return FAILED
    apart = found["clock_difference_s"] or 0.0
    if abs(apart) > CLOCK_LIMIT_S:
        found["problems"].append(f"the database's clock is {apart:+.1f} s off ours: synchronise both (NTP)")
    return 0


async def _ask_for_pooler(settings: Settings, dsn: str, found: Findings) -> None:
    """Is there a transaction pooler, and does the configuration know? Raises TransactionPooler or DatabaseDown."""
    from daemon.database import CONNECT_TIMEOUT_S, as_said
    from daemon.pooler import shares_sessions

    database = settings.database
    await as_said(dsn, pooled=database.pooled, listen=database.listen_url)
    if not database.pooled:
        found["pooler"] = "none, or one that keeps sessions"
    elif await shares_sessions(dsn, timeout_s=CONNECT_TIMEOUT_S):
        heard = "NOTIFY is heard by listen_url" if database.listen_url else "no listen_url: polling alone"
        found["pooler"] = f"transaction, as configured; {heard}"
    else:
        found["pooler"] = 'none, though the configuration says "transaction": slower than need be'


def _show(found: Findings) -> None:
    out = console()
    out.print(f"{found['config']} is sound.\n")
    out.print(
        table(
            "Services",
            ("service", "senders", "segments/s", "validity"),
            ((one["name"], _listed(one["senders"]), one["rate"], one["validity"]) for one in found["services"]),
        )
    )
    out.print(
        table(
            "Senders",
            ("sender", "type", "country", "provider", "segments/s", "serves"),
            (
                (one["address"], one["type"], one["country"], one["provider"], one["rate"], _listed(one["services"]))
                for one in found["senders"]
            ),
        )
    )
    out.print(
        table(
            "Providers",
            ("provider", "kind", "address", "secrets found"),
            (
                (one["name"], one["kind"], one["base_url"], "yes" if one["secrets"] else "no")
                for one in found["providers"]
            ),
        )
    )
    out.print(f"Database   {found['database']}: {'reachable' if found['reachable'] else 'not asked or not reachable'}")
    out.print(f"Pooler     {found['pooler']}")
    out.print(f"Schema     {found['schema']}")
    if found["clock_difference_s"] is not None:
        out.print(f"Clocks     {found['clock_difference_s'] * 1000:+.0f} ms apart")
    for problem in found["problems"]:
        out.print(f"Problem    {problem}", style="red")


def _listed(names: object) -> str:
    return ", ".join(map(str, names)) if isinstance(names, list) else ""
