"""
The dialect of the server: what is wrong with a request, how a message is written down, how a callback is signed.

Source of names, rules and codes: Twilio's Messages resource and error dictionary (API version 2010-04-01).
"""

from __future__ import annotations

import base64
import hmac
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import format_datetime
from functools import lru_cache
from typing import TYPE_CHECKING
from urllib.parse import unquote_to_bytes

import orjson

from daemon.core.segments import segments

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from daemon.simulator.messages import Message

VERSION = "2010-04-01"
BODY_MAX = 1_600  # characters
MEDIA_MAX = 10
VALIDITY = range(1, 36_001)  # seconds
POOL_SENDER = "+15005550006"  # who speaks when only a Messaging Service is named

# HTTP status and message by code; any other code is a 400.
REFUSALS: Mapping[int, tuple[int, str]] = {
    20001: (400, "Unknown parameters"),
    20003: (401, "Authenticate"),
    20004: (405, "Method not allowed"),
    20005: (401, "Account not active"),
    20403: (403, "Forbidden"),
    20404: (404, "The requested resource was not found"),
    20409: (409, "Conflict"),
    20429: (429, "Too Many Requests"),
    20500: (500, "Internal Server Error"),
    20503: (503, "Service Unavailable"),
    20504: (504, "Gateway Timeout"),
    21211: (400, "Invalid 'To' Phone Number"),
    21212: (400, "Invalid 'From' Number"),
    21266: (400, "'To' and 'From' number cannot be the same"),
    21408: (400, "Permission to send an SMS has not been enabled for the region indicated by the 'To' number"),
    21602: (400, "Message body is required"),
    21603: (400, "A 'From' phone number is required"),
    21604: (400, "A 'To' phone number is required"),
    21606: (400, "The 'From' phone number is not a valid, message-capable number of this account"),
    21609: (400, "The 'StatusCallback' URL is not a valid URL"),
    21610: (400, "Attempt to send to unsubscribed recipient"),
    21611: (400, "This 'From' number has exceeded the maximum number of queued messages"),
    21612: (400, "The 'To' phone number is not currently reachable via SMS from the 'From' number"),
    21614: (400, "'To' number is not a valid mobile number"),
    21617: (400, "The concatenated message body exceeds the 1600 character limit"),
    21623: (400, "Number of media files exceeds allowed limit"),
    21624: (400, "The validity period is not valid"),
    21705: (400, "The Messaging Service Sid is invalid"),
    30409: (400, "The message is in a final state and cannot be canceled"),
}

# The magic numbers of Twilio's test credentials.
_MAGIC_TO = {
    "+15005550001": 21211,
    "+15005550002": 21612,
    "+15005550003": 21408,
    "+15005550004": 21610,
    "+15005550009": 21614,
}
_MAGIC_FROM = {"+15005550001": 21212, "+15005550007": 21606, "+15005550008": 21611}

_PERSON = re.compile(r"\+[1-9]\d{6,14}|[a-z]+:.+")
_SENDER = re.compile(r"\+?\d{3,15}|(?=.*[A-Za-z])[A-Za-z0-9 +&_-]{1,11}|[a-z]+:.+")
_SERVICE = re.compile(r"MG[0-9a-f]{32}")
_URL = re.compile(r"https?://(?:[^/@?#]*@)?(?:[A-Za-z0-9.-]+|\[[0-9a-fA-F:.]+\])(?::\d{1,5})?(?:[/?#]\S*)?")


@dataclass(frozen=True, slots=True)
class Refusal:
    """No, in Twilio's words."""

    code: int
    retry_after_s: int | None = None

    @property
    def status(self) -> int:
        """The HTTP status that goes with the code."""
        return REFUSALS.get(self.code, (400, ""))[0]

    def body(self) -> bytes:
        """The error body Twilio answers with."""
        status, message = REFUSALS.get(self.code, (400, "Refused"))
        more = f"https://www.twilio.com/docs/errors/{self.code}"
        return orjson.dumps({"code": self.code, "message": message, "more_info": more, "status": status})


@dataclass(slots=True, kw_only=True)
class Order:
    """A valid request to send one message."""

    to: str
    sender: str
    service: str
    body: str
    segments: int
    media: int
    callback: str


def read_form(body: bytes) -> list[tuple[str, str]]:
    """
    The pairs of a form body, empty values included; bytes that are no UTF-8 are replaced.

    By hand, because ``urllib.parse.parse_qsl`` was a third of the cost of a whole request.
    """
    pairs = (pair.partition(b"=") for pair in body.split(b"&") if pair)
    return [(_plain(name), _plain(value)) for name, _, value in pairs]


def read_order(pairs: list[tuple[str, str]]) -> Order | Refusal:
    """What a create asks for, or the first thing that is wrong with it."""
    form = dict(pairs)
    order = Order(
        to=form.get("To", ""),
        sender=form.get("From", ""),
        service=form.get("MessagingServiceSid", ""),
        body=form.get("Body", ""),
        segments=1,
        media=sum(name == "MediaUrl" for name, _ in pairs) if "MediaUrl" in form else 0,
        callback=form.get("StatusCallback", ""),
    )
    code = _addressing(order) or _content(order, has_content="ContentSid" in form) or _options(form, order)
    if code:
        return Refusal(code)
    order.segments = segments(order.body)
    return order


