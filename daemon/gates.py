"""
One gate per provider: its breaker, its connections, its pauses. Asked before a claim, and again before each send.

What opens and closes a gate is decided in ``core/breaker.py``; here the state lives, and the news is told.
"""

from __future__ import annotations

import asyncio
import random
from contextlib import asynccontextmanager, nullcontext
from typing import TYPE_CHECKING

import structlog

from daemon.core import breaker
from daemon.core.breaker import Closed, Open, Permit, Sign, Temper
from daemon.core.outcome import Accepted, Fault, Outcome, Rejected

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from daemon.observer import Observer
    from daemon.provider import Dialect
    from daemon.transport import Transport

log = structlog.get_logger()

ACCOUNT_REST_S = 30.0  # how long a provider that refuses our account is left alone
SLOW_MIN_S = 2.0  # an exchange is never called slow below this (facts: reliability 1.6)
BULK_SHARE = 0.8  # of the connections, for levels 2 and 3
NAP_S = 1.0  # how soon a message comes back that found the gate shut
SLOW_FACTOR = 3.0  # slow: beyond this many times the usual


class Gate:
    """One provider, and whether it may be asked now."""

    def __init__(
        self,
        dialect: Dialect,
        transport: Transport,
        *,
        connections: int,
        timeout_s: float,
        tick: Callable[[], float],
        observer: Observer,
    ) -> None:
        self.dialect = dialect
        self.transport = transport
        self.timeout_s = timeout_s
        self.in_flight = 0
        # Urgent messages find a connection although bulk waits for slow answers.
        self._bulk = asyncio.Semaphore(max(1, int(connections * BULK_SHARE)))
        self._temper = Temper()
        self._breaker: breaker.Breaker = breaker.closed()
        self._tick = tick
        self._observer = observer
        self._usual_s = SLOW_MIN_S / SLOW_FACTOR  # a running high quantile of the time an exchange takes
        self.refused: str | None = None  # why the provider refuses our account, while it does

    @property
    def name(self) -> str:
        """The provider's name."""
        return self.dialect.name

    @property
    def state(self) -> str:
        """``closed``, ``open`` or ``half_open``."""
        match self._breaker:
            case Closed():
                return "closed"
            case Open():
                return "open"
            case _:
                return "half_open"

    @asynccontextmanager
    async def connection(self, level: int) -> AsyncIterator[None]:
        """A place on the wire for a message of *level*: bulk may take only a share of them."""
        async with self._bulk if level > 1 else nullcontext():
            self.in_flight += 1
            try:
                yield
            finally:
                self.in_flight -= 1

    def quota(self) -> int | None:
        """How many messages the provider may be given now; None: as many as there are."""
        return breaker.quota(self._breaker, now=self._tick(), temper=self._temper)

    def knock(self, level: int) -> Permit | None:
        """Ask to pass, for a message of *level*."""
        before = self.state
        self._breaker, permit = breaker.knock(
            self._breaker, level=level, now=self._tick(), temper=self._temper, roll=random.random()
        )
        self._tell(before)
        return permit

    def unused(self, permit: Permit) -> None:
        """It passed, but nothing was sent after all."""
        self._breaker = breaker.learn(
            self._breaker, permit, Sign.IRRELEVANT, now=self._tick(), temper=self._temper, roll=random.random()
        )

    def learn(self, permit: Permit, outcome: Outcome, took_s: float) -> None:
        """What came of passing."""
        before = self.state
        sign = breaker.sign_of(outcome, took_s, max(SLOW_MIN_S, SLOW_FACTOR * self._usual_s))
        now, roll = self._tick(), random.random()
        self._breaker = breaker.learn(self._breaker, permit, sign, now=now, temper=self._temper, roll=roll)
        match outcome:
            case Rejected(Fault.ACCOUNT, code, reason):
                self.refused = f"{code}: {reason}"
                self._breaker = breaker.force_open(self._breaker, now + ACCOUNT_REST_S)
            case Accepted():
                self.refused = None
                # Climbs fast and sinks slowly, so it stays near the top of what is usual.
                self._usual_s += (took_s - self._usual_s) * (0.2 if took_s > self._usual_s else 0.001)
        self._tell(before)

    def _tell(self, before: str) -> None:
        if self.state != before:
            log.warning("gate.changed", provider=self.name, was=before, now=self.state, reason=self.refused)
            self._observer.breaker(self.name, self.state)
