"""
The ledger: verdicts written back in batches, fenced by the epoch of the lease.

Nobody waits for it: a verdict is put down in memory (and, before that, in the dispatch log), and the writer carries all
that came together to Postgres. While Postgres is away they wait here, are never sent again, and are written when it is
back; after a crash the dispatch log tells them to the next run.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from typing import TYPE_CHECKING, NamedTuple, Protocol

import orjson
import structlog

from daemon.core.lifecycle import RANKS, WAITING
from daemon.core.outcome import Accepted, Outcome, Rejected, Throttled, Uncertain, Unreachable
from daemon.core.verdict import Again, Doubt, Ended, Handed, Verdict
from daemon.database import RETRY_MAX_S, RETRY_MIN_S, DatabaseDown, first_of, storable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from uuid import UUID

    from asyncpg import Record

    from daemon.core.message import Message
    from daemon.database import Line
    from daemon.journal import Journal
    from daemon.observer import Observer

log = structlog.get_logger()

BATCH = 500  # verdicts in one write
GATHER_S = 0.01  # how long the first of a batch waits for company; 20 ms only added latency
FIRST_LOOK_S = 5.0  # after so long a message in doubt is asked for (facts: reliability 2.5)
SEGMENTS_MAX = 32_767  # what the column holds, whatever a provider claims
BACK = frozenset({"ready", "unknown"})  # statuses of a row that comes back to the queue
STATEMENTS = ("settle", "giveback", "attempts", "late", "anomalies")
ODD = 5  # anomalies of one kind written with one batch: a count that is wrong for all must not double the writing


@dataclass(slots=True, kw_only=True)
class Word:
    """A verdict as the tables want it: plain values, as JSON the same for the dispatch log and for Postgres."""

    grp: str
    id: UUID
    attempt: int
    status: str  # a final or waiting status; 'ready' or 'unknown' for a row that comes back
    rank: int = 0
    segments: int | None = None
    provider: str | None = None
    sender: str | None = None
    reference: str | None = None
    code: str | None = None
    reason: str | None = None
    at: float = 0.0  # wall clock: when it was accepted, or sent
    due_at: float = 0.0
    charge: int = 0
    story: str | None = None  # how the exchange ended, when that is worth an attempt row
    counted: int | None = None  # our own count of segments, when its provider counts otherwise
    _json: bytes | None = field(default=None, init=False, repr=False, compare=False)

    @property
    def back(self) -> bool:
        """Whether the row goes back to the queue."""
        return self.status in BACK

    def json(self) -> bytes:
        """All of it, as it stands when first asked for: it is told twice and spelt once."""
        if self._json is None:
            said = {
                "grp": self.grp, "id": str(self.id), "attempt": self.attempt, "status": self.status, "rank": self.rank,
                "segments": self.segments, "provider": self.provider, "sender": self.sender,
                "reference": self.reference, "at": self.at,
            }  # fmt: skip
            # Most have nothing more to say: half as long, half as dear.
            if self.reason is not None or self.status in BACK:
                said |= {"code": self.code, "reason": self.reason, "story": self.story}
                said |= {"due_at": self.due_at, "charge": self.charge}
            self._json = orjson.dumps(said)
        return self._json


def word(message: Message, grp: str, verdict: Verdict, *, now: float, exchange: Exchange | None = None) -> Word:
    """*verdict* on *message* as a word for the ledger; *exchange* when there was one."""
    said = Word(grp=grp, id=message.id, attempt=message.attempt, status="", at=now)
    if exchange is not None:
        said.provider, said.sender, said.segments = exchange.provider, exchange.sender, message.segments
        if not isinstance(exchange.outcome, Accepted):
            # When it was sent, not when we gave up waiting: evidence is looked for around that moment.
            said.story, said.at = told(exchange.outcome), now - exchange.took_s
    match verdict:
        case Handed(outcome):
            said.status, said.rank = str(outcome.status), RANKS[outcome.status]
            # A provider's words may hold what no table takes: one such word would hold up all others.
            said.reference, said.sender = storable(outcome.reference), storable(outcome.sender) or said.sender
            said.segments = min(outcome.segments or message.segments, SEGMENTS_MAX)
            if outcome.segments and outcome.segments != message.segments:
                said.counted = message.segments
            said.reason = None if outcome.reference else "accepted, but the provider's answer was cut short"
        case Ended(status, reason, code):
            said.status, said.rank = status.value, RANKS[status]
            said.reason, said.code = storable(reason), storable(code or None)
        case Again(due_at, reason, spent):
            said.status, said.due_at, said.charge, said.reason = "ready", due_at, int(spent), storable(reason)
        case Doubt(reason):
            said.status, said.due_at = "unknown", now + FIRST_LOOK_S
            said.reason = storable(f"may have been sent: {reason}")
    return said


class Exchange(NamedTuple):
    """What was tried, and what came of it."""

    provider: str
    sender: str
    outcome: Outcome
    took_s: float


def told(outcome: Outcome) -> str:
    """The word of an outcome, as the attempt table and the metrics spell it."""
    match outcome:
        case Accepted():
            return "accepted"
        case Rejected():
            return "rejected"
        case Throttled():
            return "throttled"
        case Unreachable():
            return "unreachable"
        case Uncertain():
            return "uncertain"


class Hands(Protocol):
    """Who holds the messages: told when they are out of hand, asked which claims a batch empties."""

    def closing(self, words: Sequence[Word]) -> list[UUID]:
        """The claims that have nothing left in hand once *words* are written."""
        ...

    def released(self, words: Sequence[Word]) -> None:
        """*words* are written."""
        ...

    def rewind(self, lane: str, level: int, due_at: datetime) -> None:
        """A row stands ready there that may lie before the lane's mark."""
        ...

    def fences(self) -> Mapping[str, int]:
        """The epoch under which each group is held."""
        ...


