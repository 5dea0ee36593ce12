"""The nouns: a message in hand, what it is for, and where it may go."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from uuid import UUID


class Channel(StrEnum):
    """How a message travels; decides how its recipient is read."""

    SMS = "sms"
    EMAIL = "email"
    WHATSAPP = "whatsapp"
    RCS = "rcs"
    PUSH = "push"
    WEBHOOK = "webhook"


class Intent(StrEnum):
    """What a message is for: the eleven words of Twilio's MessageIntent (Traffic Shaping guide)."""

    OTP = "otp"
    NOTIFICATIONS = "notifications"
    FRAUD = "fraud"
    SECURITY = "security"
    CUSTOMERCARE = "customercare"
    DELIVERY = "delivery"
    EDUCATION = "education"
    EVENTS = "events"
    POLLING = "polling"
    ANNOUNCEMENTS = "announcements"
    MARKETING = "marketing"


class OnAmbiguous(StrEnum):
    """What to do with a message whose fate no evidence has told."""

    RESOLVE = "resolve"  # wait for evidence, then park it for a person
    RESEND = "resend"  # a second copy does less harm than none (a login code)
    DROP = "drop"  # a second copy does more harm than none (a campaign)


# Service level of each intent, 1 the most urgent (Twilio, Traffic Shaping; a row without intent is level 3).
# The statement trigger on outbox holds the same table in SQL; a test compares the two.
LEVELS: Mapping[Intent, int] = {
    Intent.OTP: 1,
    Intent.NOTIFICATIONS: 1,
    Intent.FRAUD: 1,
    Intent.SECURITY: 1,
    Intent.CUSTOMERCARE: 2,
    Intent.DELIVERY: 2,
    Intent.EDUCATION: 2,
    Intent.EVENTS: 2,
    Intent.POLLING: 3,
    Intent.ANNOUNCEMENTS: 3,
    Intent.MARKETING: 3,
}


@dataclass(slots=True)
class Message:
    """
    One message in a daemon's hands.

    Slotted but not frozen: a frozen row of this width costs 2.4 µs to make instead of 0.3. Nobody changes a field
    after the claim except the desk, which fills in what is sent, to whom, and until when (``Desk.prepare``).

    Times are seconds since the epoch (wall clock): they come from the database and go back to it.
    """

    id: UUID
    attempt: int  # the number of the attempt in hand, from 1; together with id it names one try
    spent: int  # tries already charged to its patience (throttled and held ones are not)
    lane: str  # the service, or "@sender" for a pinned sender
    level: int  # 1, 2 or 3: see LEVELS
    claim: UUID  # the claim record it was taken with
    tenant: str
    recipient: str  # as the application wrote it, or as E.164 once read
    channel: str
    service: str
    sender: str | None  # pins one sender
    body: str | None
    template: str | None
    variables: object  # of the template: whatever JSON it was
    media: Sequence[str]
    intent: str | None
    first_due: float  # when it was first of use: inserted, or send_at
    due_at: float  # when this attempt was due
    expires_at: float | None  # validity counted in
    order_key: str | None
    on_ambiguous: str | None
    group: str = ""  # under whose lease it was taken: its verdict is fenced by that, whatever a reload says
    claimed_at: float = 0.0  # on the daemon's steady clock
    text: str = ""  # what is sent: the body, or the filled template
    segments: int = 1  # what it costs a sender, counted by core.segments
    region: str | None = None  # ISO 3166: the recipient's country, once read


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One try that may have reached a provider: what a later question or receipt is matched with."""

    id: UUID
    attempt: int
    provider: str
    sender: str
    recipient: str  # E.164
    text: str
    segments: int
    sent_at: float  # wall clock, when the request was written
    # Of what the provider names, what is on record as another's: none of it may be credited a second time.
    known_references: frozenset[str] = frozenset()
