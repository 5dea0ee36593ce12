"""
Every parser that reads what comes from outside, each with inputs it is meant for: the corpus that ``test_fuzz.py`` mutates.

What once broke a parser joins its seeds. A parser *eats* bytes: it reads them in every way it is used, lets nothing
escape but what its docstring names, and checks what may be said of any result.
"""

from __future__ import annotations

import base64
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple
from uuid import UUID

from daemon.core.address import Address, Unreadable, home, mask, plausible, read
from daemon.core.outcome import Accepted, Rejected, Throttled, Uncertain
from daemon.core.receipt import Receipt
from daemon.core.segments import count, segments
from daemon.core.template import CHARACTERS_MAX, Unfit, render
from daemon.core.token import seal, unseal
from daemon.database import as_object
from daemon.journal import Journal, Memory
from daemon.provider import Absent, Callback, Forged, Inbound, Response, Unclear
from daemon.providers import form
from daemon.settings import Settings, SettingsError, parse
from daemon.settings.load import read as read_toml
from daemon.simulator import ACCOUNT_SID, AUTH_TOKEN, Faults
from daemon.simulator import Settings as SimulatorSettings
from daemon.simulator.agenda import Agenda
from daemon.simulator.api import Api
from daemon.simulator.ledger import Ledger
from daemon.simulator.receipts import Postman
from daemon.simulator.wire import BadRequestError, take_request
from daemon.wire.answer import Answer
from tests.core.test_address import EXAMPLES
from tests.providers.test_dialects import SPEAKERS, attempt

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SPEAKER = SPEAKERS[0]
KEY = b"k" * 32
TOKEN = seal(KEY, UUID(int=7), 1)
SID = "SM" + "0" * 32
RESOURCE = (
    b'{"sid": "%s", "status": "queued", "num_segments": "1", "from": "+15005550006", "to": "+15005550001", "body":'
    b' "hello", "direction": "outbound-api", "date_created": "Tue, 14 Nov 2023 22:13:20 +0000", "error_code": null,'
    b' "error_message": null}' % SID.encode()
)
REFUSAL = b'{"code": 20429, "message": "Too many requests from +15005550001", "status": 429}'
RECEIPT = f"MessageSid={SID}&MessageStatus=delivered&To=%2B15005550001&From=%2B15005550006&ErrorCode=30003".encode()
INBOUND = (
    f"MessageSid={SID}&SmsStatus=received&From=whatsapp%3A%2B15005550001&To=%2B15005550006&Body=STOP&OptOutType=STOP"
).encode()


class Parser(NamedTuple):
    """How it eats, what it is meant for, and how many mutations of that it is given in the long test."""

    eat: Callable[[bytes], object]
    seeds: tuple[bytes, ...]
    times: int


def a_form(raw: bytes) -> None:
    pairs = form.read(raw, most=500)
    assert pairs is None or len(pairs) <= 500


def a_callback(raw: bytes) -> None:
    """The target, a line, the body: once from a stranger, once with the provider's own signature."""
    line, _, body = raw.partition(b"\n")
    target = "/" + line.decode("utf-8", "surrogateescape")
    stranger = Callback("POST", target, {"x-twilio-signature": body[:40].decode("latin-1")}, body)
    assert isinstance(SPEAKER.dialect.receipts(stranger), Forged)
    for method in ("POST", "GET"):
        said = SPEAKER.sign(method, target, body)
        receipts, inbound = SPEAKER.dialect.receipts(said), SPEAKER.dialect.inbound(said)
        assert isinstance(receipts, Forged) or all(isinstance(one, Receipt) for one in receipts)
        assert inbound is None or isinstance(inbound, Inbound | Forged)


def an_answer(raw: bytes) -> None:
    """Lines of headers, an empty one, the body: as the answer to a send, to a look and to a question."""
    head, _, body = raw.partition(b"\n\n")
    lines = (line.partition(b":") for line in head.split(b"\n"))
    headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, _, value in lines}
    for status in (201, 400, 429, 500):
        outcome = SPEAKER.dialect.hear(Response(status, headers, body))
        assert isinstance(outcome, Accepted | Rejected | Throttled | Uncertain)
    asked = Response(200, headers, body)
    assert isinstance(SPEAKER.dialect.found(attempt(), asked), Accepted | Absent | Unclear)
    assert isinstance(SPEAKER.dialect.fetched(SID, asked), Receipt | Absent | Unclear)


