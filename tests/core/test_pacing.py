"""
One sender's pace, in virtual time. Timers ring up to 2 ms late; the ways to the provider differ by up to 20 ms.
"""

from __future__ import annotations

import random
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.core.compliance import busiest_second, used
from daemon.core.pacing import BURST_S, SLOWEST, STARVED_S, WINDOW_S, Pace, Turns

if TYPE_CHECKING:
    from collections.abc import Sequence

RATES = (1, 3, 10, 15, 100)
START = 86_400.0
Events = list[tuple[float, int]]


def sent(
    pace: Pace, seconds: float, dice: random.Random, *, mix: Sequence[int] = (1, 2, 3, 4, 5, 6), idle: float = 0.0
) -> Events:
    """What leaves in *seconds* when there is always work; with a share *idle* of pauses."""
    now, events = START, Events()
    while now < START + seconds:
        if dice.random() < idle:
            now += dice.uniform(0, 3)
        segments = dice.choice(mix)
        moment = pace.earliest(segments, now)
        if moment > now:
            now = moment + dice.uniform(0, 0.002)
        pace.take(segments, now)
        events.append((now, segments))
    return events


def arrived(events: Events, dice: random.Random) -> Events:
    """The same on the provider's clock."""
    return [(time + 0.05 + dice.uniform(0, 0.02), segments) for time, segments in events]


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("mix", [(1,), (1, 1, 1, 1, 2), (1, 2, 3, 4, 5, 6)])
@pytest.mark.parametrize("seed", range(3))
def test_no_second_holds_more_than_the_rate_and_nearly_all_of_it_is_used(
    rate: int, mix: Sequence[int], seed: int
) -> None:
    dice = random.Random(seed)
    events = sent(Pace(rate), 120, dice, mix=mix)
    assert busiest_second(events, rate) <= rate
    assert busiest_second(arrived(events, dice), rate) <= rate
    assert used(events, rate) >= 0.97


@given(
    st.integers(1, 40),
    st.lists(st.integers(1, 12), min_size=1, max_size=5),
    st.floats(0, 0.5),
    st.randoms(use_true_random=False),
)
def test_no_second_holds_more_than_the_rate_whatever_comes(
    rate: int, mix: list[int], idle: float, dice: random.Random
) -> None:
    events = sent(Pace(rate), 20, dice, mix=mix, idle=idle)
    assert busiest_second(arrived(events, dice), rate) <= rate


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("seed", range(3))
def test_a_restart_keeps_the_law(rate: int, seed: int) -> None:
    """Killed every second or so, and the dispatch log read back in any order."""
    dice = random.Random(seed)
    now, events, pace = START, Events(), Pace(rate)
    while now < START + 60:
        segments = dice.randint(1, 6)
        now = max(now, pace.earliest(segments, now)) + dice.uniform(0, 0.002)
        pace.take(segments, now)
        events.append((now, segments))
        if dice.random() < 1 / rate:
            log = events[-300:]
            dice.shuffle(log)
            pace = Pace(rate)
            pace.restore(log)
    assert busiest_second(arrived(events, dice), rate) <= rate
    assert used(events, rate) >= 0.96


MANY = 1_000_000  # messages of all rates together


@pytest.mark.long
@pytest.mark.timeout(1_200)
@pytest.mark.parametrize("rate", RATES)
def test_a_million_messages_through_restarts_reloads_and_hand_overs(rate: int) -> None:
    """
    Killed, and the dispatch log read back; handed to another daemon, that knows what was said until a moment ago and
    counts the rest as full; reloaded, with a wrong rate that is put right. A retry is a message as any other here.
    """
    dice = random.Random(rate)
    now, events, pace, owed = START, Events(), Pace(rate), 0.0
    while len(events) < MANY // len(RATES):
        segments = dice.randint(1, 6)
        now = max(now, pace.earliest(segments, now)) + dice.uniform(0, 0.002)
        pace.take(segments, now)
        events.append((now, segments))
        assert now >= owed - BURST_S - 1e-6, "every segment of those before it is paid for"
        owed = max(owed, now) + segments / rate
        fate = dice.random() * rate
        if fate < 0.1:
            log, pace = events[-300:], Pace(rate)
            dice.shuffle(log)
            pace.restore(log)
        elif fate < 0.1005:
            unheard, pace = dice.randint(0, 3), Pace(rate)
            pace.restore(events[-300 : len(events) - unheard])
            now = max(now, owed)  # a dead daemon's lease outlives what it owed
            pace.start_full(now)
        elif fate < 0.2:
            pace.rate = rate * 3
            pace.rate = rate
    most, share = busiest_second(arrived(events, dice), rate), used(events, rate)
    print(f"rate {rate}: {len(events):,} messages, most in any second {most}, used {share:.2%}")  # noqa: T201 (the figure is the result)
    assert most <= rate
    assert share >= 0.97


