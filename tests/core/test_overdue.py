from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from daemon.core.overdue import DAY_S, NIGHT_S, QUIET_S, RECENT_S, UNCONFIRMED_S, next_look

ACCEPTED = 20_000 * DAY_S + 12 * 3_600.0  # a noon


def test_hourly_on_the_first_day_then_nightly_then_never_again() -> None:
    looks, at = [], ACCEPTED
    while (following := next_look(at, ACCEPTED)) is not None:
        looks.append((following - ACCEPTED) / 3_600)
        at = following
    assert looks == [*range(1, 25), 39, 63, 72]  # 03:00 on the second day and on the third, and the end


@given(st.floats(0, UNCONFIRMED_S * 2), st.floats(0, DAY_S))
def test_the_next_look_lies_ahead_and_never_beyond_the_end(age: float, hour: float) -> None:
    accepted = ACCEPTED + hour
    at = next_look(accepted + age, accepted)
    if age >= UNCONFIRMED_S + 1:
        assert at is None
    elif at is not None:
        assert accepted + age < at <= accepted + UNCONFIRMED_S
        assert at - (accepted + age) <= (QUIET_S + 1 if age < RECENT_S - 1 else DAY_S)
        nightly = abs((at - NIGHT_S) % DAY_S) < 1e-3
        assert age < RECENT_S + 1e-3 or nightly or at == accepted + UNCONFIRMED_S
