"""
What a claim costs while much waits: milliseconds of the statement that takes 64 messages, with nothing, a tenth and all
of a long queue waiting, and past 200,000 dead rows that an open transaction keeps.

Each is rolled back again, so its fsync is not in it.
"""

from __future__ import annotations

import time
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING
from uuid import UUID

from bench import load
from daemon import migrate
from daemon.database import HOT_SETTINGS, SETTINGS, connect, statement
from daemon.outbox import LONG_AGO

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from datetime import datetime

    from asyncpg import Connection, Record

    from daemon.embedded import Server

CLAIMS, ROOM = 300, 64  # claims timed, of so many messages each
DEAD = 200_000
AT_ONCE = 1_000_000  # rows inserted by one statement
OWNER = UUID(int=7)

# Straight into the tables: with its intake a row takes ten times as long.
FILL = """
SET session_replication_role = replica;
WITH asked AS (
    INSERT INTO outrider.outbox (recipient, body, service, intent)
    SELECT '+12025550100', 'Hello', '{lane}', 'marketing' FROM generate_series(1, {many}) RETURNING id, seq, created_at
)
INSERT INTO outrider.queue (id, seq, lane, level, due_at) SELECT id, seq, '{lane}', 3, created_at FROM asked;
SET session_replication_role = origin;
"""
LEASE = "INSERT INTO outrider.lease VALUES ('group', $1, 1, now() + interval '1 day')"
DIE = """
WITH gone AS (
    DELETE FROM outrider.queue
     WHERE id IN (SELECT id FROM outrider.queue WHERE lane = 'news' ORDER BY due_at, seq LIMIT $1)
    RETURNING due_at
)
SELECT max(due_at) FROM gone
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Claims:
    """Milliseconds of a claim: of what is queued alone in its lane, and of the front of all that waits in another."""

    waiting: int
    dead: int
    alone_ms: dict[str, float]
    front_ms: dict[str, float]


@asynccontextmanager
async def _filled(server: Server, name: str, waiting: int) -> AsyncIterator[Connection[Record]]:
    """A database with *waiting* messages in one lane, and some in another; a connection with the settings of claims."""
    async with load.database(server, name) as dsn:
        connection = await connect(dsn)
        await migrate.migrate(connection, report=lambda _: None)
        for lane, many in (("news", waiting), ("parcels", 10 * ROOM)):
            for first in range(0, many, AT_ONCE):
                some = min(AT_ONCE, many - first)
                await connection.execute(FILL.format(lane=lane, many=some), timeout=load.PATIENCE_S)
        await connection.execute(LEASE, OWNER)
        await connection.execute("VACUUM ANALYZE", timeout=load.PATIENCE_S)
        await connection.close()
        hot = await connect(dsn, {**SETTINGS, **HOT_SETTINGS})
        try:
            yield hot
        finally:
            await hot.close()


async def _timed(connection: Connection[Record], lane: str, mark: datetime) -> dict[str, float]:
    """Claims of *lane* from *mark* on, one after the other."""
    claim = await connection.prepare(statement("claim"))
    took = []
    for _ in range(CLAIMS):
        transaction = connection.transaction()
        await transaction.start()
        began = time.perf_counter()
        rows = await claim.fetch(OWNER, ["group"], [lane], [3], [ROOM], [mark], [], ["group"], [1])
        took.append(time.perf_counter() - began)
        await transaction.rollback()
        if len(rows) != ROOM:
            raise load.BenchError(f"a claim of {lane} took {len(rows)} of {ROOM} rows")
    return {f"p{share}": 1000 * sorted(took)[CLAIMS * share // 100] for share in (50, 99)}


async def claims(server: Server, waiting: int) -> list[Claims]:
    """With so many waiting; then, where there are more than that, past what has died."""
    async with _filled(server, f"waiting_{waiting}", waiting) as connection:
        alone = await _timed(connection, "parcels", LONG_AGO)
        front = await _timed(connection, "news", LONG_AGO) if waiting else alone
        found = [Claims(waiting=waiting, dead=0, alone_ms=alone, front_ms=front)]
        if waiting > 2 * DEAD:
            holder, other = [await connect(server.dsn(f"waiting_{waiting}")) for _ in range(2)]
            transaction = holder.transaction(isolation="repeatable_read")
            await transaction.start()
            await holder.fetchval("SELECT count(*) FROM outrider.lease")
            mark = await other.fetchval(DIE, DEAD, timeout=load.PATIENCE_S)  # as a daemon keeps it
            await other.close()
            alone, front = await _timed(connection, "parcels", LONG_AGO), await _timed(connection, "news", mark)
            found.append(Claims(waiting=waiting - DEAD, dead=DEAD, alone_ms=alone, front_ms=front))
            await holder.close()
    return found
