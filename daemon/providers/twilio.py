"""
Twilio's Programmable Messaging, API version 2010-04-01: the Messages resource and its webhooks.

Twilio has no idempotency key: an answer that got lost leaves doubt. Evidence comes from the token in the callback URL
and from its list of messages.
"""

from __future__ import annotations

from base64 import b64encode
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING

from daemon.core.lifecycle import Status
from daemon.core.outcome import Accepted, Fault, Rejected, Throttled, Uncertain
from daemon.core.receipt import Receipt
from daemon.provider import Absent, Forged, Inbound, Request, Unclear
from daemon.providers import form, twilio_signature
from daemon.providers.twilio_errors import UNLISTED, Case, meaning
from daemon.providers.twilio_evidence import search
from daemon.providers.twilio_words import SID, WORDS_MAX, Json, clean, error_code, json_object, moment, number, reason

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from daemon.core.message import Attempt, Message
    from daemon.core.outcome import Outcome
    from daemon.provider import Callback, Finding, LastWord, Response

VALIDITY_MAX_S = 36_000  # Twilio's own default; the least is 1
PAGE_SIZE = 20  # 20 of the longest messages fit in the 64 KiB we read
PARAMETERS_MAX = 500  # of a callback; a WhatsApp message with everything has about 60
CALLBACK_MAX = 131_072  # bytes of a callback's body: the longest WhatsApp text, all emoji, is 49 KB
TARGET_MAX = 8_192  # characters of a callback's path and query
UNKNOWN_THERE = 20404  # the code of a message it does not have (facts: twilio 3.1)
WAIT_MAX_S = 300.0  # a Retry-After beyond this is not believed (facts: reliability 2.4)

# Answers that say nothing certain, whoever wrote them: time-outs, conflicts, "too early".
_DOUBTFUL = frozenset({408, 409, 425})

_STATUSES: Mapping[str, tuple[Status, bool]] = {  # to our word, and whether it is the last
    "accepted": (Status.ACCEPTED, False),
    "scheduled": (Status.ACCEPTED, False),
    "queued": (Status.ACCEPTED, False),
    "sending": (Status.ACCEPTED, False),
    "sent": (Status.SENT, False),
    "delivered": (Status.DELIVERED, True),
    "undelivered": (Status.UNDELIVERED, True),
    "failed": (Status.FAILED, True),
    "read": (Status.READ, True),
    "canceled": (Status.CANCELED, True),
}
_PASSED_ON = frozenset({"sent", "delivered", "undelivered", "read"})  # what Twilio says after handing it to a carrier
_OPT_OUT = frozenset({"STOP", "START", "HELP"})
_NAMED = frozenset({"From", "To", "Body", "MessageSid", "SmsSid", "SmsMessageSid"})  # not among an inbound's details
_NOTHING: list[tuple[bytes, bytes]] = []


