"""kill -9 in the middle of everything: nothing is lost, and nothing is doubled that is not explained."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING

import orjson
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
AMBIGUOUS = "SELECT count(DISTINCT id) FROM outrider.attempt WHERE kind = 'exchange' AND reason LIKE 'the daemon died%'"
WIRE = {"latency": {"kind": "uniform", "from_ms": 20, "to_ms": 150}, "receipts": {"enabled": False}}
TOLD = WIRE | {"receipts": {"sent": {"kind": "fixed", "ms": 300}, "final": {"kind": "fixed", "ms": 300}}}


async def storm(road: Stage, *, kills: int, messages: int, rng: random.Random) -> list[dict[str, int]]:
    """Kill the daemon *kills* times while it sends *messages*: what was on the wire each time, and what came in doubt."""
    told: list[dict[str, int]] = []
    for number in range(kills + 1):
        if number < kills:  # in portions, so that every kill finds requests on the wire
            await road.insert(messages // kills, service="otp", intent="delivery", body=f"storm {number}")
        await road.start()
        if told:
            told[-1]["ambiguous"] = await road.connection.fetchval(AMBIGUOUS) - sum(
                one.get("ambiguous", 0) for one in told
            )
            print(told[-1])
        if number < kills:
            began = road.simulator.ledger.accepted
            while road.simulator.ledger.accepted < began + 20:
                await asyncio.sleep(0.005)
            await asyncio.sleep(rng.uniform(0.0, 0.5))
            status = orjson.loads((await road.ask("/api/status"))[1])
            await road.kill()
            told.append({"kill": number + 1, "on_the_wire": status["providers"][0]["in_flight"]})
            await asyncio.sleep(0.2)  # what is on the wire arrives, or its connection breaks
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
    assert "library.spoke" not in road.log.read_text()  # no task of the daemon's has died unheard
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


@pytest.mark.long
@pytest.mark.timeout(900)
async def test_ten_kills_in_five_thousand_messages(stage: SetUp) -> None:
    road = await stage(CAST, Faults.model_validate(TOLD))
    told = await storm(road, kills=10, messages=5_000, rng=random.Random(11))
    await road.quiet(within_s=300)
    found = await judge(road)
    print(found)
    assert found["asked"] == found["sent"] == 5_000
    assert found["lost"] == found["doubled"] == 0
    assert all(0 < one["on_the_wire"] <= CAST.connections for one in told)
    assert all(one["ambiguous"] <= CAST.connections for one in told)
