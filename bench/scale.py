"""
The bench of growth: what a message costs as what waits, who sends and what is in flight grow.

Three rows of figures, each with one thing that grows:

- claims: milliseconds of the statement that takes 64 messages, with nothing, a tenth and all of ``--waiting`` in the
  queue, and past 200,000 dead rows that an open transaction keeps. Rolled back each time, so without its fsync.
- senders: a drain by 10, 1,000 and 10,000 senders that could send four times as fast together.
- in flight: a drain to a provider that answers after just so long that so many must be on their way for 8,000 a second;
  aiohttp's client with as many beside it. And one to a provider that takes 50 to 200 ms, as real ones do.
"""

from __future__ import annotations

import time
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING
from uuid import UUID

from rich.console import Console
from rich.table import Table

from bench import load, outrider
from bench.curves import Curve, Panel, drawn
from daemon import migrate
from daemon.database import HOT_SETTINGS, SETTINGS, connect, statement
from daemon.outbox import LONG_AGO

if TYPE_CHECKING:
    import argparse
    from collections.abc import AsyncIterator, Sequence
    from datetime import datetime

    from asyncpg import Connection, Record

    from daemon.embedded import Server

CLAIMS, ROOM = 300, 64  # claims timed, of so many messages each
DEAD = 200_000
SENDERS = (10, 1_000, 10_000)
FLIGHTS = (100, 1_000, 8_000)  # 10,000 connections are the most, and bulk has four fifths of them
PACE = 8_000  # messages a second that a provider's delay allows
SLOW, SLOW_MS = 2_000, (50, 200)  # in flight, and how long an answer takes
OWNER = UUID(int=7)

errors = Console(stderr=True, highlight=False)

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
DIE = f"""
WITH gone AS (
    DELETE FROM outrider.queue
     WHERE id IN (SELECT id FROM outrider.queue WHERE lane = 'news' ORDER BY due_at, seq LIMIT {DEAD})
    RETURNING due_at
)
SELECT max(due_at) FROM gone
"""  # noqa: S608 (our own constant)


