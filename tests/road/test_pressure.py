"""More than can be sent: what is of use goes first, nothing waits behind what is too late, and it ends by itself."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from statistics import quantiles
from typing import TYPE_CHECKING

import asyncpg
import orjson
import pytest

from daemon.core.token import unseal
from daemon.simulator import Faults
from tests.road.stage import Cast

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from uuid import UUID

    from tests.road.stage import Stage

    SetUp = Callable[..., Awaitable[Stage]]

SILENT = Faults.model_validate({"receipts": {"enabled": False}})
SLOW_SENDER = "+15550100001"
RATE, CODES = 40, 10  # a second: what a sender may, and codes of each service
VALIDITY_S = 5.0  # of a campaign's messages
OVERLOAD_S = 40.0
SPAN_S = 5.0  # in which what was sent is counted
OLDEST_S = (
    "SELECT coalesce(extract(epoch FROM clock_timestamp() - min(due_at)), 0)::float8 FROM outrider.queue"
    " WHERE due_at <= now()"
)


@pytest.mark.long
@pytest.mark.timeout(300)
async def test_a_hundred_thousand_too_late_do_not_hold_up_what_is_not(stage: SetUp) -> None:
    road = await stage(Cast(senders={SLOW_SENDER: 10}, services={"bulk": [SLOW_SENDER]}), SILENT)
    useless_at = time.time() + 30
    for _ in range(10):
        await road.connection.execute(
            "INSERT INTO outrider.outbox (recipient, service, intent, body, expires_at)"
            " SELECT '+1202' || (5550000 + n % 10000)::text, 'bulk', 'marketing', 'Hello', to_timestamp($1)"
            " FROM generate_series(1, 10000) AS n",
            useless_at,
        )
    assert time.time() < useless_at - 2, "inserting took too long: raise the validity"
    await road.insert(1_000, service="bulk", intent="marketing")
    await asyncio.sleep(useless_at + 0.5 - time.time())
    await road.start()
    began = time.monotonic()
    while not road.simulator.ledger.accepted:
        await asyncio.sleep(0.05)
    first = time.monotonic() - began
    await asyncio.sleep(20)
    rate = road.simulator.ledger.accepted / (time.monotonic() - began - first)
    ended = await road.connection.fetchval("SELECT count(*) FROM outrider.outcome WHERE status = 'expired'")
    print(
        f"behind 100,000 rows too late: the first left after {first:.1f} s, then {rate:.1f} of 10 a second; {ended} expired"
    )
    assert ended == 100_000
    assert first <= 30.0  # by the handful they took minutes
    assert rate >= 9.5


class Load:
    """Who inserts what, and when: login codes at their pace all the while, and a campaign that asks for too much."""

    def __init__(self, road: Stage) -> None:
        self._road = road
        self.codes: dict[str, dict[UUID, float]] = {"login": {}, "shared": {}}  # service -> code -> its commit
        self.asked = 0

    async def campaign(self, per_second: float, seconds: float) -> None:
        """*per_second* messages, each of use for VALIDITY_S."""
        began, count = time.monotonic(), 0
        async with asyncpg.create_pool(self._road.dsn, min_size=1, max_size=1) as database:
            while (passed := time.monotonic() - began) < seconds:
                more, count = int(passed * per_second) - count, int(passed * per_second)
                await database.execute(
                    "INSERT INTO outrider.outbox (recipient, service, intent, body, validity)"
                    " SELECT '+1202' || (5550000 + n % 10000)::text, 'bulk', 'marketing', 'Hello',"
                    " $2::float8 * interval '1 s' FROM generate_series(1, $1::integer) AS n",
                    more, VALIDITY_S,
                )  # fmt: skip
                await asyncio.sleep(0.05)
        self.asked += count

    async def login_codes(self, service: str, stop: asyncio.Event) -> None:
        """CODES a second, one by one."""
        began, count = time.monotonic(), 0
        async with asyncpg.create_pool(self._road.dsn, min_size=1, max_size=1) as database:
            while not stop.is_set():
                count += 1
                id = await database.fetchval(
                    "INSERT INTO outrider.outbox (recipient, service, intent, body)"
                    " VALUES ($1, $2, 'otp', 'Your code is 123456') RETURNING id",
                    f"+1202{5550000 + count}", service,
                )  # fmt: skip
                self.codes[service][id] = self._road.wall()
                await asyncio.sleep(max(began + count / CODES - time.monotonic(), 0.0))


def sent_in(road: Stage, sender: str, since: float, until: float) -> list[int]:
    """Messages of *sender* that the provider accepted, by spans of SPAN_S."""
    counts = [0] * int((until - since) / SPAN_S)
    for entry in road.simulator.ledger.entries:
        if entry.sender == sender and since <= entry.t < since + len(counts) * SPAN_S:
            counts[int((entry.t - since) / SPAN_S)] += 1
    return counts


def resident(pid: int) -> float:
    """What a process has in memory, in MB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise AssertionError(pid)


