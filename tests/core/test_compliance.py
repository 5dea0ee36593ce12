"""Counting a sender's segments, held against the slowest and plainest counting there is."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.core.compliance import busiest_second, used

# Times on a grid of milliseconds and rates that divide it are exact in both countings.
events_on_a_grid = st.lists(st.tuples(st.integers(0, 5_000), st.integers(0, 6)), max_size=40)
rates = st.sampled_from([1, 2, 4, 5, 8, 10, 20, 25, 50, 100])


def plainly(events: list[tuple[int, int]], rate: int) -> int:
    """Every half-open second that starts at a segment, counted with exact fractions."""
    positions = [Fraction(ms, 1000) + Fraction(j, rate) for ms, segments in events for j in range(segments)]
    return max((sum(start <= other < start + 1 for other in positions) for start in positions), default=0)


@given(events=events_on_a_grid, rate=rates)
def test_the_quick_count_equals_the_plain_one(events: list[tuple[int, int]], rate: int) -> None:
    assert busiest_second([(ms / 1000, segments) for ms, segments in events], rate) == plainly(events, rate)


@given(events=events_on_a_grid, rate=rates, start=st.sampled_from([0.0, 123_456.789, 1_790_000_000.123]))
def test_the_clock_may_start_anywhere(events: list[tuple[int, int]], rate: int, start: float) -> None:
    assert busiest_second([(start + ms / 1000, segments) for ms, segments in events], rate) == plainly(events, rate)


@pytest.mark.parametrize("rate", [1, 3, 7, 10, 30, 99, 100])
@pytest.mark.parametrize("segments", [1, 2, 6])
def test_a_perfectly_paced_sender_fills_each_second_and_no_more(rate: int, segments: int) -> None:
    events = [(1_790_000_000.1 + n * segments / rate, segments) for n in range(500)]
    assert busiest_second(events, rate) == rate
    assert used(events, rate) == pytest.approx(1.0)


def test_windows_are_half_open() -> None:
    assert busiest_second([(0.0, 1), (1.0, 1)], 10) == 1
    assert busiest_second([(0.0, 1), (0.99999, 1)], 10) == 2


def test_a_microsecond_is_forgiven_and_no_more() -> None:
    assert busiest_second([(0.0, 1), (1.0 - 0.9e-6, 1)], 10) == 1
    assert busiest_second([(0.0, 1), (1.0 - 1.1e-6, 1)], 10) == 2


def test_a_long_message_occupies_its_sender() -> None:
    assert busiest_second([(0.0, 6)], 2) == 2
    assert busiest_second([(0.0, 6)], math.inf) == 6


def test_the_order_of_events_does_not_matter() -> None:
    events = [(3.0, 2), (0.1, 1), (2.5, 3), (0.0, 4)]
    assert busiest_second(events, 3) == busiest_second(events[::-1], 3)
    assert used(events, 3) == used(events[::-1], 3)


def test_the_window_may_have_another_length() -> None:
    assert busiest_second([(n / 10, 1) for n in range(100)], 10, window_s=2.0) == 20


def test_nothing_sent_is_nothing_used() -> None:
    assert busiest_second([], 10) == 0
    assert used([], 10) == 0.0
    assert used([(5.0, 0)], 10) == 0.0


def test_half_the_pace_is_half_used() -> None:
    assert used([(n / 5, 1) for n in range(1_001)], 10) == pytest.approx(0.5, abs=0.001)
    assert used([(7.0, 1)], 10) == 1.0


def test_a_hundred_thousand_messages_are_counted() -> None:
    before = [0, 1, 3]  # segments of a round of three messages (1, 2 and 3 long) sent before each of them
    events = [((6 * (n // 3) + before[n % 3]) / 100, 1 + n % 3) for n in range(100_000)]
    assert busiest_second(events, 100) == 100
    assert used(events, 100) == pytest.approx(1.0)
