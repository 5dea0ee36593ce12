"""Several daemons on one database: each has its share, and what happens to the share of one that stops, freezes or dies."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from statistics import median
from typing import TYPE_CHECKING

import pytest

from daemon.core.token import unseal
from daemon.simulator import Faults
from tests.road.stage import Cast

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from uuid import UUID

    from tests.road.stage import Stage

    SetUp = Callable[..., Awaitable[Stage]]

SENDERS = [f"+1555010{number:04}" for number in range(6)]
SLOW = {SENDERS[0]: 4.0, SENDERS[5]: 4.0}  # these send long messages: their debt is what a hand-over could forget
RATES = dict.fromkeys(SENDERS, 20.0) | SLOW
LONG = "x" * 1_500  # ten segments
CAST = Cast(
    senders=RATES,
    services={f"s{number}": [sender] for number, sender in enumerate(SENDERS)},
    timeout_s=3.0,
    intents={"events": {"on_ambiguous": "resend", "resolve_for": "6s"}},
)
WIRE = {"latency": {"kind": "uniform", "from_ms": 20, "to_ms": 150}, "receipts": {"enabled": False}}
TOLD = WIRE | {"receipts": {"sent": {"kind": "fixed", "ms": 300}, "final": {"kind": "fixed", "ms": 300}}}


async def company(road: Stage, *names: str) -> list[Stage]:
    """As many daemons more, all called at the port of the last; returns when each has its share of the groups."""
    daemons = [road, *(road.beside(name) for name in names)]
    for one in daemons:
        one.called_at = daemons[-1].public
    await asyncio.gather(*(one.start() for one in daemons))
    await until(lambda: shared(*daemons), within_s=15)
    return daemons


async def shared(*roads: Stage) -> bool:
    return [len(await road.holds()) for road in roads] == [6 / len(roads)] * len(roads)


async def until(true: Callable[[], Awaitable[bool]], *, within_s: float) -> float:
    """Wait until *true*; the seconds it took."""
    began = time.monotonic()
    while not await true():
        assert time.monotonic() < began + within_s, "still not"
        await asyncio.sleep(0.05)
    return time.monotonic() - began


async def all_with(road: Stage) -> bool:
    return len(await road.holds()) == 6


async def fill(road: Stage, *, each: int, intent: str = "events", text: str = "Hello") -> None:
    """*each* messages of every service, each text once; long ones, and fewer, for those whose sender is slow."""
    for number, sender in enumerate(SENDERS):
        many, body = (each // 25, LONG) if sender in SLOW else (each, text)
        await road.insert(many, service=f"s{number}", intent=intent, body=f"{body} {number}")


async def on_the_wire(road: Stage, many: int) -> None:
    """Return when so many more have been accepted."""
    began = road.simulator.ledger.accepted
    while road.simulator.ledger.accepted < began + many:
        await asyncio.sleep(0.005)


async def judge(road: Stage) -> dict[str, int]:
    """What the simulator's ledger and the tables say of it all."""
    asked = {row["id"] for row in await road.connection.fetch("SELECT id FROM outrider.outbox")}
    sent = await road.sent()
    ended = await road.connection.fetch(
        "SELECT id FROM outrider.outcome WHERE status IN ('failed', 'expired', 'dead', 'suppressed', 'canceled')"
    )
    explained = await road.connection.fetch(
        "SELECT id FROM outrider.attempt WHERE kind = 'decision' AND outcome = 'resend'"
    )
    doubled = {id for id, attempts in sent.items() if len(attempts) > 1}
    found = {
        "asked": len(asked),
        "sent": len(sent),
        "lost": len(asked - set(sent) - {row["id"] for row in ended}),
        "doubled": len(doubled),
        "unexplained": len(doubled - {row["id"] for row in explained}),
        "in_doubt": await road.connection.fetchval(
            "SELECT count(DISTINCT id) FROM outrider.attempt WHERE outcome IN ('lost', 'uncertain')"
        ),
        "too_fast": sum(road.busiest(sender) > rate for sender, rate in RATES.items()),
    }
    print(found, dict(await road.statuses()))
    return found


@pytest.mark.timeout(180)
async def test_a_clean_stop_hands_over_and_a_newcomer_gets_its_share(stage: SetUp) -> None:
    road = await stage(CAST, Faults.model_validate(TOLD))
    await road.start()
    await until(lambda: all_with(road), within_s=5)
    await fill(road, each=120)
    await on_the_wire(road, 60)
    other = road.beside("other")
    await other.start()
    took = await until(lambda: shared(road, other), within_s=10)
    print(f"a newcomer had its half after {took:.2f} s")
    await on_the_wire(road, 60)
    stopping = asyncio.create_task(road.stop())
    moved = await until(lambda: all_with(other), within_s=5)
    assert await stopping == 0
    print(f"all with the other {moved:.2f} s after SIGTERM")
    await other.quiet(within_s=30)
    found = await judge(road)
    assert found["sent"] == found["asked"]
    assert found["lost"] == found["doubled"] == found["in_doubt"] == 0
    assert found["too_fast"] == 0


