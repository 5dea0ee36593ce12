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
    from collections.abc import Callable, Generator, Iterable, Mapping, Sequence

    from daemon.core.routing import Sender
    from daemon.journal import Dispatch

TIMER_MIN_S = 0.001  # uvloop counts whole milliseconds; armed with less the loop spins (73-90 % CPU)
NEVER = float("inf")
GRANTED_S = 0.005  # how many seconds of a sender's rate may be granted and not yet written
BULK_SHARE = 0.8  # of a provider's connections, for levels 2 and 3
HORIZON_S = 0.4  # how far ahead a lane fills its hands
REFILL_SHARE = 0.2  # and from which share of that on: nibbling doubled the cost of a claim


class Places:
    """
    Room on the wire to one provider. Bulk may take only a share of it, and is not given its turn before there is some:
    so urgent messages find a way although bulk waits for slow answers, in front of the same sender too.
    """

    __slots__ = ("_bulk", "_waiting", "full", "opened")

    def __init__(self, connections: int) -> None:
        self.full = max(1, int(connections * BULK_SHARE))  # for bulk
        self.opened = self.full  # of those, for now
        self._bulk = self.full  # free; less than none while more are on the wire than are open
        self._waiting: dict[Lane, None] = {}  # lanes whose bulk would go if there were room, in the order they came

    def free(self, lane: Lane) -> bool:
        """Whether bulk of *lane* may go; when not, the lane is looked at again as soon as there is room."""
        if self._bulk <= 0:
            self._waiting[lane] = None
        return self._bulk > 0

    def take(self, level: int) -> None:
        """Somebody of *level* goes."""
        if level > 1:
            self._bulk -= 1

    def give(self, level: int) -> None:
        """Somebody of *level* is back."""
        if level > 1:
            self._bulk += 1
            if self._waiting:
                self._let_go()

    def open(self, many: int) -> None:
        """From now on so *many* of the places are open, of all there are."""
        self._bulk += many - self.opened
        self.opened = many
        self._let_go()

    def _let_go(self) -> None:
        while self._bulk > 0 and self._waiting:
            lane = next(iter(self._waiting))
            del self._waiting[lane]
            lane.look()


class Turn:
    """
    A message's place in front of a sender, and on the wire: awaited, it says whether its turn came. Say when it left;
    give it back once, at the end.
    """

    __slots__ = ("_lane", "_waiter", "gone", "granted", "level", "places", "segments")

    def __init__(self, lane: Lane, level: int, segments: int) -> None:
        self._lane = lane
        self.level = level
        self.segments = segments
        self.granted: bool | None = None  # None: it waits
        self.gone = False  # it has left the lane
        self._waiter: asyncio.Future[None] | None = None  # only who has to wait needs one
        self.places: Places | None = None  # where it has a place, once granted

    def __await__(self) -> Generator[object, None, bool]:
        if self.granted is None:
            self._waiter = asyncio.get_running_loop().create_future()
            yield from self._waiter
            self._waiter = None  # 10,000 on the wire would keep theirs
        return bool(self.granted)

    def settle(self, *, granted: bool) -> None:
        """It goes, or it never will."""
        self.granted = granted
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    @property
    def deserted(self) -> bool:
        """Whether who waited for it was cancelled."""
        return self._waiter is not None and self._waiter.cancelled()

    def left(self, now: float) -> None:
        """Its bytes are leaving *now*: this is the moment that counts."""
        self._lane.left(self, now)

    def back(self) -> None:
        """It did not leave, or it has left and is over: its place is free."""
        if not self.gone:
            self._lane.back(self)
        places, self.places = self.places, None
        if places is not None:
            places.give(self.level)