@pytest.mark.parametrize("rate", RATES)
def test_a_start_without_a_log_keeps_the_law(rate: int) -> None:
    dice = random.Random(rate)
    before = sent(Pace(rate), 5, dice, mix=(1,))
    crashed_at = before[-1][0]
    pace = Pace(rate)
    pace.start_full(crashed_at)
    now, after = crashed_at, Events()
    while now < crashed_at + 5:
        now = pace.earliest(1, now)
        pace.take(1, now)
        after.append((now, 1))
    assert after[0][0] >= crashed_at + WINDOW_S
    assert busiest_second(arrived(before + after, dice), rate) <= rate


@given(st.integers(2, 30), st.integers(2, 30), st.randoms(use_true_random=False))
def test_a_reload_judges_the_log_by_the_new_rate(old: int, new: int, dice: random.Random) -> None:
    pace = Pace(old)
    before = sent(pace, 3, dice, mix=(1,))
    pace.rate = new
    now, after = before[-1][0], Events()
    while now < before[-1][0] + 3:
        now = pace.earliest(1, now)
        pace.take(1, now)
        after.append((now, 1))
    assert pace.rate == new
    # Each second that the new rate has any part in is within the larger of the two, and within the new one later.
    assert busiest_second(before + after, max(old, new)) <= max(old, new)
    assert busiest_second(after, new) <= new


def test_setting_the_same_rate_changes_nothing() -> None:
    pace = Pace(5)
    pace.take(3, 10.0)
    before = pace.earliest(1, 10.0)
    pace.rate = 5
    assert pace.earliest(1, 10.0) == before


def test_a_free_sender_speaks_at_once() -> None:
    assert Pace(1).earliest(1, 5.0) == 5.0
    assert Pace(0.25).earliest(7, 5.0) == 5.0


def test_a_message_longer_than_the_rate_passes_and_the_next_waits_for_all_of_it() -> None:
    pace = Pace(1)
    pace.take(10, 100.0)
    assert 110.0 <= pace.earliest(1, 100.0) <= 110.03
    assert 110.0 <= pace.earliest(10, 100.0) <= 110.03


def test_long_messages_are_not_starved_by_short_ones() -> None:
    pace, now = Pace(3), 0.0
    for _ in range(200):
        now = pace.earliest(1, now)
        pace.take(1, now)
    assert pace.earliest(12, now) - now <= WINDOW_S


@pytest.mark.parametrize("rate", [0.1, 0.25, 0.5])
def test_below_one_a_second_segments_are_a_little_more_than_their_time_apart(rate: float) -> None:
    dice = random.Random(1)
    times = [time for time, _ in sent(Pace(rate), 600, dice, mix=(1,))]
    assert min(later - sooner for sooner, later in pairwise(times)) >= 1.02 / rate - 1e-6
    assert used([(time, 1) for time in times], rate) >= 0.97


@pytest.mark.parametrize(("rate", "whole"), [(1.25, 1), (3.75, 3), (2.25, 2)])
def test_a_fraction_above_one_is_left_unused(rate: float, whole: int) -> None:
    dice = random.Random(1)
    events = sent(Pace(rate), 120, dice, mix=(1,))
    assert busiest_second(arrived(events, dice), rate) == whole
    assert used(events, rate) >= 0.97 * whole / rate


