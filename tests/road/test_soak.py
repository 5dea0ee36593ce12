"""
A day in a quarter of an hour: what only time shows. Memory, descriptors and tasks that never come back, tables that
swell, claims that slow down.

The traffic of 24 hours runs a hundred times too fast, and every ten minutes of that day something goes wrong. The daemon
is a process of its own, and it alone is measured: the provider and the application live in ours. ``OUTRIDER_SOAK`` gives
the day another length (seconds), ``OUTRIDER_SOAK_RATE`` another mean rate (messages a second).

Its clocks are not compressed: breakers and retries take the time they always take, so a fault of four minutes weighs on
this day as one of hours does on a real one. Only autovacuum looks oftener: what a campaign leaves dead is held against
what lives, and of that there is a hundredth of a real day's.
"""

from __future__ import annotations

import asyncio
import gc
import math
import os
import re
import shutil
import tempfile
import time
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from statistics import fmean, linear_regression
from typing import TYPE_CHECKING

import asyncpg
import orjson
import pytest

from daemon.core.token import unseal
from daemon.migrate import migrate
from daemon.simulator import Faults
from tests.road.stage import Cast, Stage
from tests.road.test_postgres import Ground

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

DAY_S = float(os.environ.get("OUTRIDER_SOAK", "840"))
RATE = float(os.environ.get("OUTRIDER_SOAK_RATE", "800"))
HOUR_S = DAY_S / 24
SAMPLES = 480  # of the day
NAP_S = 15  # of autovacuum
REST_S = 25.0  # after so long without traffic both sides have closed what they keep open for the next

# Share of the busiest hour's traffic, by hour: night, morning, lunch, evening. 8 and 20 o'clock are alike, campaign and
# troubles included: between them the day is compared with itself.
HOURS = (1, 1, 1, 1, 1, 2, 4, 6, 8, 8, 7, 7, 10, 10, 7, 6, 6, 8, 10, 10, 8, 8, 4, 1)
MORNING, EVENING = (8, 10), (20, 22)
NOON = 12  # by then hands have been as full as they get: who has carried a message is kept, as many as ever were out
SERVICES = {"otp": ("otp", 0.3), "notifications": ("notifications", 0.4), "marketing": ("marketing", 0.3)}
CAMPAIGNS = (8, 12, 16, 20)  # when marketing comes: all at once
CHUNK = 2_000  # rows of a campaign in one statement
POSTGRES_RESTARTS = (11.0, 17.0)
RELOAD_EVERY = 3.0  # hours

SENDERS = {
    name: [f"+1555010{(1 + number) * 100 + k:04}" for k in range(many)]
    for number, (name, many) in enumerate({"otp": 6, "notifications": 8, "marketing": 8}.items())
}
CAST = Cast(
    senders={sender: max(10.0, RATE / 2) for senders in SENDERS.values() for sender in senders},
    services=SENDERS,
    connections=96,
    timeout_s=3.0,
    intents={
        "notifications": {"on_ambiguous": "resend", "resolve_for": "20s"},
        "marketing": {"on_ambiguous": "drop", "resolve_for": "20s"},
    },
)

# One every ten minutes (but not sooner than six seconds: a breaker rests for five), each for four of them.
CALM: Mapping[str, object] = {"latency": {"kind": "lognormal", "median_ms": 20, "p99_ms": 100}}
RECEIPTS: Mapping[str, object] = {
    "sent": {"kind": "fixed", "ms": 50},
    "final": {"kind": "lognormal", "median_ms": 200, "p99_ms": 2000},
}
# Few are left in doubt without a receipt: a daemon asks its providers ten questions a second, two or three for each doubt.
TROUBLES: tuple[tuple[str, Mapping[str, object], Mapping[str, object]], ...] = (
    ("slow", {"latency": {"kind": "lognormal", "median_ms": 200, "p99_ms": 1500}}, {}),
    ("too fast", {"errors": {"20429": 0.1}}, {}),
    ("500", {"errors": {"20500": 0.01}}, {}),
    ("refusing", {"outage": {"kind": "refuse", "for_s": 0.1}}, {}),  # longer, and all who catch up are in doubt
    ("missing receipts", {}, {"missing": 0.5}),
    ("resets", {"errors": {"reset_before_answer": 0.005, "reset_after_accept": 0.01}}, {}),
    ("bad numbers", {"errors": {"21211": 0.05}}, {"undelivered": {"30003": 0.1}, "failed": {"30007": 0.05}}),
    ("hanging", {"errors": {"timeout_after_accept": 0.005, "timeout_before_accept": 0.002}}, {}),
    ("nobody there", {"outage": {"kind": "closed"}}, {}),
    ("late receipts", {}, {"late": 0.5, "late_by": {"kind": "fixed", "ms": 3000}}),
    ("nonsense", {"errors": dict.fromkeys(("garbage", "truncated", "empty_201", "html_502_after_accept"), 0.005)}, {}),
    ("receipts twice, the last one first", {}, {"duplicates": 1.0, "reversed": 0.5}),
)
SLOT_H = max(1 / 6, 6.0 / HOUR_S)
TROUBLE_H = 0.4 * SLOT_H


