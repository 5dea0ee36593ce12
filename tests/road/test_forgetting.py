"""Retention in the whole daemon: the text of a login code is gone seconds after it was delivered, and nothing else is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from daemon.simulator import Faults
from tests.road.stage import Cast

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.road.stage import Stage

    SetUp = Callable[..., Awaitable[Stage]]

CAST = Cast(senders={"72345": 200}, services={"otp": ["72345"]})
PROMPT = Faults.model_validate({"receipts": {"sent": {"kind": "fixed", "ms": 5}, "final": {"kind": "fixed", "ms": 20}}})


async def test_a_delivered_code_is_forgotten_and_the_rest_remembered(stage: SetUp) -> None:
    road = await stage(CAST, PROMPT)
    await road.start()
    await road.insert(20, service="otp", intent="otp")
    await road.insert(20, service="otp", intent="events")
    await road.until("SELECT count(*) = 40 FROM outrider.message WHERE status = 'delivered'")
    await road.until("SELECT count(*) = 20 FROM outrider.outbox WHERE body IS NULL AND blanked_at IS NOT NULL")
    kept = await road.connection.fetch("SELECT DISTINCT intent FROM outrider.outbox WHERE body IS NOT NULL")
    assert [row["intent"] for row in kept] == ["events"]
    assert len(await road.sent()) == 40
    assert await road.stop() == 0
