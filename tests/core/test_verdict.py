from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.core.backoff import Patience
from daemon.core.lifecycle import FINAL, Status
from daemon.core.outcome import Accepted, Fault, Outcome, Rejected, Throttled, Uncertain, Unreachable
from daemon.core.verdict import SENDER_REST_S, THROTTLE_WAIT_MAX_S, THROTTLE_WAIT_S, Again, Doubt, Ended, Handed, judge

if TYPE_CHECKING:
    from collections.abc import Callable

    from daemon.core.message import Message

    Make = Callable[..., Message]

NOW = 1_000_000.0
PATIENCE = Patience(attempts=3, base_s=10.0, cap_s=60.0)
words = st.text(max_size=8)
rejected = st.builds(Rejected, st.sampled_from(sorted(Fault)), words, words)
throttled = st.builds(Throttled, st.none() | st.floats(), words, words)
uncertain = st.builds(Uncertain, words, words)
unreachable = st.builds(Unreachable, words)
outcomes = st.one_of(st.builds(Accepted, st.none() | words), rejected, throttled, uncertain, unreachable)
rolls = st.floats(0, 1, exclude_max=True)
expiries = st.none() | st.floats(NOW - 100, NOW + 1000)


@given(outcomes, expiries, st.integers(0, 5), rolls, st.booleans())
def test_nothing_is_tried_again_after_it_expires(
    a_message: Make, outcome: Outcome, expires_at: float | None, spent: int, roll: float, idempotent: bool
) -> None:
    message = a_message(expires_at=expires_at, spent=spent)
    verdict = judge(message, outcome, patience=PATIENCE, now=NOW, roll=roll, idempotent=idempotent)
    if isinstance(verdict, Again):
        assert NOW <= verdict.due_at <= NOW + THROTTLE_WAIT_MAX_S * 1.5
        assert expires_at is None or verdict.due_at < expires_at
    if isinstance(verdict, Ended):
        assert verdict.status in FINAL


@given(uncertain, expiries, st.integers(0, 5), rolls)
def test_doubt_is_never_resent_to_a_provider_that_would_send_twice(
    a_message: Make, outcome: Outcome, expires_at: float | None, spent: int, roll: float
) -> None:
    message = a_message(expires_at=expires_at, spent=spent)
    assert isinstance(judge(message, outcome, patience=PATIENCE, now=NOW, roll=roll), Doubt)


@given(uncertain, expiries, st.integers(0, 5), rolls)
def test_doubt_never_ends_a_message(
    a_message: Make, outcome: Outcome, expires_at: float | None, spent: int, roll: float
) -> None:
    message = a_message(expires_at=expires_at, spent=spent)
    verdict = judge(message, outcome, patience=PATIENCE, now=NOW, roll=roll, idempotent=True)
    assert isinstance(verdict, Again | Doubt)


@given(throttled | st.builds(Rejected, st.sampled_from([Fault.SENDER, Fault.ACCOUNT]), words, words), rolls)
def test_what_is_not_the_messages_fault_is_never_charged_to_it(a_message: Make, outcome: Outcome, roll: float) -> None:
    verdict = judge(a_message(spent=99), outcome, patience=PATIENCE, now=NOW, roll=roll)
    assert isinstance(verdict, Again)
    assert not verdict.spent


@given(st.none() | st.floats(), rolls)
def test_a_throttle_waits_at_least_a_second_and_never_for_ever(
    a_message: Make, wait: float | None, roll: float
) -> None:
    verdict = judge(a_message(), Throttled(wait, "", ""), patience=PATIENCE, now=NOW, roll=roll)
    assert isinstance(verdict, Again)
    assert THROTTLE_WAIT_S <= verdict.due_at - NOW <= THROTTLE_WAIT_MAX_S * 1.5


@given(outcomes, st.integers(0, 5), rolls, st.booleans())
def test_an_accepted_message_is_never_sent_again_and_nothing_else_is_handed(
    a_message: Make, outcome: Outcome, spent: int, roll: float, idempotent: bool
) -> None:
    verdict = judge(a_message(spent=spent), outcome, patience=PATIENCE, now=NOW, roll=roll, idempotent=idempotent)
    assert isinstance(verdict, Handed) == isinstance(outcome, Accepted)


@pytest.mark.parametrize("outcome", [Unreachable("refused"), Rejected(Fault.TRANSIENT, "503", "busy")])
def test_tries_are_charged_until_patience_ends(a_message: Make, outcome: Outcome) -> None:
    verdicts = [judge(a_message(spent=n), outcome, patience=PATIENCE, now=NOW, roll=0.5) for n in range(3)]
    reason = "refused" if isinstance(outcome, Unreachable) else "503: busy"
    assert verdicts == [
        Again(NOW + 5, reason, spent=True),
        Again(NOW + 10, reason, spent=True),
        Ended(Status.DEAD, f"gave up after 3 tries: {reason}"),
    ]


@pytest.mark.parametrize(
    ("fault", "status"),
    [
        (Fault.RECIPIENT, Status.FAILED),
        (Fault.CONTENT, Status.FAILED),
        (Fault.ROUTE, Status.FAILED),
        (Fault.UNKNOWN, Status.FAILED),
        (Fault.OPTED_OUT, Status.SUPPRESSED),
    ],
)
def test_a_refusal_that_repeating_will_not_help_is_final(a_message: Make, fault: Fault, status: Status) -> None:
    verdict = judge(a_message(), Rejected(fault, "21211", "bad"), patience=PATIENCE, now=NOW, roll=0.1)
    assert verdict == Ended(status, "21211: bad", "21211")


def test_a_resting_sender_is_waited_for(a_message: Make) -> None:
    verdict = judge(a_message(), Rejected(Fault.SENDER, "", "blocked"), patience=PATIENCE, now=NOW, roll=0.5)
    assert verdict == Again(NOW + SENDER_REST_S * 1.5, "sender refused: blocked", spent=False)


def test_a_retry_that_would_come_too_late_ends_at_once(a_message: Make) -> None:
    verdict = judge(a_message(expires_at=NOW + 4), Unreachable("refused"), patience=PATIENCE, now=NOW, roll=0.5)
    assert verdict == Ended(Status.EXPIRED, "would be tried again too late: refused")
