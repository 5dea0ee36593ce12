"""Turns in front of a sender: in order, exactly paced, never given twice, never lost."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from daemon.core.routing import Sender
from daemon.journal import Dispatch
from daemon.lanes import Lane, Lanes, Places, Turn
from tests.shell.parts import Wound

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


def sender(address: str = "a", rate: float = 100.0, provider: str = "sim") -> Sender:
    return Sender(address=address, provider=provider, kind="long_code", country="US", rate=rate)


def lanes_of(*senders: Sender, clock: Wound | None = None, places: Places | None = None) -> Lanes:
    made = Lanes(tick=clock.tick if clock else time.monotonic, places={"sim": places} if places else None)
    made.reload(senders)
    return made


def wound(rate: float = 100.0, places: Places | None = None) -> tuple[Lanes, Lane, Wound]:
    clock = Wound()
    made = lanes_of(sender(rate=rate), clock=clock, places=places)
    return made, made["a"], clock


def granted(turns: Sequence[Turn]) -> list[bool]:
    return [bool(turn.granted) and not turn.deserted for turn in turns]


async def drive(lane: Lane, clock: Wound, turns: Sequence[Turn], seconds: float) -> list[int]:
    """Let *seconds* pass; whoever is granted leaves at once. The order in which they left, by index."""
    order: list[int] = []
    for _ in range(int(seconds * 1000)):
        for k, turn in enumerate(turns):
            if k not in order and granted([turn])[0]:
                turn.left(clock.tick())
                turn.back()
                order.append(k)
        clock.go(0.001)
        lane.look()
    return order


async def test_who_comes_first_goes_first() -> None:
    _, lane, clock = wound()
    turns = [lane.join(3, 1 + k % 3) for k in range(20)]
    assert await drive(lane, clock, turns, 2.0) == list(range(20))


async def test_level_1_goes_before_all_others() -> None:
    _, lane, clock = wound()
    bulk = [lane.join(3, 1) for _ in range(5)]
    urgent = [lane.join(1, 1) for _ in range(5)]
    order = await drive(lane, clock, [*bulk, *urgent], 1.0)
    assert order == [0, 5, 6, 7, 8, 9, 1, 2, 3, 4]  # the first had been granted before


async def test_a_newcomer_does_not_pass_who_waits() -> None:
    _, lane, clock = wound(rate=10)
    first, second = lane.join(3, 1), lane.join(3, 1)
    first.left(clock.tick())
    clock.go(0.1)  # the timer has not rung yet
    third = lane.join(3, 1)
    assert granted([second, third]) == [True, False]


async def test_a_level_that_was_alone_owes_the_other_nothing() -> None:
    _, lane, clock = wound(rate=10)
    for _ in range(20):
        turn = lane.join(3, 1)
        turn.left(clock.tick())
        turn.back()
        clock.go(1.0)
    blocker = lane.join(3, 1)
    turns = [*(lane.join(2, 1) for _ in range(6)), *(lane.join(3, 1) for _ in range(6))]
    order = await drive(lane, clock, [blocker, *turns], 3.0)
    assert len(order) == 13
    assert any(k > 6 for k in order[1:4])  # 3:2, and not all of level 2 first


async def test_what_is_in_hand_puts_off_the_next() -> None:
    _, lane, clock = wound(rate=10)
    lane.join(3, 5)  # may go at once
    assert lane.free_at - clock.tick() == pytest.approx(0.5)
    lane.join(3, 3)  # waits
    assert lane.free_at - clock.tick() == pytest.approx(0.8)


async def test_a_cancelled_wait_gives_its_turn_back() -> None:
    made, lane, clock = wound(rate=1)
    first = lane.join(3, 1)
    first.left(clock.tick())
    first.back()

    async def wait(turn: Turn) -> bool:
        try:
            return await turn
        finally:
            turn.back()

    turns = [lane.join(3, 2), lane.join(3, 1), lane.join(3, 1)]
    tasks = [asyncio.create_task(wait(turn)) for turn in turns]
    await asyncio.sleep(0)
    for task in tasks[:2]:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
    assert lane.backlog == lane.waiting[2] == 1
    clock.go(2.0)
    made.look_at(lane)
    assert granted(turns) == [False, False, True]


async def test_a_cancellation_after_the_grant_gives_it_to_the_next() -> None:
    _, lane, _ = wound(rate=1)
    first, second = lane.join(3, 1), lane.join(3, 1)
    assert granted([first, second]) == [True, False]
    first.back()  # it never left: the pace is not charged
    assert granted([second]) == [True]
    assert lane.backlog == 1


async def test_a_turn_is_charged_once_and_given_back_once() -> None:
    _, lane, clock = wound(rate=10)
    turn = lane.join(3, 1)
    for _ in range(3):
        turn.left(clock.tick())
    for _ in range(3):
        turn.back()
    assert lane.backlog == 0
    assert lane.pace.earliest(1, clock.tick()) <= clock.tick() + 0.1


async def test_no_more_are_granted_than_can_be_written_soon() -> None:
    _, lane, _ = wound(rate=400)
    turns = [lane.join(3, 1) for _ in range(10)]
    assert granted(turns).count(True) <= 2


async def test_a_message_longer_than_the_rate_passes_and_the_next_waits_for_all_of_it() -> None:
    _, lane, clock = wound(rate=1)
    turns = [lane.join(3, 6), lane.join(3, 1)]
    assert await drive(lane, clock, turns, 5.9) == [0]
    assert await drive(lane, clock, turns[1:], 0.4) == [0]


async def test_closing_releases_all_and_whoever_comes_later() -> None:
    made, lane, _ = wound(rate=1)
    turns = [lane.join(level, 1) for level in (3, 2, 1)]
    made.close()
    late = lane.join(1, 1)
    assert [turn.granted for turn in (*turns, late)] == [True, False, False, False]
    for turn in (*turns, late):
        turn.back()
    assert lane.backlog == 0


async def test_a_removed_senders_messages_are_released_and_those_under_way_come_home() -> None:
    made, lane, _ = wound(rate=1)
    under_way, waiting = lane.join(3, 1), lane.join(3, 1)
    made.reload([sender("b")])
    assert made.addresses == ["b"]
    assert waiting.granted is False
    under_way.left(made.tick())
    under_way.back()
    waiting.back()
    assert lane.backlog == 0


async def test_a_new_rate_judges_the_old_debt() -> None:
    made, lane, clock = wound(rate=10)
    for _ in range(3):
        turn = lane.join(3, 1)
        turn.left(clock.tick())
        turn.back()
        clock.go(0.1)
    made.reload([sender(rate=1)])
    assert made["a"] is lane
    assert lane.pace.earliest(1, clock.tick()) >= clock.tick() + 0.9


async def test_a_sender_that_was_removed_and_comes_back_has_spoken() -> None:
    made, lane, clock = wound(rate=1)
    turn, late = lane.join(3, 5), lane.join(1, 1)
    turn.left(clock.tick())
    made.reload([sender("b")])
    assert late.granted is False
    clock.go(0.5)
    made.reload([sender(rate=1), sender("b")])
    again = made["a"]
    assert again is not lane
    assert again.pace.earliest(1, clock.tick()) - clock.tick() == pytest.approx(4.5, abs=0.1)


async def test_debt_is_remembered_from_the_log() -> None:
    made, lane, clock = wound(rate=1)
    made.remember([Dispatch("a", 3, clock.tick() - 0.5), Dispatch("gone", 1, clock.tick())])
    assert lane.pace.earliest(1, clock.tick()) >= clock.tick() + 2.4
    assert lane.free_at - clock.tick() >= 2.4


async def test_a_pace_is_inherited_with_all_its_debt() -> None:
    made, lane, clock = wound(rate=1)
    now = clock.tick()
    made.inherit(
        {"a": [], "gone": []}, silent_at=now - 0.3, afresh=False
    )  # nothing known: a full window at that moment
    assert lane.pace.earliest(1, now) == pytest.approx(now + 0.72)
    made.remember([Dispatch("a", 50, now)])
    said = {"a": [(now - 1.0, 10), (now - 9.0, 1)]}
    made.inherit(said, silent_at=now - 0.3, afresh=True)  # what we remembered is among what is known: not counted twice
    assert lane.pace.earliest(1, now) == pytest.approx(now + 9.0, abs=0.1)
    assert lane.free_at == pytest.approx(now + 9.0, abs=0.1)


class Counting:
    """The running loop, and the timers that are set on it."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.create_future = self.loop.create_future
        self.handles: list[asyncio.TimerHandle] = []

    def call_later(self, delay: float, callback: Callable[[], None]) -> asyncio.TimerHandle:
        def ring() -> None:
            self.handles.remove(handle)
            callback()

        self.handles = [handle for handle in self.handles if not handle.cancelled()]
        handle = self.loop.call_later(delay, ring)
        self.handles.append(handle)
        return handle


