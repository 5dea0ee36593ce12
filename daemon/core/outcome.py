"""
What became of one exchange with a provider. Each word says what it *permits*.

``Unreachable`` and ``Uncertain`` are the two words that keep people from being texted twice: the first says the request
never left, the second that nobody can know. They differ in one fact, "were the headers sent?" (transport.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TypeAlias


class Fault(StrEnum):
    """Whose fault a refusal is: decides whether the message, its sender or the whole provider pays for it."""

    RECIPIENT = "recipient"  # this number cannot be reached: final for this message
    CONTENT = "content"  # this text cannot be sent: final for this message
    OPTED_OUT = "opted_out"  # this person said stop: final, and remembered
    ROUTE = "route"  # this sender cannot reach this recipient: final here, another route might do
    SENDER = "sender"  # this sender is not usable now: it rests, the message is not charged
    ACCOUNT = "account"  # this provider refuses us altogether: it rests, the message is not charged
    TRANSIENT = "transient"  # refused for now, certainly not sent: try again, charged
    UNKNOWN = "unknown"  # refused in words we do not know: final for this message


@dataclass(slots=True)
class Accepted:
    """A provider has it. Never send it again. Not frozen, as the others are: one is made for every message."""

    reference: str | None  # the provider's id; None when a 2xx came but its body was lost (a query will tell)
    status: str = "accepted"  # one of lifecycle.Status: accepted or sent
    segments: int | None = None  # as the provider counts, when it says
    sender: str | None = None  # the one it really used, when it says


@dataclass(frozen=True, slots=True)
class Rejected:
    """A provider said no, in words. Certainly not sent."""

    fault: Fault
    code: str
    reason: str


@dataclass(frozen=True, slots=True)
class Throttled:
    """Too fast. Certainly not sent; not held against the message, but its lane slows down."""

    wait_s: float | None  # what the provider asked for, if it did
    code: str
    reason: str


@dataclass(frozen=True, slots=True)
class Unreachable:
    """It never left the building. Safe to send again, here or elsewhere."""

    reason: str


@dataclass(frozen=True, slots=True)
class Uncertain:
    """It may have left. Sending again may send twice: look for evidence first."""

    reason: str
    code: str = ""


Outcome: TypeAlias = Accepted | Rejected | Throttled | Unreachable | Uncertain
