"""Rates, counted by the simulator's ledger: never too fast in any sliding second, and hardly ever too slow."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from daemon.simulator import Faults
from tests.road.stage import Cast

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.road.stage import Stage

    SetUp = Callable[..., Awaitable[Stage]]

SILENT = Faults.model_validate({"receipts": {"enabled": False}})
RATES = {"+15550100001": 1.0, "+15550100002": 3.0, "+15550100003": 10.0, "72345": 100.0}
CAST = Cast(senders=RATES, services={f"at{rate:.0f}": [address] for address, rate in RATES.items()})
BOTH = pytest.mark.parametrize("client", ["wire", "aiohttp"])


async def fill(road: Stage, *, seconds: float) -> None:
    """Queue work of 1 to 6 segments for every sender, for a little longer than *seconds*."""
    for rate in RATES.values():
        await road.connection.execute(
            "INSERT INTO outrider.outbox (recipient, service, body, intent) SELECT '+1202' || (5550000 + n % 10000),"
            " $1, repeat('segment of a hundred and fifty characters or so ', 1 + 3 * (n % 6)), 'marketing'"
            " FROM generate_series(1, $2::integer) AS n",
            f"at{rate:.0f}",
            int(rate * seconds / 3.5) + 8,
        )


async def keep_on(road: Stage, *, seconds: float) -> dict[float, tuple[int, float]]:
    """Send for *seconds*; by rate, the most segments in any second and the share of the limit used."""
    await fill(road, seconds=seconds * 1.3)
    await road.start()
    await asyncio.sleep(seconds)
    await road.kill()
    ledger = road.simulator.ledger
    return {rate: (ledger.max_in_window(address, rate), ledger.used(address, rate)) for address, rate in RATES.items()}


@BOTH
async def test_no_sliding_second_holds_more_than_the_rate(stage: SetUp, client: str) -> None:
    road = await stage(replace(CAST, client=client), SILENT)
    for rate, (most, _) in (await keep_on(road, seconds=8)).items():
        assert most <= rate


@pytest.mark.long
@pytest.mark.timeout(300)
@BOTH
async def test_rates_for_a_minute(stage: SetUp, client: str) -> None:
    road = await stage(replace(CAST, client=client), SILENT)
    for rate, (most, used) in (await keep_on(road, seconds=75)).items():
        print(f"rate {rate:5.0f}/s: most in any second {most}, used {used:.2%}")
        assert most <= rate
        assert used >= 0.97


@pytest.mark.timeout(120)
async def test_a_long_message_is_paid_for_across_a_kill(stage: SetUp) -> None:
    road = await stage(Cast(senders={"+15550100001": 1}, services={"slow": ["+15550100001"]}), SILENT)
    await road.start()
    await road.insert(1, service="slow", intent="delivery", body="x" * 1520)  # 10 segments
    while not road.simulator.ledger.accepted:
        await asyncio.sleep(0.02)
    await road.kill()
    await road.insert(1, service="slow", intent="otp", body="short")
    await road.start()
    deadline = time.monotonic() + 30
    while road.simulator.ledger.accepted < 2 and time.monotonic() < deadline:
        await asyncio.sleep(0.02)
    first, second = road.simulator.ledger.entries
    assert first.segments == 10
    print(f"the next left {second.mono - first.mono:.3f} s after a message of 10 segments at 1/s")
    assert second.mono - first.mono >= 10.0
    assert second.mono - first.mono < 12.0