@given(st.integers(1, 200), st.lists(st.tuples(st.floats(0, 2), st.integers(1, 9)), max_size=50))
def test_asking_changes_nothing_and_never_answers_with_the_past(rate: int, news: list[tuple[float, int]]) -> None:
    pace, now = Pace(rate), START
    for after, segments in news:
        now += after
        moment = pace.earliest(segments, now)
        assert moment >= now
        assert pace.earliest(segments, now) == moment
        assert pace.earliest(segments, moment) == moment
        pace.take(segments, now)  # asked or not: a careless caller only makes the next one wait longer
        assert pace.earliest(1, now) >= min(now, moment)


@given(st.integers(1, 60), st.floats(0, 3), st.lists(st.floats(0, 0.3), max_size=60))
def test_room_is_an_upper_bound_of_what_can_start(rate: int, horizon_s: float, gaps: list[float]) -> None:
    pace, now = Pace(rate), START
    for gap in gaps:
        now = pace.earliest(1, now + gap)
        pace.take(1, now)
    room, end, started = pace.room(now, horizon_s), now + horizon_s, 0
    moment = pace.earliest(1, now)
    while moment <= end:
        pace.take(1, moment)
        started += 1
        moment = pace.earliest(1, moment)
    assert started <= room + 1e-6
    assert (started == 0) == (room == 0)


def test_room_of_a_free_sender_is_its_rate() -> None:
    assert Pace(50).room(START, 1.0) == pytest.approx(50 * (1 + BURST_S) + 1)


def test_a_throttle_slows_down_once_a_second_and_never_to_nothing() -> None:
    pace = Pace(100)
    pace.slow(now=10.0)
    pace.slow(now=10.9)
    assert pace.share == pytest.approx(0.7)
    pace.slow(0.5, now=11.0)
    assert pace.share == pytest.approx(0.35)
    for second in range(12, 60):
        pace.slow(now=float(second))
    assert pace.share == SLOWEST


def test_the_pace_comes_back_by_a_hundredth_each_second() -> None:
    pace = Pace(100)
    pace.slow(now=0.0)
    pace.recover(10.0)
    assert pace.share == pytest.approx(0.8)
    pace.recover(1000.0)
    assert pace.share == 1.0


def test_a_slowed_sender_uses_its_share() -> None:
    pace = Pace(50)
    pace.slow(0.5, now=START)
    assert used(sent(pace, 60, random.Random(2)), 50) == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("rate", [0, -1, float("inf"), float("nan")])
def test_a_rate_is_a_positive_number(rate: float) -> None:
    with pytest.raises(ValueError, match="positive number"):
        Pace(rate)


# Whose turn it is.

ALL = (True, True, True)


def served(
    turns: Turns,
    waiting: tuple[bool, bool, bool],
    seconds: float,
    *,
    rate: float = 10,
    sizes: Sequence[int] = (1,),
    start: float = 0.0,
    seed: int = 1,
) -> Events:
    """(time, level) of every segment that leaves while all of *waiting* always have work."""
    dice, now, gone = random.Random(seed), start, Events()
    while now < start + seconds:
        level, segments = turns.choose(waiting, now), dice.choice(sizes)
        turns.charge(level, segments, now)
        gone += [(now, level)] * segments
        now += segments / rate
    return gone


def share(gone: Events, level: int) -> float:
    return sum(one == level for _, one in gone) / len(gone)


@pytest.mark.parametrize(
    ("waiting", "level"),
    [
        ((False, False, False), 0),
        ((True, False, False), 1),
        ((True, True, True), 1),
        ((False, True, False), 2),
        ((False, False, True), 3),
        ((False, True, True), 2),
    ],
)
def test_whose_turn_it_is_on_a_fresh_lane(waiting: tuple[bool, bool, bool], level: int) -> None:
    assert Turns().choose(waiting, 0.0) == level


def test_level_1_goes_first_for_a_minute() -> None:
    assert share(served(Turns(), ALL, STARVED_S), 1) == 1


