from __future__ import annotations

import heapq
import random
from dataclasses import dataclass, field
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from daemon.core.retries import FLOOR, MOST, RESERVED, SHARE, WAIT_MAX_S, WAIT_MIN_S, Budget, ask

LEVELS = st.sampled_from([1, 2, 3])


def test_a_fifth_of_all_and_ten_a_second_may_be_retries() -> None:
    assert (SHARE, FLOOR) == (0.2, 10.0)


@given(st.lists(st.tuples(st.floats(0, 0.5), st.integers(0, 30), st.integers(0, 30), LEVELS), max_size=60))
def test_in_no_span_are_there_more(moments: list[tuple[float, int, int, int]]) -> None:
    """So many first tries, then so many retries, after so many seconds: whatever span is looked at."""
    budget, now, requests, gone = Budget(0.0), 0.0, 0, list[tuple[float, int, int]]()  # when, requests, retries so far
    gone.append((0.0, 0, 0))
    for after, firsts, tries, level in moments:
        now += after
        requests += firsts
        retried = gone[-1][2]
        for _ in range(tries):
            budget, wait_s = ask(budget, level=level, requests=requests, now=now)
            if not wait_s:
                requests += 1
                retried += 1
        gone.append((now, requests, retried))
    for k, (since, before, earlier) in enumerate(gone):
        for at, all_of_them, retried in gone[k:]:
            assert retried - earlier <= SHARE * (all_of_them - before) + FLOOR * (at - since) + MOST + 1e-6


@given(st.lists(st.tuples(st.floats(-1, 1), LEVELS), max_size=100))
def test_who_is_put_back_has_a_moment_of_their_own(asked: list[tuple[float, int]]) -> None:
    budget, now, moments = Budget(0.0), 0.0, list[float]()
    for after, level in asked:
        now += after  # back too: the budget gives nothing twice
        budget, wait_s = ask(budget, level=level, requests=0, now=now)
        assert wait_s == 0.0 or WAIT_MIN_S <= wait_s <= WAIT_MAX_S + 1e-6
        if wait_s and level > 1:
            moments.append(now + wait_s)
    assert all(later - earlier >= 1 / FLOOR - 1e-6 for earlier, later in pairwise(moments))


def test_the_last_of_it_is_for_level_1() -> None:
    budget, passed = Budget(0.0), {1: 0, 3: 0}
    for level in (3, 1):
        for _ in range(100):
            budget, wait_s = ask(budget, level=level, requests=0, now=0.0)
            passed[level] += not wait_s
    assert passed == {3: MOST - RESERVED, 1: RESERVED}


@dataclass
class Flood:
    """
    A provider of 100 a second that fails half of what it is given, for a minute, and nothing after; *offered* first
    tries a second come all the while. Whoever was failed comes again after full jitter of at most 2 s, eight times.
    """

    budgeted: bool
    offered: int = 100
    firsts: int = 0
    retried: int = 0
    kept_waiting: int = 0  # first tries that found no room because of retries
    left_s: float = 0.0  # when the last of those that failed was through
    waiting: list[tuple[float, int]] = field(default_factory=list)  # due, tries

    def run(self) -> Flood:
        dice, budget, requests = random.Random(1), Budget(0.0), 0
        for tick in range(6_000):
            room, now = 10, tick / 10
            while room and self.waiting and self.waiting[0][0] <= now:
                _, tries = heapq.heappop(self.waiting)
                if self.budgeted:
                    budget, wait_s = ask(budget, level=3, requests=requests, now=now)
                    if wait_s:
                        heapq.heappush(self.waiting, (now + wait_s, tries))
                        continue
                room, requests = room - 1, requests + 1
                self.left_s = now
                if now < 60:
                    self.retried += 1
                    if dice.random() < 0.5 and tries < 8:
                        heapq.heappush(self.waiting, (now + 2 * dice.random(), tries + 1))
            if now < 60:
                self.kept_waiting += max(self.offered // 10 - room, 0)
                for _ in range(min(self.offered // 10, room)):
                    requests, self.firsts = requests + 1, self.firsts + 1
                    if dice.random() < 0.5:
                        heapq.heappush(self.waiting, (now + 2 * dice.random(), 1))
        return self


def test_half_failing_a_provider_is_not_given_more_than_a_fifth_again() -> None:
    flood, without = Flood(budgeted=True).run(), Flood(budgeted=False).run()
    assert flood.retried <= SHARE * (flood.firsts + flood.retried) + FLOOR * 60 + MOST
    assert without.retried > 0.45 * (without.firsts + without.retried)  # it is the budget that does it
    assert without.kept_waiting > 1.4 * flood.kept_waiting


def test_once_it_is_well_again_nothing_but_retries_are_sent_at_the_floor() -> None:
    flood = Flood(budgeted=True).run()
    assert not flood.waiting
    assert flood.left_s < 60 + 3_000 / FLOOR