def faults(trouble: int | None) -> Faults:
    """What goes wrong in the slot of that number; None: nothing."""
    _, errors, receipts = ("", {}, {}) if trouble is None else TROUBLES[trouble % len(TROUBLES)]
    return Faults.model_validate({**CALM, **errors, "receipts": {**RECEIPTS, **receipts}})


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """The daemon and its tables at one moment."""

    hour: float
    sent: int
    rss_mb: float
    own_mb: float  # of it, what is no file
    fds: int
    tasks: int
    claims: Mapping[float, float]  # upper bound in seconds -> claims so far
    lags: Mapping[float, float]
    queue: int  # live rows
    queue_dead: int
    queue_mb: float
    live: int  # of all tables
    dead: int


TABLES = """
SELECT coalesce(sum(n_live_tup), 0)::bigint AS live, coalesce(sum(n_dead_tup), 0)::bigint AS dead,
       coalesce(sum(n_live_tup) FILTER (WHERE relname = 'queue'), 0)::bigint AS queue,
       coalesce(sum(n_dead_tup) FILTER (WHERE relname = 'queue'), 0)::bigint AS queue_dead,
       pg_total_relation_size('outrider.queue') / 2 ^ 20 AS queue_mb
  FROM pg_stat_user_tables WHERE schemaname = 'outrider'
"""


class Day:
    """The application, the troubles and the scale, on one stage."""

    def __init__(self, ground: Ground, road: Stage) -> None:
        self.ground = ground
        self.road = road
        self.samples: list[Sample] = []
        self.asked = 0
        self._began = 0.0
        self._database = asyncio.Lock()  # held while Postgres restarts: an application would have to try again

    @property
    def hour(self) -> float:
        return (time.monotonic() - self._began) / HOUR_S

    async def insert(self, service: str, many: int) -> None:
        async with self._database:
            # Each text is there once: of two alike in doubt nobody could tell which one a provider knows.
            await self.road.insert(many, service=service, intent=SERVICES[service][0], body=f"No. {self.asked}")
        self.asked += many

    async def evening_before(self) -> None:
        """
        A busy hour that ends in a kill -9: the day begins with what that left. Then a campaign and a slow provider, for
        hands as full as they will be: what is taken up once and kept is not what a day may add.
        """
        for _ in range(20):
            for service, (_, share) in SERVICES.items():
                await self.insert(service, max(1, int(RATE * HOUR_S * 2 * share / 20)))
            await asyncio.sleep(HOUR_S / 20)
        await self.road.kill()
        await self.road.start()
        self.road.simulator.faults = faults(0)
        for _ in range(4):
            await self.insert("marketing", CHUNK)
            await self.insert("notifications", CHUNK)
            await asyncio.sleep(2)
        self.road.simulator.faults = faults(None)

    async def pass_(self) -> None:
        """24 hours."""
        self._began = time.monotonic()
        async with asyncio.TaskGroup() as group:
            for duty in (self._trickle, self._campaigns, self._troubles, self._operator, self._weigh):
                group.create_task(duty())

    async def _until(self, hour: float) -> None:
        await asyncio.sleep(max(0.0, self._began + hour * HOUR_S - time.monotonic()))

    async def _trickle(self) -> None:
        sums = [0, *accumulate(HOURS)]
        done = {"otp": 0, "notifications": 0}
        while (hour := self.hour) < 24:
            share = (sums[int(hour)] + HOURS[int(hour)] * (hour % 1)) / sums[-1]
            for service, before in done.items():
                due = int(RATE * DAY_S * SERVICES[service][1] * share)
                if due > before:
                    await self.insert(service, due - before)
                    done[service] = due
            await asyncio.sleep(0.1)

    async def _campaigns(self) -> None:
        many = int(RATE * DAY_S * SERVICES["marketing"][1] / len(CAMPAIGNS))
        for hour in CAMPAIGNS:
            await self._until(hour)
            for first in range(0, many, CHUNK):
                await self.insert("marketing", min(CHUNK, many - first))
                await asyncio.sleep(0)

    async def _troubles(self) -> None:
        for slot in range(int(24 / SLOT_H)):
            await self._until(slot * SLOT_H)
            self.road.simulator.faults = faults(slot)
            await self._until(slot * SLOT_H + TROUBLE_H)
            self.road.simulator.faults = faults(None)

    async def _operator(self) -> None:
        deeds = [(hour, self._restart_postgres) for hour in POSTGRES_RESTARTS]
        deeds += [(hour * RELOAD_EVERY + 0.5, self._reload) for hour in range(int(24 / RELOAD_EVERY))]
        for hour, deed in sorted(deeds, key=lambda deed: deed[0]):
            await self._until(hour)
            await deed()

    async def _restart_postgres(self) -> None:
        async with self._database:
            await self.road.connection.close()
            await asyncio.to_thread(self.ground.stop)
            await asyncio.to_thread(self.ground.start)
            self.road.connection = await asyncpg.connect(self.ground.dsn)

    async def _reload(self) -> None:
        """A service comes or goes."""
        config = self.road.write_config()
        if int(self.hour / RELOAD_EVERY) % 2:
            config.write_text(f"{config.read_text()}[services.extra]\nsenders = ['{SENDERS['otp'][0]}']\n")
        await self.road.hang_up()

    async def _weigh(self) -> None:
        for number in range(SAMPLES):
            await self._until(24 * number / SAMPLES)
            gc.collect()  # of what is new: else the provider's million objects stop it, and a core, for seconds
            gc.freeze()
            self.samples.append(await self.sample())

    async def at_rest(self, *, within_s: float) -> Sample:
        """Once all is sent, told and put away: the daemon with nothing to do."""
        await self.road.quiet(within_s=within_s)
        while self.road.simulator.receipts["pending"]:
            await asyncio.sleep(0.1)
        await asyncio.sleep(REST_S)
        return await self.sample()

    async def sample(self) -> Sample:
        async with self._database:
            tables = await self.road.connection.fetchrow(TABLES)
        assert tables is not None
        _, text = await self.road.ask("/metrics")
        metrics, (rss_mb, own_mb, fds) = text.decode(), _process(self.road.pid)
        return Sample(
            hour=self.hour,
            sent=self.road.simulator.ledger.accepted,
            rss_mb=rss_mb,
            own_mb=own_mb,
            fds=fds,
            tasks=int(float(re.findall(r"^outrider_tasks (\S+)", metrics, re.MULTILINE)[0])),
            claims=_buckets(metrics, "claim"),
            lags=_buckets(metrics, "loop_lag"),
            **dict(tables),
        )


