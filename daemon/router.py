"""Which sender, at which provider: the facts, for the decision in ``core/routing.py``."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from heapq import heapify, heappop, heappush, heapreplace
from typing import TYPE_CHECKING, NamedTuple

import structlog

from daemon.core import routing
from daemon.core.outcome import Fault, Outcome, Rejected, Throttled
from daemon.core.routing import Candidate, Choice, Sender, Unroutable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from daemon.core.message import Message
    from daemon.desk import Desk
    from daemon.gates import Gate
    from daemon.lanes import Lane, Lanes


@dataclass(frozen=True, slots=True)
class Pool:
    """A service's senders and how it uses them."""

    senders: tuple[str, ...]
    sticky: bool = False
    default_region: str | None = None


class Route(NamedTuple):
    """Where one message goes."""

    lane: Lane
    gate: Gate


@dataclass(frozen=True, slots=True)
class Blocked:
    """Nowhere to go just now: *reason*, and it is worth asking again after *wait_s*."""

    reason: str
    wait_s: float


log = structlog.get_logger()

SENDER_REST_S = 30.0  # how long a sender is left alone that its provider refuses
BLOCKED_S = 1.0  # how soon a message is tried again that found every gate shut
ASIDE = 16  # lanes of a pool that are passed over because they are blocked, before all of it is weighed


class Soonest:
    """
    Lanes by when they are free. Whose turn comes later than its place in the heap says is put back when it is met, so a
    choice among 10,000 costs what one among ten does; looking at all of them was a quarter of the daemon's work.
    """

    def __init__(self, lanes: Iterable[Lane]) -> None:
        self._places = {lane: lane.free_at for lane in lanes}
        # Ties by address: the number says who comes first in it.
        self._heap = [(at, number, lane) for number, (lane, at) in enumerate(self._places.items())]
        self._numbers = {lane: number for _, number, lane in self._heap}
        heapify(self._heap)

    def first(self) -> Lane | None:
        """The lane that is free first, or has been for longest; None when all are set aside."""
        heap, places = self._heap, self._places
        while heap:
            at, number, lane = heap[0]
            if at != places[lane]:
                heappop(heap)  # another place is its own
            elif at < lane.free_at:
                places[lane] = lane.free_at
                heapreplace(heap, (lane.free_at, number, lane))
            else:
                return lane
        return None

    def first_of(self, fit: Callable[[Lane], bool]) -> Lane | None:
        """The first for which *fit* is true, or None: then all or many are not fit, and each is to be looked at."""
        aside: list[tuple[float, int, Lane]] = []
        try:
            while (lane := self.first()) is not None and len(aside) < ASIDE:
                if fit(lane):
                    return lane
                aside.append(heappop(self._heap))
            return None
        finally:
            for one in aside:
                heappush(self._heap, one)

    def sooner(self, lane: Lane) -> None:
        """*lane*, one of them, is free sooner than it was."""
        if lane.free_at < self._places[lane]:
            self._places[lane] = lane.free_at
            heappush(self._heap, (lane.free_at, self._numbers[lane], lane))


