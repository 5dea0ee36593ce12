"""The two windows the engine feeds: what they count, what they forget, how far off they may be."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.watch import Spread, Stage, Window


def test_the_second_under_way_is_left_out() -> None:
    window = Window()
    window.add(100.0, 30)
    window.add(100.9, 10)
    window.add(101.2, 999)
    assert window.per_second(101.5, 1) == 40
    assert window.per_second(101.5, 10) == 4
    assert window.series(101.5, 3) == (0, 0, 40)


def test_a_pause_counts_as_nothing() -> None:
    window = Window(5)
    window.add(100.0, 7)
    window.add(103.0, 1)
    assert window.series(104.0, 4) == (7, 0, 0, 1)
    assert window.series(1_000_000.0, 5) == (0, 0, 0, 0, 0)


def test_a_clock_that_stands_back_a_little_loses_nothing() -> None:
    window = Window()
    window.add(101.0)
    window.add(100.999)
    assert window.series(102.0, 1) == (2,)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 9)), max_size=60), st.integers(1, 20))
def test_a_window_agrees_with_a_plain_list(steps: list[tuple[int, int]], seconds: int) -> None:
    window, events, now = Window(20), dict[int, int](), 1_000
    for pause, many in steps:
        now += pause
        window.add(now, many)
        events[now] = events.get(now, 0) + many
    expected = tuple(events.get(second, 0) for second in range(now - seconds, now))
    assert window.series(now, seconds) == expected


def test_nothing_seen_has_no_latency() -> None:
    assert Spread().latency(5.0, Stage.TURN) is None


def test_quantiles_know_the_many_from_the_few() -> None:
    spread = Spread()
    for _ in range(940):
        spread.add(10.0, 0.010)
    for _ in range(50):
        spread.add(10.0, 0.200)
    for _ in range(10):
        spread.add(10.0, 3.0)
    latency = spread.latency(10.0, Stage.EXCHANGE)
    assert latency is not None
    assert latency.count == 1_000
    assert latency.p50_ms == pytest.approx(10, rel=0.05)
    assert latency.p95_ms == pytest.approx(200, rel=0.05)
    assert latency.p99_ms == pytest.approx(200, rel=0.05)


@given(st.floats(1e-5, 1_300.0))
def test_a_quantile_is_off_by_five_percent_at_most(seconds: float) -> None:
    spread = Spread()
    spread.add(0.0, seconds)
    latency = spread.latency(0.0, Stage.QUEUE)
    assert latency is not None
    assert latency.p50_ms == pytest.approx(seconds * 1000, rel=0.05)


@given(st.floats(-1.0, 1e12, allow_nan=False))
def test_every_duration_is_counted(seconds: float) -> None:
    spread = Spread()
    spread.add(0.0, seconds)
    latency = spread.latency(0.0, Stage.QUEUE)
    assert latency is not None
    assert latency.count == 1
    assert math.isfinite(latency.p99_ms)


def test_old_minutes_are_forgotten() -> None:
    spread = Spread(minutes=5)
    spread.add(0.0, 9.0)
    spread.add(240.0, 0.001)
    latency = spread.latency(299.0, Stage.RECEIPT)
    assert latency is not None
    assert latency.count == 2
    later = spread.latency(300.0, Stage.RECEIPT)
    assert later is not None
    assert later.count == 1
    assert spread.latency(900.0, Stage.RECEIPT) is None
