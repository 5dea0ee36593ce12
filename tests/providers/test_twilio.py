"""Twilio's answers and callbacks as they look on the wire, and what each means."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from email.utils import format_datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlencode
from uuid import UUID

import pytest

from daemon.core.lifecycle import Status
from daemon.core.message import Attempt, Message
from daemon.core.outcome import Accepted, Fault, Outcome, Rejected, Throttled, Uncertain
from daemon.core.receipt import Receipt
from daemon.provider import Absent, Callback, Dialect, Finding, Forged, Inbound, Response, Unclear
from daemon.providers import Twilio, twilio_errors, twilio_signature
from daemon.providers.twilio import basic

if TYPE_CHECKING:
    from collections.abc import Mapping

ACCOUNT = "AC" + "1" * 32
SID = "SM" + "0123456789abcdef" * 2
OTHER = "SM" + "fedcba9876543210" * 2
US, THEM = "+15005550006", "+14155552671"
SENT_AT = 1_693_000_000.0  # Fri, 25 Aug 2023 21:46:40 +0000

DIALECT = Twilio(
    name="twilio",
    account_sid=ACCOUNT,
    authorization=basic(ACCOUNT, "12345"),
    auth_tokens=("12345",),
    public_url="https://msg.example.com",
)


def test_it_is_a_dialect() -> None:
    dialect: Dialect = DIALECT  # for mypy
    assert dialect.name == "twilio"
    assert not dialect.idempotent
    assert "12345" not in repr(dialect)


# --- asking


def message(text: str = "Your code is 123456.", media: tuple[str, ...] = ()) -> Message:
    return Message(
        id=UUID(int=7),
        attempt=1,
        spent=0,
        lane="default",
        level=1,
        claim=UUID(int=8),
        tenant="",
        recipient=THEM,
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


def asked(
    *, validity_s: float | None = None, media: tuple[str, ...] = (), dialect: Twilio = DIALECT
) -> list[tuple[str, str]]:
    url = "https://msg.example.com/callbacks/twilio/AY-kXa_yWdn3S7zOswKZqAVw"
    request = dialect.ask(message("Grüße & 50% = 1+1 🎉", media), US, url, validity_s)
    return parse_qsl(request.body.decode("ascii"), strict_parsing=True)


def test_a_request_is_the_form_twilio_reads() -> None:
    assert asked() == [
        ("To", THEM),
        ("From", US),
        ("Body", "Grüße & 50% = 1+1 🎉"),
        (
            "StatusCallback",
            "https://msg.example.com/callbacks/twilio/AY-kXa_yWdn3S7zOswKZqAVw#rc=5&rp=all&ct=2000&rt=2500&tt=15000",
        ),
    ]
    request = DIALECT.ask(message(), US, "https://msg.example.com/callbacks/twilio/t", None)
    assert (request.method, request.url) == (
        "POST",
        f"https://api.twilio.com/2010-04-01/Accounts/{ACCOUNT}/Messages.json",
    )
    assert request.headers["Content-Type"] == "application/x-www-form-urlencoded"
    assert request.headers["Accept-Encoding"] == "identity"
    # RFC 7617, from the other side
    assert basic("Aladdin", "open sesame") == "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ=="


def test_media_are_repeated_and_options_may_be_none() -> None:
    fields = asked(media=("https://a.example/1.png?x=1&y=2", "https://a.example/2.png"))
    assert [value for name, value in fields if name == "MediaUrl"] == [
        "https://a.example/1.png?x=1&y=2",
        "https://a.example/2.png",
    ]
    plain = replace(DIALECT, callback_options="")
    assert dict(asked(dialect=plain))["StatusCallback"].endswith("qAVw")


@pytest.mark.parametrize(
    ("validity_s", "written"),
    [
        (None, None),
        (36_000.0, None),
        (1e12, None),
        (float("inf"), None),
        (35_999.9, "35999"),
        (300.7, "300"),
        (1.0, "1"),
        (0.2, "1"),
        (-5.0, "1"),
    ],
)
def test_the_validity_is_what_twilio_accepts(validity_s: float | None, written: str | None) -> None:
    assert dict(asked(validity_s=validity_s)).get("ValidityPeriod") == written


def test_a_default_validity_stands_in_for_none() -> None:
    dialect = replace(DIALECT, validity_default_s=600)
    assert dict(asked(dialect=dialect))["ValidityPeriod"] == "600"
    assert dict(asked(dialect=dialect, validity_s=60))["ValidityPeriod"] == "60"


# --- hearing


def resource(**changes: object) -> dict[str, Any]:
    """The Message resource as the 201 carries it."""
    return {
        "account_sid": ACCOUNT,
        "api_version": "2010-04-01",
        "body": "Your code is 123456.",
        "date_created": "Fri, 25 Aug 2023 21:46:40 +0000",
        "date_sent": None,
        "date_updated": "Fri, 25 Aug 2023 21:46:40 +0000",
        "direction": "outbound-api",
        "error_code": None,
        "error_message": None,
        "from": US,
        "messaging_service_sid": None,
        "num_media": "0",
        "num_segments": "1",
        "price": None,
        "price_unit": "USD",
        "sid": SID,
        "status": "queued",
        "subresource_uris": {"media": f"/2010-04-01/Accounts/{ACCOUNT}/Messages/{SID}/Media.json"},
        "to": THEM,
        "uri": f"/2010-04-01/Accounts/{ACCOUNT}/Messages/{SID}.json",
        **changes,
    }


def error(code: object, status: int = 400, words: str = "in Twilio's words") -> bytes:
    body = {"code": code, "message": words, "more_info": f"https://www.twilio.com/docs/errors/{code}", "status": status}
    return json.dumps(body).encode()


NEWER = {
    "type": "https://www.twilio.com/docs/errors/21211",
    "title": "Invalid",
    "status": 400,
    "code": 21211,
    "detail": "x",
}
PAGE = b"<html><head><title>403 Forbidden</title></head><body><center>nginx</center></body></html>"
NOW = {"date": "Fri, 25 Aug 2023 21:46:40 GMT"}


@pytest.mark.parametrize(
    ("status", "headers", "body", "outcome"),
    [
        pytest.param(201, {}, resource(), Accepted(SID, "accepted", 1, US), id="queued"),
        pytest.param(200, {}, resource(), Accepted(SID, "accepted", 1, US), id="200"),
        pytest.param(201, {}, resource(**{"from": None, "num_segments": "0", "status": "accepted"}), Accepted(SID, "accepted", None, None), id="service"),
        pytest.param(201, {}, resource(status="sent", num_segments="3"), Accepted(SID, "sent", 3, US), id="sent"),
        pytest.param(201, {}, resource(status="delivered"), Accepted(SID, "sent", 1, US), id="fast"),
        pytest.param(201, {}, resource(status="brand-new"), Accepted(SID, "accepted", 1, US), id="unknown status"),
        pytest.param(201, {}, resource(status="failed", error_code=30001), Throttled(120.0, "30001", "the sender's queue is full"), id="failed at once"),
        pytest.param(201, {}, resource(status="failed", error_code=30410), Uncertain("a carrier did not answer in time", "30410"), id="failed, perhaps"),
        pytest.param(201, {}, b"", Accepted(None), id="no body"),
        pytest.param(201, {}, b'{"sid": "SM0123', Accepted(None), id="half a body"),
        pytest.param(201, {}, PAGE, Uncertain("answered 201 without a message"), id="another body"),
        pytest.param(204, {}, b"", Accepted(None), id="204"),
        pytest.param(201, {}, {"sid": 7}, Uncertain("answered 201 without a message"), id="sid is no text"),
        pytest.param(201, {}, {"sid": "a\0b"}, Uncertain("answered 201 without a message"), id="sid is none"),
        # Refused, in words
        pytest.param(400, {}, error(21211), Rejected(Fault.RECIPIENT, "21211", "not a phone number"), id="21211"),
        pytest.param(400, {}, error("21211"), Rejected(Fault.RECIPIENT, "21211", "not a phone number"), id="code in quotes"),
        pytest.param(400, {}, NEWER, Rejected(Fault.RECIPIENT, "21211", "not a phone number"), id="RFC 9457"),
        pytest.param(400, {}, error(21610), Rejected(Fault.OPTED_OUT, "21610", "recipient has opted out"), id="21610"),
        pytest.param(400, {}, error(21617), Rejected(Fault.CONTENT, "21617", "longer than 1,600 characters"), id="21617"),
        pytest.param(400, {}, error(21408), Rejected(Fault.ROUTE, "21408", "sending to this region is not enabled"), id="21408"),
        pytest.param(400, {}, error(21606), Rejected(Fault.SENDER, "21606", "sender is not ours, or cannot send text messages"), id="21606"),
        pytest.param(404, {}, error(20404), Rejected(Fault.ACCOUNT, "20404", "no such account or path"), id="20404"),
        pytest.param(401, {}, error(20003, 401), Rejected(Fault.ACCOUNT, "20003", "credentials refused, or account suspended"), id="401"),
        pytest.param(401, {}, error(99999, 401), Rejected(Fault.ACCOUNT, "99999", "in Twilio's words"), id="401 unlisted"),
        pytest.param(403, {}, error(20403, 403), Rejected(Fault.ACCOUNT, "20403", "forbidden: account suspended or closed"), id="403"),
        pytest.param(403, {}, error(99999, 403), Rejected(Fault.ACCOUNT, "99999", "in Twilio's words"), id="403 unlisted"),
        pytest.param(403, {}, error(21610, 403), Rejected(Fault.OPTED_OUT, "21610", "recipient has opted out"), id="403 about one number"),
        pytest.param(400, {}, error(99999, words="to '+14155552671' or a@b.example: no"), Rejected(Fault.UNKNOWN, "99999", "to '…' or … no"), id="unlisted, masked"),
        pytest.param(400, {}, error(30017), Rejected(Fault.TRANSIENT, "30017", "carrier congested"), id="30017"),
        # Too fast
        pytest.param(400, {}, error(21611), Throttled(120.0, "21611", "the sender's queue is full"), id="21611"),
        pytest.param(429, {}, error(20429, 429), Throttled(None, "20429", "too many requests at once"), id="429"),
        pytest.param(429, {"retry-after": "7"}, error(20429, 429), Throttled(7.0, "20429", "too many requests at once"), id="429 with seconds"),
        pytest.param(429, {"retry-after": "Fri, 25 Aug 2023 21:47:10 GMT", **NOW}, b"", Throttled(30.0, "429", "not in our table"), id="429 with date"),
        pytest.param(429, {"retry-after": "Fri, 25 Aug 2023 21:47:10 GMT"}, b"", Throttled(None, "429", "not in our table"), id="a date, but no clock"),
        pytest.param(429, {"retry-after": "Fri, 25 Aug 2000 00:00:00 GMT", **NOW}, b"", Throttled(0.0, "429", "not in our table"), id="a date gone by"),
        pytest.param(429, {"retry-after": "999999999"}, PAGE, Throttled(300.0, "429", "not in our table"), id="hostile seconds"),
        pytest.param(429, {"retry-after": "9" * 5000}, PAGE, Throttled(None, "429", "not in our table"), id="more hostile seconds"),
        pytest.param(429, {"retry-after": "-5"}, PAGE, Throttled(None, "429", "not in our table"), id="negative"),
        pytest.param(429, {"retry-after": ""}, PAGE, Throttled(None, "429", "not in our table"), id="empty"),
        pytest.param(429, {"retry-after": "٣"}, PAGE, Throttled(None, "429", "not in our table"), id="other digits"),
        # Nobody can know
        pytest.param(500, {}, error(20500, 500), Uncertain("answered 500: failed inside Twilio", "20500"), id="20500"),
        pytest.param(503, {"retry-after": "5"}, error(20503, 503), Uncertain("answered 503: Twilio is not available", "20503"), id="503"),
        pytest.param(502, {}, PAGE, Uncertain("answered 502: not in our table"), id="502 of a proxy"),
        pytest.param(500, {}, error(21211, 500), Uncertain("answered 500: not a phone number", "21211"), id="500 with another's code"),
        pytest.param(403, {}, PAGE, Uncertain("answered 403: not in our table"), id="403 of a firewall"),
        pytest.param(401, {}, b"", Uncertain("answered 401: not in our table"), id="401 of a proxy"),
        pytest.param(404, {}, {"status": 404, "message": "no code"}, Uncertain("answered 404: no code"), id="JSON without a code"),
        pytest.param(400, {}, {"code": True}, Uncertain("answered 400: not in our table"), id="true is no code"),
        pytest.param(400, {}, {"code": -1}, Uncertain("answered 400: not in our table"), id="negative code"),
        pytest.param(400, {}, [], Uncertain("answered 400: not in our table"), id="a list"),
        pytest.param(400, {}, error(20500), Uncertain("failed inside Twilio", "20500"), id="20500 as 400"),
        pytest.param(408, {}, error(21211), Uncertain("answered 408: not a phone number", "21211"), id="408"),
        pytest.param(409, {}, error(20409, 409), Uncertain("answered 409: changed by somebody else at the same time", "20409"), id="409"),
        pytest.param(425, {}, b"", Uncertain("answered 425: not in our table"), id="425"),
        pytest.param(307, {"location": "https://elsewhere"}, b"", Uncertain("answered 307: not in our table"), id="307"),
        pytest.param(101, {}, b"", Uncertain("answered 101: not in our table"), id="101"),
    ],
)  # fmt: skip
def test_an_answer_means(status: int, headers: Mapping[str, str], body: object, outcome: Outcome) -> None:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    assert DIALECT.hear(Response(status, headers, raw)) == outcome


# --- the table


def test_every_code_of_the_manual_has_its_class() -> None:
    samples = {
        Fault.RECIPIENT: "21211 21214 21217 21265 21266 21268 21614 21635 30005 30006 63003 63024",
        Fault.CONTENT: "21602 21617 21618 21619 21620 21623 21654 21655 21656 30007 30019 63005 63016 216602",
        Fault.OPTED_OUT: "21610 30004 30630 30640 63014 63033",
        Fault.ROUTE: "21408 21612 21910 30018 30040 30041 30043 30450",
        Fault.SENDER: "21212 21601 21606 21659 21660 21661 21703 30032 30033 30034 30035",
        Fault.ACCOUNT: "20003 20005 20006 20403 30002 30037",
        Fault.TRANSIENT: "30003 30017 30020 30021 30500 63009 63010",
        Fault.UNKNOWN: "30008 63023 99999 1",
        twilio_errors.Case.THROTTLED: "14107 20429 21611 30001 30022 30023 35125 63017 63018 63038",
        twilio_errors.Case.UNCERTAIN: "20500 20503 20504 30410",
        twilio_errors.Case.EXPIRED: "30036",
    }
    for kind, codes in samples.items():
        assert {code: twilio_errors.meaning(int(code)).kind for code in codes.split()} == dict.fromkeys(
            codes.split(), kind
        )


def test_words_of_the_table_are_short_and_say_something() -> None:
    for code, meaning in twilio_errors.MEANINGS.items():
        assert 5 <= len(meaning.words) <= 80, code
        assert meaning.wait_s is None or 0 < meaning.wait_s <= 300, code


@pytest.mark.parametrize("text", ['[a]\n1 = ["account", "x"]\n1-2 = ["account", "y"]', '[a]\n1 = ["nonsense", "x"]'])
def test_a_code_that_stands_twice_and_a_class_that_is_none_are_found(text: str) -> None:
    with pytest.raises(ValueError, match=r"twice|nonsense"):
        twilio_errors.read(text)


@pytest.mark.parametrize(
    ("code", "fault"),
    [("21610", Fault.OPTED_OUT), ("30036", Fault.TRANSIENT), ("30001", Fault.TRANSIENT), ("", Fault.UNKNOWN), ("٣", Fault.UNKNOWN), ("9" * 5000, Fault.UNKNOWN)],
)  # fmt: skip
def test_a_receipts_code_has_a_fault(code: str, fault: Fault) -> None:
    assert twilio_errors.fault(code) is fault


# --- evidence


def attempt(**changes: Any) -> Attempt:
    return replace(
        Attempt(
            id=UUID(int=7),
            attempt=1,
            provider="twilio",
            sender=US,
            recipient=THEM,
            text="Your code is 123456.",
            segments=1,
            sent_at=SENT_AT,
        ),
        **changes,
    )


def at(seconds: float) -> str:
    return format_datetime(datetime.fromtimestamp(SENT_AT + seconds, UTC))


def page(*entries: object, more: str | None = None) -> Response:
    body = {"messages": entries, "next_page_uri": more, "page": 0, "page_size": 20}
    return Response(200, {"content-type": "application/json"}, json.dumps(body).encode())


def stands(status: str, **fields: object) -> dict[str, object]:
    return {
        "sid": "SM1",
        "status": status,
        "error_code": None,
        "error_message": None,
        "num_segments": "2",
        "from": US,
        **fields,
    }


def test_a_message_is_fetched_by_its_sid_and_by_nothing_else() -> None:
    request = DIALECT.fetch("SM" + "0" * 32)
    assert request is not None
    assert request.method == "GET"
    assert request.url.endswith(f"/Messages/SM{'0' * 32}.json")
    assert DIALECT.fetch("SM1/../Calls") is None
    assert DIALECT.fetch("") is None


@pytest.mark.parametrize(
    ("status", "body", "word"),
    [
        pytest.param(200, stands("delivered"), Receipt("SM1", Status.DELIVERED, "", "", 2, US, final=True), id="delivered"),
        pytest.param(200, stands("sent"), Receipt("SM1", Status.SENT, "", "", 2, US, final=False), id="on its way"),
        pytest.param(200, stands("undelivered", error_code=30005), Receipt("SM1", Status.UNDELIVERED, "30005", "number does not exist", 2, US), id="undelivered"),
        pytest.param(200, stands("failed", error_code=30036), Receipt("SM1", Status.EXPIRED, "30036", "not delivered within its validity", 2, US), id="too late"),
        pytest.param(200, stands("queued", num_segments="0", **{"from": None}), Receipt("SM1", Status.ACCEPTED, final=False), id="no sender yet"),
        pytest.param(404, error(20404, 404), Absent(), id="unknown there"),
        pytest.param(404, {}, Unclear("answered 404 without that message"), id="404 of a proxy"),
        pytest.param(200, stands("delivered", sid="SM2"), Unclear("answered 200 without that message"), id="another message"),
        pytest.param(200, stands("dancing"), Unclear("answered 200 without that message"), id="a new word"),
        pytest.param(500, error(20500, 500), Unclear("answered 500 without that message"), id="500"),
    ],
)  # fmt: skip
def test_a_fetched_message_is_a_receipt(status: int, body: object, word: object) -> None:
    found = DIALECT.fetched(
        "SM1", Response(status, {}, json.dumps(body).encode() if not isinstance(body, bytes) else body)
    )
    if isinstance(word, Receipt) and isinstance(found, Receipt) and word.code:
        assert found.reason
        found = replace(found, reason=word.reason)  # the words are the table's
    assert found == word


def test_the_question_names_both_ends_and_no_day() -> None:
    request = DIALECT.find(attempt())
    assert request.method == "GET"
    assert request.body == b""
    assert "Content-Type" not in request.headers
    path, _, query = request.url.partition("?")
    assert path == f"https://api.twilio.com/2010-04-01/Accounts/{ACCOUNT}/Messages.json"
    assert parse_qsl(query) == [("To", THEM), ("From", US), ("PageSize", "20")]


FOUND = Accepted(SID, "accepted", 1, US)
NEXT = "/2010-04-01/Accounts/AC/Messages.json?Page=1"


@pytest.mark.parametrize(
    ("response", "finding"),
    [
        pytest.param(page(resource()), FOUND, id="queued, so without date_sent"),
        pytest.param(page(resource(date_sent=at(1), status="delivered")), Accepted(SID, "sent", 1, US), id="delivered"),
        pytest.param(page(resource(status="failed", error_code=30007)), FOUND, id="failed: it has it, the receipt tells"),
        pytest.param(page(resource(date_created=at(-2))), FOUND, id="early"),
        pytest.param(page(resource(date_created=at(75))), FOUND, id="late"),
        pytest.param(page(resource(date_created=None, date_sent=at(3))), FOUND, id="only date_sent"),
        pytest.param(page(resource(date_created="Fri, 25 Aug 2023 21:46:40 -0000")), FOUND, id="no zone"),
        pytest.param(page(resource(**{"from": None})), Accepted(SID, "accepted", 1, None), id="sender not chosen"),
        pytest.param(page(resource(), more=NEXT), FOUND, id="found, whatever follows"),
        pytest.param(page(), Absent(), id="nothing"),
        pytest.param(page(resource(date_created=at(-3))), Absent(), id="before us"),
        pytest.param(page(resource(date_created=at(76))), Absent(), id="after us"),
        pytest.param(page(resource(body="Your code is 654321.")), Absent(), id="another text"),
        pytest.param(page(resource(**{"from": "+15005550009"})), Absent(), id="another sender"),
        pytest.param(page(resource(direction="inbound")), Absent(), id="inbound"),
        pytest.param(page(resource(date_created=at(-10)), resource(date_created=at(-90)), more=NEXT), Absent(), id="goes on, before us"),
        pytest.param(page(resource(date_created=at(500)), more=NEXT), Unclear("the list goes on, or is not as expected"), id="goes on, perhaps with us"),
        pytest.param(page(resource(date_created=at(-90)), resource(date_created=at(-10)), more=NEXT), Unclear("the list goes on, or is not as expected"), id="goes on in another order"),
        pytest.param(page(more=NEXT), Unclear("the list goes on, or is not as expected"), id="empty, but goes on"),
        pytest.param(page(7), Unclear("the list goes on, or is not as expected"), id="not a message"),
        pytest.param(page(resource(body="")), Unclear("a message of that moment has a similar text"), id="redacted"),
        pytest.param(page(resource(body="Sent from your Twilio trial account - Your code is 123456.")), Unclear("a message of that moment has a similar text"), id="trial"),
        pytest.param(page(resource(date_created="yesterday")), Unclear("a message of that moment has a similar text"), id="undated"),
        pytest.param(page(resource(sid=None)), Unclear("a message of that moment has a similar text"), id="without id"),
        pytest.param(Response(200, {}, b"{"), Unclear("answered 200 without a list"), id="unparsable"),
        pytest.param(Response(429, {}, error(20429)), Unclear("answered 429 without a list"), id="429"),
        pytest.param(Response(500, {}, page(resource()).body), Unclear("answered 500 without a list"), id="500"),
        pytest.param(Response(404, {}, error(20404)), Unclear("answered 404 without a list"), id="404"),
    ],
)  # fmt: skip
def test_a_list_tells(response: Response, finding: Finding) -> None:
    assert DIALECT.found(attempt(), response) == finding


def test_every_reference_of_a_list_is_named_and_nothing_else() -> None:
    listed = page(resource(sid=OTHER), resource(sid=SID, body=""), resource(sid=None), resource(sid="SM; DROP"), 7)
    assert DIALECT.named(listed) == [OTHER, SID]
    assert DIALECT.named(Response(200, {}, b"{")) == DIALECT.named(Response(404, {}, error(20404))) == []


def test_the_nearest_of_identical_messages_is_taken() -> None:
    listed = page(resource(sid=OTHER, date_created=at(40)), resource(sid=SID, date_created=at(1)))
    assert DIALECT.found(attempt(), listed) == FOUND


def test_what_another_attempt_was_credited_with_is_never_taken() -> None:
    listed = page(resource(sid=OTHER, date_created=at(40)), resource(sid=SID, date_created=at(1)))
    known = frozenset({SID})
    assert DIALECT.found(attempt(known_references=known), listed) == replace(FOUND, reference=OTHER)
    assert DIALECT.found(attempt(known_references=known | {OTHER}), listed) == Absent()
    assert DIALECT.found(attempt(known_references=known), page(resource(body=""))) == Absent()


def test_identical_messages_are_matched_by_count() -> None:
    # Three sent, two arrived: two are found whatever the order of asking, and one is missed.
    listed = page(resource(sid=OTHER, date_created=at(2)), resource(sid=SID, date_created=at(1)))
    known: frozenset[str] = frozenset()
    findings = []
    for sent_at in (SENT_AT, SENT_AT + 1, SENT_AT + 2):
        finding = DIALECT.found(attempt(sent_at=sent_at, known_references=known), listed)
        findings.append(type(finding))
        if isinstance(finding, Accepted) and finding.reference is not None:
            known |= {finding.reference}
    assert findings == [Accepted, Accepted, Absent]
    assert known == {SID, OTHER}


# --- receipts and inbound messages


def signed(pairs: Mapping[str, str], target: str = "/callbacks/twilio/token") -> Callback:
    form = [(name.encode(), value.encode()) for name, value in pairs.items()]
    signature = twilio_signature.sign("12345", "https://msg.example.com" + target, form)
    return Callback("POST", target, {"x-twilio-signature": signature}, urlencode(pairs).encode())


STATUS_CALLBACK = {
    "ApiVersion": "2010-04-01",
    "AccountSid": ACCOUNT,
    "From": US,
    "To": THEM,
    "MessageSid": SID,
    "SmsSid": SID,
}


def told(**fields: str) -> list[Receipt]:
    receipts = DIALECT.receipts(signed({**STATUS_CALLBACK, **fields}))
    assert not isinstance(receipts, Forged)
    return list(receipts)


@pytest.mark.parametrize(
    ("word", "status", "final"),
    [
        ("accepted", Status.ACCEPTED, False),
        ("scheduled", Status.ACCEPTED, False),
        ("queued", Status.ACCEPTED, False),
        ("sending", Status.ACCEPTED, False),
        ("sent", Status.SENT, False),
        ("delivered", Status.DELIVERED, True),
        ("undelivered", Status.UNDELIVERED, True),
        ("failed", Status.FAILED, True),
        ("read", Status.READ, True),
        ("canceled", Status.CANCELED, True),
    ],
)
def test_each_word_of_twilio_has_ours(word: str, status: Status, final: bool) -> None:
    assert told(MessageStatus=word, SmsStatus=word) == [Receipt(SID, status, sender=US, final=final)]
    assert told(SmsStatus=word) == [Receipt(SID, status, sender=US, final=final)]


@pytest.mark.parametrize("word", ["received", "receiving", "partially_delivered", "", "Delivered", "brand-new"])
def test_a_word_we_do_not_know_is_no_receipt(word: str) -> None:
    assert told(MessageStatus=word) == []


def test_an_error_code_is_kept_with_our_words() -> None:
    failure = {"RawDlrDoneDate": "2303092021", "ErrorCode": "30007", "MessageStatus": "undelivered"}
    assert told(**failure) == [
        Receipt(SID, Status.UNDELIVERED, "30007", "filtered by Twilio or a carrier", sender=US, final=True)
    ]
    assert told(MessageStatus="failed", ErrorCode="99999", ErrorMessage=f"no {THEM}")[0].reason == "no …"
    assert told(MessageStatus="delivered", ErrorCode="0")[0].code == ""
    assert told(MessageStatus="failed", ErrorCode="none")[0].code == ""


def test_what_ran_out_in_twilios_queue_has_expired() -> None:
    assert told(MessageStatus="failed", ErrorCode="30036")[0].status is Status.EXPIRED
    assert told(MessageStatus="undelivered", ErrorCode="30036")[0].status is Status.UNDELIVERED


@pytest.mark.parametrize("reference", ["", "a b", "SM\0", "x" * 65, "é"])
def test_a_receipt_without_an_id_is_none(reference: str) -> None:
    assert DIALECT.receipts(signed({"MessageSid": reference, "MessageStatus": "delivered"})) == []


def test_a_persons_message_is_read() -> None:
    pairs = {
        "ToCountry": "US",
        "MessageSid": SID,
        "SmsSid": SID,
        "SmsMessageSid": SID,
        "SmsStatus": "received",
        "AccountSid": ACCOUNT,
        "From": THEM,
        "To": US,
        "Body": " Stop \0 please ",
        "NumMedia": "1",
        "MediaUrl0": "https://api.twilio.com/x",
    }
    assert DIALECT.inbound(signed(pairs)) == Inbound(
        reference=SID,
        sender=US,
        recipient=THEM,
        body=" Stop \ufffd please ",
        opt_out=None,
        details={
            "ToCountry": "US",
            "SmsStatus": "received",
            "AccountSid": ACCOUNT,
            "NumMedia": "1",
            "MediaUrl0": "https://api.twilio.com/x",
        },
    )


@pytest.mark.parametrize(("said", "heard"), [("STOP", "STOP"), ("START", "START"), ("HELP", "HELP"), ("stop", "STOP"), ("", None), ("MAYBE", None)])  # fmt: skip
def test_twilios_own_recognition_of_an_opt_out_is_kept(said: str, heard: str | None) -> None:
    inbound = DIALECT.inbound(signed({"MessageSid": SID, "From": THEM, "To": US, "Body": "STOP", "OptOutType": said}))
    assert isinstance(inbound, Inbound)
    assert inbound.opt_out == heard


def test_a_channels_prefix_is_no_part_of_a_number() -> None:
    inbound = DIALECT.inbound(signed({"MessageSid": SID, "From": "whatsapp:" + THEM, "To": "whatsapp:" + US}))
    assert isinstance(inbound, Inbound)
    assert (inbound.sender, inbound.recipient, inbound.body) == (US, THEM, "")


@pytest.mark.parametrize("missing", ["MessageSid", "From", "To"])
def test_a_message_that_is_not_whole_is_none(missing: str) -> None:
    pairs = {"MessageSid": SID, "From": THEM, "To": US, "Body": "hi"}
    del pairs[missing]
    assert DIALECT.inbound(signed(pairs)) is None


def test_a_receipt_sent_to_the_wrong_door_is_no_message() -> None:
    assert DIALECT.inbound(signed({**STATUS_CALLBACK, "MessageStatus": "sent", "SmsStatus": "sent"})) is None


def test_of_a_name_given_twice_the_first_counts() -> None:
    form = [(b"MessageSid", SID.encode()), (b"MessageStatus", b"sent"), (b"MessageStatus", b"failed")]
    signature = twilio_signature.sign("12345", "https://msg.example.com/c", form)
    body = f"MessageSid={SID}&MessageStatus=sent&MessageStatus=failed".encode()
    receipts = DIALECT.receipts(Callback("POST", "/c", {"x-twilio-signature": signature}, body))
    assert not isinstance(receipts, Forged)
    assert [receipt.status for receipt in receipts] == [Status.SENT]


def test_the_reply_says_nothing_in_twiml() -> None:
    assert DIALECT.reply() == ("text/xml", b'<?xml version="1.0" encoding="UTF-8"?><Response/>')
