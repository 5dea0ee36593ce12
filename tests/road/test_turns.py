"""Who shares a sender gets a share of it: the lowest level after its bound, each service and each sender its part."""

from __future__ import annotations

import asyncio
from collections import Counter
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest

from daemon.core.pacing import STARVED_S
from daemon.core.token import unseal
from daemon.simulator import Faults
from tests.road.stage import Cast

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from uuid import UUID

    from tests.road.stage import Stage

    SetUp = Callable[..., Awaitable[Stage]]

SILENT = Faults.model_validate({"receipts": {"enabled": False}})


async def heard(road: Stage, column: str) -> list[tuple[float, str]]:
    """Every acceptance in order: when, and the *column* of its message."""
    key = await road.connection.fetchval("SELECT token_key FROM outrider.home")
    rows = await road.connection.fetch(f"SELECT id, {column} AS word FROM outrider.outbox")
    words: dict[UUID, str] = {row["id"]: row["word"] for row in rows}
    owners = [(entry.mono, unseal(key, entry.token)) for entry in road.simulator.ledger.entries]
    return [(mono, words[owner[0]]) for mono, owner in owners if owner is not None]


@pytest.mark.long
@pytest.mark.timeout(300)
async def test_the_lowest_level_waits_a_minute_behind_level_1_and_then_has_its_share(stage: SetUp) -> None:
    rate = 20
    road = await stage(Cast(senders={"72345": rate}, services={"all": ["72345"]}), SILENT)
    await road.insert(rate * 150, service="all", intent="notifications")
    await road.insert(rate * 20, service="all", intent="marketing")
    await road.start()
    await asyncio.sleep(110)
    gone = await heard(road, "intent")
    lowest = [n for n, (_, intent) in enumerate(gone) if intent == "marketing"]
    assert lowest, "nothing of level 3 has left"
    waited = gone[lowest[0]][0] - gone[0][0]
    apart = max(later - sooner for sooner, later in pairwise([*lowest, len(gone)]))
    share = len(lowest) / (len(gone) - lowest[0])
    print(f"level 3 waited {waited:.1f} s behind level 1, then {apart} segments at the most, with {share:.1%} of them")
    assert waited <= STARVED_S + 18 / rate + 1
    assert apart <= 25  # as tests/core/test_pacing.py has it
    assert share >= 0.18  # a fifth is theirs


@pytest.mark.long
@pytest.mark.timeout(300)
async def test_services_and_senders_that_share_have_their_part(stage: SetUp) -> None:
    """Two services on three senders of which one is common: nobody has less than nine tenths of what is fair."""
    rates = {"+15550100001": 10.0, "+15550100002": 40.0, "+15550100003": 20.0}
    one, common, other = rates
    road = await stage(Cast(senders=rates, services={"a": [one, common], "b": [common, other]}), SILENT)
    for service in ("a", "b"):
        await road.insert(4_000, service=service, intent="events")
    await road.start()
    await asyncio.sleep(60)
    gone = Counter(word for _, word in await heard(road, "service"))
    used = {sender: road.simulator.ledger.used(sender, rate) for sender, rate in rates.items()}
    print(f"of a: {gone['a']}, of b: {gone['b']}; used " + ", ".join(f"{share:.1%}" for share in used.values()))
    assert min(used.values()) >= 0.9
    # The common sender evens them out: 70 a second are 35 for each, which the ten and the twenty of their own leave room for.
    assert min(gone.values()) >= 0.9 * sum(gone.values()) / 2