def a_wire(raw: bytes) -> None:
    """The bytes of a whole answer, in one piece and in two: the same verdict."""

    def heard(*parts: bytes) -> object:
        answer = Answer()
        for part in parts:
            if answer.feed(part):
                break
        return answer.verdict or answer.end()

    middle = len(raw) // 2
    verdict = heard(raw)
    assert isinstance(verdict, Response | Uncertain)
    assert heard(raw[:middle], raw[middle:]) == verdict


def a_token(raw: bytes) -> None:
    token = raw.decode("utf-8", "surrogateescape")
    owner = unseal(KEY, token)
    assert owner is None or seal(KEY, *owner) == token


def a_number(raw: bytes) -> None:
    text = raw.decode("utf-8", "replace")
    for channel in ("sms", "whatsapp", "email"):
        assert isinstance(read(text, channel, "US"), Address | Unreadable)
    found = read(text, "sms")
    assert plausible(text) == (isinstance(found, Address) and found.e164 == text)
    home(text)
    mask(text)


def a_text(raw: bytes) -> None:
    text = raw.decode("utf-8", "replace")
    assert 1 <= segments(text) == count(text).segments


def a_template(raw: bytes) -> None:
    """The template, an empty line, its variables as JSON."""
    template, _, variables = raw.decode("utf-8", "replace").partition("\n\n")
    given = as_object(variables)
    if isinstance(given, dict):
        found = render(template, given)
        assert isinstance(found, Unfit) or len(found) <= CHARACTERS_MAX


def a_configuration(raw: bytes) -> None:
    with suppress(SettingsError):
        assert isinstance(parse(read_toml(raw.decode("utf-8", "replace")), environ={}), Settings)


def a_dispatch_log(folder: Path) -> Callable[[bytes], None]:
    file = folder / "dispatch-000001.log"

    def eat(raw: bytes) -> None:
        file.write_bytes(raw)
        journal = Journal(folder, boot_id="boot")
        assert isinstance(journal.recall(), Memory)
        journal.close()

    return eat


def log_of(folder: Path) -> bytes:
    """A dispatch log as a short life leaves it."""
    journal = Journal(folder, boot_id="boot")
    journal.recall()
    journal.open()
    journal.leased("group", 3)
    for number in range(3):
        journal.dispatched(UUID(int=number), 1, f"+1555010000{number}", 2, 1.5)
        journal.answered(UUID(int=number), 1, b'{"status": "accepted"}')
    journal.in_the_works(UUID(int=9), 1)
    journal.close()
    (file,) = folder.glob("dispatch-*.log")
    raw = file.read_bytes().rstrip(b"\0") + bytes(64)
    file.unlink()
    return raw


def a_request_of_the_simulator() -> Callable[[bytes], None]:
    """Needs a running loop. Nothing is sent: there is no room for callbacks."""
    settings = SimulatorSettings(keep=100)
    postman = Postman(Agenda(), AUTH_TOKEN, connections=1, waiting=0)
    api = Api(settings, faults=Faults(), ledger=Ledger(keep=100), postman=postman)

    def eat(raw: bytes) -> None:
        with suppress(BadRequestError):
            if (taken := take_request(raw)) is not None:
                assert 200 <= api.reply(taken[0]).answer.status < 500

    return eat


def request(method: str, path: str, body: bytes = b"") -> bytes:
    """A whole request to the simulator, with its account's password."""
    basic = base64.b64encode(f"{ACCOUNT_SID}:{AUTH_TOKEN}".encode()).decode()
    head = f"{method} /2010-04-01/Accounts/{ACCOUNT_SID}/{path} HTTP/1.1\r\nHost: x\r\nAuthorization: Basic {basic}\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


