"""
The judge: what an outcome means for the message. Dice and clock come in as numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias, assert_never

from daemon.core.backoff import Patience, delay
from daemon.core.lifecycle import Status
from daemon.core.outcome import Accepted, Fault, Outcome, Rejected, Throttled, Uncertain, Unreachable

if TYPE_CHECKING:
    from daemon.core.message import Message


@dataclass(slots=True)
class Handed:
    """A provider has it: out of the queue, and its outcome begins. Not frozen: one is made for every message."""

    outcome: Accepted


@dataclass(frozen=True, slots=True)
class Again:
    """Back to the queue until *due_at* (wall clock). *spent*: whether the try is charged to its patience."""

    due_at: float
    reason: str
    spent: bool


@dataclass(frozen=True, slots=True)
class Doubt:
    """Nobody can know: to ``unknown``, until evidence or policy ends it."""

    reason: str


@dataclass(frozen=True, slots=True)
class Ended:
    """The end: a final status and its reason."""

    status: Status
    reason: str
    code: str = ""


Verdict: TypeAlias = Handed | Again | Doubt | Ended

SENDER_REST_S = 30.0  # how long a message waits when its sender or provider refuses us for reasons of its own
THROTTLE_WAIT_S = 1.0  # how long after a throttle without Retry-After
THROTTLE_WAIT_MAX_S = 300.0  # a Retry-After beyond this is not believed (facts: reliability 2.4)


def judge(
    message: Message, outcome: Outcome, *, patience: Patience, now: float, roll: float, idempotent: bool = False
) -> Verdict:
    """
    What *outcome* means for *message*.

    *now* is the wall clock, *roll* a throw of dice in [0, 1). An ambiguous outcome at a provider that recognises its
    own attempts (*idempotent*) may simply be tried again.
    """
    match outcome:
        case Accepted():
            return Handed(outcome)
        case Throttled(wait_s, code, reason):
            wait = THROTTLE_WAIT_S if wait_s is None else min(max(THROTTLE_WAIT_S, wait_s), THROTTLE_WAIT_MAX_S)
            return _later(message, now + wait * (1 + roll / 2), f"throttled: {_told(code, reason)}", spent=False)
        case Rejected(Fault.SENDER | Fault.ACCOUNT as fault, code, reason):
            wait = SENDER_REST_S * (1 + roll)
            return _later(message, now + wait, f"{fault} refused: {_told(code, reason)}", spent=False)
        case Rejected(Fault.TRANSIENT, code, reason):
            return _retry(message, _told(code, reason), patience=patience, now=now, roll=roll)
        case Rejected(Fault.OPTED_OUT, code, reason):
            return Ended(Status.SUPPRESSED, _told(code, reason), code)
        case Rejected(_, code, reason):
            return Ended(Status.FAILED, _told(code, reason), code)
        case Unreachable(reason):
            return _retry(message, reason, patience=patience, now=now, roll=roll)
        case Uncertain(reason):
            # Tried once more where that is harmless. When tries or time run out it is doubt, never an end: it may
            # have gone out.
            again = _retry(message, reason, patience=patience, now=now, roll=roll) if idempotent else None
            return again if isinstance(again, Again) else Doubt(reason)
        case _:
            assert_never(outcome)


def _retry(message: Message, reason: str, *, patience: Patience, now: float, roll: float) -> Verdict:
    tries = message.spent + 1
    if tries >= patience.attempts:
        return Ended(Status.DEAD, f"gave up after {tries} tries: {reason}")
    return _later(message, now + delay(patience, tries, roll), reason, spent=True)


def _later(message: Message, due_at: float, reason: str, *, spent: bool) -> Verdict:
    # Never tried again after it expires: the wait would only hide the end.
    if message.expires_at is not None and due_at >= message.expires_at:
        return Ended(Status.EXPIRED, f"would be tried again too late: {reason}")
    return Again(due_at, reason, spent)


def _told(code: str, reason: str) -> str:
    return f"{code}: {reason}" if code else reason