@dataclass(frozen=True, slots=True, kw_only=True)
class Twilio:
    """One account, as a dialect. Strings that all its requests share are made once."""

    name: str
    account_sid: str
    authorization: str = field(repr=False)  # the header: see basic()
    auth_tokens: tuple[str, ...] = field(repr=False)  # what callbacks are signed with: primary, then secondary
    public_url: str  # the base URL under which callbacks reach us
    base_url: str = "https://api.twilio.com"
    callback_options: str = "rc=5&rp=all&ct=2000&rt=2500&tt=15000"  # connection overrides (facts: twilio 4.4)
    validity_default_s: float | None = None
    idempotent: bool = field(default=False, init=False)
    _url: str = field(init=False, repr=False)
    _asking: Mapping[str, str] = field(init=False, repr=False)  # headers of a request without a body
    _sending: Mapping[str, str] = field(init=False, repr=False)
    _options: str = field(init=False, repr=False)  # the callback's fragment, as a form writes it
    _bases: tuple[str, ...] = field(init=False, repr=False)  # of signed URLs

    def __post_init__(self) -> None:
        if not self.auth_tokens or not all(self.auth_tokens):
            raise ValueError(f"provider {self.name}: callbacks cannot be verified without an auth token")
        asking = {
            "Authorization": self.authorization,
            "Accept": "application/json",
            "Accept-Encoding": "identity",
            "User-Agent": "outrider",
        }
        made = {
            "_url": f"{self.base_url.rstrip('/')}/2010-04-01/Accounts/{self.account_sid}/Messages.json",
            "_asking": asking,
            "_sending": asking | {"Content-Type": "application/x-www-form-urlencoded"},
            "_options": form.quote(f"#{self.callback_options}") if self.callback_options else "",
            "_bases": twilio_signature.spellings(self.public_url),
        }
        for name, value in made.items():
            object.__setattr__(self, name, value)

    def ask(self, message: Message, sender: str, callback_url: str, validity_s: float | None) -> Request:
        """``POST Messages.json``, its form written by hand. Facts: twilio 1.2."""
        folder, slash, token = callback_url.rpartition("/")
        body = (
            f"To={form.quote(message.recipient)}&From={_quoted(sender)}&Body={form.quote(message.text)}"
            f"&StatusCallback={_quoted(folder + slash)}{form.quote(token)}{self._options}"
        )
        validity_s = self.validity_default_s if validity_s is None else validity_s
        if validity_s is not None and validity_s < VALIDITY_MAX_S:
            body += f"&ValidityPeriod={max(int(validity_s), 1)}"
        for url in message.media:
            body += f"&MediaUrl={form.quote(url)}"
        return Request("POST", self._url, self._sending, body.encode("ascii"))

    def hear(self, response: Response) -> Outcome:
        """Facts: twilio 1.3 and 3, reliability 2.4."""
        said, status = json_object(response.body), response.status
        if 200 <= status < 300:
            return _accepted(response, said)
        code = error_code(said.get("code"))
        why = reason(code, said.get("message") or said.get("detail") or said.get("title"))
        if status == 429:  # the one failure Twilio calls "never processed", whoever wrote the body
            return Throttled(_wait_s(response, code), str(code or status), why)
        if 400 <= status < 500 and status not in _DOUBTFUL and code is not None:
            return _refused(response, code, why)
        # A proxy's page, a redirect, an answer that settles nothing.
        return Uncertain(f"answered {status}: {why}", str(code or ""))

    def find(self, attempt: Attempt) -> Request:
        """
        ``GET Messages.json``: the latest messages from that sender to that recipient.

        Not by day: the ``DateSent`` filters look at a date that a queued message does not have yet, and what is merely
        still queued must not look as if it had never arrived (facts: twilio 12.2).
        """
        query = f"?To={form.quote(attempt.recipient)}&From={form.quote(attempt.sender)}&PageSize={PAGE_SIZE}"
        return Request("GET", self._url + query, self._asking)

    def named(self, response: Response) -> Sequence[str]:
        """Every sid of the list."""
        listed = json_object(response.body).get("messages")
        entries = listed if isinstance(listed, list) else []
        sids = [entry.get("sid") for entry in entries if isinstance(entry, dict)]
        return [sid for sid in sids if isinstance(sid, str) and SID.fullmatch(sid)]

    def found(self, attempt: Attempt, response: Response) -> Finding:
        """What the list tells; how, stands in :mod:`daemon.providers.twilio_evidence`."""
        said = json_object(response.body) if response.status == 200 else {}
        listed = said.get("messages")
        if not isinstance(listed, list):
            return Unclear(f"answered {response.status} without a list")
        finding = search(attempt, listed, more=bool(said.get("next_page_uri")))
        return finding if isinstance(finding, Absent | Unclear) else _taken(finding)

    def fetch(self, reference: str) -> Request | None:
        """``GET Messages/{sid}.json``. Facts: twilio 1.5."""
        if not SID.fullmatch(reference):
            return None
        return Request("GET", f"{self._url.removesuffix('.json')}/{reference}.json", self._asking)

    def fetched(self, reference: str, response: Response) -> LastWord:
        """A message as it stands now. What is still on its way is a word too, only not the last."""
        said = json_object(response.body)
        if response.status == 404 and error_code(said.get("code")) == UNKNOWN_THERE:
            return Absent()
        status = said.get("status")
        known = _STATUSES.get(status) if isinstance(status, str) else None
        if response.status != 200 or said.get("sid") != reference or known is None:
            return Unclear(f"answered {response.status} without that message")
        code, sender = error_code(said.get("error_code")), said.get("from")
        return _receipt(
            reference,
            known,
            code=code,
            words=said.get("error_message"),
            segments=said.get("num_segments"),
            sender=sender if isinstance(sender, str) else "",
        )

    def receipts(self, callback: Callback) -> Sequence[Receipt] | Forged:
        """A status callback holds one receipt. Facts: twilio 4.1."""
        fields = self._verified(callback)
        if isinstance(fields, Forged):
            return fields
        reference = fields.get("MessageSid") or fields.get("SmsSid", "")
        known = _STATUSES.get(fields.get("MessageStatus") or fields.get("SmsStatus", ""))
        if known is None or not SID.fullmatch(reference):
            return []
        return [
            _receipt(
                reference,
                known,
                code=error_code(fields.get("ErrorCode")),
                words=fields.get("ErrorMessage") or fields.get("ChannelStatusMessage"),
                segments=fields.get("NumSegments"),
                sender=fields.get("From", ""),
            )
        ]

    def inbound(self, callback: Callback) -> Inbound | Forged | None:
        """A person's message. Facts: twilio 4.2."""
        fields = self._verified(callback)
        if isinstance(fields, Forged):
            return fields
        reference = fields.get("MessageSid") or fields.get("SmsSid", "")
        sender, recipient = _address(fields.get("To", "")), _address(fields.get("From", ""))
        received = fields.get("SmsStatus", "received") == "received"
        if not received or not SID.fullmatch(reference) or not sender or not recipient:
            return None
        word = fields.get("OptOutType", "").upper()
        return Inbound(
            reference=reference,
            sender=sender,
            recipient=recipient,
            body=clean(fields.get("Body", "")),
            opt_out=word if word in _OPT_OUT else None,
            details={clean(name): clean(value) for name, value in fields.items() if name not in _NAMED},
        )

    def reply(self) -> tuple[str, bytes]:
        """Empty TwiML: nothing is said in return."""
        return "text/xml", b'<?xml version="1.0" encoding="UTF-8"?><Response/>'

    def _verified(self, callback: Callback) -> Mapping[str, str] | Forged:
        """What *callback* says, once its signature fits (facts: twilio 4.5)."""
        if len(callback.body) > CALLBACK_MAX or len(callback.target) > TARGET_MAX:
            return Forged("longer than any callback")
        query = form.read(callback.target.partition("?")[2].encode("utf-8", "replace"), most=PARAMETERS_MAX)
        posted = form.read(callback.body, most=PARAMETERS_MAX)
        if query is None or posted is None:
            return Forged("more parameters than any callback has")
        digest = dict(query).get(b"bodySHA256")
        if callback.method == "GET":
            said, signed = query, _NOTHING
        elif digest is None:
            said, signed = posted, posted
        elif twilio_signature.fits_body(callback.body, digest.decode("utf-8", "replace")):
            said, signed = _NOTHING, _NOTHING  # JSON, signed by its digest: no receipt of ours comes that way
        else:
            return Forged("the body is not the one that was signed")
        given = callback.headers.get("x-twilio-signature", "")
        urls = [base + callback.target for base in self._bases]
        if not twilio_signature.fits(given, tokens=self.auth_tokens, urls=urls, form=signed):
            return Forged("the signature does not fit" if given else "no signature")
        # Reversed, so that of a name given twice the first counts.
        return {name.decode("utf-8", "replace"): value.decode("utf-8", "replace") for name, value in reversed(said)}