def token(callback: str) -> str:
    """The last part of the path of a callback URL."""
    return callback.partition("#")[0].partition("?")[0].rpartition("/")[2]


def resource(message: Message, account: str, clock: float) -> bytes:
    """The Message resource as JSON, at a moment of the wall clock. Numbers are strings, as Twilio writes them."""
    news = message.now(clock)
    uri = f"/{VERSION}/Accounts/{account}/Messages/{message.sid}"
    sent = message.sent_at(clock)
    return orjson.dumps(
        {
            "account_sid": account,
            "api_version": VERSION,
            "body": message.body,
            "date_created": date(int(message.created)),
            "date_sent": None if sent is None else date(int(sent)),
            "date_updated": date(int(message.created + news.after_s)),
            "direction": "outbound-api",
            "error_code": int(news.code) if news.code else None,
            "error_message": None,
            "from": message.sender or None,
            "messaging_service_sid": message.service or None,
            "num_media": str(message.media),
            "num_segments": str(message.segments) if message.sender or sent else "0",
            "price": None,
            "price_unit": "USD",
            "sid": message.sid,
            "status": news.status,
            "subresource_uris": {"media": f"{uri}/Media.json"},
            "to": message.to,
            "uri": f"{uri}.json",
        }
    )


def receipt(message: Message, account: str, status: str, code: str, clock: float) -> dict[str, str]:
    """The form of a status callback."""
    form = {
        "AccountSid": account,
        "ApiVersion": VERSION,
        "From": message.sender or POOL_SENDER,
        "MessageSid": message.sid,
        "MessageStatus": status,
        "SmsSid": message.sid,
        "SmsStatus": status,
        "To": message.to,
    }
    if message.service:
        form["MessagingServiceSid"] = message.service
    if code:
        form["ErrorCode"] = code
    if status in ("delivered", "undelivered"):
        form["RawDlrDoneDate"] = datetime.fromtimestamp(clock, UTC).strftime("%y%m%d%H%M")
    return form


def inbound(account: str, sid: str, *, sender: str, to: str, body: str) -> dict[str, str]:
    """The form of a message that the person *sender* wrote to our number *to*."""
    return {
        "AccountSid": account,
        "ApiVersion": VERSION,
        "Body": body,
        "From": sender,
        "MessageSid": sid,
        "NumMedia": "0",
        "NumSegments": str(segments(body)),
        "SmsMessageSid": sid,
        "SmsSid": sid,
        "SmsStatus": "received",
        "To": to,
    }


def sign(auth_token: str, url: str, form: Iterable[tuple[str, str]]) -> str:
    """
    The X-Twilio-Signature of a form posted to *url*, which is signed without its fragment and credentials.

    Pairs are sorted by name, then value, each once, and written one after the other without anything between.
    """
    text = bare(url) + "".join(name + value for name, value in sorted(set(form)))
    return base64.b64encode(hmac.digest(auth_token.encode(), text.encode(), "sha1")).decode()


def bare(url: str) -> str:
    """*url* without its fragment and without ``user:password@``."""
    scheme, slashes, rest = url.partition("#")[0].partition("://")
    host = re.split(r"[/?]", rest, maxsplit=1)[0]
    return scheme + slashes + host.rpartition("@")[2] + rest[len(host) :]


@lru_cache(maxsize=256)
def date(second: int) -> str:
    """A moment as api.twilio.com writes it: RFC 2822, always +0000."""
    return format_datetime(datetime.fromtimestamp(second, UTC))


@lru_cache(maxsize=4_096)  # names and senders repeat, and often texts
def _plain(coded: bytes) -> str:
    spaced = coded.replace(b"+", b" ")
    return (unquote_to_bytes(spaced) if b"%" in spaced else spaced).decode("utf-8", "replace")


def _addressing(order: Order) -> int | None:
    if not order.to:
        return 21604
    if not (order.sender or order.service):
        return 21603
    if not _PERSON.fullmatch(order.to):
        return 21211
    if order.sender and not _SENDER.fullmatch(order.sender):
        return 21212
    if order.service and not _SERVICE.fullmatch(order.service):
        return 21705
    if code := _MAGIC_FROM.get(order.sender) or _MAGIC_TO.get(order.to):
        return code
    return 21266 if order.to == order.sender else None


def _content(order: Order, *, has_content: bool) -> int | None:
    if not (order.body or order.media or has_content):
        return 21602
    if len(order.body) > BODY_MAX:
        return 21617
    return 21623 if order.media > MEDIA_MAX else None


def _options(form: Mapping[str, str], order: Order) -> int | None:
    validity = form.get("ValidityPeriod")
    if validity is not None and not (re.fullmatch(r"[0-9]{1,6}", validity) and int(validity) in VALIDITY):
        return 21624
    return 21609 if order.callback and not _URL.fullmatch(order.callback) else None