class Lane:
    """The queue in front of one sender."""

    __slots__ = (
        "_at_once", "_granted", "_lanes", "_places", "_queues", "alarm_at", "backlog", "free_at", "going", "kept",
        "pace", "sender", "turns", "waiting", "wanted",
    )  # fmt: skip

    def __init__(self, lanes: Lanes, sender: Sender, pace: Pace | None) -> None:
        self._lanes = lanes
        self._places: Places | None = None
        self.pace = pace or Pace(sender.rate)
        self.take_up(sender)
        self.turns = Turns()
        self._queues: tuple[deque[Turn], ...] = (deque(), deque(), deque())
        self.waiting = [0, 0, 0]  # segments that wait, by level
        self._granted: set[Turn] = set()  # told to go, not yet written
        self.going = 0  # segments of those
        self.backlog = 0  # segments in hand, waiting or about to leave
        self.free_at = 0.0  # when all of them will have left: what routing compares
        self.alarm_at = NEVER  # its entry in the heap of Lanes

    def take_up(self, sender: Sender) -> None:
        """Speak for *sender* as it is set now; debt stays, judged by the new rate."""
        self.sender = sender
        self.pace.rate = sender.rate
        self._places = self._lanes.places.get(sender.provider)
        self._at_once = max(1, int(sender.rate * GRANTED_S))
        self.wanted = max(2, int(sender.rate * HORIZON_S))  # messages in hand
        self.kept = max(2, int(self.wanted * REFILL_SHARE))  # of levels 2 and 3 each, whatever level 1 has

    def ahead_of(self, level: int) -> int:
        """Segments in hand that a newcomer of *level* would wait for."""
        return self.backlog if level == 3 else sum(self.waiting[:level]) + self.going

    def reckon(self, now: float) -> None:
        """Foretell when everything in hand will have left."""
        free_at = self.pace.earliest(1, now) + self.backlog / self.sender.rate
        if free_at < self.free_at:
            self._lanes.sooner.add(self)
        self.free_at = free_at

    def look(self) -> None:
        """Something has changed: whose turn is it?"""
        self._lanes.look_at(self)

    def join(self, level: int, segments: int) -> Turn:
        """Queue up."""
        turn = Turn(self, level, segments)
        if self._lanes.closed:
            turn.settle(granted=False)
            return turn
        now, nobody_waits = self._lanes.tick(), self.backlog == self.going
        self.backlog += segments
        if nobody_waits and self._passes(level, segments, now):  # most do, and half the work is not done for them
            self.turns.alone(level)
            self._go(turn)
            self.free_at = max(self.free_at, now) + segments / self.sender.rate
        else:
            self._queues[level - 1].append(turn)
            self.waiting[level - 1] += segments
            self._lanes.look_at(self, now)
        return turn

    def _passes(self, level: int, segments: int, now: float) -> bool:
        """Whether the next may go at once."""
        if len(self._granted) >= self._at_once or self.pace.earliest(segments + self.going, now) > now:
            return False
        return level == 1 or self._places is None or self._places.free(self)

    def left(self, turn: Turn, now: float) -> None:
        """*turn*'s bytes leave at this very moment, *now*."""
        if turn in self._granted:
            self.pace.take(turn.segments, now)
            self.turns.charge(turn.level, turn.segments, now)
            self._gone(turn)
            if self.backlog > self.going:  # else nobody waits, and free_at has foretold it
                self._lanes.look_at(self, now)

    def back(self, turn: Turn) -> None:
        """*turn* gives its place up, wherever it stands."""
        if turn in self._granted:
            self._gone(turn)
            self._lanes.look_at(self)
        elif turn.granted is None:
            queue = self._queues[turn.level - 1]
            if turn in queue:
                queue.remove(turn)
                self.waiting[turn.level - 1] -= turn.segments
                self.backlog -= turn.segments
                self.reckon(self._lanes.tick())

    def _gone(self, turn: Turn) -> None:
        turn.gone = True
        self._granted.discard(turn)
        self.going -= turn.segments
        self.backlog -= turn.segments

    def release(self) -> None:
        """Nobody's turn comes any more: send everybody who waits away."""
        for queue in self._queues:
            while queue:
                turn = queue.popleft()
                self.backlog -= turn.segments
                turn.settle(granted=False)
        self.waiting = [0, 0, 0]

    def grant(self, now: float) -> float | None:
        """Let go whoever may; the next moment at which somebody may, None when nobody waits."""
        while len(self._granted) < self._at_once:  # else left() looks again
            while (level := self._next_level(now)) and self._queues[level - 1][0].deserted:
                gone = self._queues[level - 1].popleft()
                self.waiting[level - 1] -= gone.segments
                self.backlog -= gone.segments
            if not level:
                break
            turn = self._queues[level - 1][0]
            moment = self.pace.earliest(turn.segments + self.going, now)
            if moment > now:
                return moment
            self._queues[level - 1].popleft()
            self.waiting[level - 1] -= turn.segments
            self._go(turn)
        return None

    def _go(self, turn: Turn) -> None:
        self._granted.add(turn)
        self.going += turn.segments
        if self._places is not None:
            self._places.take(turn.level)
            turn.places = self._places
        turn.settle(granted=True)

    def _next_level(self, now: float) -> int:
        ones, twos, threes = self._queues
        first, second, third = bool(ones), bool(twos), bool(threes)
        if (second or third) and self._places is not None and not self._places.free(self):
            second = third = False
        return self.turns.choose((first, second, third), now) if first or second or third else 0


