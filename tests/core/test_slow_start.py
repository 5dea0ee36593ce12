from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from daemon.core.breaker import Sign, sign_of
from daemon.core.outcome import Accepted, Fault, Outcome, Rejected, Throttled, Uncertain, Unreachable
from daemon.core.slow_start import FIRST, after, first

GOOD: Outcome = Accepted("SM1")
OUTCOMES: list[Outcome] = [
    GOOD,
    Rejected(Fault.RECIPIENT, "21211", ""),
    Rejected(Fault.ACCOUNT, "20003", ""),
    Throttled(None, "429", ""),
    Uncertain("no answer"),
    Unreachable("refused"),
]


def test_they_double_with_each_round_of_good_answers() -> None:
    opened, rounds = first(51), []
    while opened < 51:
        for _ in range(opened):  # all that are out come back
            opened = after(opened, 51, sign=Sign.GOOD, outcome=GOOD)
        rounds.append(opened)
    assert rounds == [8, 16, 32, 51]


@given(st.integers(1, 200), st.lists(st.tuples(st.sampled_from(OUTCOMES), st.floats(0, 20)), max_size=300))
def test_never_fewer_than_at_first_never_more_than_there_are(full: int, answers: list[tuple[Outcome, float]]) -> None:
    opened = first(full)
    for outcome, took_s in answers:
        before, sign = opened, sign_of(outcome, took_s, 2.0)
        opened = after(opened, full, sign=sign, outcome=outcome)
        assert min(FIRST, full) <= opened <= full
        if isinstance(outcome, Throttled):
            assert opened == before
        elif sign in {Sign.GOOD, Sign.IRRELEVANT}:
            assert opened == min(before + 1, full)
        else:
            assert opened <= max(before / 2, FIRST)
