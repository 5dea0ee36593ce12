"""
What the daemon says of itself: the facts behind ``/healthz``, ``/readyz``, ``/metrics``, the page and ``/api/status``.

The engine makes these values and feeds the two windows; the web side only shows them. The field names are the JSON of
``/api/status``, hence API: fields may be added, not renamed. No value here holds a recipient's number or a text.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import accumulate
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping


class State(StrEnum):
    """Where the process is in its life."""

    STARTING = "starting"  # not yet connected, or still reading its dispatch log
    SERVING = "serving"
    HOLDING = "holding"  # alive, but it must not send: a copied database, no lease, nobody has said go
    DRAINING = "draining"  # told to stop; finishes what it has in hand
    STOPPED = "stopped"


class Stage(StrEnum):
    """The parts of a message's way that are timed, in the order in which they happen."""

    QUEUE = "queue"  # from due to claimed
    TURN = "turn"  # from claimed to its sender's turn
    EXCHANGE = "exchange"  # from the first byte written to the answer read
    COMMIT_TO_PROVIDER = "commit_to_provider"  # from due to the first byte written: what an application feels
    RECEIPT = "receipt"  # from accepted to the final receipt


class SenderState(StrEnum):
    """Whether a sender may speak."""

    OPEN = "open"
    PAUSED = "paused"  # by an operator
    BLOCKED = "blocked"  # by the provider, or by our own judgement


class BreakerState(StrEnum):
    """Whether messages are let through to a provider."""

    CLOSED = "closed"  # all of them
    HALF_OPEN = "half_open"  # a few, to see whether it is well again
    OPEN = "open"  # none


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """Alive *and* progressing: a process that only answers is not well."""

    alive: bool
    progressing: bool
    state: State
    detail: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """Events per second, averaged over the last 10 s and the last 60 s."""

    last_10_s: float = 0.0
    last_60_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """How fast messages move."""

    claimed: Pace = Pace()
    sent: Pace = Pace()  # a provider said yes
    delivered: Pace = Pace()


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """One number per whole second, oldest first, the last one just ended. At most 120 of each, equally many."""

    sent: tuple[int, ...] = ()
    delivered: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """How long one stage took over the last minutes."""

    stage: Stage
    count: int
    p50_ms: float
    p95_ms: float
    p99_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Backlog:
    """What waits in the queue of one service at one level."""

    service: str
    level: int  # 1, 2 or 3: 1 goes first
    messages: int
    oldest_due_age_s: float | None  # None when nothing is due yet


@dataclass(frozen=True, slots=True, kw_only=True)
class SenderNow:
    """One sender."""

    address: str  # ours
    provider: str
    rate: float  # segments per second it may speak now
    used: float  # share of its limit used in the last minute, 0 to 1
    waiting: int  # messages in memory that wait for its turn
    state: SenderState = SenderState.OPEN
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderNow:
    """One provider."""

    name: str
    breaker: BreakerState
    in_flight: int
    errors: Mapping[str, int] = field(default_factory=dict)  # by class, in the last minute


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """One group whose lease this daemon holds."""

    group: str
    epoch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Pause:
    """What an operator has stopped: "all", "service:NAME", "sender:ADDRESS" or "provider:NAME"."""

    what: str
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Balance:
    """What was inserted on one day with one intent, and where it is: settled + open, or some of it is lost."""

    day: str  # YYYY-MM-DD, UTC
    intent: str  # "" for none
    inserted: int
    settled: int  # a provider has it, or it has ended
    open: int  # in the queue
    difference: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Trouble:
    """One thing that went wrong lately. Never names a recipient."""

    at: float  # seconds since the epoch
    what: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """Everything worth knowing at one moment."""

    at: float  # seconds since the epoch
    version: str
    instance: str
    state: State
    uptime_s: float
    held: str | None = None  # why nothing may be sent at all, when that is so
    totals: Mapping[str, int] = field(default_factory=dict)  # by status word, since the start
    in_doubt: int | None = None  # messages whose fate is open at this moment; None when nobody has counted
    rates: Rates = Rates()
    history: History = History()
    latency: tuple[Latency, ...] = ()
    queue: tuple[Backlog, ...] = ()
    senders: tuple[SenderNow, ...] = ()
    providers: tuple[ProviderNow, ...] = ()
    groups: tuple[Held, ...] = ()
    pauses: tuple[Pause, ...] = ()
    books: tuple[Balance, ...] = ()  # of the last two days, as of the last look, and of all days with a difference
    troubles: tuple[Trouble, ...] = ()  # newest first, at most 20


