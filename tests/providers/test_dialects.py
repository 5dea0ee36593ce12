"""What every dialect promises, whatever the provider. A new one joins with one line in ``SPEAKERS``."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlencode
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.core.lifecycle import Status
from daemon.core.message import Attempt, Message
from daemon.core.outcome import Accepted, Rejected, Throttled, Uncertain
from daemon.core.receipt import Receipt
from daemon.provider import Absent, Callback, Dialect, Forged, Inbound, Request, Response, Unclear
from daemon.providers import Twilio, form, twilio, twilio_signature

if TYPE_CHECKING:
    from collections.abc import Callable

SENT_AT = 1_700_000_000.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Speaker:
    """A dialect, and how its provider signs a callback."""

    dialect: Dialect
    sign: Callable[[str, str, bytes], Callback]  # method, target and body, as the provider would send them


def _twilio() -> Speaker:
    dialect = Twilio(
        name="twilio",
        account_sid="AC" + "0" * 32,
        authorization=twilio.basic("AC" + "0" * 32, "secret"),
        auth_tokens=("secret",),
        public_url="https://msg.example.com",
    )

    def sign(method: str, target: str, body: bytes) -> Callback:
        fields = [] if method == "GET" else form.read(body, most=1_000) or []
        signature = twilio_signature.sign("secret", "https://msg.example.com" + target, fields)
        return Callback(method, target, {"x-twilio-signature": signature}, body)

    return Speaker(dialect=dialect, sign=sign)


SPEAKERS = [_twilio()]

every_dialect = pytest.mark.parametrize("speaker", SPEAKERS, ids=[speaker.dialect.name for speaker in SPEAKERS])


def message(text: str = "hello", recipient: str = "+15005550001", media: tuple[str, ...] = ()) -> Message:
    return Message(
        id=UUID(int=7),
        attempt=1,
        spent=0,
        lane="default",
        level=1,
        claim=UUID(int=8),
        tenant="",
        recipient=recipient,
        channel="sms",
        service="default",
        sender=None,
        body=text,
        template=None,
        variables=None,
        media=media,
        intent="otp",
        first_due=0.0,
        due_at=0.0,
        expires_at=None,
        order_key=None,
        on_ambiguous=None,
        text=text,
    )


def attempt(text: str = "hello", known: frozenset[str] = frozenset()) -> Attempt:
    return Attempt(
        id=UUID(int=7),
        attempt=1,
        provider="twilio",
        sender="+15005550006",
        recipient="+15005550001",
        text=text,
        segments=1,
        sent_at=SENT_AT,
        known_references=known,
    )


# Bytes of any kind, and such as come near to sense.
NAMES = "sid status code message messages from body date_created num_segments error_code next_page_uri direction"
VALUES = "queued failed +15005550006 hello 21211"
words = st.sampled_from([*NAMES.split(), *VALUES.split(), "Tue, 14 Nov 2023 22:13:20 +0000"])
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words | st.text(), inner, max_size=6),
    max_leaves=12,
)
bodies = st.binary() | values.map(lambda value: json.dumps(value).encode())
headers = st.dictionaries(
    st.sampled_from(["retry-after", "date", "content-type", "x"]), st.text() | st.integers().map(str)
)
responses = st.builds(Response, st.integers(100, 599), headers, bodies)

fields = st.lists(
    st.tuples(
        st.sampled_from(
            ["MessageSid", "MessageStatus", "SmsStatus", "ErrorCode", "From", "To", "Body", "OptOutType", "X"]
        )
        | st.text(),
        st.sampled_from(["SM1", "delivered", "failed", "30036", "received", "STOP", "\0", ""]) | st.text(),
    ),
    max_size=8,
)
posted = st.binary() | fields.map(lambda pairs: urlencode(pairs, errors="replace").encode())
targets = st.just("/callbacks/x/token") | st.text().map(lambda text: "/" + text)
methods = st.sampled_from(["POST", "GET", "PUT"])
callbacks = st.builds(
    Callback, methods, targets | st.text(), st.dictionaries(st.just("x-twilio-signature"), st.text()), posted
)


@every_dialect
def test_it_names_itself(speaker: Speaker) -> None:
    assert speaker.dialect.name
    assert isinstance(speaker.dialect.idempotent, bool)


@every_dialect
@given(text=st.text(), recipient=st.text(), validity_s=st.none() | st.floats(0, 1e9))
def test_it_can_ask_for_any_text(speaker: Speaker, text: str, recipient: str, validity_s: float | None) -> None:
    url = "https://msg.example.com/callbacks/x/token"
    request = speaker.dialect.ask(message(text, recipient), "+15005550006", url, validity_s)
    assert isinstance(request, Request)
    assert all("\n" not in value and "\r" not in value for value in request.headers.values())


@every_dialect
@given(response=responses)
def test_it_makes_sense_of_any_answer(speaker: Speaker, response: Response) -> None:
    outcome = speaker.dialect.hear(response)
    match outcome:
        case Accepted():
            assert response.status // 100 == 2
            assert outcome.status in (Status.ACCEPTED, Status.SENT)
        case Rejected() | Throttled():
            assert response.status // 100 in (2, 4)
        case Uncertain():
            # Of a 2xx nothing is certain but what names a message, or was cut off before it could.
            assert response.status // 100 != 2 or b"failed" in response.body or response.body.strip() != b""
        case _:
            pytest.fail(f"{outcome} cannot be heard")
    if isinstance(outcome, Throttled) and outcome.wait_s is not None:
        assert 0 <= outcome.wait_s <= 300


@every_dialect
@given(response=responses)
def test_it_makes_sense_of_any_finding(speaker: Speaker, response: Response) -> None:
    finding = speaker.dialect.found(attempt(), response)
    assert isinstance(finding, Accepted | Absent | Unclear)
    if response.status != 200:
        assert isinstance(finding, Unclear)


@every_dialect
@given(response=responses, reference=st.text() | words)
def test_it_makes_sense_of_any_last_word(speaker: Speaker, response: Response, reference: str) -> None:
    request = speaker.dialect.fetch(reference)
    assert request is None or (request.method == "GET" and request.url.isascii() and " " not in request.url)
    word = speaker.dialect.fetched(reference, response)
    assert isinstance(word, Receipt | Absent | Unclear)
    if isinstance(word, Receipt):
        assert response.status == 200
        assert word.reference == reference
        assert not any("\0" in text for text in (word.code, word.reason, word.sender or ""))


@every_dialect
@given(callback=callbacks)
def test_a_stranger_is_not_believed(speaker: Speaker, callback: Callback) -> None:
    assert isinstance(speaker.dialect.receipts(callback), Forged)
    assert isinstance(speaker.dialect.inbound(callback), Forged)


@every_dialect
@given(method=methods, target=targets, body=posted)
def test_it_makes_sense_of_anything_its_provider_signed(
    speaker: Speaker, method: str, target: str, body: bytes
) -> None:
    callback = speaker.sign(method, target, body)
    receipts = speaker.dialect.receipts(callback)
    if not isinstance(receipts, Forged):
        assert all(isinstance(receipt, Receipt) for receipt in receipts)
        stored = [text for one in receipts for text in (one.reference, one.code, one.reason, one.sender or "")]
        assert not any("\0" in text for text in stored)  # Postgres has no text with it
    inbound = speaker.dialect.inbound(callback)
    assert inbound is None or isinstance(inbound, Inbound | Forged)
    if isinstance(inbound, Inbound):
        said = [
            inbound.reference,
            inbound.sender,
            inbound.recipient,
            inbound.body,
            *inbound.details,
            *inbound.details.values(),
        ]
        assert not any("\0" in text for text in said)


@every_dialect
def test_it_asks_what_became_of_an_attempt_if_it_can(speaker: Speaker) -> None:
    request = speaker.dialect.find(attempt())
    assert request is None or request.method == "GET"


@every_dialect
def test_its_reply_is_ready(speaker: Speaker) -> None:
    content_type, body = speaker.dialect.reply()
    assert "/" in content_type
    assert isinstance(body, bytes)
