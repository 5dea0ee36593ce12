"""
The messages that everybody here carries: the same people, the same texts, the same bytes on the wire.

Every recipient is another one, as in a campaign: a client that remembers numbers gains nothing by it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from uuid import UUID

from daemon.core.message import Message
from daemon.providers.twilio import Twilio, basic

if TYPE_CHECKING:
    from daemon.provider import Request

ACCOUNT_SID = "AC" + "0" * 32
TOKEN = "token-of-the-bench"  # noqa: S105 (worth nothing anywhere)
AREAS = ("202", "206", "212", "213", "215", "303", "305", "312", "404", "415")  # 555 is nobody's number in any of them
MESSAGES_MAX = 10_000 * len(AREAS)
TEXT = "Your parcel {} is on its way and will be with you today."

# The same two in SQL; $1 is the number of the first message, $2 that of the last, $3 the areas.
RECIPIENT_SQL = "'+1' || ($3::text[])[1 + n / 10000] || '555' || lpad((n % 10000)::text, 4, '0')"
TEXT_SQL = "format('Your parcel %s is on its way and will be with you today.', n)"


def recipient(number: int) -> str:
    """Who message *number* goes to, counted from 0."""
    return f"+1{AREAS[number // 10_000]}555{number % 10_000:04}"


def senders(count: int) -> list[str]:
    """*count* numbers of our own."""
    return [f"+1800555{number:04}" for number in range(count)]


def requests(url: str, count: int) -> list[Request]:
    """Messages 0 to *count* as requests of Twilio's dialect, to the provider at *url*."""
    dialect = Twilio(
        name="sink",
        account_sid=ACCOUNT_SID,
        authorization=basic(ACCOUNT_SID, TOKEN),
        auth_tokens=(TOKEN,),
        public_url="http://127.0.0.1:8080",
        base_url=url,
    )
    ours = senders(200)
    callback = f"http://127.0.0.1:8080/callbacks/sink/{'t' * 43}"
    return [
        dialect.ask(_message(number), sender=ours[number % 200], callback_url=callback, validity_s=None)
        for number in range(count)
    ]


def _message(number: int) -> Message:
    id = UUID(int=number)
    return Message(
        id=id, attempt=1, spent=0, lane="parcels", level=3, claim=id, tenant="", recipient=recipient(number),
        channel="sms", service="parcels", sender=None, body=None, template=None, variables=None, media=(), intent="",
        first_due=0.0, due_at=0.0, expires_at=None, order_key=None, on_ambiguous=None, text=TEXT.format(number),
    )  # fmt: skip