@pytest.mark.parametrize("sizes", [(1,), (1, 2, 3, 4, 5, 6)])
@pytest.mark.parametrize("rate", [1, 10, 100])
def test_after_a_minute_the_others_keep_a_fifth(rate: int, sizes: Sequence[int]) -> None:
    turns = Turns()
    served(turns, ALL, STARVED_S, rate=rate)
    later = served(turns, ALL, 1200, rate=rate, sizes=sizes, start=STARVED_S)
    assert share(later, 1) == pytest.approx(0.8, abs=0.02)
    assert share(later, 2) == pytest.approx(0.12, abs=0.03)
    assert share(later, 3) == pytest.approx(0.08, abs=0.03)


def test_a_login_code_never_waits_for_a_burst_of_others() -> None:
    """Where the others keep their fifth, at least four of level 1 go between two of them."""
    turns = Turns()
    served(turns, ALL, STARVED_S + 1)
    others = [n for n, (_, level) in enumerate(served(turns, ALL, 300, start=STARVED_S + 1)) if level > 1]
    assert min(later - sooner for sooner, later in pairwise(others)) >= 5


def test_a_little_of_level_1_is_always_first() -> None:
    """One login code a second on a lane of ten: the reserve is for lanes that it fills."""
    turns, now = Turns(), 0.0
    for tick in range(3000):
        now = tick / 10
        codes = tick % 10 == 0
        level = turns.choose((codes, True, True), now)
        assert level == 1 or not codes
        turns.charge(level, 1, now)


def test_others_whose_hands_are_empty_for_a_moment_do_not_wait_another_minute() -> None:
    """They are claimed a few at a time, and level 1 passes in between."""
    turns, gone, now = Turns(), [], 0.0
    while now < STARVED_S + 60:
        here = now % 2 < 1.5
        level = turns.choose((True, False, here), now)
        turns.charge(level, 1, now)
        gone.append((now, level))
        now += 0.1
    later = [one for one in gone if one[0] > STARVED_S]
    assert share(later, 3) > 0.1


def test_others_who_have_just_come_wait_a_minute_too() -> None:
    turns = Turns()
    served(turns, (True, False, False), 600)
    assert share(served(turns, ALL, STARVED_S, start=600), 1) == 1


@pytest.mark.parametrize("sizes", [(1,), (1, 2, 3, 4, 5, 6), (6,)])
def test_levels_2_and_3_share_three_to_two(sizes: Sequence[int]) -> None:
    gone = served(Turns(), (False, True, True), 600, sizes=sizes)
    assert share(gone, 2) == pytest.approx(0.6, abs=0.05)


@pytest.mark.parametrize("alone", [2, 3])
def test_who_is_alone_has_it_all_and_the_absent_saves_nothing_up(alone: int) -> None:
    turns = Turns()
    served(turns, (False, alone == 2, alone == 3), 300)
    gone = served(turns, (False, True, True), 10, start=300)
    assert share(gone, 2) == pytest.approx(0.6, abs=0.05)


@given(
    st.lists(st.tuples(st.booleans(), st.booleans(), st.booleans(), st.integers(1, 6), st.floats(0, 5)), max_size=200)
)
def test_a_turn_is_given_to_somebody_who_waits(moments: list[tuple[bool, bool, bool, int, float]]) -> None:
    turns, now = Turns(), 0.0
    for first, second, third, segments, after in moments:
        now += after
        waiting = (first, second, third)
        level = turns.choose(waiting, now)
        assert (level == 0) == (not any(waiting))
        if level:
            assert waiting[level - 1]
            turns.charge(level, segments, now)


@pytest.mark.parametrize("sizes", [(1,), (1, 2, 3, 4, 5, 6)])
@pytest.mark.parametrize("seed", range(5))
def test_the_lowest_waits_a_minute_and_then_so_many_segments_at_most(sizes: Sequence[int], seed: int) -> None:
    turns, longest = Turns(), max(sizes)
    gone = served(turns, ALL, 900, sizes=sizes, seed=seed)
    threes = [n for n, (_, level) in enumerate(gone) if level == 3]
    assert gone[threes[0]][0] <= STARVED_S + (13 * longest + 5) / 10
    assert max(later - sooner for sooner, later in pairwise(threes)) <= 25 * longest