@pytest.mark.timeout(180)
@pytest.mark.parametrize("taker_first", [True, False])
async def test_while_two_have_different_files_nothing_is_sent_by_both(stage: SetUp, taker_first: bool) -> None:
    """A new file reaches them one after the other: a service moves from the one to the other, and a sender to another."""
    giver, taker = await company(await stage(CAST, Faults.model_validate(TOLD)), "other")
    (one, two), (three, four) = [sorted(await each.holds() - SLOW.keys()) for each in (giver, taker)]
    service = {sender: f"s{SENDERS.index(sender)}" for sender in SENDERS}
    moved = {service[one]: [three], service[two]: [one], service[four]: [four, two]}
    await fill(giver, each=150)
    await on_the_wire(giver, 100)
    for each in (taker, giver) if taker_first else (giver, taker):
        each.cast = replace(CAST, services={**CAST.services, **moved})
        each.write_config()
        await each.hang_up()
        await on_the_wire(each, 60)  # what has not moved goes on meanwhile
        await asyncio.sleep(2.0)
    await giver.quiet(within_s=60)
    assert len(await giver.holds() | await taker.holds()) == 5
    found = await judge(giver)
    assert found["sent"] == found["asked"]
    assert found["lost"] == found["doubled"] == found["in_doubt"] == 0
    assert found["too_fast"] == 0


@pytest.mark.long
@pytest.mark.timeout(900)
async def test_ten_restarts_in_turn_leave_no_doubt_and_no_pause(stage: SetUp) -> None:
    """A rolling restart: one of two stops, and is started again while the other speaks for all; then the other."""
    patient = replace(CAST, timeout_s=15.0)  # an answer that is merely slow is no doubt of ours
    road, other = await company(await stage(patient, Faults.model_validate(TOLD)), "other")
    stopped, moved = [], []
    for number in range(5):
        for leaving, staying in ((road, other), (other, road)):
            await fill(road, each=100, text=f"round {number}, {leaving.operator}, hello")
            await on_the_wire(road, 40)
            began = time.monotonic()
            stopping = asyncio.create_task(leaving.stop())
            moved.append(await until(lambda staying=staying: all_with(staying), within_s=10))  # type: ignore[misc]
            assert await stopping == 0
            stopped.append(time.monotonic() - began)
            await on_the_wire(road, 20)  # the other goes on with all of it
            await leaving.start()
            await until(lambda: shared(road, other), within_s=15)
    await other.quiet(within_s=120)
    found = await judge(road)
    print(
        f"exit within {max(stopped):.2f} s; all with the other {median(moved):.2f} s after SIGTERM, at most {max(moved):.2f}"
    )
    assert max(stopped) <= 10
    assert found["sent"] == found["asked"]
    doubts = await road.connection.fetch(
        "SELECT reason, count(*) FROM outrider.attempt WHERE outcome IN ('uncertain', 'lost') GROUP BY 1"
    )
    assert [tuple(row) for row in doubts] == []
    assert found["lost"] == found["doubled"] == 0
    assert found["too_fast"] == 0


@pytest.mark.long
@pytest.mark.timeout(180)
async def test_the_groups_of_a_killed_daemon_move_and_nothing_is_lost(stage: SetUp) -> None:
    road, other = await company(await stage(CAST, Faults.model_validate(TOLD)), "other")
    await fill(road, each=150)
    await on_the_wire(road, 120)
    await road.kill()
    moved = await until(lambda: all_with(other), within_s=30)
    print(f"all with the other {moved:.2f} s after kill -9")
    await other.quiet(within_s=60)
    found = await judge(road)
    assert found["sent"] == found["asked"]
    assert found["lost"] == found["unexplained"] == 0
    assert 0 < found["in_doubt"] <= 100
    assert found["too_fast"] == 0


async def in_hand(road: Stage) -> set[tuple[UUID, int]]:
    """The attempts its daemon has in hand."""
    rows = await road.connection.fetch("SELECT id, attempt FROM outrider.in_flight WHERE owner = $1", road.instance)
    return {(row["id"], row["attempt"]) for row in rows}


async def sent_since(road: Stage, since: float) -> set[tuple[UUID, int]]:
    """The attempts the simulator has accepted since then, on its monotonic clock."""
    key = await road.connection.fetchval("SELECT token_key FROM outrider.home")
    late = {unseal(key, entry.token) for entry in road.simulator.ledger.entries if entry.mono > since}
    return {one for one in late if one is not None}


async def zombie(road: Stage, other: Stage, *, at_last: Callable[[], Awaitable[bool]]) -> None:
    """Freeze *road* until *other* speaks for all and some seconds more; when it wakes it must write nothing of old."""
    road.freeze()
    await asyncio.sleep(0.3)  # what is in the kernel's hands arrives
    stale = await in_hand(road)
    moved = await until(at_last, within_s=30)
    print(f"all with the other {moved:.2f} s after SIGSTOP; {len(stale)} were in hand")
    assert stale
    await asyncio.sleep(2.0)
    woken = time.monotonic()
    road.thaw()
    await until(lambda: shared(road, other), within_s=15)
    assert not stale & await sent_since(road, woken)


@pytest.mark.timeout(180)
async def test_one_is_killed_and_one_frozen_and_the_third_goes_on(stage: SetUp) -> None:
    road, frozen, third = await company(await stage(CAST, Faults.model_validate(TOLD)), "frozen", "third")
    await fill(road, each=120)
    await on_the_wire(road, 100)
    await road.kill()
    await zombie(frozen, third, at_last=lambda: all_with(third))
    await third.quiet(within_s=60)
    found = await judge(road)
    assert found["sent"] == found["asked"]
    assert found["lost"] == found["unexplained"] == 0
    assert found["too_fast"] == 0


@pytest.mark.long
@pytest.mark.timeout(2400)
async def test_thirty_zombies(stage: SetUp) -> None:
    road, other = await company(await stage(CAST, Faults.model_validate(TOLD)), "other")
    for number in range(30):
        await fill(road, each=60, text=f"cycle {number}, hello")
        await on_the_wire(road, 50)
        await zombie(road, other, at_last=lambda: all_with(other))
        await other.quiet(within_s=60)
    found = await judge(road)
    assert found["sent"] == found["asked"]
    assert found["lost"] == found["unexplained"] == 0
    assert found["too_fast"] == 0
