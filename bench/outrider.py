"""
Outrider as shipped: its daemon in a process of its own, a private Postgres with fsync on, the sink as provider.

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
    memory_mb,
    percentiles,
    postmaster_pid,
    said,
)
from bench.messages import ACCOUNT_SID, AREAS, RECIPIENT_SQL, TEXT_SQL, TOKEN, recipient, senders
from daemon import embedded, migrate
from daemon.database import connect

if TYPE_CHECKING:
    from asyncio.subprocess import Process
    from collections.abc import AsyncIterator, Sequence

    from asyncpg import Connection, Record

    from bench.load import Sink

# 40,000 segments a second: pacing is on, and is not the limit. At half of it a claim's burst waits for its senders, and
# the waits cost 13 %.
SENDERS, TOGETHER = 200, 40_000
SERVICES = {"logins": "otp", "parcels": "delivery", "news": "events", "offers": "marketing"}  # and their intents
# Of a provider's connections bulk may take 80 %: as many as the raw client has in flight.
BULK_SHARE = 0.8
TELLERS = 64  # connections of the provider that tells receipts
INSERT_ROWS = 1000  # in one statement, as a busy application writes
SETTINGS = {"max_wal_size": "4GB", "checkpoint_timeout": "30min"}  # no checkpoint in the middle of a measurement

INSERT_EVERY_S = 0.01  # under load

INSERT = f"""
    INSERT INTO outrider.outbox (recipient, service, intent, body)
    SELECT {RECIPIENT_SQL}, ($4::text[])[k], ($5::text[])[k], {TEXT_SQL}
      FROM (SELECT n, CASE WHEN n % 10 = 0 THEN 1 ELSE 2 + n % 3 END AS k
              FROM generate_series($1::int, $2::int) AS n) AS one
