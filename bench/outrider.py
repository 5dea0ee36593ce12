"""
Outrider as shipped: its daemons in processes of their own, a private Postgres with fsync on, the sink as provider.

Pacing, breaker, permission, dispatch log, fenced verdicts and metrics are all on; the senders may speak ten times as
fast as they can be asked to, so that the daemon is the limit and not the law. A drain finds its rows inserted; it is
timed from the first acceptance to the last, and what it costs is counted from the moment its leases are held until
the queue is empty.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import socket
import sys
import tempfile
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import aiohttp
import orjson

from bench.load import (
    PATIENCE_S,
    ROOT,
    BenchError,
    cpu_s,
    cpu_with_children_s,
    database,
    memory_mb,
    percentiles,
    postmaster_pid,
    said,
)
from bench.messages import AREAS, MESSAGES_MAX, RECIPIENT_SQL, TEXT_SQL, TOKEN, recipient
from bench.shape import SERVICES, Shape
from daemon import embedded, migrate
from daemon.database import connect

if TYPE_CHECKING:
    from asyncio.subprocess import Process
    from collections.abc import AsyncIterator, Sequence

    from asyncpg import Connection, Record

    from bench.load import Sink

TELLERS = 64  # connections of the provider that tells receipts
INSERT_ROWS = 1000  # in one statement, as a busy application writes
SETTINGS = {"max_wal_size": "4GB", "checkpoint_timeout": "30min"}  # no checkpoint in the middle of a measurement

AROUND_S = 3.0  # before and after it: signing them takes a second
INSERT_EVERY_S = 0.01  # under load
BURST, BURST_S = 5_000, 4.0  # receipts a second, and for how long: a provider after an outage of its own

INSERT = f"""
    INSERT INTO outrider.outbox (recipient, service, intent, body)
    SELECT {RECIPIENT_SQL}, ($4::text[])[k], ($5::text[])[k], {TEXT_SQL}
      FROM (SELECT n, CASE WHEN $6 THEN 1 + n % 4 WHEN n % 10 = 0 THEN 1 ELSE 2 + n % 3 END AS k
              FROM generate_series($1::int, $2::int) AS n) AS one
"""  # noqa: S608 (our own constants)
# Each service is a group of its own.
SHARED = """
    SELECT count(*) = $1 AND bool_and(held >= $2)
      FROM (SELECT count(*) AS held FROM outrider.lease WHERE until > now() GROUP BY owner) AS one
