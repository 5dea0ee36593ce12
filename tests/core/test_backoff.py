from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from daemon.core.backoff import Patience, delay

patiences = st.builds(Patience, attempts=st.integers(1, 100), base_s=st.floats(0.001, 1e4), cap_s=st.floats(0.001, 1e6))
rolls = st.floats(0, 1, exclude_max=True)


@given(patiences, st.integers(1, 10**9), rolls)
def test_a_delay_is_full_jitter_between_nothing_and_the_cap(patience: Patience, tries: int, roll: float) -> None:
    assert 0 <= delay(patience, tries, roll) <= patience.cap_s


@given(patiences, st.integers(1, 200))
def test_the_dice_reach_the_whole_range(patience: Patience, tries: int) -> None:
    ceiling = min(patience.cap_s, patience.base_s * 2.0 ** (tries - 1))
    assert delay(patience, tries, 0.0) == 0
    assert math.isclose(delay(patience, tries, 0.5), ceiling / 2)


@given(patiences, st.integers(1, 200), rolls)
def test_waits_grow_with_the_tries(patience: Patience, tries: int, roll: float) -> None:
    assert delay(patience, tries, roll) <= delay(patience, tries + 1, roll)


def test_ceilings_double_up_to_the_cap() -> None:
    patience = Patience(attempts=9, base_s=2.0, cap_s=30.0)
    assert [delay(patience, tries, 0.5) for tries in range(1, 7)] == [1, 2, 4, 8, 15, 15]
