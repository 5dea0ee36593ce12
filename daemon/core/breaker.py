"""
One provider's circuit breaker: closed, open or half-open, each a type of its own that holds only what it needs.

What trips it is the provider's trouble, never a message's: requests that could not be sent, that nobody answered, or
that took too long. A refused text or number says nothing about the provider, and "too fast" feeds the pace, not the
breaker. It is tried again with real messages of low priority, and heals by time alone: when no such message comes by
anyone may try, and probes that never report are forgotten.

Every state carries an *epoch*, and whoever passes gets it as a :class:`Permit`. An answer from another epoch changes
nothing: what was sent before a trip can neither close nor trip what came after.

The figures come from Hystrix (10 s window, 20 calls, 50 %), Finagle (5 in a row) and our own simulations of an outage
(facts: reliability, 1.6; decision 0016). ``now`` is a monotonic clock in seconds, ``roll`` a throw of dice in [0, 1).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import NewType, TypeAlias

from daemon.core.outcome import Accepted, Fault, Outcome, Rejected, Throttled, Uncertain, Unreachable

Permit = NewType("Permit", int)


class Sign(StrEnum):
    """What one exchange says about the provider."""

    GOOD = "good"
    SLOW = "slow"  # answered well, but far later than usual
    FAILED = "failed"  # no answer, or one that says it is broken
    UNCONNECTED = "unconnected"  # the request could not even be sent
    IRRELEVANT = "irrelevant"  # nothing about the provider; also: the permit was not used after all


@dataclass(frozen=True, slots=True, kw_only=True)
class Temper:
    """When a breaker trips and how it comes back. Times in seconds."""

    min_calls: int = 20  # in the window; fewer prove nothing
    failure_share: float = 0.5
    slow_share: float = 0.8
    unconnected_in_a_row: int = 5
    # Without one good answer, whatever the trouble. By its share alone a provider that answered nothing but errors,
    # after ten good seconds at 200 a second, was given a thousand calls, each of them a doubt.
    bad_in_a_row: int = 20
    open_s: float = 5.0  # the first rest; doubled at each trip in a row
    # The longest. Two probes after each cost 160 calls in ten minutes; a minute left a provider that was back alone for
    # 72 s, and it must be heard of within 15 s, whoever comes by and however the last probes were left hanging.
    open_max_s: float = 7.5
    jitter: float = 0.2  # of a rest, either way: daemons do not come back in step
    probes: tuple[int, ...] = (3, 5, 10)  # how many may be out at a time; the next step after as many good ones
    closes_after: int = 10  # good probes
    reopens_after: int = 2  # bad probes: one may be an accident. No more are sent before the first good one
    rest_s: float = 2.0  # so long level 1 leaves the probing to others, unless a first handful has come back well
    lost_s: float = 30.0  # a probe silent for so long will not report (an exchange ends within 15 s)


WINDOW_S = 10  # in buckets of one second


class Window:
    """
    Calls of the last ten seconds, in buckets of one second. The one mutable thing here, owned by its Closed: a value
    rebuilt at every call would cost several microseconds.
    """

    __slots__ = ("_calls", "_failed", "_second", "_slow", "bad", "calls", "failed", "slow", "unconnected")

    def __init__(self) -> None:
        self.calls = self.failed = self.slow = 0  # in the window
        self.bad = 0  # in a row, to this moment, of those in the window
        self.unconnected = 0  # in a row, to this moment
        self._calls, self._failed, self._slow = [0] * WINDOW_S, [0] * WINDOW_S, [0] * WINDOW_S
        self._second = 0  # the newest bucket

    def add(self, sign: Sign, now: float) -> None:
        """One more call. A clock that stands still or goes back fills the newest bucket."""
        second = int(now)
        if second > self._second:
            self._forget(second)
        bucket = self._second % WINDOW_S
        self._calls[bucket] += 1
        self.calls += 1
        if sign is Sign.GOOD:
            self.bad = self.unconnected = 0
            return
        self.bad += 1
        if sign is Sign.SLOW:
            self._slow[bucket] += 1
            self.slow += 1
        else:
            self._failed[bucket] += 1
            self.failed += 1
        self.unconnected = self.unconnected + 1 if sign is Sign.UNCONNECTED else 0

    def _forget(self, second: int) -> None:
        for old in range(max(self._second + 1, second - WINDOW_S + 1), second + 1):
            bucket = old % WINDOW_S
            self.calls -= self._calls[bucket]
            self.failed -= self._failed[bucket]
            self.slow -= self._slow[bucket]
            self._calls[bucket] = self._failed[bucket] = self._slow[bucket] = 0
        self.bad = min(self.bad, self.calls)
        self._second = second


@dataclass(frozen=True, slots=True)
class Closed:
    """All is well; everybody passes and is counted."""

    epoch: Permit
    window: Window = field(default_factory=Window, compare=False)


@dataclass(frozen=True, slots=True)
class Open:
    """Nobody passes before *until*."""

    epoch: Permit
    until: float
    trips: int = 1  # in a row, without closing in between
    reason: str = ""  # when it was opened by hand or by a refusal of our account


@dataclass(frozen=True, slots=True)
class HalfOpen:
    """A few pass, to see whether it has healed."""

    epoch: Permit
    trips: int
    since: float
    passed: float  # when the last probe passed
    out: int = 0  # probes that have not reported
    good: int = 0
    bad: int = 0


Breaker: TypeAlias = Closed | Open | HalfOpen


def closed() -> Breaker:
    """A breaker as it starts."""
    return Closed(Permit(1))


def quota(breaker: Breaker, *, now: float, temper: Temper) -> int | None:
    """How many messages of low priority could pass now: asked before they are claimed. None: as many as there are."""
    match breaker:
        case Closed():
            return None
        case Open(until=until):
            return min(temper.probes[0], temper.reopens_after) if now >= until else 0
        case HalfOpen():
            return _free(breaker, now, temper)


def knock(
    breaker: Breaker,
    *,
    level: int,
    now: float,
    temper: Temper,
    roll: float,  # asked like learn; today nothing about passing is left to chance
) -> tuple[Breaker, Permit | None]:
    """
    Ask to pass, for a message of *level*: the breaker as it now stands, and a permit if it let us.

    Every permit is answered by one :func:`learn`; with ``IRRELEVANT`` if nothing was sent after all.
    """
    match breaker:
        case Closed():
            return breaker, breaker.epoch
        case Open():
            if now < breaker.until:
                return breaker, None
            tried = HalfOpen(_next(breaker), breaker.trips, since=now, passed=now)
            return knock(tried, level=level, now=now, temper=temper, roll=roll)
        case HalfOpen():
            if _free(breaker, now, temper) == 0 or spared(breaker, level=level, now=now, temper=temper):
                return breaker, None
            if _lost(breaker, now, temper):
                breaker = replace(breaker, epoch=_next(breaker), out=0)
            return replace(breaker, out=breaker.out + 1, passed=now), breaker.epoch


def spared(breaker: Breaker, *, level: int, now: float, temper: Temper) -> bool:
    """Whether *level* is too urgent to be tried with while the breaker is half open: for a while others go first."""
    if level > 1 or not isinstance(breaker, HalfOpen):
        return False
    return breaker.good < temper.probes[0] and now < breaker.since + temper.rest_s


def learn(breaker: Breaker, permit: Permit, sign: Sign, *, now: float, temper: Temper, roll: float) -> Breaker:
    """What came of passing with *permit*: the breaker as it now stands."""
    if permit != breaker.epoch:
        return breaker
    match breaker:
        case Closed(window=window):
            if sign is Sign.IRRELEVANT:
                return breaker
            window.add(sign, now)
            if sign is Sign.GOOD or not _trips(window, temper):
                return breaker
            return _opened(breaker, 1, now, temper, roll)
        case HalfOpen():
            return _probed(breaker, sign, now, temper, roll)
        case Open():  # forced open under an epoch nobody holds a permit of
            return breaker


def force_open(breaker: Breaker, until: float, reason: str = "") -> Breaker:
    """Open it until a moment we know better than the window does: the provider refuses our account."""
    return Open(_next(breaker), until, 1 if isinstance(breaker, Closed) else breaker.trips, reason)


def sign_of(outcome: Outcome, took_s: float, slow_after_s: float) -> Sign:
    """What *outcome*, after *took_s* seconds, says about the provider."""
    match outcome:
        case Accepted():
            return Sign.SLOW if took_s >= slow_after_s else Sign.GOOD
        case Unreachable():
            return Sign.UNCONNECTED
        # A refusal of the account, or "not now" in the words of a documented 5xx, is the provider's state.
        case Uncertain() | Rejected(fault=Fault.ACCOUNT | Fault.TRANSIENT):
            return Sign.FAILED
        case Rejected() | Throttled():
            return Sign.IRRELEVANT


def _trips(window: Window, temper: Temper) -> bool:
    if window.unconnected >= temper.unconnected_in_a_row or window.bad >= temper.bad_in_a_row:
        return True
    return window.calls >= temper.min_calls and (
        window.failed >= temper.failure_share * window.calls or window.slow >= temper.slow_share * window.calls
    )


def _probed(breaker: HalfOpen, sign: Sign, now: float, temper: Temper, roll: float) -> Breaker:
    out = max(breaker.out - 1, 0)
    if sign is Sign.IRRELEVANT:
        return replace(breaker, out=out)
    if sign is Sign.GOOD:
        if breaker.good + 1 >= temper.closes_after:
            return Closed(_next(breaker))
        return replace(breaker, out=out, good=breaker.good + 1)
    if breaker.bad + 1 >= temper.reopens_after:
        return _opened(breaker, breaker.trips + 1, now, temper, roll)
    return replace(breaker, out=out, bad=breaker.bad + 1)


def _opened(breaker: Breaker, trips: int, now: float, temper: Temper, roll: float) -> Open:
    # 2 ** 30 is past any cap.
    rest = min(temper.open_s * 2 ** min(trips - 1, 30), temper.open_max_s)
    return Open(_next(breaker), now + rest * (1 + temper.jitter * (2 * roll - 1)), trips)


def _free(breaker: HalfOpen, now: float, temper: Temper) -> int:
    """Probes that may still pass: as many as it takes to know it is ill; a handful after a good one; then more."""
    if not breaker.good:
        room = min(temper.probes[0], temper.reopens_after - breaker.bad)
        return room if _lost(breaker, now, temper) else max(room - breaker.out, 0)
    room, earned = temper.probes[0], 0
    for step, following in zip(temper.probes, temper.probes[1:], strict=False):
        earned += step
        if breaker.good >= earned:
            room = following
    return room if _lost(breaker, now, temper) else max(room - breaker.out, 0)


def _lost(breaker: HalfOpen, now: float, temper: Temper) -> bool:
    return breaker.out > 0 and now >= breaker.passed + temper.lost_s


def _next(breaker: Breaker) -> Permit:
    return Permit(breaker.epoch + 1)
