"""kill -9 in the middle of everything: nothing is lost, and nothing is doubled that is not explained."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING

import pytest

from daemon.simulator import Faults
from tests.road.stage import Cast

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from uuid import UUID

    from tests.road.stage import Stage

    SetUp = Callable[..., Awaitable[Stage]]

CAST = Cast(
    senders={f"+1555010{number:04}": 60 for number in range(10)},
    services={"otp": [f"+1555010{number:04}" for number in range(10)]},
    timeout_s=5.0,
)
WIRE = {"latency": {"kind": "uniform", "from_ms": 20, "to_ms": 150}, "receipts": {"enabled": False}}
TOLD = WIRE | {"receipts": {"sent": {"kind": "fixed", "ms": 300}, "final": {"kind": "fixed", "ms": 300}}}


async def storm(road: Stage, *, kills: int, messages: int, rng: random.Random) -> list[dict[str, int]]:
    """Kill the daemon *kills* times while it sends *messages*; what was in doubt after each kill."""
    # Inserted in portions, so that every kill finds requests on the wire.
    told = []
    for number in range(kills):
        await road.insert(messages // kills, service="otp", intent="delivery")
        await road.start()
        began = road.simulator.ledger.accepted
        while road.simulator.ledger.accepted < began + 20:
            await asyncio.sleep(0.005)
        await asyncio.sleep(rng.uniform(0.0, 0.5))
        await road.kill()
        await asyncio.sleep(0.2)  # what is on the wire arrives, or its connection breaks
        told.append({"kill": number + 1, "accepted": road.simulator.ledger.accepted})
    await road.start()
    return told


async def judge(road: Stage) -> dict[str, int]:
    """Everything the issue asks of a storm, as numbers."""
    asked = {row["id"] for row in await road.connection.fetch("SELECT id FROM outrider.outbox")}
    sent = await road.sent()
    unsent = {
        row["id"]
        for row in await road.connection.fetch(
            "SELECT id FROM outrider.outcome WHERE status IN ('failed', 'expired', 'dead', 'suppressed', 'canceled')"
        )
    }
    explained: set[UUID] = {
        row["id"]
        for row in await road.connection.fetch(
            "SELECT id FROM outrider.attempt WHERE kind = 'decision' AND outcome = 'resend'"
        )
    }
    doubled = {id for id, attempts in sent.items() if len(attempts) > 1}
    rows = await road.connection.fetch(
        "SELECT kind, outcome, reason, count(*) AS many FROM outrider.attempt GROUP BY 1, 2, 3"
    )
    resolved = {f"{row['kind']}: {row['outcome']}: {row['reason']}": row["many"] for row in rows}
    print(resolved)
    return {
        "asked": len(asked),
        "sent": len(sent),
        "lost": len(asked - set(sent) - unsent),
        "doubled": len(doubled),
        "doubled_unexplained": len(doubled - explained),
        "ambiguous": await road.connection.fetchval(
            "SELECT count(DISTINCT id) FROM outrider.attempt WHERE kind = 'exchange' AND outcome = 'uncertain'"
        ),
    }


@pytest.mark.timeout(240)
@pytest.mark.parametrize("evidence", ["receipts", "queries"])
async def test_a_killed_daemon_loses_nothing_and_doubles_nothing(stage: SetUp, evidence: str) -> None:
    road = await stage(CAST, Faults.model_validate(TOLD if evidence == "receipts" else WIRE))
    await storm(road, kills=3, messages=900, rng=random.Random(7))
    await road.quiet(within_s=150)
    found = await judge(road)
    print(found)
    assert found["lost"] == 0
    assert found["doubled_unexplained"] == 0
    assert found["doubled"] == 0  # both kinds of evidence tell the truth here, so nothing is guessed
    assert 0 < found["ambiguous"] <= 3 * CAST.connections
    how = "a receipt" if evidence == "receipts" else "the provider, when asked"
    assert (
        await road.connection.fetchval(
            "SELECT count(*) FROM outrider.attempt WHERE kind = 'evidence' AND reason LIKE $1", how + "%"
        )
        > 0
    )
