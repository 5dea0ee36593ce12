"""
One gate per provider: its breaker, its budget of retries, its connections, its pauses. Asked before a claim, and again
before each send.

What opens and closes a gate is decided in ``core/breaker.py``, how much of what passes may be retries in
``core/retries.py``, how it begins after a stop in ``core/slow_start.py``; here the state lives, and the news is told.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import structlog

from daemon.core import breaker, retries, slow_start
from daemon.core.breaker import Closed, Open, Permit, Sign, Temper
from daemon.core.outcome import Accepted, Fault, Outcome, Rejected
from daemon.lanes import Places

if TYPE_CHECKING:
    from collections.abc import Callable

    from daemon.observer import Observer
    from daemon.provider import Dialect
    from daemon.transport import Link

log = structlog.get_logger()

ACCOUNT_REST_S = 30.0  # how long a provider that refuses our account is left alone
SLOW_MIN_S = 2.0  # an exchange is never called slow below this (facts: reliability 1.6)
NAP_S = 1.0  # how soon a message comes back that found the gate shut
SLOW_FACTOR = 3.0  # slow: beyond this many times the usual


class Flight:
    """One exchange under way: what let it pass, since when, and whether it has been called slow already."""

    __slots__ = ("called_slow", "permit", "since")

    def __init__(self, permit: Permit, since: float) -> None:
        self.permit = permit
        self.since = since
        self.called_slow = False


class Gate:
    """One provider, and whether it may be asked now."""

    def __init__(
        self,
        dialect: Dialect,
        link: Link,
        *,
        connections: int,
        timeout_s: float,
        tick: Callable[[], float],
        observer: Observer,
    ) -> None:
        self.name = dialect.name  # the provider's
        self.dialect = dialect
        self.link = link
        self.timeout_s = timeout_s
        self._flights: set[Flight] = set()
        self.places = Places(connections)
        self.places.open(slow_start.first(self.places.full))
        self._temper = Temper()
        self._breaker: breaker.Breaker = breaker.closed()
        self._passed = 0  # of all time
        self._retries = retries.Budget(tick())
        self._tick = tick
        self._observer = observer
        self._usual_s = SLOW_MIN_S / SLOW_FACTOR  # a running high quantile of the time an exchange takes
        self._slow_s = SLOW_MIN_S  # from here on one is called slow
        self.refused: str | None = None  # why the provider refuses our account, while it does

    @property
    def state(self) -> str:
        """``closed``, ``open`` or ``half_open``."""
        return _named(self._breaker)

    @property
    def in_flight(self) -> int:
        """Exchanges under way."""
        return len(self._flights)

    def quota(self) -> int | None:
        """How many messages the provider may be given now; None: as many as there are."""
        if type(self._breaker) is Closed:  # asked for every message, and nearly always so
            return None
        return breaker.quota(self._breaker, now=self._tick(), temper=self._temper)

    def shut(self, level: int) -> bool:
        """Whether a message of *level* would be turned away now."""
        if type(self._breaker) is Closed:
            return False
        return self.quota() == 0 or breaker.spared(self._breaker, level=level, now=self._tick(), temper=self._temper)

    def knock(self, level: int) -> Flight | None:
        """Ask to pass, for a message of *level*."""
        before, now = self._breaker, self._tick()
        if type(before) is Closed:  # as nearly always: who passes is counted when it is back
            permit: Permit | None = before.epoch
        else:
            roll = random.random()
            self._breaker, permit = breaker.knock(before, level=level, now=now, temper=self._temper, roll=roll)
            if self._breaker is not before:
                self._tell(before)
        if permit is None:
            return None
        flight = Flight(permit, now)
        self._flights.add(flight)
        self._passed += 1
        return flight

    def retry_wait(self, level: int) -> float:
        """How long a retry of *level* has to wait for the budget of retries; 0 when it may go, and is counted."""
        self._retries, wait_s = retries.ask(self._retries, level=level, requests=self._passed, now=self._tick())
        return wait_s

    def unused(self, flight: Flight) -> None:
        """It passed, but nothing came of it. Nothing happens when something did."""
        if flight in self._flights:
            self._flights.discard(flight)
            self._told(flight, Sign.IRRELEVANT, self._tick())

    def watch(self) -> None:
        """Call slow what has been under way for too long: a provider that hangs must not have to end to be noticed."""
        before, now = self._breaker, self._tick()
        late = now - self._slow_s
        for flight in self._flights:
            if flight.since < late and not flight.called_slow:
                flight.called_slow = True
                self._told(flight, Sign.SLOW, now)
        if self._breaker is not before:
            self._tell(before)

    def learn(self, flight: Flight, outcome: Outcome) -> float:
        """What came of passing; the seconds it took."""
        before, now = self._breaker, self._tick()
        self._flights.discard(flight)
        took_s = now - flight.since
        sign = breaker.sign_of(outcome, took_s, self._slow_s)
        if not flight.called_slow or sign not in {Sign.GOOD, Sign.SLOW}:
            self._told(flight, sign, now)
        if self.places.opened < self.places.full:
            self.places.open(slow_start.after(self.places.opened, self.places.full, sign=sign, outcome=outcome))
        match outcome:
            case Accepted():
                self.refused = None
                # Climbs fast and sinks slowly, so it stays near the top of what is usual.
                self._usual_s += (took_s - self._usual_s) * (0.2 if took_s > self._usual_s else 0.001)
                self._slow_s = max(SLOW_MIN_S, SLOW_FACTOR * self._usual_s)
            case Rejected(Fault.ACCOUNT, code, reason):
                self.refused = f"{code}: {reason}"
                self._breaker = breaker.force_open(self._breaker, now + ACCOUNT_REST_S)
        if self._breaker is not before:
            self._tell(before)
        return took_s

    def _told(self, flight: Flight, sign: Sign, now: float) -> None:
        self._breaker = breaker.learn(
            self._breaker, flight.permit, sign, now=now, temper=self._temper, roll=random.random()
        )

    def _tell(self, before: breaker.Breaker) -> None:
        was, state = _named(before), self.state
        if state == "open":
            self.places.open(slow_start.first(self.places.full))
        if state != was:
            log.warning("gate.changed", provider=self.name, was=was, now=state, reason=self.refused)
            self._observer.breaker(self.name, state)


def _named(state: breaker.Breaker) -> str:
    match state:
        case Closed():
            return "closed"
        case Open():
            return "open"
        case _:
            return "half_open"