"""  # noqa: S608 (our own constants)
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
    wal_insert: float
    wal: float
    memory_mb: float  # the most the daemon had


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """Receipts, each committed before its answer. CPU seconds per 1,000 of them; milliseconds to the answer."""

    receipts: int
    rate: float  # a second
    cpu: float
    cpu_postgres: float
    latency_ms: dict[str, float]
    delivered: int  # messages that stand as delivered


@dataclass(frozen=True, slots=True, kw_only=True)
class Pressed:
    """Milliseconds from commit to provider while so many a second are inserted, one in ten of them a login code."""

    per_second: float
    codes_ms: dict[str, float]
    bulk_ms: dict[str, float]


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
    """One installation: a database, a folder, a daemon."""

    def __init__(
        self, folder: Path, dsn: str, postmaster: int, connection: Connection[Record], senders: int = SENDERS
    ) -> None:
        self.connection = connection
        self._senders = senders
        self._operator = 0  # port of the pages
        self._folder = folder
        self._dsn = dsn
        self._postmaster = postmaster
        self._process: Process | None = None

    @classmethod
    @asynccontextmanager
    async def installed(cls, server: embedded.Server, name: str, *, senders: int = SENDERS) -> AsyncIterator[Outrider]:
        """A fresh database *name*, migrated; all of it is removed again."""
        folder = Path(tempfile.mkdtemp(prefix="outrider-bench-"))
        admin = await connect(server.dsn("postgres"))
        await admin.execute(f"CREATE DATABASE {name}")
        connection = await connect(server.dsn(name))
        await migrate.migrate(connection, report=lambda _: None)
        one = cls(folder, server.dsn(name), postmaster_pid(server), connection, senders)
        try:
            yield one
        finally:
            await one._stop()
            await connection.close()
            await admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
            await admin.close()
            shutil.rmtree(folder, ignore_errors=True)

    async def drain(self, sink: Sink, messages: int, in_flight: int) -> Drain:
        """Insert *messages*, start the daemon, wait until all are settled."""
        await sink.forget()
        empty = await self._wal()
        await self._fill(messages)
        full = await self._wal()
        daemon = await self._start(sink, in_flight)
        cpu, cpu_postgres = cpu_s(daemon), cpu_with_children_s(self._postmaster)
        began = await self._until("SELECT EXISTS (SELECT FROM outrider.outcome)")
        # The sink is asked first: a look for an empty queue walks over all rows that are gone.
        while await sink.accepted() < messages and time.monotonic() < began + PATIENCE_S:  # noqa: ASYNC110
            await asyncio.sleep(0.1)
        emptied = await self._until("SELECT NOT EXISTS (SELECT FROM outrider.queue)")
        cpu, cpu_postgres = cpu_s(daemon) - cpu, cpu_with_children_s(self._postmaster) - cpu_postgres
        settled = await self.connection.fetchval("SELECT count(*) FROM outrider.outcome WHERE status = 'accepted'")
        return Drain(
            messages=await sink.accepted(),
            rate=await sink.rate(),
            cpu=cpu / messages * 1000,
            distinct=len({to for _, to in await sink.arrivals()}),
            settled=settled,
            emptied_s=emptied - began,
            cpu_postgres=cpu_postgres / messages * 1000,
            wal_insert=(full - empty) / messages,
            wal=(await self._wal() - full) / messages,
            memory_mb=memory_mb(daemon),
        )

    async def told(self, sink: Sink, callbacks: Sequence[str]) -> Told:
        """After a drain: two receipts for each of its messages, at their *callbacks*."""
        assert self._process is not None
        cpu, cpu_postgres = cpu_s(self._process.pid), cpu_with_children_s(self._postmaster)
        found = await said("receipts", sink, len(callbacks), TELLERS, given=orjson.dumps(callbacks))
        cpu, cpu_postgres = cpu_s(self._process.pid) - cpu, cpu_with_children_s(self._postmaster) - cpu_postgres
        return Told(
            receipts=found["receipts"],
            rate=found["receipts"] / (found["last"] - found["first"]),
            cpu=cpu / found["receipts"] * 1000,
            cpu_postgres=cpu_postgres / found["receipts"] * 1000,
            latency_ms=found["latency_ms"],
            delivered=await self._delivered(),
        )

    async def life(self, sink: Sink, messages: int, in_flight: int) -> Life:
        """Whole lives: *messages* inserted, then sent while their receipts come."""
        await sink.forget()
        await self._fill(messages)
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

    async def lag_ms(self) -> float:
        """How late the daemon's event loop wakes, at the 99th percentile: the bound of its bucket."""
        async with aiohttp.ClientSession() as web, web.get(f"http://127.0.0.1:{self._operator}/metrics") as reply:
            found = re.findall(
                r'^outrider_loop_lag_seconds_bucket\{le="(\S+)"\} (\S+)', await reply.text(), re.MULTILINE
            )
        buckets = [(float(bound), float(many)) for bound, many in found]
        return next(1000 * bound for bound, many in buckets if many >= 0.99 * buckets[-1][1])

    async def _fill(self, messages: int) -> None:
        for first in range(0, messages, INSERT_ROWS):
            await self._insert(first, min(first + INSERT_ROWS, messages) - 1)
        await self.connection.execute("VACUUM ANALYZE")

    async def _insert(self, first: int, last: int) -> None:
        await self.connection.execute(INSERT, first, last, list(AREAS), list(SERVICES), list(SERVICES.values()))

    async def _delivered(self) -> int:
        return int(await self.connection.fetchval("SELECT count(*) FROM outrider.outcome WHERE status = 'delivered'"))

    async def _start(self, sink: Sink, in_flight: int) -> int:
        """Start the daemon, wait until it holds its leases, and return its process id."""
        config = self._folder / "config.toml"
        public, self._operator = _free_ports()
        ports = f"[web.public]\nport = {public}\n[web.operator]\nport = {self._operator}\n"
        config.write_text(ports + _config(self._dsn, sink.url, in_flight, self._senders), encoding="utf-8")
        with (self._folder / "daemon.log").open("wb") as log:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "daemon", "run", "--config", str(config), cwd=ROOT,
                stdout=log, stderr=log, env={**os.environ, "SINK_TOKEN": TOKEN},
            )  # fmt: skip
        await self._until("SELECT count(*) >= 1 FROM outrider.lease WHERE until > now()")
        return self._process.pid

    async def _until(self, query: str) -> float:
        """Wait until *query* answers true; when it did."""
        deadline = time.monotonic() + PATIENCE_S
        while not await self.connection.fetchval(query):
            if time.monotonic() > deadline or self._process is None or self._process.returncode is not None:
                log = (self._folder / "daemon.log").read_text(encoding="utf-8", errors="replace")
                raise BenchError(f"the daemon did not do its work; the end of its log:\n{log[-2000:]}")
            await asyncio.sleep(0.02)
        return time.monotonic()

    async def _stop(self) -> None:
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                async with asyncio.timeout(20):
                    await self._process.wait()
            except TimeoutError:
                self._process.kill()
                await self._process.wait()

    async def _wal(self) -> int:
        return int(await self.connection.fetchval("SELECT pg_current_wal_insert_lsn() - '0/0'::pg_lsn"))


def _config(dsn: str, url: str, in_flight: int, many: int) -> str:
    ours = senders(many)
    lines = [
        f"[database]\nurl = '{dsn}'",
        "[daemon]\nstate = 'state'\nlog_format = 'json'",
        f"[providers.sink]\nkind = 'simulator'\nbase_url = '{url}'\naccount_sid = '{ACCOUNT_SID}'",
        f"auth_token_env = 'SINK_TOKEN'\nconnections = {round(in_flight / BULK_SHARE)}",
    ]
    for one in ours:
        lines.append(
            f"[[senders]]\naddress = '{one}'\nprovider = 'sink'\ntype = 'toll_free'\nrate = {TOGETHER // many}"
        )
        lines.append("country = 'US'")
    for number, name in enumerate(SERVICES):
        lines.append(f"[services.{name}]\nsenders = {ours[number :: len(SERVICES)]}")
    return "\n".join(lines) + "\n"


def _free_ports() -> tuple[int, int]:
    with socket.socket() as one, socket.socket() as other:
        one.bind(("127.0.0.1", 0))
        other.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1]), int(other.getsockname()[1])
