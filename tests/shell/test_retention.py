"""The keeper on a real Postgres: what it publishes, when it looks, and when it keeps its hands off."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from daemon import retention
from daemon.database import DatabaseDown
from tests.shell.parts import Wound, engine, settings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    import asyncpg

    from daemon.engine import Engine

    Connection = asyncpg.Connection[asyncpg.Record]

MESSAGES = """
WITH asked AS (
    INSERT INTO outrider.outbox (recipient, service, intent, body)
    SELECT '+12025550101', 'default', 'otp', 'Your code is 1234' FROM generate_series(1, $1::int) RETURNING id
)
INSERT INTO outrider.outcome (id, status, rank) SELECT id, 'delivered', 50 FROM asked
"""
LEFT = "SELECT count(*) FROM outrider.outbox WHERE body IS NOT NULL"


@asynccontextmanager
async def house(database: str, tmp_path: Path, clock: Wound | None = None) -> AsyncIterator[Engine]:
    async with engine(database, tmp_path, clock=clock or Wound()) as made:
        try:
            yield made
        finally:
            await made.keeper._line.close()


async def ended(connection: Connection, many: int) -> None:
    await connection.execute(MESSAGES, many)
    await connection.execute("DELETE FROM outrider.queue")


async def forgotten(connection: Connection) -> None:
    """Return when no text is left."""
    while await connection.fetchval(LEFT):  # noqa: ASYNC110 (what is waited for happens in Postgres)
        await asyncio.sleep(0.01)


async def figures(connection: Connection) -> dict[tuple[str, str], float]:
    rows = await connection.fetch(
        "SELECT what, intent, extract(epoch FROM span)::float8 AS seconds FROM outrider.keeping"
    )
    return {(row["what"], row["intent"]): row["seconds"] for row in rows}


async def test_the_configured_figures_stand_in_the_database(
    connection: Connection, database: str, tmp_path: Path
) -> None:
    day = 86_400.0
    shipped = await figures(connection)
    async with house(database, tmp_path) as made:
        await made.keeper.look()
        assert await figures(connection) == shipped, "the defaults there and here are the same"
        kept = {"outbox": "400d", "body": "1h", "idempotency": "2d", "receipts": "7d", "dead": "60d"}
        made.reload(settings(retention={**kept, "dead_by_intent": {"marketing": "180d"}}))
        await made.keeper.look()
        assert await figures(connection) == {
            ("outbox", ""): 400 * day, ("body", ""): 3_600.0, ("idempotency", ""): 2 * day, ("receipts", ""): 7 * day,
            ("dead", ""): 60 * day, ("dead", "otp"): day, ("dead", "marketing"): 180 * day,
        }  # fmt: skip
        made.reload(settings())
        await made.keeper.look()
        assert await figures(connection) == shipped


async def test_a_look_does_a_piece_and_says_whether_there_is_more(
    connection: Connection, database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "PIECE", 10)
    await ended(connection, 15)
    async with house(database, tmp_path) as made:
        assert await made.keeper.look()
        assert await connection.fetchval(LEFT) == 5
        assert not await made.keeper.look()
        assert await connection.fetchval(LEFT) == 0


async def test_weeks_are_looked_at_now_and_then(connection: Connection, database: str, tmp_path: Path) -> None:
    await connection.execute(
        "CREATE TABLE outrider.outbox_2020w01 PARTITION OF outrider.outbox FOR VALUES FROM ('016f5e66-e800-0000-0000-000000000000')"
        " TO ('016f8273-8c00-0000-0000-000000000000')"
    )
    there = "SELECT to_regclass('outrider.outbox_2020w01') IS NOT NULL"
    clock = Wound()
    async with house(database, tmp_path, clock) as made:
        made.keeper._weeks_at = clock.tick() + 1.0
        await made.keeper.look()
        assert await connection.fetchval(there)
        clock.go(1.0)
        await made.keeper.look()
        assert not await connection.fetchval(there)


async def test_a_copy_of_a_database_is_left_as_it_was_found(
    connection: Connection, database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "LOOK_S", 0.01)
    await ended(connection, 3)
    async with house(database, tmp_path) as made:
        made.desk.held = "it was not here before"
        stop = asyncio.Event()
        running = asyncio.create_task(made.keeper.run(stop))
        await asyncio.sleep(0.2)
        assert await connection.fetchval(LEFT) == 3
        made.desk.held = ""
        await forgotten(connection)
        stop.set()
        await running


async def test_a_database_that_is_away_is_waited_for(
    connection: Connection, database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "LOOK_S", 0.01)
    await ended(connection, 3)
    async with house(database, tmp_path) as made:
        made.keeper._line._dsn = "postgresql://nobody@127.0.0.1:1/nowhere"
        with pytest.raises(DatabaseDown):
            await made.keeper.look()
        stop = asyncio.Event()
        running = asyncio.create_task(made.keeper.run(stop))
        await asyncio.sleep(0.1)
        made.keeper._line._dsn = database
        await forgotten(connection)
        stop.set()
        await running