class Ledger:
    """Takes words without waiting, writes them together."""

    name = "ledger"

    def __init__(self, line: Line, journal: Journal, hands: Hands, *, owner: UUID, observer: Observer) -> None:
        self._line = line
        self._journal = journal
        self._hands = hands
        self._owner = owner
        self._observer = observer
        self._words: list[Word] = []
        self._some = asyncio.Event()
        self._since = 0.0  # when the first of them came, on the loop's clock
        self.writing = 0  # words in the write under way

    @property
    def pending(self) -> int:
        """Verdicts that Postgres does not have yet."""
        return len(self._words) + self.writing

    def put(self, said: Word) -> None:
        """Write *said* down: at once in the dispatch log when something was sent, soon in Postgres."""
        if said.provider is not None:
            try:  # noqa: SIM105 (suppress costs 0.4 µs, for every message)
                self._journal.answered(said.id, said.attempt, said.json())
            except OSError:  # the disk is full: after a crash it would be in doubt; it need not be lost now
                pass
        if not self._words:
            if not self.writing:
                self._observer.unwritten()
            self._since = asyncio.get_running_loop().time()
            self._some.set()
        self._words.append(said)

    async def run(self, stop: asyncio.Event) -> None:
        """Write until *stop* and until everything is written."""
        loop, pause = asyncio.get_running_loop(), RETRY_MIN_S
        while not (stop.is_set() and not self._words):
            if not self._words:
                self._some.clear()
                await first_of(self._some, stop)
                continue
            if len(self._words) < BATCH:
                await asyncio.sleep(GATHER_S)
            batch, self._words, since = self._words[:BATCH], self._words[BATCH:], self._since
            self._since = loop.time()  # should any be left
            self.writing = len(batch)
            try:
                await self.write(batch)
                self._observer.wrote(loop.time() - since)
                pause = RETRY_MIN_S
            except DatabaseDown:
                self._words[:0], self._since = batch, since
                self.writing = 0
                await asyncio.sleep(pause)
                pause = min(pause * 2, RETRY_MAX_S)
            finally:
                self.writing = 0

    async def write(self, batch: Sequence[Word], *, fence: Mapping[str, int] | None = None) -> None:
        """
        Write *batch*, under the epochs we hold or those of *fence*.

        Raises DatabaseDown, and may then be run again: what took effect is not found twice.
        """
        stories = [said for said in batch if said.story]
        if stories:
            await self._line.fetch("attempts", *_attempts(stories))
        if odd := [said for said in batch if said.counted]:
            self._observer.anomalies.found(await self._line.fetch("anomalies", *_odd(odd[:ODD])))
        fence = self._hands.fences() if fence is None else fence
        fenced: list[object] = [self._owner, list(fence), list(fence.values())]
        back = [said for said in batch if said.back]
        ended = [said for said in batch if not said.back] if back else batch
        fenced_out = 0
        if back:
            fenced_out = len(back) - len(await self._line.fetch("giveback", *fenced, *_back(back), []))
        closing = self._hands.closing(batch)
        told, *freed = await self._line.fetch("settle", *fenced, _listed(ended), closing, len(ended))
        if told["settled"] < len(ended):
            done = frozenset(told["ids"] or ())
            missing = [said for said in ended if said.id not in done]
            fenced_out += len(missing)
            await self.late([said for said in missing if said.status in WAITING])
        self._finish(batch, freed, fenced_out=fenced_out)

    async def late(self, words: Sequence[Word]) -> None:
        """An acceptance that was fenced, or written before a lost COMMIT: never thrown away. Raises DatabaseDown."""
        if words:
            rows = [
                (w.id, w.attempt, w.status, w.rank, w.segments, w.provider, w.sender, w.reference, _moment(w.at))
                for w in words
            ]
            await self._line.fetch("late", *map(list, zip(*rows, strict=True)))

    def _finish(self, batch: Sequence[Word], freed: Sequence[Record], *, fenced_out: int) -> None:
        for said in batch:
            self._journal.settled(said.id, said.attempt)
        self._observer.settled([said.status for said in batch])
        if fenced_out:
            self._observer.fenced(fenced_out)
        self._hands.released(batch)
        for row in freed:
            self._hands.rewind(row["lane"], row["level"], row["due_at"])


