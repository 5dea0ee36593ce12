"""Doubts are ended by what happened, not by what is likely."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from daemon.simulator import Faults
from tests.road.stage import Cast

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.road.stage import Stage

    SetUp = Callable[..., Awaitable[Stage]]

CAST = Cast(senders={"72345": 100}, services={"otp": ["72345"]}, timeout_s=1.0)


def faults(**errors: float) -> Faults:
    return Faults.model_validate({"errors": errors, "receipts": {"enabled": False}})


async def test_an_answer_lost_after_acceptance_is_found_by_asking(stage: SetUp) -> None:
    road = await stage(CAST, faults(timeout_after_accept=1.0))
    await road.start()
    await road.insert(3, service="otp", intent="delivery")
    await road.until("SELECT count(*) = 3 FROM outrider.message WHERE status = 'unknown'", within_s=10)
    road.simulator.faults = faults()
    await road.quiet(within_s=30)
    assert len(await road.sent()) == road.simulator.ledger.accepted == 3
    assert await road.connection.fetchval("SELECT count(*) FROM outrider.attempt WHERE kind = 'evidence'") == 3


async def test_receipts_that_never_came_are_asked_for_by_reference(stage: SetUp) -> None:
    """Its callbacks are off: what became of them is told by nobody unless the provider is asked."""
    at_once = {"kind": "fixed", "ms": 5}
    silent = Faults.model_validate({"receipts": {"enabled": False, "sent": at_once, "final": at_once}})
    road = await stage(CAST, silent)
    await road.start()
    await road.insert(20, service="otp", intent="delivery")
    await road.until("SELECT count(*) = 20 FROM outrider.message WHERE status = 'accepted'", within_s=10)
    await road.connection.execute("UPDATE outrider.outcome SET accepted_at = accepted_at - interval '61 minutes'")
    await road.until("SELECT count(*) = 20 FROM outrider.message WHERE status = 'delivered'", within_s=30)
    assert road.simulator.ledger.accepted == 20, "asked for, not sent again"
    assert await road.connection.fetchval("SELECT count(*) FROM outrider.anomaly") == 0


@pytest.mark.long
@pytest.mark.timeout(200)
async def test_of_two_identical_texts_each_has_evidence_of_its_own(stage: SetUp) -> None:
    road = await stage(CAST, faults(timeout_after_accept=1.0))
    await road.start()
    await road.insert(1, service="otp", intent="delivery", body="same")  # accepted, its answer lost
    while not road.simulator.ledger.accepted:
        await asyncio.sleep(0.01)
    road.simulator.faults = faults(timeout_before_accept=1.0)
    await road.insert(1, service="otp", intent="delivery", body="same")  # never accepted, looks the same
    await road.until("SELECT count(*) = 2 FROM outrider.queue WHERE state = 'unknown'", within_s=15)
    road.simulator.faults = faults()
    await road.quiet(within_s=150)
    sent = await road.sent()
    assert len(sent) == road.simulator.ledger.accepted == 2