async def test_one_timer_for_all_and_no_lane_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = Counting()
    monkeypatch.setattr("daemon.lanes.asyncio.get_running_loop", lambda: loop)
    made = lanes_of(*(sender(f"s{k}", rate=5 + k) for k in range(20)))
    turns = [made[f"s{k}"].join(3, 1) for k in range(20) for _ in range(3)]

    async def send(turn: Turn) -> None:
        assert await turn
        turn.left(made.tick())
        turn.back()
        assert len([handle for handle in loop.handles if not handle.cancelled()]) <= 1

    async with asyncio.timeout(10):
        await asyncio.gather(*map(send, turns))
    assert len(made._heap) <= 20


@pytest.mark.parametrize("lengths", [(1,), (1, 2, 3, 6)])
async def test_the_law_holds_in_real_time(lengths: Sequence[int]) -> None:
    """In every sliding second at most 100 segments, and nearly all of them used; more senders than one."""
    made = lanes_of(sender("a"), sender("b"))
    sent: dict[str, list[float]] = {"a": [], "b": []}
    until = time.monotonic() + 2.5

    async def speak(address: str) -> None:
        k = 0
        while time.monotonic() < until:
            turn = made[address].join(3, lengths[k % len(lengths)])
            k += 1
            assert await turn
            now = time.monotonic()
            turn.left(now)
            turn.back()
            sent[address] += [now + j / 100 for j in range(turn.segments)]

    await asyncio.gather(*(speak(address) for address in sent for _ in range(8)))
    for moments in sent.values():
        moments.sort()
        assert all(later - earlier > 1.0 for earlier, later in zip(moments, moments[100:], strict=False))
        assert len(moments) > 150  # a machine may be busy; that the rate is used is the bench's to show


