"""Callbacks, as their target hears them. Signatures are checked with the algorithm written down once more."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import re
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from daemon.simulator import ACCOUNT_SID, AUTH_TOKEN, Faults, Settings, Simulator
from daemon.simulator.agenda import Agenda
from daemon.simulator.faults import Drop, Fixed, ReceiptFaults
from daemon.simulator.receipts import read_manners
from daemon.simulator.twilio import bare, sign
from tests.simulator.outside import OURS, THEIRS, Client, Heard, Target, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

SOON = Fixed(ms=10)
APART = Fixed(ms=150)  # far enough that a busy machine does not swap them


def quick(**changes: object) -> Faults:
    """Receipts after 10 and 20 ms, with *changes*."""
    return Faults(receipts=ReceiptFaults.model_validate({"sent": SOON, "final": SOON} | changes))


def expected_signature(token: str, url: str, form: dict[str, list[str]]) -> str:
    """Facts: the URL, then each name in byte order followed by each of its distinct values in order."""
    digest = hmac.new(token.encode(), url.encode(), hashlib.sha1)
    for name in sorted(form, key=str.encode):
        for value in sorted(set(form[name])):
            digest.update(name.encode())
            digest.update(value.encode())
    return base64.b64encode(digest.digest()).decode()


CALL = {
    "CallSid": ["CA1234567890ABCDE"],
    "Caller": ["+14158675309"],
    "Digits": ["1234"],
    "From": ["+14158675309"],
    "To": ["+18005551212"],
}
SHOP = "https://mycompany.com/myapp.php?foo=1&bar=2"
VECTORS = [
    ("https://example.com/myapp.php?foo=1&bar=2", CALL | {"Caller": ["+14158675310"], "From": ["+14158675310"]}, "L/OH5YylLD5NRKLltdqwSvS0BnU="),
    (SHOP, CALL, "RSOYDt4T1cUTdK1PDd93/VVr8B8="),
    ("https://mycompany.com:443/myapp.php?foo=1&bar=2", CALL, "kvajT1Ptam85bY51eRf/AJRuM3w="),
    ("http://mycompany.com:80/myapp.php?foo=1&bar=2", CALL, "0ZXoZLH/DfblKGATFgpif+LLRf4="),
    ("http://mycompany.com:1234/myapp.php?foo=1&bar=2", CALL, "Zmvh+3yNM1Phv2jhDCwEM3q5ebU="),
    (SHOP, {"Sid": ["CA123"], "SidAccount": ["AC123"], "Digits": ["5678", "1234", "1234"]}, "IK+Dwps556ElfBT0I3Rgjkr1wJU="),
    (SHOP + "&bodySHA256=0a1ff7634d9ab3b95db5c9a2dfe9416e41502b283a80c7cf19632632f96e6620", {}, "a9nBmqA0ju/hNViExpshrM61xv4="),
]  # fmt: skip


@pytest.mark.parametrize(("url", "form", "signature"), VECTORS)
def test_signatures_are_those_of_the_published_vectors(url: str, form: dict[str, list[str]], signature: str) -> None:
    pairs = [(name, value) for name, values in form.items() for value in values]
    assert sign("12345", url, pairs) == signature
    assert expected_signature("12345", url, form) == signature


def test_the_fragment_and_the_credentials_are_not_signed() -> None:
    assert (
        bare("https://me:secret@example.com:8443/a@b/?x=%2F&y=1@2#rc=5") == "https://example.com:8443/a@b/?x=%2F&y=1@2"
    )
    assert bare("https://example.com#rc=5") == "https://example.com"


def check_signature(heard: Heard) -> None:
    form = {name: [value] for name, value in heard.form.items()}
    assert heard.headers["X-Twilio-Signature"] == expected_signature(AUTH_TOKEN, heard.url, form)


async def test_a_message_is_reported_sent_and_delivered(client: Client, simulator: Simulator, target: Target) -> None:
    simulator.faults = quick(final=APART)
    # The query is percent-encoded in an unusual way: it must come through as it was given.
    callback = f"{target.url}/callbacks/twilio/t-1?a=%7E%2f+x&b="
    sid = (await client.create(StatusCallback=f"{callback}#rc=2&rp=all")).body["sid"]
    heard = await target.until(2)
    assert [one.url for one in heard] == [callback, callback]
    for one, status in zip(heard, ["sent", "delivered"], strict=True):
        check_signature(one)
        dlr = {"RawDlrDoneDate"} if status == "delivered" else set()
        assert one.form.keys() == dlr | {
            "AccountSid", "ApiVersion", "From", "MessageSid", "MessageStatus", "SmsSid", "SmsStatus", "To",
        }  # fmt: skip
        assert one.form["MessageStatus"] == one.form["SmsStatus"] == status
        assert one.form["MessageSid"] == one.form["SmsSid"] == sid
        assert (one.form["AccountSid"], one.form["ApiVersion"]) == (ACCOUNT_SID, "2010-04-01")
        assert (one.form["From"], one.form["To"]) == (OURS, THEIRS)
        assert one.headers["Content-Type"] == "application/x-www-form-urlencoded"
    assert re.fullmatch(r"\d{10}", heard[1].form["RawDlrDoneDate"])
    assert heard[0].headers["I-Twilio-Idempotency-Token"] != heard[1].headers["I-Twilio-Idempotency-Token"]
    await settled(simulator)
    assert simulator.receipts == {"sent": 2, "failed": 0, "retried": 0, "dropped": 0, "pending": 0}


async def settled(simulator: Simulator) -> None:
    await until(lambda: not simulator.receipts["pending"])


async def test_a_service_reports_its_choice_of_sender_first(
    client: Client, simulator: Simulator, target: Target
) -> None:
    simulator.faults = quick(sent=APART, final=APART)
    await client.create(From="", MessagingServiceSid="MG" + "a" * 32, StatusCallback=target.url)
    heard = await target.until(3)
    assert [one.news for one in heard] == ["queued", "sent", "delivered"]
    assert all(one.form["MessagingServiceSid"] == "MG" + "a" * 32 for one in heard)


async def news(simulator: Simulator, target: Target, many: int, faults: Faults) -> dict[str, list[str]]:
    """Create *many* messages under *faults*, wait for all callbacks: the words heard of each message."""
    simulator.faults = faults
    async with Client(simulator) as client:
        for _ in range(many):
            await client.create(StatusCallback=f"{target.url}/receipts")
    await settled(simulator)
    heard: dict[str, list[str]] = {entry.sid: [] for entry in simulator.ledger.entries}
    for one in target.heard:
        heard[one.form["MessageSid"]].append(one.news)
    return heard


async def test_receipts_may_be_off(simulator: Simulator, target: Target) -> None:
    assert list((await news(simulator, target, 1, quick(enabled=False))).values()) == [[]]


async def test_receipts_may_come_twice(simulator: Simulator, target: Target) -> None:
    heard = await news(simulator, target, 1, quick(duplicates=1.0))
    assert Counter(*heard.values()) == {"sent": 2, "delivered": 2}


async def test_receipts_may_come_last_one_first(simulator: Simulator, target: Target) -> None:
    heard = await news(simulator, target, 3, quick(reversed=1.0, final=APART))
    assert list(heard.values()) == [["delivered", "sent"]] * 3


async def test_final_receipts_may_be_missing_though_the_message_arrived(
    client: Client, simulator: Simulator, target: Target
) -> None:
    heard = await news(simulator, target, 1, quick(missing=1.0))
    assert list(heard.values()) == [["sent"]]
    await client.becomes(next(iter(heard)), "delivered")


async def test_final_receipts_may_be_late(client: Client, simulator: Simulator, target: Target) -> None:
    simulator.faults = quick(late=1.0, late_by=Fixed(ms=300))
    sid = (await client.create(StatusCallback=target.url)).body["sid"]
    await target.until(1)
    await client.becomes(sid, "delivered")
    assert [one.news for one in target.heard] == ["sent"]
    assert (await target.until(2))[1].news == "delivered"


async def test_shares_of_messages_end_badly_with_their_codes(simulator: Simulator, target: Target) -> None:
    heard = await news(simulator, target, 200, quick(undelivered={"30003": 0.2, "30007": 0.1}, failed={"30001": 0.2}))
    # Callbacks a few milliseconds apart overtake each other, as Twilio's do: which came is compared, not in which order.
    endings = Counter((set(words) - {"sent"}).pop() for words in heard.values())
    codes = Counter((one.news, one.form["ErrorCode"]) for one in target.heard if "ErrorCode" in one.form)
    kinds = {frozenset(words) for words in heard.values()}
    assert kinds == {frozenset({"sent", "delivered"}), frozenset({"sent", "undelivered"}), frozenset({"failed"})}
    assert 20 <= codes["undelivered", "30003"] <= 65
    assert 8 <= codes["undelivered", "30007"] <= 35
    assert codes["undelivered", "30003"] + codes["undelivered", "30007"] == endings["undelivered"]
    assert codes["failed", "30001"] == endings["failed"]
    for one in target.heard:
        check_signature(one)


@pytest.mark.parametrize(
    ("receipt", "words"), [("nothing", []), ("sent", ["sent"]), ("undelivered", ["sent", "undelivered"])]
)
async def test_a_silent_drop_is_accepted_and_never_delivered(
    client: Client, simulator: Simulator, target: Target, receipt: str, words: list[str]
) -> None:
    drop = Drop.model_validate({"prefix": THEIRS[:5], "receipt": receipt})
    heard = await news(simulator, target, 1, quick().model_copy(update={"drops": (drop,)}))
    assert list(heard.values()) == [words]
    await client.becomes(next(iter(heard)), words[-1] if words else "sent")


async def test_a_canceled_message_is_reported_canceled_and_nothing_else(
    client: Client, simulator: Simulator, target: Target
) -> None:
    simulator.faults = quick(sent=Fixed(ms=80))
    sid = (await client.create(StatusCallback=target.url)).body["sid"]
    assert (await client.ask("POST", f"{client.messages}/{sid}.json", {"Status": "canceled"})).status == 200
    await settled(simulator)
    assert [one.news for one in target.heard] == ["canceled"]


@pytest.mark.parametrize(
    ("fragment", "answers", "calls"),
    [
        ("", [500], 1),  # by default only failures to connect are tried again
        ("#rc=2&rp=5xx", [500, 503], 3),
        ("#rc=2&rp=all", [500, 404], 3),
        ("#rc=1&rp=5xx", [500, 500], 2),
        ("#rc=2&rp=5xx", [404], 1),
        ("#rc=2&rp=4xx,5xx", [404, 500], 3),
        ("#rc=0&rp=all", [500], 1),
    ],
)
async def test_the_fragment_says_how_often_to_try_again(
    client: Client, simulator: Simulator, target: Target, fragment: str, answers: list[int], calls: int
) -> None:
    simulator.faults = quick(missing=1.0)  # one receipt: "sent"
    target.answers = list(answers)
    await client.create(StatusCallback=target.url + fragment)
    await settled(simulator)
    assert [one.news for one in target.heard] == ["sent"] * calls
    assert len({one.headers["I-Twilio-Idempotency-Token"] for one in target.heard}) == 1, "a retry is the same callback"
    recovered = len(answers) < calls
    assert simulator.receipts["sent" if recovered else "failed"] == 1


@pytest.mark.parametrize(
    ("fragment", "retries", "on", "total_s"),
    [
        ("", 1, {"ct"}, 15.0),
        ("rc=5&rp=all&tt=2500", 5, {"all"}, 2.5),
        ("rc=6&tt=99", 1, {"ct"}, 15.0),
        ("rc=two&tt=", 1, {"ct"}, 15.0),
        ("rp=4xx,5xx,rt", 1, {"4xx", "5xx", "rt"}, 15.0),
    ],
)
def test_what_a_fragment_says_wrongly_has_its_default(
    fragment: str, retries: int, on: set[str], total_s: float
) -> None:
    manners = read_manners(fragment)
    assert (manners.retries, set(manners.retry_on), manners.total_s) == (retries, on, total_s)


async def test_a_target_that_is_down_costs_failures_and_nothing_else(client: Client, simulator: Simulator) -> None:
    simulator.faults = quick()
    for _ in range(50):
        await client.create(StatusCallback="http://127.0.0.1:1/nobody")
    await settled(simulator)
    assert simulator.receipts == {"sent": 0, "failed": 100, "retried": 100, "dropped": 0, "pending": 0}
    assert await client.fate() == "201"


async def test_a_target_that_never_answers_is_given_up(client: Client, simulator: Simulator) -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    simulator.faults = quick()
    await client.create(StatusCallback=f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/#tt=100&rc=0")
    await settled(simulator)
    assert simulator.receipts["failed"] == 2
    server.close()


@pytest.fixture
async def narrow() -> AsyncIterator[Simulator]:
    async with Simulator(Settings(callback_connections=2, callbacks_waiting=3)) as running:
        yield running


async def test_waiting_callbacks_are_bounded_and_the_rest_is_counted(narrow: Simulator, target: Target) -> None:
    narrow.faults = quick(sent=Fixed(ms=150))
    async with Client(narrow) as client:
        for _ in range(4):
            await client.create(StatusCallback=target.url)
    assert narrow.receipts["pending"] == 3
    await settled(narrow)
    assert (narrow.receipts["sent"], narrow.receipts["dropped"]) == (3, 5)


async def test_a_person_writes_to_us(simulator: Simulator, target: Target) -> None:
    sid, status = await simulator.say(THEIRS, OURS, "STOP", url=f"{target.url}/inbound/twilio")
    (heard,) = target.heard
    check_signature(heard)
    assert status == "204"
    assert heard.form == {
        "AccountSid": ACCOUNT_SID, "ApiVersion": "2010-04-01", "Body": "STOP", "From": THEIRS, "MessageSid": sid,
        "NumMedia": "0", "NumSegments": "1", "SmsMessageSid": sid, "SmsSid": sid, "SmsStatus": "received", "To": OURS,
    }  # fmt: skip
    assert (await simulator.say(THEIRS, OURS, "x", url="http://127.0.0.1:1/"))[1] == "ct"
    with pytest.raises(ValueError, match="inbound_url"):
        await simulator.say(THEIRS, OURS, "x")


async def test_an_agenda_keeps_its_order_and_its_times() -> None:
    agenda, done = Agenda(), list[tuple[int, float]]()
    clock = asyncio.get_running_loop().time
    began = clock()
    for number, delay_s in enumerate([0.06, 0.02, 0.02, 0.04]):
        agenda.after(delay_s, lambda number=number: done.append((number, clock() - began)))  # type: ignore[misc]
    await asyncio.sleep(0.03)
    assert [number for number, _ in done][:2] == [1, 2], "the first to be entered is not waited for"
    await asyncio.sleep(0.07)
    assert [number for number, _ in done] == [1, 2, 3, 0]
    assert all(took >= delay_s - 0.002 for (_, took), delay_s in zip(done, [0.02, 0.02, 0.04, 0.06], strict=True))
    agenda.after(0.01, done.clear)
    agenda.clear()
    await asyncio.sleep(0.03)
    assert len(done) == 4
