"""
The life of a message: one table of legal steps, and two tiny functions over it.

The CHECKs of the schema, the picture in README and the handling of late or repeated receipts are made from this table
or tested against it.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


class Status(StrEnum):
    """Where a message is. The words are API: applications read them in ``outrider.message``."""

    QUEUED = "queued"  # waiting for its hour, its turn, a window or a gate; reason says which
    SENDING = "sending"  # in an open claim: a provider may have it
    UNKNOWN = "unknown"  # ambiguous; being resolved
    ACCEPTED = "accepted"  # a provider said yes
    SENT = "sent"  # handed to the carrier or receiving server
    DELIVERED = "delivered"  # as the provider means it
    READ = "read"  # a person has seen it
    UNDELIVERED = "undelivered"  # a receipt said no; a later delivered corrects it
    FAILED = "failed"  # refused, and repeating will not help
    EXPIRED = "expired"  # too late to be of use
    CANCELED = "canceled"  # by the application
    SUPPRESSED = "suppressed"  # we chose not to: opted out, compliance, bad number, a repeat
    DEAD = "dead"  # gave up, or dropped while ambiguous; parked with its story


S = Status

STEPS: Mapping[Status, frozenset[Status]] = {
    # From the queue a row is claimed, or ends early: cancelled, too late, judged by the inspector. A receipt may
    # overtake our own bookkeeping (a crash between the answer and the ledger), hence the receipts' words too.
    S.QUEUED: frozenset(S) - {S.QUEUED},
    # A claimed row goes back to the queue (released, throttled, retried), becomes ambiguous, or ends.
    S.SENDING: frozenset(S) - {S.SENDING},
    # Doubt ends by evidence (accepted and what receipts say; queued again when proven unsent) or by policy.
    S.UNKNOWN: frozenset(S) - {S.UNKNOWN, S.SENDING},
    # Once a provider has it, only receipts move it, upwards.
    S.ACCEPTED: frozenset({S.SENT, S.DELIVERED, S.READ, S.UNDELIVERED, S.FAILED}),
    S.SENT: frozenset({S.DELIVERED, S.READ, S.UNDELIVERED, S.FAILED}),
    S.DELIVERED: frozenset({S.READ}),
    S.READ: frozenset(),
    # A late correction; or replayed by hand. Of the two bad words "failed" wins, whichever came first.
    S.UNDELIVERED: frozenset({S.FAILED, S.DELIVERED, S.READ, S.QUEUED}),
    S.FAILED: frozenset({S.DELIVERED, S.READ, S.QUEUED}),
    # A message we gave up on may prove to have arrived after all: the truth is never thrown away.
    S.EXPIRED: frozenset({S.ACCEPTED, S.SENT, S.DELIVERED, S.READ, S.UNDELIVERED, S.FAILED}),
    S.DEAD: frozenset({S.ACCEPTED, S.SENT, S.DELIVERED, S.READ, S.UNDELIVERED, S.FAILED, S.QUEUED}),
    S.CANCELED: frozenset({S.ACCEPTED, S.SENT, S.DELIVERED, S.READ, S.UNDELIVERED, S.FAILED}),
    S.SUPPRESSED: frozenset({S.ACCEPTED, S.SENT, S.DELIVERED, S.READ, S.UNDELIVERED, S.FAILED}),
}

OPEN = frozenset({S.QUEUED, S.SENDING, S.UNKNOWN})  # these live in the queue table
WAITING = frozenset({S.ACCEPTED, S.SENT})  # a provider has it, the last word is not in
FINAL = frozenset(S) - OPEN - WAITING
REPLAYABLE = frozenset({S.UNDELIVERED, S.FAILED, S.DEAD})

# How much a word weighs when two are heard of the same message, in whatever order: the heavier stays. Our own endings
# weigh nothing against a provider's yes: what was accepted after all must show (facts: reliability, 2.2).
RANKS: Mapping[str, int] = {
    S.QUEUED: 0,
    S.SENDING: 0,
    S.UNKNOWN: 0,
    S.CANCELED: 5,
    S.SUPPRESSED: 5,
    S.EXPIRED: 5,
    S.DEAD: 5,
    S.ACCEPTED: 10,
    S.SENT: 30,
    S.FAILED: 40,
    S.UNDELIVERED: 40,
    S.DELIVERED: 50,
    S.READ: 60,
}


def sources(there: Status) -> frozenset[Status]:
    """Every status from which *there* is one legal step away: the guard of an UPDATE."""
    return frozenset(here for here, exits in STEPS.items() if there in exits)


def heard(here: Status, news: Status) -> Status:
    """
    Where a receipt's *news* leaves a message that is *here*. Old, repeated or impossible news changes nothing.

    Agrees with ``receipt.merge`` on every word a receipt can hold, so the order of receipts cannot matter.
    """
    return news if news in STEPS[here] - OPEN and RANKS[news] >= RANKS[here] else here