CREATE = (
    b"To=%2B15005550001&From=%2B15005550006&Body=Hello%20%E2%82%AC&StatusCallback=http%3A%2F%2Fx%2Fy&ValidityPeriod=9"
)
CONFIGURATION = b"""
[database]
url = "postgresql://outrider@db.example.com/app"
timeout_s = 10.0
[daemon]
state = "state"
drain_s = 20.0
[web.public]
url = "https://sms.example.com"
[providers.main]
kind = "simulator"
[[senders]]
address = "+15550100001"
provider = "main"
type = "long_code"
country = "US"
rate = 1.0
queue_window = "10h"
[services.default]
senders = ["+15550100001"]
validity = "5 min"
[intents.otp]
level = 1
attempts = 3
on_ambiguous = "resend"
[templates]
code = "Your code is {code}"
[retention]
body = "30d"
"""
UNREADABLE = (
    b"a = " + b"9" * 5_000,  # more digits than Python reads
    b"a = " + b"[" * 5_000,
    b"a = " + b"[" * 300 + b"]" * 300,  # TOML, and too deep for JSON
    CONFIGURATION.replace(b'"5 min"', b"9" * 400),  # more than a float holds
)
YES = b"HTTP/1.1 201 Created\r\nDate: Tue, 14 Nov 2023 22:13:20 GMT\r\nContent-Length: %d\r\n\r\n" % len(RESOURCE)


def parsers(folder: Path) -> dict[str, Parser]:
    """The table. *folder* is for the one that reads files; needs a running loop."""
    return {
        "a form": Parser(a_form, (RECEIPT, INBOUND, b"a=%zz&=&&b=%F0%9F%92%A9&c", CREATE), 120_000),
        "a callback and its signature": Parser(
            a_callback,
            (
                f"callbacks/x/{TOKEN}\n".encode() + RECEIPT,
                b"inbound/x\n" + INBOUND,
                f"callbacks/x/{TOKEN}?MessageSid={SID}&MessageStatus=sent&bodySHA256={'0' * 64}\n{{}}".encode(),
            ),
            90_000,
        ),
        "a provider's answer": Parser(
            an_answer,
            (
                b"retry-after: 7\n\n" + RESOURCE,
                b"retry-after: Tue, 14 Nov 2023 22:13:20 GMT\ndate: Tue, 14 Nov 2023 22:13:10 GMT\n\n" + REFUSAL,
                b'\n\n{"messages": [' + RESOURCE + b', 7, null], "next_page_uri": "/x", "page": 0}',
                b"content-type: text/html\n\n<html>502</html>",
            ),
            90_000,
        ),
        "an answer on the wire": Parser(
            a_wire,
            (
                YES + RESOURCE,
                b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
                b"HTTP/1.0 429 Slow\r\nRetry-After: 3\r\nConnection: close\r\n\r\nlater",
                b"HTTP/1.1 101 Up\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
            ),
            150_000,
        ),
        "a token": Parser(a_token, (TOKEN.encode(), seal(KEY, UUID(int=2**128 - 1), 2**32 - 1).encode()), 150_000),
        "a number": Parser(
            a_number,
            (
                *(b"(202) 555-0123", b"+49 1511 2345678;ext=7", b"a@example.com", "+٢٠١".encode(), b"72345"),
                *(number.encode() for number in EXAMPLES),
            ),
            80_000,
        ),
        "a text": Parser(
            a_text,
            ("Hello €uro [x]".encode(), "👨‍👩‍👧‍👦🇫🇷 ж e\u0301".encode(), b"x" * 161, "நி ᄒ\u1161ᆫ\r\n".encode()),
            100_000,
        ),
        "a template": Parser(
            a_template,
            (b'Hi {name}, {{x}} is {code}\n\n{"name": "Ada", "code": 42, "x": [1e3, true, null]}', b"{a}{b}}\n\n{}"),
            120_000,
        ),
        "a configuration": Parser(a_configuration, (CONFIGURATION, *UNREADABLE), 20_000),
        "a dispatch log": Parser(a_dispatch_log(folder), (log_of(folder),), 50_000),
        "a request of the simulator": Parser(
            a_request_of_the_simulator(),
            (
                request("POST", "Messages.json", CREATE),
                request("GET", "Messages.json?To=%2B15005550001&DateSent%3E=2023-11-14&PageSize=20&PageToken=PT3"),
                request("GET", f"Messages/{SID}.json"),
            ),
            100_000,
        ),
    }
