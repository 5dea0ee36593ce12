"""Which lane a message joins: always the one that is free first, whatever has happened to them."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.core.routing import Sender
from daemon.lanes import Lanes
from daemon.router import ASIDE, Pool, Route, Router, Soonest
from tests.shell.parts import message

if TYPE_CHECKING:
    from collections.abc import Mapping

    from daemon.desk import Desk
    from daemon.gates import Gate
    from daemon.lanes import Lane, Turn


@dataclass
class Bench:
    """Lanes on a clock that is turned by hand, and who joined them."""

    now: float
    lanes: Lanes
    soonest: Soonest
    turns: list[Turn]

    @classmethod
    def of(cls, *rates: float) -> Bench:
        bench = cls(1_000.0, Lanes(tick=lambda: bench.now), Soonest([]), [])
        senders = [
            Sender(address=f"+1555010{number:04}", provider="sim", kind="long_code", country="US", rate=rate)
            for number, rate in enumerate(rates)
        ]
        bench.lanes.reload(senders)
        bench.soonest = Soonest([bench.lanes[sender.address] for sender in senders])
        return bench

    @property
    def all(self) -> list[Lane]:
        return [self.lanes[address] for address in self.lanes.addresses]

    def first(self) -> Lane:
        """As the router asks."""
        for lane in self.lanes.sooner:
            self.soonest.sooner(lane)
        self.lanes.sooner.clear()
        first = self.soonest.first()
        assert first is not None
        return first


DEEDS = st.one_of(
    st.tuples(st.just("joins"), st.integers(1, 3), st.integers(1, 4)),
    st.tuples(st.just("leaves"), st.integers(0, 40), st.just(0)),
    st.tuples(st.just("gives up"), st.integers(0, 40), st.just(0)),
    st.tuples(st.just("waits"), st.integers(1, 900), st.just(0)),
    st.tuples(st.just("is slowed"), st.integers(0, 40), st.just(0)),
)


@given(
    rates=st.lists(st.sampled_from([1.0, 1.0, 3.0, 10.0, 100.0]), min_size=2, max_size=6),
    deeds=st.lists(DEEDS, max_size=60),
)
def test_nobody_is_free_sooner_than_the_first(rates: list[float], deeds: list[tuple[str, int, int]]) -> None:
    async def play() -> None:
        bench = Bench.of(*rates)
        for deed, number, segments in deeds:
            waiting = bench.turns[number % len(bench.turns)] if bench.turns else None
            if deed == "joins":
                bench.turns.append(bench.first().join(number, segments))
            elif deed == "waits":
                bench.now += number / 1000
                bench.lanes._ring()
            elif deed == "is slowed":
                bench.all[number % len(rates)].pace.slow(now=bench.now)
            elif waiting is not None:
                if deed == "leaves" and waiting.granted:
                    waiting.left(bench.now)
                waiting.back()
                bench.turns.remove(waiting)
            first = bench.first()
            assert first.free_at == min(lane.free_at for lane in bench.all)

    asyncio.run(play())


def test_among_idle_ones_whoever_has_been_so_for_longest_and_then_by_address() -> None:
    async def play() -> None:
        bench = Bench.of(10.0, 10.0, 10.0)
        seen = []
        for _ in range(6):
            bench.now += 0.2
            lane = bench.first()
            turn = lane.join(1, 1)
            turn.left(bench.now)
            turn.back()
            seen.append(lane.sender.address[-1])
        assert seen == ["0", "1", "2", "0", "1", "2"]

    asyncio.run(play())


@pytest.mark.parametrize("many", [10, 1_000])
def test_a_choice_costs_the_same_among_many(many: int) -> None:
    async def play() -> int:
        bench = Bench.of(*([1.0] * many))
        looked = 0

        class Counted(dict["Lane", float]):
            def __getitem__(self, lane: Lane) -> float:
                nonlocal looked
                looked += 1
                return super().__getitem__(lane)

        bench.soonest._places = Counted(bench.soonest._places)
        for _ in range(5 * many):  # all are busy, and queue up
            bench.first().join(3, 1)
        return looked

    assert asyncio.run(play()) <= 3 * 5 * many


class Wide:
    """A gate that nothing shuts, and a desk on which nothing is paused."""

    name = "sim"
    pauses: Mapping[str, str] = {}
    refused = None
    now = 0.0

    def quota(self) -> None:
        return None

    def shut(self, _level: int) -> bool:
        return False

    def tick(self) -> float:
        return self.now

    def paused(self, _what: str) -> None:
        return None


@pytest.mark.parametrize("regions", [2, 200])
def test_a_lane_that_is_free_sooner_is_told_of_once_however_many_countries_are_written_to(regions: int) -> None:
    async def play() -> int:
        bench, wide = Bench.of(1.0, 1.0, 1.0), Wide()
        router = Router(bench.lanes, {"sim": cast("Gate", wide)}, desk=cast("Desk", wide))
        router.reload({"news": Pool(tuple(bench.lanes.addresses))})
        told = 0

        class Counted(Soonest):
            def sooner(self, lane: Lane) -> None:
                nonlocal told
                told += 1
                super().sooner(lane)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("daemon.router.Soonest", Counted)
            for number in range(regions):
                region = "US" if number % 2 else f"{number:03}"  # our senders are alike in all of them
                choice = router.choose(message(service="news", region=region))
                assert isinstance(choice, Route)
                assert choice.lane.free_at == min(lane.free_at for lane in bench.all)
                choice.lane.join(3, 1)
        told = 0
        one = bench.all[0]
        one.join(3, 1).back()
        router.choose(message(service="news", region="US"))
        return told

    assert asyncio.run(play()) == 1


def test_one_bad_sender_in_a_large_pool_costs_a_look_and_rests_no_longer_than_others() -> None:
    async def play() -> None:
        bench, wide = Bench.of(*([10.0] * 1_000)), Wide()
        router = Router(bench.lanes, {"sim": cast("Gate", wide)}, desk=cast("Desk", wide))
        router.reload({"news": Pool(tuple(bench.lanes.addresses))})
        bad = bench.all[0].sender.address
        looked = []
        blocked = router.blocked

        def counted(sender: Sender, now: float, level: int = 3) -> str | None:
            looked.append(sender.address)
            return blocked(sender, now, level)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(router, "blocked", counted)
            router.resting = {bad: (30.0, "21606: not yours")}  # and idle, it is the first of them from now on
            for _ in range(100):
                choice = router.choose(message(service="news"))
                assert isinstance(choice, Route)
                assert choice.lane.sender.address != bad
                assert choice.lane.free_at == min(lane.free_at for lane in bench.all)
                choice.lane.join(3, 1)
            assert len(looked) == 200  # itself, and who went instead
            wide.now = 30.0
            choice = router.choose(message(service="news"))
            assert isinstance(choice, Route)
            assert choice.lane.sender.address == bad
            assert (len(looked), router.resting) == (200, {})

    asyncio.run(play())


@pytest.mark.parametrize("blocked", [10, 16, 17, 40])
def test_blocked_lanes_are_passed_over_and_lost_to_nobody(blocked: int) -> None:
    async def play() -> None:
        bench = Bench.of(*([10.0] * 40))
        away = set(bench.all[:blocked])
        found = bench.soonest.first_of(lambda lane: lane not in away)
        assert found is (bench.all[blocked] if blocked < ASIDE else None)  # else each is weighed
        seen = set()
        for _ in range(40):
            seen.add(bench.first())
            bench.first().join(3, 1)
        assert seen == set(bench.all)

    asyncio.run(play())


def test_who_gives_up_in_the_queue_leaves_his_time_to_others() -> None:
    async def play() -> None:
        bench = Bench.of(1.0, 1.0)
        one, other = bench.all
        waiting = [one.join(3, 1) for _ in range(5)][1:]
        other.join(3, 1)
        other.join(3, 1)
        assert bench.first() is other
        for turn in waiting:
            turn.back()
        assert bench.first() is one

    asyncio.run(play())