class Lanes:
    """All senders of the groups this daemon holds, and the one timer."""

    def __init__(self, *, tick: Callable[[], float], places: Mapping[str, Places] | None = None) -> None:
        self.tick = tick
        self.places = places or {}  # by provider
        self.sooner: set[Lane] = set()  # free sooner than was foretold, since somebody asked and emptied it
        self._lanes: dict[str, Lane] = {}
        self._gone: dict[str, Pace] = {}  # of senders that were removed: should they come back, they have spoken
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
        """
        Take up a new set of senders. Those that stay, or come back, keep their debt, judged by their new rate; who
        waits for one that is gone is released.
        """
        for sender in senders:
            lane = self._lanes.get(sender.address)
            if lane is None:
                self._lanes[sender.address] = Lane(self, sender, self._gone.pop(sender.address, None))
            elif lane.sender != sender:
                lane.take_up(sender)
        for address in set(self._lanes) - {sender.address for sender in senders}:
            self._gone[address] = self._lanes[address].pace
            self._lanes.pop(address).release()

    def remember(self, dispatched: Iterable[Dispatch]) -> None:
        """Restore each sender's debt from our own dispatch log."""
        by_sender: dict[str, list[tuple[float, int]]] = {}
        for dispatch in dispatched:
            by_sender.setdefault(dispatch.sender, []).append((dispatch.tick, dispatch.segments))
        now = self.tick()
        for address, events in by_sender.items():
            if (lane := self._lanes.get(address)) is not None:
                lane.pace.restore(events)
                lane.reckon(now)

    def inherit(self, said: Mapping[str, Sequence[tuple[float, int]]], *, silent_at: float, afresh: bool) -> None:
        """
        Go on for senders that somebody else spoke for: what they *said* (time, segments), as far as known, and at
        *silent_at* a full window of what is not. *afresh*: what we remember of them is in there too.
        """
        for address, events in said.items():
            if (lane := self._lanes.get(address)) is not None:
                if afresh:
                    lane.pace = Pace(lane.sender.rate)
                lane.pace.restore(events)
                lane.pace.start_full(silent_at)
                lane.reckon(self.tick())

    def release(self, senders: Iterable[str]) -> None:
        """Send away who waits for one of *senders*: their group goes to another daemon."""
        for address in senders:
            if (lane := self._lanes.get(address)) is not None:
                lane.release()

    def room(self, senders: Iterable[str], level: int, *, most: int) -> int:
        """
        How many more messages of *level* these senders may take in hand; 0 below the share worth a claim. Nobody asks
        for more than *most*: there the counting ends.

        However much of level 1 is in hand, a few of the others are too: it is claimed first and fills every gap, and a
        turn that is kept for them would find nobody.
        """
        free, target, kept = 0, 0, 0
        for address in senders:
            lane = self._lanes[address]
            target += lane.wanted
            free += max(0, lane.wanted - lane.ahead_of(level))
            if free >= most:
                return most
            if level > 1 and lane.waiting[level - 1] <= lane.kept / 2:
                kept += lane.kept
        return free if free >= max(1, REFILL_SHARE * target) else min(kept, most)

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

    def look_at(self, lane: Lane, now: float | None = None) -> None:
        """Somebody joined or left *lane*: let go whoever may, and set the timer for the next."""
        now = self.tick() if now is None else now
        moment = lane.grant(now) if lane.backlog > lane.going else None  # else nobody waits
        lane.reckon(now)
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
            self.look_at(lane, now)
        if self._heap:
            self._arm()
