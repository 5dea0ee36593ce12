"""
Delivery receipts, merged as a join-semilattice: any order, any repetition, one result.

A receipt is news of rank ``lifecycle.RANKS``; the heavier word stays. Ties (``failed`` against ``undelivered``) go to
the word that comes first in the alphabet, so that the result does not depend on who spoke first. The same merge stands
once more in SQL (``sql/receive.sql``); a test compares the two over all permutations.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from daemon.core.lifecycle import RANKS, Status

if TYPE_CHECKING:
    from collections.abc import Iterable


@dataclass(frozen=True, slots=True)
class Receipt:
    """One thing a provider told us about one message."""

    reference: str  # the provider's id of the message
    status: Status
    code: str = ""  # the provider's error code, when it is bad news
    reason: str = ""
    segments: int | None = None
    sender: str | None = None
    final: bool = True  # False for words such as "queued", which only prove that the provider has it


@dataclass(frozen=True, slots=True)
class Standing:
    """What all receipts heard so far amount to."""

    status: Status
    code: str = ""


def merge(one: Standing, other: Standing) -> Standing:
    """The heavier of two standings: commutative, associative, idempotent."""
    return max(one, other, key=_weight)


def standing(start: Standing, receipts: Iterable[Receipt]) -> Standing:
    """Where *receipts*, in whatever order and however often, leave a message that stood at *start*."""
    here = start
    for receipt in receipts:
        here = merge(here, Standing(receipt.status, receipt.code))
    return here


def _weight(here: Standing) -> tuple[int, tuple[int, ...], tuple[int, ...]]:
    # Alphabetically first wins a tie, hence the negated code points; a code beats no code.
    return (
        RANKS[here.status],
        (*(-ord(letter) for letter in here.status), 1),
        tuple(ord(letter) for letter in here.code),
    )