"""
INSERT_ONE = (
    "INSERT INTO outrider.outbox (recipient, service, intent, body)"
    " VALUES ($1, 'logins', 'otp', 'Your code is 123456.')"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Drain:
    """One drain. CPU seconds per 1,000 messages; bytes of WAL per message."""

    messages: int
    rate: float
    cpu: float
    distinct: int
    settled: int  # rows that stand as accepted
    emptied_s: float  # from the first acceptance until nothing was left in the queue
    cpu_postgres: float
    cpu_insert: float  # of Postgres, for the application's INSERT
    wal_insert: float
    wal: float
    memory_mb: float  # the most a daemon had


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """
    Receipts, each committed before its answer. CPU seconds per 1,000 of them, bytes of WAL for each, and milliseconds
    to the answer.
    """

    receipts: int
    rate: float  # a second
    cpu: float
    cpu_postgres: float
    wal: float
    latency_ms: dict[str, float]
    delivered: int  # messages that stand as delivered


@dataclass(frozen=True, slots=True, kw_only=True)
class Pressed:
    """Milliseconds from commit to provider while so many a second are inserted, one in ten of them a login code."""

    per_second: float
    codes_ms: dict[str, float]
    bulk_ms: dict[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Burst:
    """Receipts that come in a burst while messages leave. *kept*: of what was inserted meanwhile, how much was sent."""

    receipts: int
    per_second: float  # receipts told
    latency_ms: dict[str, float]  # to their answers
    kept: float
    pressed: Pressed


@dataclass(frozen=True, slots=True, kw_only=True)
class Life:
    """Whole lives: a message sent, and two receipts of it committed."""

    messages: int
    rate: float  # whole lives a second, from the first acceptance to the last answer
    delivered: int


@asynccontextmanager
async def postgres() -> AsyncIterator[embedded.Server]:
    """A private Postgres, durable, for the whole of the bench."""
    home = Path(tempfile.mkdtemp(prefix="outrider-bench-"))
    os.chmod(home, 0o711)  # noqa: PTH101, S103 (nothing here waits: where we are root, Postgres is somebody else)
    try:
        async with await asyncio.to_thread(embedded.start, home / "postgres", settings=SETTINGS) as server:
            yield server
    finally:
        await asyncio.to_thread(shutil.rmtree, home, ignore_errors=True)


class Outrider:
    """One installation: a database, a folder, its daemons."""

    def __init__(self, folder: Path, dsn: str, postmaster: int, connection: Connection[Record], shape: Shape) -> None:
        self.connection = connection
        self._shape = shape
        self._operator = 0  # port of the last daemon's pages
        self._folder = folder
        self._dsn = dsn
        self._postmaster = postmaster
        self._daemons: list[Process] = []

    @classmethod
    @asynccontextmanager
    async def installed(cls, server: embedded.Server, name: str, shape: Shape = Shape()) -> AsyncIterator[Outrider]:
        """A fresh database *name*, migrated; all of it is removed again."""
        with tempfile.TemporaryDirectory(prefix="outrider-bench-") as folder:
            async with database(server, name) as dsn:
                connection = await connect(dsn)
                await migrate.migrate(connection, report=lambda _: None)
                one = cls(Path(folder), dsn, postmaster_pid(server), connection, shape)
                try:
                    yield one
                finally:
                    await one._stop()
                    await connection.close()

    async def drain(
        self, sink: Sink, messages: int, in_flight: int, *, evenly: bool = False, warm: bool = False
    ) -> Drain:
        """
        Insert *messages*, start the daemons, wait until all are settled. *evenly*: as many for each service. *warm*:
        the daemons run and have shared the services among them before the messages are committed, all at once.
        """
        await sink.forget()
        if warm:
            await self._start(sink, in_flight)
        empty, (_, idle) = await self._wal(), self._spent()
        async with self.connection.transaction():
            for first in range(0, messages, INSERT_ROWS):
                await self._insert(first, min(first + INSERT_ROWS, messages) - 1, evenly=evenly)
        full, (_, filled) = await self._wal(), self._spent()
        if not warm:
            await self.connection.execute("VACUUM ANALYZE")
            await self._start(sink, in_flight)
        ready, (cpu, cpu_postgres) = await self._wal(), self._spent()
        began = await self._until("SELECT EXISTS (SELECT FROM outrider.outcome)")
        # The sink is asked first: a look for an empty queue walks over all rows that are gone.
        while await sink.accepted() < messages and time.monotonic() < began + PATIENCE_S:  # noqa: ASYNC110
            await asyncio.sleep(0.1)
        emptied = await self._until("SELECT NOT EXISTS (SELECT FROM outrider.queue)")
        spent, spent_postgres = self._spent()
        settled = await self.connection.fetchval("SELECT count(*) FROM outrider.outcome WHERE status = 'accepted'")
        return Drain(
            messages=await sink.accepted(),
            rate=await sink.rate(),
            cpu=(spent - cpu) / messages * 1000,
            distinct=len({to for _, to in await sink.arrivals()}),
            settled=settled,
            emptied_s=emptied - began,
            cpu_postgres=(spent_postgres - cpu_postgres) / messages * 1000,
            cpu_insert=(filled - idle) / messages * 1000,
            wal_insert=(full - empty) / messages,
            wal=(await self._wal() - ready) / messages,
            memory_mb=max(memory_mb(one.pid) for one in self._daemons),
        )

    async def told(self, sink: Sink, callbacks: Sequence[str]) -> Told:
        """After a drain: two receipts for each of its messages, at their *callbacks*."""
        ready, (cpu, cpu_postgres) = await self._wal(), self._spent()
        found = await said("receipts", sink, len(callbacks), TELLERS, given=orjson.dumps(callbacks))
        spent, spent_postgres = self._spent()
        return Told(
            receipts=found["receipts"],
            rate=found["receipts"] / (found["last"] - found["first"]),
            cpu=(spent - cpu) / found["receipts"] * 1000,
            cpu_postgres=(spent_postgres - cpu_postgres) / found["receipts"] * 1000,
            wal=(await self._wal() - ready) / found["receipts"],
            latency_ms=found["latency_ms"],
            delivered=await self._delivered(),
        )

    async def life(self, sink: Sink, messages: int, in_flight: int) -> Life:
        """Whole lives: *messages* inserted, then sent while their receipts come."""
        await sink.forget()
        await self._insert(0, messages - 1)
        await self.connection.execute("VACUUM ANALYZE")
        telling = asyncio.create_task(said("receipts", sink, messages, TELLERS))
        await self._start(sink, in_flight)
        found = await telling
        (first, _), *_ = await sink.arrivals()
        return Life(messages=messages, rate=messages / (found["last"] - first), delivered=await self._delivered())

    async def latency(self, sink: Sink, *, seconds: float, per_second: float) -> list[float]:
        """
        Seconds from commit to provider of login codes, inserted one by one at a steady rate.

        The commit is the moment in which the application hears of it, so what is quick may come out as nought.
        """
        committed: dict[str, float] = {}
        await sink.forget()
        start = time.monotonic()
        for number in range(int(seconds * per_second)):
            await asyncio.sleep(max(0.0, start + number / per_second - time.monotonic()))
            to = recipient(number)
            await self.connection.execute(INSERT_ONE, to)
            committed[to] = time.monotonic()
        await self._until("SELECT NOT EXISTS (SELECT FROM outrider.queue)")
        return [max(0.0, at - committed[to]) for at, to in await sink.arrivals()]

    async def pressed(self, sink: Sink, *, seconds: float, per_second: float) -> Pressed:
        """The same under load: codes and bulk together, in small statements, as many as make up *per_second*."""
        committed: dict[str, float] = {}
        codes = set()
        await sink.forget()
        start, first = time.monotonic(), 0
        many = max(1, round(per_second * INSERT_EVERY_S))
        for number in range(int(seconds / INSERT_EVERY_S)):
            await asyncio.sleep(max(0.0, start + number * INSERT_EVERY_S - time.monotonic()))
            await self._insert(first, first + many - 1)
            now = time.monotonic()
            for one in range(first, first + many):
                committed[recipient(one)] = now
                if one % 10 == 0:  # as INSERT has it
                    codes.add(recipient(one))
            first += many
        took_s = time.monotonic() - start
        await self._until("SELECT NOT EXISTS (SELECT FROM outrider.queue)")
        delays = [(to, max(0.0, at - committed[to])) for at, to in await sink.arrivals()]
        return Pressed(
            per_second=first / took_s,
            codes_ms=percentiles([delay for to, delay in delays if to in codes]),
            bulk_ms=percentiles([delay for to, delay in delays if to not in codes]),
        )

    async def burst(self, sink: Sink, *, per_second: float) -> Burst:
        """The same, and receipts of what was sent last, two for each message and BURST a second, in the midst of it."""
        callbacks = (await sink.callbacks())[: round(BURST * BURST_S) // 2]
        seconds = min(AROUND_S + 2 * len(callbacks) / BURST, MESSAGES_MAX / per_second)
        pressing = asyncio.create_task(self.pressed(sink, seconds=seconds, per_second=per_second))
        found = await said("receipts", sink, len(callbacks), TELLERS, BURST, given=orjson.dumps(callbacks))
        pressed = await pressing
        first, last = found["first"], found["last"]
        sent = sum(first <= at < last for at, _ in await sink.arrivals())
        return Burst(
            receipts=found["receipts"],
            per_second=found["receipts"] / (last - first),
            latency_ms=found["latency_ms"],
            kept=sent / (last - first) / pressed.per_second,
            pressed=pressed,
        )

    async def lag_ms(self) -> float:
        """How late the daemon's event loop wakes, at the 99th percentile: the bound of its bucket."""
        async with aiohttp.ClientSession() as web, web.get(f"http://127.0.0.1:{self._operator}/metrics") as reply:
            found = re.findall(
                r'^outrider_loop_lag_seconds_bucket\{le="(\S+)"\} (\S+)', await reply.text(), re.MULTILINE
            )
        buckets = [(float(bound), float(many)) for bound, many in found]
        return next(1000 * bound for bound, many in buckets if many >= 0.99 * buckets[-1][1])

    async def _insert(self, first: int, last: int, *, evenly: bool = False) -> None:
        """Of the messages that everybody has, those from *first* to *last*."""
        names, intents = list(SERVICES), list(SERVICES.values())
        await self.connection.execute(INSERT, first, last, list(AREAS), names, intents, evenly)

    async def _delivered(self) -> int:
        return int(await self.connection.fetchval("SELECT count(*) FROM outrider.outcome WHERE status = 'delivered'"))

    async def _start(self, sink: Sink, in_flight: int) -> None:
        """Start the daemons and wait until each holds its share of the leases."""
        many = self._shape.daemons
        for _ in range(many):
            folder = Path(tempfile.mkdtemp(dir=self._folder))
            await self._start_one(folder, sink, in_flight // many)
        await self._until(SHARED, many, len(SERVICES) // many)

    async def _start_one(self, folder: Path, sink: Sink, in_flight: int) -> None:
        public, self._operator = _free_ports()
        ports = f"[web.public]\nport = {public}\n[web.operator]\nport = {self._operator}\n"
        config = folder / "config.toml"
        config.write_text(ports + self._shape.config(self._dsn, sink.url, in_flight), encoding="utf-8")
        environment = {**os.environ, "SINK_TOKEN": TOKEN}
        if self._shape.trusts:
            environment["SSL_CERT_FILE"] = str(self._shape.trusts)
        with (folder / "daemon.log").open("wb") as log:
            self._daemons.append(
                await asyncio.create_subprocess_exec(
                    sys.executable, "-m", "daemon", "run", "--config", str(config), cwd=ROOT,
                    stdout=log, stderr=log, env=environment,
                )
            )  # fmt: skip

    async def _until(self, query: str, *arguments: object) -> float:
        """Wait until *query* answers true; when it did."""
        deadline = time.monotonic() + PATIENCE_S
        while not await self.connection.fetchval(query, *arguments):
            if time.monotonic() > deadline or any(one.returncode is not None for one in self._daemons):
                logs = self._folder.glob("*/daemon.log")
                ends = "\n".join(one.read_text(encoding="utf-8", errors="replace")[-2000:] for one in logs)
                raise BenchError(f"the daemon did not do its work; the end of its log:\n{ends}")
            await asyncio.sleep(0.02)
        return time.monotonic()

    async def _stop(self) -> None:
        for one in self._daemons:
            if one.returncode is None:
                one.send_signal(signal.SIGTERM)
        for one in self._daemons:
            try:
                async with asyncio.timeout(20):
                    await one.wait()
            except TimeoutError:
                one.kill()
                await one.wait()

    def _spent(self) -> tuple[float, float]:
        """CPU seconds so far: of the daemons, and of Postgres."""
        return sum(cpu_s(one.pid) for one in self._daemons), cpu_with_children_s(self._postmaster)

    async def _wal(self) -> int:
        return int(await self.connection.fetchval("SELECT pg_current_wal_insert_lsn() - '0/0'::pg_lsn"))


def _free_ports() -> tuple[int, int]:
    with socket.socket() as one, socket.socket() as other:
        one.bind(("127.0.0.1", 0))
        other.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1]), int(other.getsockname()[1])