class Watch(Protocol):
    """Whoever can tell how the daemon is. Answers at once: none of these waits."""

    def health(self) -> Health:
        """Whether it is alive and progressing."""
        ...

    def ready(self) -> tuple[bool, str]:
        """Whether it does its work, and what is missing when it does not."""
        ...

    def metrics(self) -> tuple[bytes, str]:
        """The metrics as Prometheus reads them, and their content type."""
        ...

    def status(self) -> Status:
        """Everything worth knowing now."""
        ...


class Window:
    """
    Counts events by whole seconds and remembers the last *seconds* of them. About 0.2 µs an event.

    Times are seconds of any clock that does not run backwards, the same one in every call. The second under way is left
    out of every answer: it would always look too slow.
    """

    __slots__ = ("_counts", "_head", "_size")

    def __init__(self, seconds: int = 120) -> None:
        self._size = seconds + 1  # one more for the second under way
        self._counts = [0] * self._size
        self._head = -1  # the second under way

    def add(self, now: float, many: int = 1) -> None:
        """*many* events happened at *now*."""
        second = int(now)
        if second != self._head:
            self._advance(second)
        self._counts[self._head % self._size] += many

    def per_second(self, now: float, seconds: int) -> float:
        """Events per second over the last *seconds* whole seconds."""
        return sum(self.series(now, seconds)) / seconds

    def series(self, now: float, seconds: int) -> tuple[int, ...]:
        """Events in each of the last *seconds* whole seconds, oldest first."""
        self._advance(int(now))
        return tuple(self._counts[second % self._size] for second in range(self._head - seconds, self._head))

    def _advance(self, second: int) -> None:
        for passed in range(max(self._head + 1, second - self._size + 1), second + 1):
            self._counts[passed % self._size] = 0
        self._head = max(self._head, second)


# Eight buckets an octave from 10 µs to 1,342 s: a quantile is off by 4.4 % at most, and 217 buckets are a small table.
_PER_OCTAVE = 8
_SMALLEST_S = 1e-5
_BUCKETS = 27 * _PER_OCTAVE + 1
_EDGES = tuple(_SMALLEST_S * 2 ** (bucket / _PER_OCTAVE) for bucket in range(1, _BUCKETS))  # between two buckets


class Spread:
    """
    How durations are spread over the last *minutes*, in buckets of logarithmic width.

    The window moves in steps of a minute: it covers the minute under way and those before it.
    """

    __slots__ = ("_head", "_minutes", "_table", "_tables", "_until")

    def __init__(self, minutes: int = 5) -> None:
        self._minutes = minutes
        self._tables = [[0] * _BUCKETS for _ in range(minutes)]
        self._head = -1  # the minute under way
        self._until = 0.0  # when it ends
        self._table = self._tables[0]

    def add(self, now: float, *seconds: float) -> None:
        """Things took *seconds*, each, and ended at *now*."""
        if now >= self._until:
            self._advance(int(now) // 60)
        table = self._table
        for one in seconds:
            table[bisect_right(_EDGES, one)] += 1

    def latency(self, now: float, stage: Stage) -> Latency | None:
        """The quantiles, under the name of *stage*; None when nothing was seen."""
        self._advance(int(now) // 60)
        sums = [sum(column) for column in zip(*self._tables, strict=True)]
        count = sum(sums)
        if not count:
            return None
        p50, p95, p99 = (_quantile(sums, share * count) * 1000 for share in (0.50, 0.95, 0.99))
        return Latency(stage=stage, count=count, p50_ms=p50, p95_ms=p95, p99_ms=p99)

    def _advance(self, minute: int) -> None:
        for passed in range(max(self._head + 1, minute - self._minutes + 1), minute + 1):
            self._tables[passed % self._minutes] = [0] * _BUCKETS
        self._head = max(self._head, minute)
        self._until = self._head * 60.0 + 60.0
        self._table = self._tables[self._head % self._minutes]


def _quantile(sums: list[int], rank: float) -> float:
    # The geometric middle of the bucket in which the observation of this rank lies.
    bucket = next(bucket for bucket, seen in enumerate(accumulate(sums)) if seen >= rank)
    return float(_SMALLEST_S * 2 ** ((bucket + 0.5) / _PER_OCTAVE))
