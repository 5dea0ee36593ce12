"""Conversations keep their order through retries, fail-overs and doubts; who is skipped is named."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

from daemon.core.token import unseal
from daemon.janitor import ORDER_HOLD_S
from daemon.simulator import ACCOUNT_SID, Faults, Settings, Simulator
from tests.road.stage import Cast, Stage

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
    from pathlib import Path
    from uuid import UUID

    import asyncpg

    SetUp = Callable[..., Awaitable[Stage]]

RECEIPTS = {"sent": {"kind": "fixed", "ms": 20}, "final": {"kind": "fixed", "ms": 20}}
CALM = Faults.model_validate({"receipts": RECEIPTS})
# One in five is tried again, or in doubt for a while: its receipt, its provider or its policy ends that.
ERRORS = {"30017": 0.16, "20429": 0.005, "20500_after_accept": 0.02, "reset_after_accept": 0.01, "garbage": 0.005}
TROUBLED = Faults.model_validate(
    {"latency": {"kind": "uniform", "from_ms": 5, "to_ms": 80}, "receipts": RECEIPTS, "errors": ERRORS}
)
UNTOLD = TROUBLED.model_copy(update={"errors": {**ERRORS, "reset_before_answer": 0.002}})


@dataclass(frozen=True, kw_only=True)
class TwoProviders(Cast):
    """The same, with a second provider and its senders."""

    other_url: str
    other_senders: Mapping[str, float] = field(default_factory=dict)

    def toml(self, **where: Any) -> str:
        lines = [
            super().toml(**where),
            "[providers.other]\nkind = 'simulator'",
            f"account_sid = '{ACCOUNT_SID}'\nauth_token_env = 'SIMULATOR_TOKEN'\nbase_url = '{self.other_url}'",
        ]
        lines += [
            f"[[senders]]\naddress = '{one}'\nprovider = 'other'\ntype = 'long_code'\ncountry = 'US'\nrate = {rate}"
            for one, rate in self.other_senders.items()
        ]
        return "\n".join(lines) + "\n"


@asynccontextmanager
async def two(folder: Path, dsn: str) -> AsyncIterator[tuple[Stage, Simulator]]:
    """A stage whose service speaks through two providers, and the second of them."""
    ours, theirs = {"+15550100001": 300, "+15550100002": 300}, {"+15550100003": 300, "+15550100004": 300}
    async with Simulator(Settings(), faults=TROUBLED) as other:
        cast = TwoProviders(
            senders=ours, services={"chat": [*ours, *theirs]}, other_url=other.url, other_senders=theirs, timeout_s=3.0,
            intents={"delivery": {"on_ambiguous": "resend", "resolve_for": "10s", "retry_base": "100ms"}},
        )  # fmt: skip
        async with Stage.set_up(cast, folder, dsn, faults=TROUBLED) as road:
            yield road, other


async def talk(road: Stage, *, conversations: int, each: int) -> None:
    """One message of every conversation after the other, as people write."""
    for number in range(each):
        await road.connection.execute(
            "INSERT INTO outrider.outbox (recipient, service, intent, body, order_key) SELECT"
            " '+1202' || (5550000 + n), 'chat', 'delivery', 'No. ' || $1::int || ' of ' || n, 'conversation ' || n"
            " FROM generate_series(1, $2::int) AS n", number, conversations,
        )  # fmt: skip


async def inversions(road: Stage, *simulators: Simulator) -> tuple[list[tuple[UUID, UUID]], int]:
    """
    By the providers' ledgers: pairs of one conversation of which the later was first accepted before the earlier, and
    the later is not named as skipping; and how many are.
    """
    key = await road.connection.fetchval("SELECT token_key FROM outrider.home")
    first: dict[UUID, float] = {}
    for entry in (entry for one in simulators for entry in one.ledger.entries):
        owner = unseal(key, entry.token)
        assert owner is not None
        first[owner[0]] = min(entry.mono, first.get(owner[0], entry.mono))
    flagged = {
        row["id"]
        for row in await road.connection.fetch("SELECT id FROM outrider.attempt WHERE outcome = 'skipped ahead'")
    }
    rows = await road.connection.fetch("SELECT id, order_key FROM outrider.outbox ORDER BY order_key, seq DESC")
    found: list[tuple[UUID, UUID]] = []
    later: dict[str, list[UUID]] = {}
    for row in rows:
        if (id := row["id"]) in first:
            before = later.setdefault(row["order_key"], [])
            found += [(id, after) for after in before if first[after] < first[id] and after not in flagged]
            before.append(id)
    return found, len(flagged)


async def blackouts(simulators: tuple[Simulator, Simulator], faults: Faults, *, times: int) -> None:
    """Each provider in its turn refuses everything for two seconds: its breaker opens, and the other one takes over."""
    for number in range(times):
        await asyncio.sleep(2)
        one = simulators[number % 2]
        one.faults = faults.model_copy(update={"outage": Faults.model_validate({"outage": {"kind": "refuse"}}).outage})
        await asyncio.sleep(2)
        one.faults = faults


async def test_conversations_keep_their_order(tmp_path: Path, database: str) -> None:
    async with two(tmp_path, database) as (road, other):
        await road.start()
        await talk(road, conversations=30, each=4)
        await road.quiet()
        assert len(await all_sent(road, other)) == 120
        assert await inversions(road, road.simulator, other) == ([], 0)


@pytest.mark.long
@pytest.mark.timeout(1_200)
async def test_a_thousand_conversations_keep_their_order(tmp_path: Path, database: str) -> None:
    async with two(tmp_path, database) as (road, other):
        road.simulator.faults = other.faults = UNTOLD
        await road.start()
        await talk(road, conversations=1_000, each=20)
        await blackouts((road.simulator, other), UNTOLD, times=8)
        await road.quiet(within_s=900)
        found, flagged = await inversions(road, road.simulator, other)
        tried = await road.connection.fetchrow(
            "SELECT count(DISTINCT id) FILTER (WHERE outcome IN ('uncertain', 'lost')) AS doubted,"
            " count(DISTINCT id) AS troubled FROM outrider.attempt WHERE kind = 'exchange' AND outcome <> 'accepted'"
        )
        assert tried is not None
        gates = road.log.read_text().count('"gate.changed"')
        print(
            f"{len(await all_sent(road, other)):,} sent through two providers, {tried['troubled']:,} of them not at once,"
            f" {tried['doubted']:,} in doubt, gates changed {gates} times: {len(found)} inversions, {flagged} flagged"
        )
        assert len(await all_sent(road, other)) == 20_000
        assert tried["troubled"] >= 3_000
        assert gates >= 8
        assert found == []


async def all_sent(road: Stage, other: Simulator) -> set[UUID]:
    key = await road.connection.fetchval("SELECT token_key FROM outrider.home")
    entries = [*road.simulator.ledger.entries, *other.ledger.entries]
    return {owner[0] for entry in entries if (owner := unseal(key, entry.token)) is not None}


@pytest.mark.long
@pytest.mark.timeout(240)
async def test_a_stuck_head_holds_its_conversation_for_a_minute_and_the_skip_is_named(stage: SetUp) -> None:
    """Nobody knows whether the first has left; its provider will say only after a minute that it never had it."""
    road = await stage(
        Cast(senders={"+15550100001": 50}, services={"chat": ["+15550100001"]}, timeout_s=3.0),
        CALM.model_copy(update={"errors": {"reset_before_answer": 1.0}}),
    )
    await road.start()
    await talk(road, conversations=1, each=1)
    await road.until("SELECT count(*) = 1 FROM outrider.queue WHERE state = 'unknown'")
    road.simulator.faults = CALM
    since = await road.connection.fetchval("SELECT at FROM outrider.attempt")
    await talk(road, conversations=1, each=3)
    rows = await road.connection.fetch("SELECT id FROM outrider.outbox ORDER BY seq")
    head, *rest = [row["id"] for row in rows]
    await road.until("SELECT count(*) = 3 FROM outrider.outcome", within_s=ORDER_HOLD_S + 30)
    left = await road.connection.fetch(
        "SELECT id, extract(epoch FROM accepted_at - $1)::float8 AS after_s FROM outrider.outcome", since
    )
    held = {row["id"]: row["after_s"] for row in left}
    print(f"held for {min(held[id] for id in rest if id in held):.1f} s")
    assert all(ORDER_HOLD_S <= after_s < ORDER_HOLD_S + 10 for id, after_s in held.items() if id != head)
    for id in rest:
        told = await road.connection.fetch("SELECT what, detail FROM outrider.why($1)", id)
        assert any(f"ahead of {head}" in row["detail"] for row in told), [dict(row) for row in told]
    await road.quiet(within_s=90)
    assert (await inversions(road, road.simulator))[0] == []
    assert await asked_back(road.connection, head)


async def asked_back(connection: asyncpg.Connection[asyncpg.Record], id: UUID) -> bool:
    """Whether *id* was sent in the end, its provider having said that it never had it."""
    return bool(
        await connection.fetchval(
            "SELECT EXISTS (SELECT FROM outrider.attempt WHERE id = $1 AND reason LIKE '%never had it%')", id
        )
    )