def _process(pid: int) -> tuple[float, float, int]:
    """Its memory in MB, that of it which is no file, and its descriptors."""
    status = Path(f"/proc/{pid}/status").read_text()
    resident, own = (int(re.findall(rf"{name}:\s+(\d+)", status)[0]) / 1024 for name in ("VmRSS", "RssAnon"))
    return resident, own, len(list(Path(f"/proc/{pid}/fd").iterdir()))


def _buckets(metrics: str, name: str) -> dict[float, float]:
    found = re.findall(rf'^outrider_{name}_seconds_bucket{{le="(\S+)"}} (\S+)', metrics, re.MULTILINE)
    return {float(bound): float(many) for bound, many in found}


def p99_ms(before: Mapping[float, float], after: Mapping[float, float]) -> float:
    """The 99th percentile of what came between two readings of a histogram, by straight lines within its buckets."""
    fresh = [(bound, many - before.get(bound, 0.0)) for bound, many in sorted(after.items())]
    wanted = 0.99 * fresh[-1][1]
    below, low = 0.0, 0.0
    for bound, many in fresh:
        if many >= wanted:
            if math.isinf(bound) or many == below:
                return 1000 * low
            return 1000 * (low + (bound - low) * (wanted - below) / (many - below))
        below, low = many, bound
    return 0.0


def between(samples: Sequence[Sample], hours: tuple[float, float]) -> list[Sample]:
    return [one for one in samples if hours[0] <= one.hour < hours[1]]


def slope_mb(samples: Sequence[Sample]) -> float:
    """MB of memory for each 100,000 messages from noon on, by least squares."""
    warm = between(samples, (NOON, 24))
    line = linear_regression([one.sent for one in warm], [one.rss_mb for one in warm])
    return line.slope * 100_000


def shown(samples: Sequence[Sample]) -> None:
    print("\n hour     sent   RSS (own) MB  fds tasks   queue (dead, MB)         dead/live  claim p99  lag p99")
    for first in range(0, 24, 2):
        here = between(samples, (first, first + 2))
        one, two = here[0], here[-1]
        print(
            f"{first:5} {two.sent:8,} {fmean(s.rss_mb for s in here):6.1f} ({fmean(s.own_mb for s in here):5.1f}) {two.fds:4} {two.tasks:5}"
            f" {max(s.queue for s in here):7,} ({max(s.queue_dead for s in here):7,}, {two.queue_mb:5.1f})"
            f" {max(s.dead / max(s.live, 1) for s in here):13.1%} {p99_ms(one.claims, two.claims):7.1f} ms"
            f" {p99_ms(one.lags, two.lags):5.1f} ms"
        )