class Router:
    """Knows the senders, their lanes and gates."""

    def __init__(self, lanes: Lanes, gates: Mapping[str, Gate], *, desk: Desk) -> None:
        self._lanes = lanes
        self._gates = gates
        self._desk = desk
        self._pools: Mapping[str, Pool] = {}
        self._fitting: dict[tuple[str, str | None], Soonest | None] = {}  # by service and region: see _alike
        self._soonest: dict[tuple[str, ...], Soonest] = {}  # each of those once, by its senders
        self._in: dict[Lane, list[Soonest]] = {}  # in which of them a lane is
        self.resting: dict[str, tuple[float, str]] = {}  # sender -> until when it refuses, and why

    def reload(self, pools: Mapping[str, Pool]) -> None:
        """Take up the services as they are now; their senders' lanes must be there."""
        self._pools, self._fitting, self._soonest, self._in = pools, {}, {}, {}

    def choose(self, message: Message) -> Route | Blocked | Unroutable:
        """The route of *message*. One that was tried before is held to the provider's budget of retries."""
        route = self._route(message)
        if message.spent and isinstance(route, Route) and (wait_s := route.gate.retry_wait(message.level)):
            return Blocked(f"held: enough of what provider {route.gate.name} is given are retries", wait_s)
        return route

    def _route(self, message: Message) -> Route | Blocked | Unroutable:
        pool = Pool((message.sender,)) if message.sender else self._pools[message.service]
        if len(pool.senders) > 1 and not pool.sticky:
            alike = self._alike(message.service, message.region)
            if alike is not None:  # as routing.choose would: 1 µs, not 122 for 50 senders
                lane = (
                    alike.first_of(partial(self._free, message.level))
                    if self.hindered(message.level)
                    else alike.first()
                )
                if lane is not None:
                    return Route(lane, self._gates[lane.sender.provider])
        return self._weigh(pool, message)

    def _free(self, level: int, lane: Lane) -> bool:
        return self.blocked(lane.sender, self._desk.tick(), level) is None

    def _alike(self, service: str, region: str | None) -> Soonest | None:
        """The lanes of *service* that suit *region* best, if any do: always the same, so they are remembered."""
        if sooner := self._lanes.sooner:
            for lane in sooner:
                for soonest in self._in.get(lane, ()):
                    soonest.sooner(lane)
            sooner.clear()
        key = service, region
        if key not in self._fitting:
            self._fitting[key] = self._fit(service, region)
        return self._fitting[key]

    def _fit(self, service: str, region: str | None) -> Soonest | None:
        senders = routing.fit([self._lanes[address].sender for address in self._pools[service].senders], region)
        alike = tuple(sorted(sender.address for sender in senders))
        if alike and alike not in self._soonest:
            lanes = [self._lanes[address] for address in alike]
            self._soonest[alike] = soonest = Soonest(lanes)
            for lane in lanes:
                self._in.setdefault(lane, []).append(soonest)
        return self._soonest.get(alike)

    def hindered(self, level: int = 3) -> bool:
        """Whether any sender may be blocked for *level*: then each is asked."""
        if self.resting:
            now = self._desk.tick()  # who is not asked about any more rests no longer than others
            self.resting = {sender: rest for sender, rest in self.resting.items() if now < rest[0]}
            if self.resting:
                return True
        for gate in self._gates.values():  # any() costs three times as much, and this is asked for every message
            if gate.shut(level):
                return True
        pauses = self._desk.pauses
        return bool(pauses) and any(what.startswith(("sender:", "provider:")) for what in pauses)

    def _weigh(self, pool: Pool, message: Message) -> Route | Blocked | Unroutable:
        now = self._desk.tick()
        candidates = [self._candidate(self._lanes[address], now, message.level) for address in pool.senders]
        choice = routing.choose(
            candidates, recipient=message.recipient, recipient_region=message.region, sticky=pool.sticky
        )
        if isinstance(choice, Choice):
            lane = self._lanes[choice.sender.address]
            return Route(lane, self._gates[choice.sender.provider])
        blocked = [candidate.blocked for candidate in candidates if candidate.blocked]
        return Blocked(blocked[0], BLOCKED_S) if blocked else choice

    def learn(self, route: Route, outcome: Outcome) -> None:
        """What an exchange says about its sender: too fast, or not usable for a while."""
        match outcome:
            case Throttled():
                route.lane.pace.slow(now=self._desk.tick())
            case Rejected(Fault.SENDER, code, reason):
                self.resting[route.lane.sender.address] = (self._desk.tick() + SENDER_REST_S, f"{code}: {reason}")
                log.warning(
                    "sender.rested",
                    sender=route.lane.sender.address,
                    provider=route.gate.name,
                    code=code,
                    reason=reason,
                )

    def blocked(self, sender: Sender, now: float, level: int = 3) -> str | None:
        """Why *sender* may not be used now, for *level*; None when it may."""
        resting = self.resting.get(sender.address)
        if resting is not None and now < resting[0]:
            return f"sender refused: {resting[1]}"
        gate = self._gates[sender.provider]
        if gate.shut(level):
            return (
                f"provider {sender.provider} does not answer"
                if not gate.refused
                else f"provider {sender.provider} refuses us: {gate.refused}"
            )
        return self._desk.paused(f"sender:{sender.address}") or self._desk.paused(f"provider:{sender.provider}")

    def _candidate(self, lane: Lane, now: float, level: int) -> Candidate:
        return Candidate(sender=lane.sender, wait_s=lane.free_at - now, blocked=self.blocked(lane.sender, now, level))
