"""
Fate: faults and dice in, what becomes of a message out. Nothing here waits.

All dice of a message are thrown when it arrives, always the same number of them: so changing one fault does not change
the fates that others decide, and one seed gives one run for one order of requests.
"""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

    from daemon.simulator.faults import Drop, Faults


class Rolls(NamedTuple):
    """One throw for each decision, each in [0, 1)."""

    error: float
    latency: float
    drop: float
    ending: float
    sent: float
    final: float
    missing: float
    late: float
    late_by: float
    duplicate: float
    reversal: float


class News(NamedTuple):
    """A status a message reaches *after_s* seconds after its acceptance, with Twilio's ErrorCode if it is bad news."""

    after_s: float
    status: str
    code: str = ""


class Dice:
    """The only chance in the simulator."""

    def __init__(self, seed: int) -> None:
        self._random = Random(seed).random

    def throw(self) -> Rolls:
        """Every roll of one message."""
        roll = self._random
        return Rolls._make([roll() for _ in Rolls._fields])


def pick(mix: Mapping[str, float], roll: float) -> str | None:
    """The name in *mix* (shares by name) that *roll* falls on; None for the rest."""
    for name, share in mix.items():
        if roll < share:
            return name
        roll -= share
    return None


def story(faults: Faults, rolls: Rolls, to: str, *, pooled: bool) -> tuple[News, ...]:
    """What truly becomes of a message to *to*. *pooled*: sent through a service, whose choice of sender is news."""
    receipts = faults.receipts
    sent_s = receipts.sent.seconds(rolls.sent)
    final_s = sent_s + receipts.final.seconds(rolls.final)
    start = (News(sent_s / 2, "queued"),) if pooled else ()
    if drop := _drop(faults, rolls, to):
        lost = (News(final_s, "undelivered", drop.code),) if drop.receipt == "undelivered" else ()
        return (*start, News(sent_s, "sent"), *lost)
    if code := pick(receipts.failed, rolls.ending):
        return (*start, News(sent_s, "failed", code))
    if code := pick(receipts.undelivered, rolls.ending - sum(receipts.failed.values())):
        return (*start, News(sent_s, "sent"), News(final_s, "undelivered", code))
    return (*start, News(sent_s, "sent"), News(final_s, "delivered"))


def callbacks(faults: Faults, rolls: Rolls, to: str, news: tuple[News, ...]) -> list[News]:
    """What is told of *news*, and when: late, swapped, doubled or not at all."""
    receipts = faults.receipts
    drop = _drop(faults, rolls, to)
    if not receipts.enabled or (drop and drop.receipt == "nothing"):
        return []
    told = list(news)
    if told[-1].status != "sent":
        if rolls.missing < receipts.missing:
            told.pop()
        elif rolls.late < receipts.late:
            told[-1] = told[-1]._replace(after_s=told[-1].after_s + receipts.late_by.seconds(rolls.late_by))
    if rolls.reversal < receipts.reversed:
        times = [one.after_s for one in told]
        told = [one._replace(after_s=time) for one, time in zip(reversed(told), times, strict=True)]
    if rolls.duplicate < receipts.duplicates:
        told = [one for one in told for _ in range(2)]
    return told


def _drop(faults: Faults, rolls: Rolls, to: str) -> Drop | None:
    for drop in faults.drops:
        if to.startswith(drop.prefix):
            return drop if rolls.drop < drop.share else None
    return None
