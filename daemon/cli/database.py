"""The road to the configured Postgres: find the settings, start a private server where one is asked for, dial."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from daemon.cli.options import find_config
from daemon.cli.trouble import Trouble

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    import asyncpg

    from daemon.settings import Settings


def read_settings(told: Path | None) -> tuple[Settings, Path]:
    """The settings, and the file they came from. Raises SettingsError or Trouble."""
    from daemon.settings import load

    place = find_config(told)
    return load(place), place


@asynccontextmanager
async def connected(told: Path | None, *, checked: bool = True) -> AsyncIterator[asyncpg.Connection[asyncpg.Record]]:
    """A connection to the configured database; *checked*: only if its schema is one we know."""
    from daemon import migrate

    settings, _ = await asyncio.to_thread(read_settings, told)
    async with address(settings) as dsn:
        connection = await dial(dsn, pooled=settings.database.pooled)
        try:
            if checked:
                await migrate.check(connection)
            yield connection
        finally:
            await connection.close()


@asynccontextmanager
async def address(settings: Settings) -> AsyncIterator[str]:
    """The DSN of the configured database, for as long as the block lasts: it keeps an embedded server up."""
    from daemon import embedded

    if not settings.database.embedded:
        yield settings.database.url
        return
    server = await asyncio.to_thread(embedded.start, postgres_folder(settings))
    try:
        yield server.dsn()
    finally:
        await asyncio.to_thread(server.stop)


async def dial(dsn: str, *, pooled: bool = False) -> asyncpg.Connection[asyncpg.Record]:
    """Connect, or say in plain words why not. The DSN is shown without its password."""
    import asyncpg

    from daemon.database import connect
    from daemon.settings.shapes import mask_dsn

    try:
        return await connect(dsn, pooled=pooled)
    except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError, ValueError) as error:
        why = str(error) or "no answer in time"
        raise Trouble(
            f"cannot reach Postgres at {mask_dsn(dsn)}: {why}",
            "is it running, and is [database].url right? `outrider check` looks at both",
        ) from error


def postgres_folder(settings: Settings) -> Path:
    """Where the private Postgres of `url = "embedded"` keeps its data."""
    return settings.daemon.state / "postgres"
