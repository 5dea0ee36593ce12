"""Opt-outs and cancellations against messages that are just leaving: once acknowledged, none leaves any more."""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import asyncpg
import pytest

from daemon.core.token import unseal
from daemon.simulator import Faults
from tests.road.test_several import CAST, SENDERS, WIRE, company

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from uuid import UUID

    from tests.road.stage import Stage

    SetUp = Callable[..., Awaitable[Stage]]

INSERT = (
    "INSERT INTO outrider.outbox (recipient, service, intent, body) VALUES ($1, $2, 'events', 'hello') RETURNING id"
)
CANCEL = "SELECT outrider.cancel($1) AS result, pg_current_xact_id()::text::bigint AS xid"
OPT_OUT = "SELECT outrider.opt_out($1)::text AS result, pg_current_xact_id()::text::bigint AS xid"
ACKED = "SELECT min(acked::text::bigint) FROM outrider.instance WHERE seen_at > now() - interval '15 s'"


@dataclass(slots=True)
class Race:
    """One message, and what was said about it."""

    id: UUID
    recipient: str
    result: str | None  # of cancel; None: it was an opt-out
    xid: int
    said: float  # when the function had returned; both on the monotonic clock
    acked: float = 0.0  # when every daemon had acknowledged it
    after: UUID | None = None  # another message to one who had opted out


async def run(road: Stage, pool: asyncpg.Pool, rng: random.Random, number: int) -> Race:
    """Insert a message, and stop it a moment later."""
    recipient = f"+1202555{number:04}"
    await asyncio.sleep(number * 0.006)  # a little faster than all senders together: messages wait in hand
    id = await pool.fetchval(INSERT, recipient, f"s{number % len(SENDERS)}")
    await asyncio.sleep(rng.uniform(0.0, 0.8))
    if rng.random() < 0.5:
        row = await pool.fetchrow(CANCEL, id)
    else:
        row = await pool.fetchrow(OPT_OUT, recipient)
    assert row is not None
    race = Race(id, recipient, row["result"] or None, row["xid"], time.monotonic())
    while await pool.fetchval(ACKED) <= race.xid:
        await asyncio.sleep(0.02)
    race.acked = time.monotonic()
    if race.result is None:
        race.after = await pool.fetchval(INSERT, recipient, f"s{number % len(SENDERS)}")
    return race


async def departures(road: Stage) -> AsyncIterator[tuple[UUID, float]]:
    """Which messages the simulator has accepted, and when."""
    key = await road.connection.fetchval("SELECT token_key FROM outrider.home")
    for entry in road.simulator.ledger.entries:
        owner = unseal(key, entry.token)
        assert owner is not None
        yield owner[0], entry.mono


@pytest.mark.timeout(300)
@pytest.mark.parametrize("many", [300, pytest.param(1_000, marks=pytest.mark.long)])
async def test_nothing_leaves_once_it_is_acknowledged(stage: SetUp, many: int) -> None:
    road, other = await company(await stage(CAST, Faults.model_validate(WIRE)), "other")
    rng = random.Random(many)
    async with asyncpg.create_pool(road.dsn, min_size=8, max_size=8) as pool:
        races = await asyncio.gather(*(run(road, pool, rng, number) for number in range(many)))
    await other.quiet(within_s=60)
    left = {id: at async for id, at in departures(road)}
    leaks = [
        race
        for race in races
        # What is written before the acknowledgement arrives a little later, and is noted when we look.
        if left.get(race.id, 0.0) > race.acked + 0.02 + road.stood_s
        or (race.result == "canceled" and race.id in left)
        or (race.after is not None and race.after in left)
    ]
    sent = sum(race.id in left for race in races)
    slowest = max(race.acked - race.said for race in races)
    results = {result: sum(race.result == result for race in races) for result in {race.result for race in races}}
    print(f"{many} races: {sent} had left, {results}, slowest acknowledgement {slowest:.2f} s, leaks {leaks}")
    assert leaks == []
    assert many * 0.1 < sent < many * 0.9  # it was a race
    assert {"requested", "canceled", None} <= results.keys()
    assert slowest <= 1.0