# The provider's ledger against the tables. A copy is explained by a resend decided between it and the one before.
LOST = """
SELECT count(*) FROM outrider.message m
 WHERE NOT EXISTS (SELECT FROM sent s WHERE s.id = m.id)
   AND m.status NOT IN ('failed', 'expired', 'dead', 'suppressed', 'canceled')
"""
DOUBLED = """
SELECT count(*) AS doubled, count(*) FILTER (WHERE NOT EXISTS (
           SELECT FROM outrider.attempt a WHERE a.id = s.id AND a.kind = 'decision' AND a.outcome = 'resend'
                                            AND a.attempt >= s.before AND a.attempt < s.attempt)) AS unexplained
  FROM (SELECT id, attempt, lag(attempt) OVER (PARTITION BY id ORDER BY attempt) AS before FROM sent) AS s
 WHERE before IS NOT NULL
"""


async def judge(day: Day) -> None:
    """Nothing lost, nothing doubled without a reason."""
    connection = day.road.connection
    key = await connection.fetchval("SELECT token_key FROM outrider.home")

    def sent() -> Iterator[tuple[object, int]]:
        with (day.road.folder / "ledger.jsonl").open("rb") as ledger:
            for line in ledger:
                owner = unseal(key, orjson.loads(line)["token"])
                assert owner is not None, line
                yield owner[0], owner[1]

    await connection.execute("CREATE TEMP TABLE sent (id uuid, attempt integer)")
    await connection.copy_records_to_table("sent", records=sent())
    await connection.execute("CREATE INDEX ON sent (id); ANALYZE sent", timeout=120)
    asked = await connection.fetchval("SELECT count(*) FROM outrider.outbox", timeout=120)
    lost = await connection.fetchval(LOST, timeout=600)
    doubled = await connection.fetchrow(DOUBLED, timeout=600)
    assert doubled is not None
    print(f"{asked:,} asked, {lost} lost, {doubled['doubled']} doubled, {doubled['unexplained']} of them unexplained")
    assert asked == day.asked
    assert lost == doubled["unexplained"] == 0


@pytest.fixture(autouse=True)
def heap() -> Iterator[None]:
    """The provider keeps very many objects, in this process: :meth:`Day._weigh` puts them out of the collector's way."""
    usual = gc.get_threshold()
    gc.set_threshold(50_000, 50, 100)
    yield
    gc.set_threshold(*usual)
    gc.unfreeze()


@pytest.fixture
def home() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="outrider-soak-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def ground(home: Path) -> Iterator[Ground]:
    ground = Ground(home)
    yield ground
    ground.stop()


@pytest.mark.long
@pytest.mark.timeout(3_600)
async def test_a_day_leaves_nothing_behind(ground: Ground, tmp_path: Path) -> None:
    connection = await asyncpg.connect(ground.dsn)
    await migrate(connection, report=lambda _line: None)
    await connection.execute(f"ALTER SYSTEM SET autovacuum_naptime = '{NAP_S}s'")
    await connection.execute("SELECT pg_reload_conf()")
    await connection.close()
    async with Stage.set_up(CAST, tmp_path, ground.dsn, faults=faults(None), keep=200_000) as road:
        day = Day(ground, road)
        await road.start()
        await day.evening_before()
        before = await day.at_rest(within_s=300)
        await day.pass_()
        passed = time.monotonic()
        after = await day.at_rest(within_s=600)
        shown(day.samples)
        print(
            f"a day of {DAY_S:.0f} s, at rest {time.monotonic() - passed:.0f} s later; before it and after it:"
            f" RSS {before.rss_mb:.1f} and {after.rss_mb:.1f} MB, descriptors {before.fds} and {after.fds},"
            f" tasks {before.tasks} and {after.tasks}; {slope_mb(day.samples):.2f} MB for 100,000 messages after noon"
        )
        await judge(day)
        hold(day.samples, before, after)
        assert await road.stop() == 0
        log = road.log.read_text()
        assert "Traceback" not in log
        assert "stumbled" not in log


def hold(samples: Sequence[Sample], before: Sample, after: Sample) -> None:
    """The figures of the promise."""
    assert after.rss_mb - before.rss_mb < 20
    if after.sent - before.sent >= 300_000:  # of less, the steps in which memory is asked for are all one sees
        assert slope_mb(samples) < 1
    assert abs(after.fds - before.fds) <= 5
    assert abs(after.tasks - before.tasks) <= 5
    # The queue is empty when all is done, so its dead rows are held against the living of all tables together. A day of
    # minutes shows nothing of it.
    if DAY_S >= 600:
        assert max(one.dead / max(one.live, 1) for one in samples) < 0.2
    morning, evening = between(samples, MORNING), between(samples, EVENING)
    assert p99_ms(evening[0].claims, evening[-1].claims) <= 1.5 * p99_ms(morning[0].claims, morning[-1].claims)