@pytest.mark.long
@pytest.mark.timeout(300)
async def test_five_times_too_much_is_sent_as_fast_as_ever_and_ends_by_itself(stage: SetUp) -> None:
    """A sender is asked for five times its rate, then for half; codes on it, and on one of their own, all the while."""
    cast = Cast(
        senders={"72345": RATE, "72346": RATE},
        services={"bulk": ["72345"], "shared": ["72345"], "login": ["72346"]},
    )
    road = await stage(cast, SILENT)
    await road.start()
    load, stop = Load(road), asyncio.Event()
    async with asyncio.TaskGroup() as group:
        for service in load.codes:
            group.create_task(load.login_codes(service, stop))
        await load.campaign(RATE / 2 - CODES, 5)  # it has found its pace
        began, before = road.wall(), resident(road.pid)
        await load.campaign(5 * RATE - CODES, OVERLOAD_S)
        ended, after = road.wall(), resident(road.pid)
        in_hand = orjson.loads((await road.ask("/healthz"))[1])["detail"]["in_hand"]
        backlog = await road.connection.fetchval("SELECT count(*) FROM outrider.queue")
        easy = group.create_task(load.campaign(RATE / 2 - CODES, 25))
        await road.until(f"SELECT ({OLDEST_S}) < 1.0")
        recovered = road.wall() - ended
        await easy
        stop.set()
    await road.until("SELECT NOT EXISTS (SELECT FROM outrider.queue)", within_s=60)

    spans = sent_in(road, "72345", began + SPAN_S, ended)
    key = await road.connection.fetchval("SELECT token_key FROM outrider.home")
    arrived = {
        owner[0]: one.t for one in road.simulator.ledger.entries if (owner := unseal(key, one.token)) is not None
    }
    useless = {
        row["id"]: row["useless_at"].timestamp()
        for row in await road.connection.fetch(
            "SELECT id, created_at + validity AS useless_at FROM outrider.outbox WHERE validity IS NOT NULL"
        )
    }
    late = sum(arrived[id] > useless_at + 0.5 for id, useless_at in useless.items() if id in arrived)
    waits = {
        service: quantiles([arrived[id] - moment for id, moment in codes.items() if moment > began], n=100)[98] * 1000
        for service, codes in load.codes.items()
    }
    expired = await road.connection.fetchval("SELECT count(*) FROM outrider.outcome WHERE status = 'expired'")
    print(
        f"asked {load.asked}, expired {expired}, backlog at the end {backlog}, sent by {SPAN_S:.0f} s {spans}, late {late};"
        f" codes p99 {waits} ms; recovered {recovered:.1f} s after; memory {before:.0f} to {after:.0f} MB, {in_hand} in hand"
    )
    assert min(spans) >= 0.9 * max(spans)
    assert max(spans) >= 0.9 * RATE * SPAN_S
    assert late == 0
    assert max(waits.values()) <= 250
    assert expired + len(arrived) == load.asked + sum(map(len, load.codes.values()))
    assert recovered < 2 * backlog / RATE
    assert in_hand <= cast.in_hand * 1.25
    assert after - before < 50