def recalled(said: Mapping[str, object], id: UUID, grp: str) -> Word:
    """A word the dispatch log kept, perhaps in another version's words."""
    known = {one.name: said[one.name] for one in fields(Word) if one.init and one.name in said}
    return Word(**{**known, "id": id, "grp": grp})  # type: ignore[arg-type]  # our own record, checksummed


def _listed(words: Sequence[Word]) -> str:
    # One text, not twelve arrays: those cost asyncpg 8 µs a message, this costs Postgres 4.
    return (b"[" + b",".join([said.json() for said in words]) + b"]").decode()


def _back(words: Sequence[Word]) -> list[list[object]]:
    return [
        [said.grp for said in words],
        [said.id for said in words],
        [said.attempt for said in words],
        [said.status for said in words],
        [_moment(said.due_at) for said in words],
        [said.charge for said in words],
        [said.reason for said in words],
    ]


def _attempts(words: Sequence[Word]) -> list[list[object]]:
    return [
        [said.id for said in words],
        [said.attempt for said in words],
        ["exchange" for said in words],
        [_moment(said.at) for said in words],
        [said.provider for said in words],
        [said.sender for said in words],
        [said.segments for said in words],
        [said.story for said in words],
        [said.code for said in words],
        [said.reason for said in words],
        [said.reference for said in words],
    ]


def _odd(words: Sequence[Word]) -> list[list[object]]:
    return [
        ["segments" for _ in words],
        [said.id for said in words],
        [said.attempt for said in words],
        [said.provider for said in words],
        [said.reference for said in words],
        [f"its provider counts {said.segments} segments, not {said.counted}" for said in words],
    ]


def _moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
