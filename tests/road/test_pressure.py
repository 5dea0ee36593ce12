"""More than can be sent: what is of use goes first, nothing waits behind what is too late, and it ends by itself."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import pytest

from daemon.simulator import Faults
from tests.road.stage import Cast

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.road.stage import Stage

    SetUp = Callable[..., Awaitable[Stage]]

SILENT = Faults.model_validate({"receipts": {"enabled": False}})
SLOW_SENDER = "+15550100001"


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