def basic(user: str, password: str) -> str:
    """The ``Authorization`` header of an account SID and its token, or of an API key SID and its secret."""
    return f"Basic {b64encode(f'{user}:{password}'.encode()).decode('ascii')}"


def _accepted(response: Response, said: Json) -> Outcome:
    sid = said.get("sid")
    if not isinstance(sid, str) or not SID.fullmatch(sid):
        # A resource whose end was lost, or all of it: a yes. A page, or words that name no message: another's yes.
        if not said and response.body.lstrip()[:1] in (b"", b"{"):
            return Accepted(None)
        return Uncertain(f"answered {response.status} without a message")
    if said.get("status") == "failed" and (code := error_code(said.get("error_code"))):
        # It "never left", and no callback will say so: none is sent for the first status.
        return _by_table(code, reason(code, said.get("error_message")), meaning(code).wait_s)
    return _taken(said)


def _refused(response: Response, code: int, why: str) -> Outcome:
    if response.status == 401 or (response.status == 403 and meaning(code) is UNLISTED):
        return Rejected(Fault.ACCOUNT, str(code), why)
    return _by_table(code, why, _wait_s(response, code))


def _receipt(
    reference: str, known: tuple[Status, bool], *, code: int | None, words: object, segments: object, sender: str
) -> Receipt:
    status, final = known
    if code and status is Status.FAILED and meaning(code).kind is Case.EXPIRED:
        status = Status.EXPIRED
    return Receipt(
        reference,
        status,
        code=str(code or ""),
        reason=reason(code, words) if code else "",
        segments=number(segments) or None,
        sender=clean(sender)[:WORDS_MAX] or None,
        final=final,
    )


def _taken(said: Json) -> Accepted:
    sender = said.get("from")
    return Accepted(
        reference=str(said["sid"]),
        status=Status.SENT if said.get("status") in _PASSED_ON else Status.ACCEPTED,
        segments=number(said.get("num_segments")) or None,  # "0" while no sender is chosen
        sender=clean(sender)[:WORDS_MAX] if isinstance(sender, str) and sender else None,
    )


def _by_table(code: int, why: str, wait_s: float | None) -> Outcome:
    match meaning(code).kind:
        case Case.THROTTLED:
            return Throttled(wait_s, str(code), why)
        case Case.UNCERTAIN:
            return Uncertain(why, str(code))
        case Case.EXPIRED:
            return Rejected(Fault.TRANSIENT, str(code), why)  # our own clock judges whether it is still of use
        case Fault() as fault:
            return Rejected(fault, str(code), why)


def _wait_s(response: Response, code: int | None) -> float | None:
    """``Retry-After``, in seconds or as a date (read against the answer's own ``Date``); else what the table says."""
    told = response.headers.get("retry-after", "").strip()
    seconds: float | None = number(told)
    if seconds is None:
        until, now = moment(told), moment(response.headers.get("date"))
        seconds = None if until is None or now is None else until - now
    if seconds is None:
        return None if code is None else meaning(code).wait_s
    return min(max(seconds, 0.0), WAIT_MAX_S)


def _address(text: str) -> str:
    return clean(text.rpartition(":")[2])[:WORDS_MAX]  # without "whatsapp:"


_quoted = lru_cache(maxsize=1024)(form.quote)  # for what many messages share
