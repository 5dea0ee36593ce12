"""
Takes messages from the queue: as many as their senders can use soon, the urgent ones first and by themselves.

The claim is the durable intent (``sql/claim.sql``): it locks the rows and writes one record naming them, in one
transaction. What is in hand is remembered here, so that no row is taken twice; a *mark* per lane and level, the due
time up to which rows have been taken, keeps the claim from walking over what is gone. A sweep each second moves a
mark back when something was committed late.

What a claim brought goes to couriers by the handful, the end of it while the next claim is under way. Urgent messages
go at once, past all that wait here.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, NamedTuple

import structlog

from daemon.core.message import Message
from daemon.database import RETRY_MAX_S, RETRY_MIN_S, DatabaseDown, as_object, first_of, sleep_unless

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Container, Coroutine, Mapping, Sequence
    from uuid import UUID

    from asyncpg import Record

    from daemon.database import Line
    from daemon.ledger import Word
    from daemon.observer import Observer

log = structlog.get_logger()

BATCH = 500  # rows in one claim; 1,000 doubled the latency at half of peak
# Full hands fetch more bulk when this share of them is free: nibbling took half as many claims again.
REFILL_SHARE = 0.2
RESERVE_SHARE = (
    0.25  # more than full hands for urgent rows, when bulk has filled them; and of them for bulk, whoever has
)
BREATH = 32  # messages sent out before the loop looks at what else is due (its lag at full load, p99: 8 ms, not 26)
LEAD = 128  # of a claim's messages go while the next is under way: 10 % of the throughput, who waited for it idly
TASTE = 10  # rows asked of a lane and level that brought none the last time, when others want more than there is room
IDLE_S = 0.25  # how often an idle daemon looks; NOTIFY wakes it for urgent rows
BUSY_S = 0.05  # how often one looks that had work within the last second: 5 ms cost 16 % of a core
DEAF_S = 0.025  # how often one looks for urgent rows that no NOTIFY can wake: behind a transaction pooler
SWEEP_S = 1.0
# Urgent rows are single inserts that may commit out of order: their mark stays this much behind, so that none has to
# wait for the sweep. Bulk is swept.
URGENT_OVERLAP = timedelta(seconds=1)
LONG_AGO, NEVER = datetime(1970, 1, 1, tzinfo=UTC), float("inf")
TIDY_S = 30.0  # how often claims are looked for that nobody holds: their COMMIT was lost, and came through
STATEMENTS = ("claim", "sweep", "refuse", "disown")


class Wish(NamedTuple):
    """How many rows of one lane and level there is room for."""

    grp: str
    lane: str
    level: int
    room: int


class Outbox:
    """What is in hand, and the loop that fetches more."""

    name = "outbox"

    def __init__(
        self,
        line: Line,
        *,
        owner: UUID,
        wishes: Callable[[frozenset[int]], Sequence[Wish]],
        fences: Callable[[], Mapping[str, int]],
        deliver: Callable[[Message], None],
        look_home: Callable[[], Awaitable[None]],
        observer: Observer,
        in_hand_max: int,
        tick: Callable[[], float],
        deaf: bool = False,
    ) -> None:
        self._line = line
        self._deaf = deaf
        self._owner = owner
        self._wishes = wishes
        self.fences = fences
        self._deliver = deliver
        self._look_home = look_home
        self._observer = observer
        self.in_hand_max = in_hand_max
        self._tick = tick
        # By id and attempt: a row that came back may be taken again before the ledger has said so of the first time.
        self._held: dict[tuple[UUID, int], Message] = {}
        self._bulk = 0  # of those, how many are of levels 2 and 3
        self._outgoing: deque[Message] = deque()  # of those, what no courier has yet
        self._claims: dict[UUID, int] = {}  # open claim -> rows of it still in hand
        self._marks: dict[tuple[str, int], datetime] = {}
        self._rewound: dict[tuple[str, int], datetime] = {}  # while a claim was under way
        self._dry: set[tuple[str, int]] = set()  # lanes and levels that brought nothing when last asked
        self._full = False  # whether the last look ended because hands were full: then whoever frees them wakes it
        self._asking: frozenset[str] = frozenset()  # groups of the claim under way
        self._wake = asyncio.Event()

    @property
    def in_hand(self) -> int:
        """Messages taken and not settled yet."""
        return len(self._held)

    def in_hand_by_level(self) -> Counter[int]:
        """The same, by level."""
        return Counter(held.level for held in self._held.values())

    def holds(self, grp: str) -> bool:
        """Whether anything of *grp* is in hand, or may be on its way into it."""
        return grp in self._asking or any(held.group == grp for held in self._held.values())

    def mark(self, lane: str, level: int) -> datetime:
        """The due time up to which rows have been taken there."""
        return self._marks.get((lane, level), LONG_AGO)

    def wake(self) -> None:
        """There may be work: look now."""
        self._wake.set()

    async def run(self, stop: asyncio.Event) -> None:
        """Take messages until *stop*."""
        loop = asyncio.get_running_loop()
        pause, active_at, swept_at, tidy_at = RETRY_MIN_S, 0.0, loop.time(), loop.time() + TIDY_S
        while not stop.is_set():
            self._wake.clear()
            self._full = False
            self._observer.looked()
            try:
                if loop.time() >= tidy_at:
                    await self._tidy()
                    tidy_at = loop.time() + TIDY_S
                taken = await self._take(frozenset({1}))
                taken += await self._take(frozenset({2, 3}))
                if loop.time() - swept_at >= SWEEP_S:
                    await self._sweep()
                    swept_at = loop.time()
                pause = RETRY_MIN_S
            except DatabaseDown:
                tidy_at = 0.0
                await self._send_out()
                await sleep_unless(stop, pause)
                pause = min(pause * 2, RETRY_MAX_S)
                continue
            if taken:
                active_at = loop.time()
            if not (taken and self._wake.is_set()):  # else the next claim is made while the rest of this one goes
                await self._send_out()
            await self._rest(stop, DEAF_S if self._deaf else BUSY_S if loop.time() - active_at < 1.0 else IDLE_S)
        await self._send_out()

    async def _rest(self, stop: asyncio.Event, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await first_of(self._wake, stop)
        except TimeoutError:
            pass

    async def _take(self, levels: frozenset[int]) -> int:
        if 1 not in levels:
            await self._send_out(but=LEAD)
        room = self._room(urgent=1 in levels)
        if room < 1 if 1 in levels else self._crowded():
            self._full = True
            return 0
        wishes = _cut(self._wished(levels), min(room, BATCH), self._dry)
        if not wishes:
            return 0
        marks = [self._mark(wish) for wish in wishes]
        fences = self.fences()
        self._rewound.clear()
        self._asking, asked_at = frozenset(wish.grp for wish in wishes), self._tick()
        try:
            rows = await self._sending_out(self._line.fetch(
                "claim", self._owner,
                [wish.grp for wish in wishes], [wish.lane for wish in wishes], [wish.level for wish in wishes],
                [wish.room for wish in wishes], marks, self._beyond(wishes, marks), list(fences), list(fences.values()),
            ))  # fmt: skip
        finally:
            self._asking = frozenset()
        tick = self._tick()
        messages = []
        for row in rows:
            message, mark = _message(row, tick)
            self._hold(message, mark)
            messages.append(message)
        for key, due_at in self._rewound.items():  # what became ready meanwhile, this claim may not have seen
            self._marks[key] = min(self._marks.get(key, LONG_AGO), due_at)
        self._observer.claimed(messages, tick - asked_at)
        brought = Counter((message.lane, message.level) for message in messages)
        for wish in wishes:
            many = brought[wish.lane, wish.level]
            if many >= wish.room:
                self.wake()  # there may be more of it, and room: do not rest
            (self._dry.discard if many else self._dry.add)((wish.lane, wish.level))
        if 1 in levels:  # these go at once, in front of whatever waits
            self._outgoing.extendleft(reversed(messages))
            await self._send_out(but=len(self._outgoing) - len(messages))
        else:
            self._outgoing.extend(messages)
        return len(messages)

    async def _send_out(self, *, but: int = 0) -> None:
        """Give couriers what was taken, all *but* so many."""
        while len(self._outgoing) > but:
            for _ in range(min(BREATH, len(self._outgoing) - but)):
                self._deliver(self._outgoing.popleft())
            await asyncio.sleep(0)

    async def _sending_out(self, asked: Coroutine[object, object, list[Record]]) -> list[Record]:
        """What is *asked* of Postgres; until it answers, what is left of the claim before is sent out."""
        if not self._outgoing:
            return await asked
        answer = asyncio.create_task(asked)
        try:
            await asyncio.sleep(0)
            while self._outgoing and not answer.done():
                await self._send_out(but=max(len(self._outgoing) - BREATH, 0))
            return await answer
        finally:
            answer.cancel()

    def _wished(self, levels: frozenset[int]) -> Sequence[Wish]:
        """What the lanes have room for, beside what is on its way to them."""
        wishes = self._wishes(levels)
        if not self._outgoing:
            return wishes
        coming = Counter((one.lane, one.level) for one in self._outgoing)
        rooms = [wish.room - sum(coming[wish.lane, level] for level in range(1, wish.level + 1)) for wish in wishes]
        return [wish._replace(room=room) for wish, room in zip(wishes, rooms, strict=True) if room > 0]

    def _room(self, *, urgent: bool) -> int:
        """Room in the hands. Neither urgent rows nor bulk, however many, keep the others out."""
        most, held = self.in_hand_max, len(self._held)
        reserve = int(most * RESERVE_SHARE)
        return most + reserve - held if urgent else max(most - held, reserve - self._bulk)

    def _crowded(self) -> bool:
        """Whether there is too little room for more bulk to be worth a claim."""
        return self._room(urgent=False) < max(1, int(self.in_hand_max * REFILL_SHARE))

    def _mark(self, wish: Wish) -> datetime:
        mark = self.mark(wish.lane, wish.level)
        return mark - URGENT_OVERLAP if wish.level == 1 and mark > LONG_AGO else mark

    def _beyond(self, wishes: Sequence[Wish], marks: Sequence[datetime]) -> list[UUID]:
        mark_of = {(wish.lane, wish.level): mark.timestamp() for wish, mark in zip(wishes, marks, strict=True)}
        levels, oldest = {wish.level for wish in wishes}, min(mark_of.values())
        # Thousands are in hand, and this is asked at every claim: what cannot count is passed over quickly.
        return [
            id
            for (id, _), one in self._held.items()
            if one.due_at >= oldest and one.level in levels and one.due_at >= mark_of.get((one.lane, one.level), NEVER)
        ]

    def _hold(self, message: Message, due_at: datetime) -> None:
        key = (message.lane, message.level)
        self._held[message.id, message.attempt] = message
        self._bulk += message.level > 1
        self._claims[message.claim] = self._claims.get(message.claim, 0) + 1
        if due_at > self._marks.get(key, LONG_AGO):
            self._marks[key] = due_at

    async def _sweep(self) -> None:
        marks = {key: mark for key, mark in self._marks.items() if mark > LONG_AGO}
        if not marks:
            return
        upto = {key: mark.timestamp() for key, mark in marks.items()}
        held = [id for (id, _), one in self._held.items() if one.due_at < upto.get((one.lane, one.level), 0.0)]
        lanes, levels = zip(*marks, strict=True)
        for row in await self._line.fetch("sweep", list(lanes), list(levels), list(marks.values()), held):
            self.rewind(row["lane"], row["level"], row["due_at"])

    async def _tidy(self) -> None:
        """After a lost connection: is the database still ours, and are there claims of ours that we know nothing of?"""
        losses = self._line.losses
        await self._look_home()
        self._line.vouch(losses)
        fences = self.fences()
        await self._line.fetch("disown", self._owner, list(fences), list(fences.values()), list(self._claims))

    # What the ledger asks and tells (ledger.Hands).

    def closing(self, words: Sequence[Word]) -> list[UUID]:
        """The claims that have nothing left in hand once *words* are written."""
        left: dict[UUID, int] = {}
        for said in words:
            held = self._held.get((said.id, said.attempt))
            if held is not None:
                left[held.claim] = left.get(held.claim, self._claims[held.claim]) - 1
        return [claim for claim, count in left.items() if count == 0]

    def released(self, words: Sequence[Word]) -> None:
        """*words* are written: out of hand, and perhaps room for more."""
        for said in words:
            held = self._held.pop((said.id, said.attempt), None)
            if held is not None:
                self._bulk -= held.level > 1
                self._claims[held.claim] -= 1
                if not self._claims[held.claim]:
                    del self._claims[held.claim]
        if self._full and not self._crowded():
            self.wake()

    def rewind(self, lane: str, level: int, due_at: datetime) -> None:
        """A row stands ready there that may lie before the lane's mark."""
        if due_at < self._marks.get((lane, level), LONG_AGO):
            self._marks[lane, level] = due_at
            self.wake()
        self._rewound[lane, level] = min(due_at, self._rewound.get((lane, level), due_at))

    async def refuse(
        self, ids: list[UUID], attempts: list[int], statuses: list[str], ranks: list[int], reasons: list[str]
    ) -> int:
        """End rows early, on the line that claims: what a claim in the making takes is never taken away from it."""
        mine = [k for k, id in enumerate(ids) if (id, attempts[k] + 1) not in self._held]
        columns = ([column[k] for k in mine] for column in (ids, attempts, statuses, ranks, reasons))
        return len(await self._line.fetch("refuse", *columns)) if mine else 0


def _cut(wishes: Sequence[Wish], room: int, dry: Container[tuple[str, int]]) -> list[Wish]:
    """
    *wishes* made to fit into *room* rows, all of them by the same share, none of them to nothing. What was *dry* is
    only tasted: kept room that nobody fills made claims a third of what they could be.
    """
    wanted = sum(wish.room for wish in wishes)
    if wanted <= room:
        return list(wishes)
    wishes = [wish._replace(room=min(wish.room, TASTE)) if wish[1:3] in dry else wish for wish in wishes]
    wanted = max(sum(wish.room for wish in wishes), room)
    return [wish._replace(room=max(1, wish.room * room // wanted)) for wish in wishes]


def _message(row: Record, tick: float) -> tuple[Message, datetime]:
    """A claimed row as a message, and its due time as Postgres compares it."""
    *fields, mark = row  # as sql/claim.sql names them
    message = Message(*fields)
    message.claimed_at = tick
    if message.variables is not None:
        message.variables = as_object(row["variables"])
    return message, mark
