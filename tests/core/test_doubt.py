"""What is done about a message in doubt: evidence first, then policy."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.core.doubt import ABSENT_S, LOOKS_S, PACE_S, Decide, Look, Step, next_step
from daemon.core.lifecycle import Status
from daemon.core.message import OnAmbiguous

SINCE = 1_000.0
PATIENCE_S = 300.0


def step(after_s: float, **changes: object) -> Step:
    facts: dict[str, object] = {
        "now": SINCE + after_s,
        "since": SINCE,
        "absent_since": None,
        "askable": True,
        "dispatched": True,
        "policy": "resolve",
        "resolve_for_s": PATIENCE_S,
        "expires_at": None,
        "canceled": False,
    }
    return next_step(**{**facts, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("after_s", "look_s"),
    [(0.0, 5.0), (4.9, 5.0), (5.0, 20.0), (20.0, 60.0), (60.0, 120.0), (120.0, 240.0), (200.0, 300.0), (299.0, 300.0)],
)
def test_it_is_asked_for_at_5_20_60_and_120_seconds_then_at_a_pace(after_s: float, look_s: float) -> None:
    assert step(after_s) == Look(SINCE + look_s)


@pytest.mark.parametrize(
    ("policy", "changes", "status"),
    [
        ("resend", {}, "ready"),
        ("resend", {"expires_at": SINCE + PATIENCE_S + 1}, "ready"),
        ("resend", {"expires_at": SINCE + PATIENCE_S}, Status.DEAD),
        ("resend", {"canceled": True}, Status.DEAD),
        ("resend", {"dispatched": False}, "ready"),
        ("drop", {}, Status.DEAD),
        ("drop", {"dispatched": False}, Status.DEAD),
        ("resolve", {}, Status.DEAD),
        ("resolve", {"askable": False}, Status.DEAD),
    ],
)
def test_without_evidence_the_policy_decides(policy: str, changes: dict[str, object], status: str) -> None:
    decided = step(PATIENCE_S, policy=policy, **changes)
    assert isinstance(decided, Decide)
    assert decided.status == status


def test_dropping_and_parking_tell_which_they_were() -> None:
    dropped, parked = step(PATIENCE_S, policy="drop"), step(PATIENCE_S, policy="drop", dispatched=False)
    mute = step(PATIENCE_S, askable=False)
    assert isinstance(dropped, Decide)
    assert isinstance(parked, Decide)
    assert isinstance(mute, Decide)
    assert "dropped" in dropped.reason
    assert "no evidence came" in parked.reason
    assert "cannot be asked" in mute.reason


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({}, "ready"),
        ({"canceled": True}, Status.CANCELED),
        ({"expires_at": SINCE + 90.0}, Status.EXPIRED),
        ({"expires_at": SINCE + 91.0}, "ready"),
        ({"canceled": True, "expires_at": SINCE}, Status.CANCELED),
    ],
)
@pytest.mark.parametrize("policy", list(OnAmbiguous))
def test_what_its_provider_never_had_was_not_sent(changes: dict[str, object], status: str, policy: str) -> None:
    decided = step(90.0, absent_since=SINCE + 30.0, policy=policy, **changes)
    assert isinstance(decided, Decide)
    assert decided.status == status


def test_one_empty_answer_proves_nothing() -> None:
    assert isinstance(step(60.0, absent_since=SINCE + 1.0), Look)
    # Not even when patience is over: the second answer is near.
    assert step(PATIENCE_S, absent_since=SINCE + 290.0) == Look(SINCE + 290.0 + ABSENT_S)


FACTS = st.fixed_dictionaries(
    {
        "absent_since": st.none() | st.floats(SINCE, SINCE + 400),
        "askable": st.booleans(),
        "dispatched": st.booleans(),
        "policy": st.sampled_from(list(OnAmbiguous)),
        "resolve_for_s": st.floats(0, 400),
        "expires_at": st.none() | st.floats(SINCE - 10, SINCE + 1_000),
        "canceled": st.booleans(),
    }
)


@given(st.floats(0, 1_000), FACTS)
def test_a_look_is_ahead_and_never_far(after_s: float, facts: dict[str, object]) -> None:
    absent = facts["absent_since"]
    known = {"absent_since": min(absent, SINCE + after_s)} if isinstance(absent, float) else {}
    found = step(after_s, **{**facts, **known})
    if isinstance(found, Look):
        assert SINCE + after_s < found.at or math.isclose(SINCE + after_s, found.at)
        assert found.at <= SINCE + after_s + max(PACE_S, ABSENT_S, *LOOKS_S)


@given(FACTS)
def test_every_doubt_ends(facts: dict[str, object]) -> None:
    after_s = 0.0
    for _ in range(100):
        found = step(after_s, **{**facts, "absent_since": None})
        if isinstance(found, Decide):
            return
        assert found.at > SINCE + after_s
        after_s = found.at - SINCE
    pytest.fail("still in doubt")


@given(st.floats(0, 1_000), FACTS)
def test_it_is_sent_again_only_when_it_was_not_sent_or_its_policy_says_so(
    after_s: float, facts: dict[str, object]
) -> None:
    found = step(after_s, **facts)
    if isinstance(found, Decide) and found.status == "ready":
        absent = facts["absent_since"]
        known_unsent = isinstance(absent, float) and SINCE + after_s - absent >= ABSENT_S
        assert known_unsent or facts["policy"] is OnAmbiguous.RESEND
        assert facts["expires_at"] is None or SINCE + after_s < float(str(facts["expires_at"]))
        assert not facts["canceled"]


@given(st.floats(0, 1_000), FACTS)
def test_what_may_never_have_left_is_never_dropped(after_s: float, facts: dict[str, object]) -> None:
    found = step(after_s, **{**facts, "dispatched": False})
    assert not (isinstance(found, Decide) and "dropped" in found.reason)
