"""``outrider send``: one row into the outbox, as an application inserts it, and the way to follow it."""

from __future__ import annotations

import asyncio
import sys
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated

import typer

from daemon.cli import queries
from daemon.cli.database import connected
from daemon.cli.options import MESSAGES, ConfigOption, JsonOption, examples
from daemon.cli.render import console, say_json
from daemon.cli.trouble import FAILED, plain_words

if TYPE_CHECKING:
    from pathlib import Path
    from uuid import UUID

    import asyncpg

LOOK_S = 0.2  # how often a followed message is looked at
GOOD = frozenset({"delivered", "read"})


def add_to(app: typer.Typer) -> None:
    """Give *app* the commands of this file."""
    app.command(
        rich_help_panel=MESSAGES,
        epilog=examples(
            "outrider send --to +12025550123 --service otp --intent otp --body 'Code 1234'",
            "outrider send --to +12025550123 --service news --body hello --key order-77 --wait",
            "fortune | outrider send --to +12025550123 --service news --send-at +10m",
        ),
    )(send)


def send(
    *,
    to: Annotated[str, typer.Option(help="The recipient's number, as E.164.", metavar="NUMBER")],
    body: Annotated[str | None, typer.Option(help="The text; without it, standard input is read.")] = None,
    service: Annotated[str | None, typer.Option(help="A service of config.toml: which senders may carry it.")] = None,
    intent: Annotated[str | None, typer.Option(help="What it is for: otp, notifications, marketing, ...")] = None,
    sender: Annotated[str | None, typer.Option(help="Pin one sender.", metavar="ADDRESS")] = None,
    key: Annotated[str | None, typer.Option(help="Idempotency key: a repeat of it is never sent.")] = None,
    validity: Annotated[str | None, typer.Option(help="Of use for so long, such as 5m or 2h.", metavar="SPAN")] = None,
    send_at: Annotated[
        str | None, typer.Option(help="Not before: 2026-12-24T18:00+01:00, or +10m from now.", metavar="TIME")
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Follow it until its end; exit 1 unless delivered.")] = False,
    timeout: Annotated[float, typer.Option(help="With --wait: seconds to follow it.", min=1)] = 120.0,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Insert one message, and print its id."""
    row = (to, text_of(body), service, intent, sender, key, span_of(validity), time_of(send_at))
    with plain_words():
        ended = asyncio.run(_send(config, row, patience_s=timeout if wait else None, as_json=as_json))
    if wait and ended not in GOOD:
        raise typer.Exit(FAILED)


async def _send(config: Path | None, row: tuple[object, ...], *, patience_s: float | None, as_json: bool) -> str:
    """Insert; follow the message for *patience_s* seconds if that is given. Returns the last status seen."""
    async with connected(config) as connection:
        message: UUID = await connection.fetchval(queries.SEND, *row)
        if patience_s is None:
            say_json({"id": message}) if as_json else typer.echo(str(message))
            return ""
        if not as_json:
            typer.echo(str(message))
        last = await follow(connection, message, patience_s)
        if as_json:
            say_json(dict(last))
        return str(last["status"])


async def follow(connection: asyncpg.Connection[asyncpg.Record], message: UUID, patience_s: float) -> asyncpg.Record:
    """Show each change of *message* on stderr until it is final; give up after *patience_s* seconds."""
    from daemon.core.lifecycle import FINAL

    out = console(stderr=True)
    deadline = asyncio.get_running_loop().time() + patience_s
    begun = datetime.now(UTC)
    shown: tuple[str, str | None] | None = None
    with out.status("looking") as live:
        while True:
            row = await connection.fetchrow(queries.MESSAGE, message)
            assert row is not None, "the row we inserted is gone"
            here = (row["status"], row["reason"])
            passed = (datetime.now(UTC) - begun).total_seconds()
            live.update(f"{row['status']}, {passed:.0f} s")
            if here != shown:
                out.print(f"{passed:7.2f} s  {row['status']}" + (f": {row['reason']}" if row["reason"] else ""))
                shown = here
            if row["status"] in FINAL:
                return row
            if asyncio.get_running_loop().time() > deadline:
                out.print(f"not at its end after {patience_s:.0f} s; `outrider why {message}` tells more later")
                return row
            await asyncio.sleep(LOOK_S)


def text_of(body: str | None) -> str:
    """The text to send: the option, or standard input without its last line end."""
    if body is not None:
        return body
    if sys.stdin.isatty():
        raise typer.BadParameter("give --body TEXT, or pipe the text in", param_hint="--body")
    return sys.stdin.read().removesuffix("\n")


def span_of(told: str | None) -> timedelta | None:
    """A span of time as people write it."""
    from daemon.settings.duration import Duration

    if told is None:
        return None
    try:
        return timedelta(seconds=float(Duration.read(told)))
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


def time_of(told: str | None) -> datetime | None:
    """A moment: ISO 8601 (local time where it names no zone), or ``+SPAN`` from now, or ``-SPAN`` ago."""
    if told is None:
        return None
    if told[:1] in {"+", "-"}:
        span = span_of(told[1:]) or timedelta()
        return datetime.now(UTC) + (span if told[0] == "+" else -span)
    try:
        return datetime.fromisoformat(told).astimezone(UTC)
    except ValueError as error:
        raise typer.BadParameter(
            f"{told!r} is no time: write 2026-12-24T18:00+01:00, or +10m for in ten minutes"
        ) from error