async def test_bulk_waits_for_room_on_the_wire_and_urgent_passes_it() -> None:
    places = Places(2)  # one for bulk
    _, lane, clock = wound(places=places)
    first, second = lane.join(3, 1), lane.join(3, 1)
    first.left(clock.tick())  # on the wire, and the answer is slow
    clock.go(1.0)
    lane.look()
    urgent = lane.join(1, 1)
    assert granted([second, urgent]) == [False, True]
    urgent.left(clock.tick())
    urgent.back()
    assert granted([second]) == [False]
    clock.go(1.0)
    first.back()
    assert granted([second]) == [True]


async def test_room_on_the_wire_goes_round_the_senders() -> None:
    clock = Wound()
    made = lanes_of(sender("a"), sender("b"), sender("c"), clock=clock, places=Places(1))
    turns = [made[address].join(3, 1) for address in ("a", "b", "c", "a", "b", "c")]
    order: list[int] = []
    for _ in range(6):
        (now,) = [k for k, turn in enumerate(turns) if granted([turn])[0] and k not in order]
        order.append(now)
        turns[now].left(clock.tick())
        clock.go(1.0)
        turns[now].back()
    assert sorted(order[:3]) == [0, 1, 2]
    assert sorted(order) == [0, 1, 2, 3, 4, 5]


async def test_room_counts_what_is_in_hand() -> None:
    made, lane, _ = wound(rate=100)
    assert made.room(["a"], 3, most=500) == 40
    for _ in range(35):
        lane.join(3, 1)
    assert made.room(["a"], 3, most=500) == 0  # below the share worth a claim
    assert (
        made.room(["a"], 1, most=500) == 39
    )  # bulk in hand does not keep urgent ones out, but what is about to leave does


async def test_bulk_goes_by_as_many_as_are_open_and_level_1_by_itself() -> None:
    places = Places(10)  # eight for bulk
    _, lane, _ = wound(rate=10_000, places=places)
    places.open(2)
    bulk = [lane.join(3, 1) for _ in range(10)]
    assert granted(bulk) == [True] * 2 + [False] * 8
    assert lane.join(1, 1).granted
    places.open(5)
    assert granted(bulk) == [True] * 5 + [False] * 5
    places.open(1)  # four too many are on the wire: nobody goes until they are back
    for turn in bulk[:4]:
        turn.back()
    assert granted(bulk) == [True] * 5 + [False] * 5
    bulk[4].back()
    assert granted(bulk) == [True] * 6 + [False] * 4
    places.open(8)
    assert granted(bulk) == [True] * 10
