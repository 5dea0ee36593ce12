from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.core.inspection import Known, Refusal, Row, inspect
from daemon.core.lifecycle import FINAL, Status

if TYPE_CHECKING:
    from collections.abc import Mapping

NOW = 1_000.0
KNOWN = Known(
    services=frozenset({"default", "otp"}),
    senders=frozenset({"+14155550100"}),
    templates={"code": "Your code is {code}", "blank": "{pad}", "broken": "{"},
    regions={"otp": "FR"},
)


def row(**changes: object) -> Row:
    plain: dict[str, object] = {
        "recipient": "+33612345678",
        "channel": "sms",
        "service": "default",
        "sender": None,
        "body": "hello",
        "template": None,
        "variables": None,
        "media": (),
        "intent": "otp",
        "first_due": 900.0,
        "expires_at": None,
        "on_ambiguous": None,
    }
    return Row(**(plain | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"intent": None, "service": None, "sender": "+14155550100"},
        {"body": None, "media": ("https://example.org/a.png",)},
        {"body": None, "template": "code", "variables": {"code": "123456"}},
        {"body": "x" * 1600},
        {"expires_at": NOW + 1},
        {"first_due": NOW - 1e6},
        {"first_due": NOW + 1e6},
        {"on_ambiguous": "resend"},
        {"service": "otp", "recipient": "06 12 34 56 78"},
        {"recipient": "+33 6 12 34 56 78"},
        {"body": None, "template": "blank", "variables": {"pad": " "}, "media": ("https://example.org/a.png",)},
    ],
)
def test_what_can_be_sent_passes(changes: Mapping[str, object]) -> None:
    assert inspect(row(**changes), KNOWN, NOW) is None


@pytest.mark.parametrize(
    ("changes", "status", "told"),
    [
        ({"recipient": None}, "suppressed", "bad number: there is none"),
        ({"recipient": ""}, "suppressed", "bad number: there is none"),
        ({"recipient": "12345"}, "suppressed", "bad number: not a phone number"),
        ({"recipient": "06 12 34 56 78"}, "suppressed", "no country code"),
        ({"recipient": "+33891234567"}, "suppressed", "premium-rate"),
        ({"body": None}, "failed", "empty body"),
        ({"body": ""}, "failed", "empty body"),
        ({"body": " \n"}, "failed", "empty body"),
        ({"body": "x" * 1601}, "failed", "1601 characters"),
        ({"media": (None,)}, "failed", "media 1 is no web address"),
        ({"media": ("https://example.org/a.png", "")}, "failed", "media 2 is no web address"),
        ({"media": (["https://example.org/a.png"],)}, "failed", "media 1 is no web address"),
        ({"media": ("file:///etc/passwd",)}, "failed", "media 1 is no web address"),
        ({"media": ("https://example.org/a b",)}, "failed", "media 1 is no web address"),
        ({"media": ("https://example.org/a.png",) * 11}, "failed", "11 media, at most 10"),
        ({"channel": "smss"}, "failed", "unknown channel 'smss'; did you mean 'sms'?"),
        ({"channel": "email"}, "failed", "channel email is not carried by any configured provider"),
        ({"intent": "opt"}, "failed", "did you mean 'otp'?"),
        ({"intent": "zzz"}, "failed", "unknown intent 'zzz'"),
        ({"on_ambiguous": "resent"}, "failed", "did you mean 'resend'?"),
        ({"service": "defualt"}, "failed", "unknown service 'defualt'; did you mean 'default'?"),
        ({"sender": "+14155550101"}, "failed", "did you mean '+14155550100'?"),
        ({"template": "code"}, "failed", "both a body and a template"),
        ({"body": None, "template": "cod"}, "failed", "unknown template 'cod'; did you mean 'code'?"),
        ({"body": None, "template": "code"}, "failed", "missing template variables: code"),
        ({"body": None, "template": "code", "variables": [1]}, "failed", "variables are not an object"),
        ({"body": None, "template": "code", "variables": {"code": {}}}, "failed", "neither text nor number: code"),
        ({"body": None, "template": "blank", "variables": {"pad": " "}}, "failed", "came out blank"),
        ({"body": None, "template": "blank", "variables": {"pad": "x" * 1601}}, "failed", "1601 characters"),
        ({"body": None, "template": "broken"}, "failed", "stray {"),
        ({"expires_at": NOW}, "expired", "too late: expired 0 s ago"),
        ({"expires_at": NOW - 60}, "expired", "too late: expired 60 s ago"),
        ({"expires_at": 900.0}, "expired", "it expires before it is due"),
        ({"expires_at": 2000.0, "first_due": 3000.0}, "expired", "it expires before it is due"),
    ],
)
def test_what_cannot_be_sent_ends_with_a_reason(changes: Mapping[str, object], status: str, told: str) -> None:
    refusal = inspect(row(**changes), KNOWN, NOW)
    assert refusal is not None
    assert refusal.status == status
    assert told in refusal.reason


words = st.none() | st.text(max_size=50)


@given(words, st.text(max_size=50), words, words, words, words, words)
def test_any_words_are_judged_and_only_with_a_final_status(
    recipient: str | None,
    channel: str,
    service: str | None,
    sender: str | None,
    intent: str | None,
    template: str | None,
    policy: str | None,
) -> None:
    asked = row(
        recipient=recipient,
        channel=channel,
        service=service,
        sender=sender,
        intent=intent,
        template=template,
        on_ambiguous=policy,
    )
    refusal = inspect(asked, KNOWN, NOW)
    assert refusal is None or refusal.status in FINAL


@given(st.text(min_size=1))
def test_a_reason_stays_short_whatever_was_written(word: str) -> None:
    refusal = inspect(row(service=word * 50), KNOWN, NOW)
    assert refusal is not None
    assert len(refusal.reason) < 500


def test_an_applications_mistake_is_a_failure() -> None:
    assert Refusal.failed("so") == Refusal(Status.FAILED, "so")