@dataclass(frozen=True, slots=True, kw_only=True)
class Claims:
    """Milliseconds of a claim: of what is queued alone in its lane, and of the front of all that waits in another."""

    waiting: int
    dead: int
    alone_ms: dict[str, float]
    front_ms: dict[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Grown:
    """One drain. *raw* is the rate of aiohttp's client at the same, where it was asked."""

    size: int
    rate: float
    cpu: float
    cpu_postgres: float
    memory_mb: float
    lag_ms: float  # of the event loop, p99
    raw: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Growth:
    """All three, and the slow provider."""

    claims: Sequence[Claims]
    senders: Sequence[Grown]
    flights: Sequence[Grown]
    slow: Grown

    def tables(self) -> list[Table]:
        """For people."""
        claims = Table(title=f"Milliseconds of a claim of {ROOM}", title_justify="left")
        for name in ("waiting", "dead", "alone p50", "p99", "the front p50", "p99"):
            claims.add_column(name, justify="right")
        for one in self.claims:
            four = [one.alone_ms["p50"], one.alone_ms["p99"], one.front_ms["p50"], one.front_ms["p99"]]
            claims.add_row(f"{one.waiting:,}", f"{one.dead:,}", *(f"{value:.2f}" for value in four))
        return [
            claims,
            _table("By senders", "senders", self.senders),
            _table("By messages in flight", "in flight", self.flights),
            _table(f"To a provider that takes {SLOW_MS[0]} to {SLOW_MS[1]} ms", "in flight", [self.slow]),
        ]

    ok = True  # what is lost or sent twice ends it (BenchError)

    def document(self) -> dict[str, object]:
        """For machines."""
        return asdict(self)

    def drawn(self) -> str:
        """As a picture."""
        living = [one for one in self.claims if not one.dead]
        return drawn([
            Panel(f"ms of a claim of {ROOM}, p50", "messages waiting", [
                Curve("alone in its lane", [(one.waiting, one.alone_ms["p50"]) for one in living]),
                Curve("the front of all that waits", [(one.waiting, one.front_ms["p50"]) for one in living]),
            ]),
            Panel("CPU s for 1,000 messages", "senders", _costs(self.senders)),
            Panel("CPU s for 1,000 messages", "in flight", _costs(self.flights)),
        ])  # fmt: skip


def _costs(grown: Sequence[Grown]) -> list[Curve]:
    return [
        Curve("daemon", [(one.size, one.cpu) for one in grown]),
        Curve("its Postgres", [(one.size, one.cpu_postgres) for one in grown]),
    ]


def _table(title: str, name: str, grown: Sequence[Grown]) -> Table:
    table = Table(title=title, title_justify="left")
    for column in (name, "messages/s", "of aiohttp's", "CPU s per 1,000", "Postgres", "MB", "loop lag p99 ms"):
        table.add_column(column, justify="right")
    for one in grown:
        share = "" if one.raw is None else f"{one.rate / one.raw:.2f}"
        costs = f"{one.cpu:.3f}", f"{one.cpu_postgres:.3f}", f"{one.memory_mb:.0f}", f"{one.lag_ms:.1f}"
        table.add_row(f"{one.size:,}", f"{one.rate:,.0f}", share, *costs)
    return table


@asynccontextmanager
async def _filled(server: Server, name: str, waiting: int) -> AsyncIterator[Connection[Record]]:
    """A database with *waiting* messages in one lane, and some in another; a connection with the settings of claims."""
    admin = await connect(server.dsn("postgres"))
    await admin.execute(f"CREATE DATABASE {name}")
    connection = await connect(server.dsn(name))
    await migrate.migrate(connection, report=lambda _: None)
    for lane, many in (("news", waiting), ("parcels", 10 * ROOM)):
        if many:
            await connection.execute(FILL.format(lane=lane, many=many), timeout=load.PATIENCE_S)
    await connection.execute(LEASE, OWNER)
    await connection.execute("VACUUM ANALYZE", timeout=load.PATIENCE_S)
    await connection.close()
    hot = await connect(server.dsn(name), {**SETTINGS, **HOT_SETTINGS})
    try:
        yield hot
    finally:
        await hot.close()
        await admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
        await admin.close()


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
            holder = await connect(server.dsn(f"waiting_{waiting}"))
            transaction = holder.transaction(isolation="repeatable_read")
            await transaction.start()
            await holder.fetchval("SELECT count(*) FROM outrider.lease")
            mark = await connection.fetchval(DIE, timeout=load.PATIENCE_S)  # as a daemon keeps it
            alone, front = await _timed(connection, "parcels", LONG_AGO), await _timed(connection, "news", mark)
            found.append(Claims(waiting=waiting - DEAD, dead=DEAD, alone_ms=alone, front_ms=front))
            await holder.close()
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Drains:
    """Drains of as many messages, each on a database of its own."""

    server: Server
    messages: int

    async def one(
        self,
        size: int,
        *,
        senders: int = outrider.SENDERS,
        in_flight: int = 256,
        delay_ms: Sequence[float] = (),
        beside: bool = False,
    ) -> Grown:
        """One. *size* is what grows; *beside*: so does aiohttp's client. Raises BenchError when anything is amiss."""
        name = f"grown_{senders}_{in_flight}_{len(set(delay_ms))}"
        async with load.sink(*delay_ms) as sink:
            async with outrider.Outrider.installed(self.server, name, senders=senders) as ours:
                drain = await ours.drain(sink, self.messages, in_flight)
                lag_ms = await ours.lag_ms()
            found = (drain.messages, drain.distinct, drain.settled)
            if set(found) != {self.messages}:
                raise load.BenchError(f"of {self.messages:,} messages arrived, to as many people, and settled: {found}")
            raw = (await load.client("raw", sink, self.messages, in_flight)).rate if beside else None
        errors.print(f"  {senders:,} senders, {in_flight:,} in flight: {drain.rate:,.0f} /s", markup=False)
        return Grown(
            size=size, rate=drain.rate, cpu=drain.cpu, cpu_postgres=drain.cpu_postgres, memory_mb=drain.memory_mb,
            lag_ms=lag_ms, raw=raw,
        )  # fmt: skip


async def scale(arguments: argparse.Namespace) -> Growth:
    """All of it."""
    found: list[Claims] = []
    async with outrider.postgres() as server:
        for waiting in (0, arguments.waiting // 10, arguments.waiting):
            errors.print(f"  {waiting:,} waiting", markup=False)
            found += await claims(server, waiting)
        drains = Drains(server=server, messages=arguments.messages)
        return Growth(
            claims=found,
            senders=[await drains.one(many, senders=many) for many in SENDERS],
            flights=[
                await drains.one(many, in_flight=many, delay_ms=[1000 * many / PACE] * 2, beside=True)
                for many in FLIGHTS
            ],
            slow=await drains.one(SLOW, in_flight=SLOW, delay_ms=SLOW_MS, beside=True),
        )
