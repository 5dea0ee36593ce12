"""
Each sender's turn: segments per second, level 1 first, exactly.

A lane is the queue in front of one sender. The pace itself is decided in ``core/pacing.py``; here messages wait for it.
There is one timer for all lanes together, and it always stands at the head of the heap of next moments: a timer per
message cost 25 % of the throughput, and one armed "if none is" slept past earlier lanes (73 % of the rate used).
"""

from __future__ import annotations

import asyncio
import heapq
from collections import deque
from typing import TYPE_CHECKING

from daemon.core.pacing import Pace, Turns

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from daemon.core.message import Message
    from daemon.core.routing import Sender
    from daemon.journal import Dispatch

TIMER_MIN_S = 0.001  # uvloop counts whole milliseconds; armed with less the loop spins (73-90 % CPU)
NEVER = float("inf")
GRANTED_S = 0.005  # how many seconds of a sender's rate may be granted and not yet written
HORIZON_S = 0.4  # how far ahead a lane fills its hands
REFILL_SHARE = 0.2  # and from which share of that on: nibbling doubled the cost of a claim


class Turn:
    """A message's place in front of a sender. Give it back, or say that it left: one of the two, once."""

    __slots__ = ("_lane", "granted", "level", "segments")

    def __init__(self, lane: Lane, level: int, segments: int) -> None:
        self._lane = lane
        self.level = level
        self.segments = segments
        self.granted: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

    def left(self) -> None:
        """Its bytes are leaving now: this is the moment that counts."""
        self._lane.left(self)

    def back(self) -> None:
        """It did not leave, or it has left and is over: its place is free."""
        self._lane.back(self)


class Lane:
    """The queue in front of one sender."""

    __slots__ = ("_granted", "_lanes", "_queues", "alarm_at", "pace", "sender", "turns", "waiting")

    def __init__(self, lanes: Lanes, sender: Sender) -> None:
        self._lanes = lanes
        self.sender = sender
        self.pace = Pace(sender.rate)
        self.turns = Turns()
        self._queues: tuple[deque[Turn], ...] = (deque(), deque(), deque())
        self.waiting = [0, 0, 0]  # segments that wait, by level
        self._granted: set[Turn] = set()  # told to go, not yet written
        self.alarm_at = NEVER  # its entry in the heap of Lanes

    @property
    def backlog(self) -> int:
        """Segments in hand for this sender, waiting or about to leave."""
        return sum(self.waiting) + sum(turn.segments for turn in self._granted)

    def ahead_of(self, level: int) -> int:
        """Segments in hand that a newcomer of *level* would wait for."""
        return sum(self.waiting[:level]) + sum(turn.segments for turn in self._granted)

    def wait_s(self, now: float) -> float:
        """Seconds until everything in hand has left: what routing compares."""
        return max(self.pace.earliest(1, now) - now, 0.0) + self.backlog / self.sender.rate

    def join(self, level: int, segments: int) -> Turn:
        """Queue up."""
        turn = Turn(self, level, segments)
        if self._lanes.closed:
            turn.granted.set_result(False)
            return turn
        self._queues[level - 1].append(turn)
        self.waiting[level - 1] += segments
        self._lanes.look_at(self)
        return turn

    def left(self, turn: Turn) -> None:
        """*turn*'s bytes leave at this very moment."""
        if turn in self._granted:
            self._granted.discard(turn)
            now = self._lanes.tick()
            self.pace.take(turn.segments, now)
            self.turns.charge(turn.level, turn.segments, now)
            self._lanes.look_at(self)

    def back(self, turn: Turn) -> None:
        """*turn* gives its place up, wherever it stands."""
        if turn in self._granted:
            self._granted.discard(turn)
            self._lanes.look_at(self)
        elif not turn.granted.done() or turn.granted.cancelled():
            queue = self._queues[turn.level - 1]
            if turn in queue:
                queue.remove(turn)
                self.waiting[turn.level - 1] -= turn.segments

    def release(self) -> None:
        """Nobody's turn comes any more: send everybody who waits away."""
        for queue in self._queues:
            while queue:
                turn = queue.popleft()
                if not turn.granted.done():
                    turn.granted.set_result(False)
        self.waiting = [0, 0, 0]

    def grant(self, now: float) -> float | None:
        """Let go whoever may; the next moment at which somebody may, None when nobody waits."""
        while True:
            while (level := self._next_level(now)) and self._queues[level - 1][0].granted.cancelled():
                gone = self._queues[level - 1].popleft()
                self.waiting[level - 1] -= gone.segments
            if not level or len(self._granted) >= self._at_once:
                return None  # nobody, or left() looks again
            turn = self._queues[level - 1][0]
            moment = self.pace.earliest(turn.segments + sum(one.segments for one in self._granted), now)
            if moment > now:
                return moment
            self._queues[level - 1].popleft()
            self.waiting[level - 1] -= turn.segments
            self._granted.add(turn)
            turn.granted.set_result(True)

    @property
    def _at_once(self) -> int:
        return max(1, int(self.sender.rate * GRANTED_S))

    def _next_level(self, now: float) -> int:
        first, second, third = (bool(queue) for queue in self._queues)
        return self.turns.choose((first, second, third), now) if first or second or third else 0


