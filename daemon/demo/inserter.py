"""The application of the demo: its own table, and messages inserted in the transactions that change it."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from daemon.database import connect
from daemon.demo.scenario import Batch, Kind, Row, Scenario, Way

if TYPE_CHECKING:
    import asyncpg

COLUMNS = (
    "recipient",
    "body",
    "service",
    "intent",
    "sender",
    "idempotency_key",
    "order_key",
    "send_at",
    "expires_at",
)
ONE = """
INSERT INTO outrider.outbox (recipient, body, service, intent, sender, idempotency_key, order_key, send_at, expires_at)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)
RETURNING id
"""
MANY = """
INSERT INTO outrider.outbox (recipient, body, service, intent, sender, idempotency_key, order_key, send_at, expires_at)
SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[],
                     $8::timestamptz[], $9::timestamptz[])
RETURNING id
"""


class _ChangedItsMind(Exception):
    """The application's transaction fails after its INSERT."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Committed:
    """A row of a transaction that committed, and when (seconds since the epoch, our clock)."""

    row: Row
    at: float


@dataclass(slots=True)
class Application:
    """Inserts a scenario. Afterwards its own books say what was committed."""

    dsn: str
    scenario: Scenario
    committed: list[Committed] = field(default_factory=list)
    rolled_back: list[Row] = field(default_factory=list)
    finished: bool = False

    async def run(self) -> None:
        """Insert everything at its time, singles beside batches, as the requests of an application would."""
        await self._prepare()
        begun = asyncio.get_running_loop().time()
        lanes = {way: [batch for batch in self.scenario.batches if batch.way is way] for way in Way}
        async with asyncio.TaskGroup() as group:
            for batches in lanes.values():
                group.create_task(self._insert_all(batches, begun))
        self.finished = True

    async def _prepare(self) -> None:
        connection = await connect(self.dsn)
        try:
            await connection.execute("CREATE TABLE purchase (at timestamptz DEFAULT now(), buyer text NOT NULL)")
            for recipient in self.scenario.opted_out:
                await connection.execute("SELECT outrider.opt_out($1, '', 'said stop last year')", recipient)
        finally:
            await connection.close()

    async def _insert_all(self, batches: list[Batch], begun: float) -> None:
        loop = asyncio.get_running_loop()
        connection = await connect(self.dsn)
        try:
            for batch in batches:
                await asyncio.sleep(max(0.0, begun + batch.at_s - loop.time()))
                await self._insert(connection, batch)
        finally:
            connection.terminate()

    async def _insert(self, connection: asyncpg.Connection[asyncpg.Record], batch: Batch) -> None:
        """One transaction. Its rows count from the moment the commit has returned."""
        ids: list[asyncpg.Record] = []
        with suppress(_ChangedItsMind):
            async with connection.transaction():
                await connection.execute(
                    "INSERT INTO purchase (buyer) SELECT * FROM unnest($1::text[])",
                    [row.recipient for row in batch.rows],
                )
                ids = await _put(connection, batch)
                if batch.rolled_back:
                    raise _ChangedItsMind
        if batch.rolled_back:
            self.rolled_back += batch.rows
            return
        now = time.time()
        self.committed += [Committed(row=row, at=now) for row in batch.rows]
        for row, made in zip(batch.rows, ids, strict=False):  # COPY returns no ids, and has no rows to cancel
            if row.kind is Kind.CANCELED:
                await connection.execute("SELECT outrider.cancel($1)", made["id"])


async def _put(connection: asyncpg.Connection[asyncpg.Record], batch: Batch) -> list[asyncpg.Record]:
    values = [_values(row) for row in batch.rows]
    match batch.way:
        case Way.SINGLE:
            return [record for value in values for record in await connection.fetch(ONE, *value)]
        case Way.MANY:
            return await connection.fetch(MANY, *map(list, zip(*values, strict=True)))
        case Way.COPY:
            await connection.copy_records_to_table("outbox", schema_name="outrider", columns=COLUMNS, records=values)
            return []


def _values(row: Row) -> tuple[object, ...]:
    return (
        row.recipient,
        row.body,
        row.service,
        row.intent,
        row.sender,
        row.key,
        row.order_key,
        _in(row.send_in_s),
        _in(row.expires_in_s),
    )


def _in(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.now(UTC) + timedelta(seconds=seconds)