class Lanes:
    """All senders of the groups this daemon holds, and the one timer."""

    def __init__(self, *, tick: Callable[[], float]) -> None:
        self.tick = tick
        self._lanes: dict[str, Lane] = {}
        self._heap: list[tuple[float, int, Lane]] = []
        self._entry = 0
        self.closed = False
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = NEVER

    def __getitem__(self, address: str) -> Lane:
        return self._lanes[address]

    @property
    def addresses(self) -> list[str]:
        """The senders."""
        return list(self._lanes)

    def reload(self, senders: Sequence[Sender]) -> None:
        """Take up a new set of senders; those that stay keep their debt, judged by their new rate."""
        for sender in senders:
            lane = self._lanes.get(sender.address)
            if lane is None:
                self._lanes[sender.address] = Lane(self, sender)
            elif lane.sender != sender:
                lane.sender = sender
                lane.pace.rate = sender.rate
        for address in set(self._lanes) - {sender.address for sender in senders}:
            if not self._lanes[address].backlog:
                del self._lanes[address]

    def remember(self, dispatched: Iterable[Dispatch], *, full: bool) -> None:
        """Restore each sender's debt from the dispatch log; *full* where there is none to go by."""
        by_sender: dict[str, list[tuple[float, int]]] = {}
        for dispatch in dispatched:
            by_sender.setdefault(dispatch.sender, []).append((dispatch.tick, dispatch.segments))
        now = self.tick()
        for address, lane in self._lanes.items():
            lane.pace.restore(sorted(by_sender.get(address, [])))
            if full:
                lane.pace.start_full(now)

    def room(self, senders: Iterable[str], level: int) -> int:
        """How many more messages of *level* these senders may take in hand; 0 below the share worth a claim."""
        free, target = 0, 0
        for address in senders:
            lane = self._lanes[address]
            wanted = max(2, int(lane.sender.rate * HORIZON_S))
            target += wanted
            free += max(0, wanted - lane.ahead_of(level))
        return free if free >= max(1, REFILL_SHARE * target) else 0

    def recover(self, dt_s: float) -> None:
        """*dt_s* have passed: throttled senders win a little of their pace back."""
        for lane in self._lanes.values():
            if lane.pace.share < 1.0:
                lane.pace.recover(dt_s)

    def close(self) -> None:
        """Release everybody who waits; whoever joins from now on is released at once."""
        self.closed = True
        for lane in self._lanes.values():
            lane.release()

    def look_at(self, lane: Lane) -> None:
        """Somebody joined or left *lane*: let go whoever may, and set the timer for the next."""
        moment = lane.grant(self.tick())
        if moment is not None and moment < lane.alarm_at:
            self._entry += 1
            lane.alarm_at = moment
            heapq.heappush(self._heap, (moment, self._entry, lane))
            self._arm()

    def _arm(self) -> None:
        head = self._heap[0][0]
        if self._timer is not None:
            if self._timer_at <= head:
                return
            self._timer.cancel()
        self._timer_at = head
        self._timer = asyncio.get_running_loop().call_later(max(head - self.tick(), TIMER_MIN_S), self._ring)

    def _ring(self) -> None:
        self._timer = None
        self._timer_at = NEVER
        now = self.tick()
        due: list[Lane] = []
        while self._heap and self._heap[0][0] <= now:
            moment, _, lane = heapq.heappop(self._heap)
            if lane.alarm_at == moment:  # else an earlier one has been set meanwhile
                lane.alarm_at = NEVER
                due.append(lane)
        for lane in due:
            self.look_at(lane)
        if self._heap:
            self._arm()
