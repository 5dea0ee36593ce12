"""
The outbox in memory: what ``daemon/sql`` does, one message at a time, as small as it can be.

Held to the real statements by one suite that both pass (``tests/sql/test_memory.py``). No clock of its own: *now* is the
database's, in seconds.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from daemon.core import receipt
from daemon.core.lifecycle import RANKS, REPLAYABLE, Status
from daemon.core.receipt import Standing

if TYPE_CHECKING:
    from collections.abc import Container, Sequence

ARRIVED = RANKS[Status.DELIVERED]  # from here on it is true whatever we did since
UNKNOWN, SENDING, QUEUED, SENT, ACCEPTED = (
    Status.UNKNOWN,
    Status.SENDING,
    Status.QUEUED,
    Status.SENT,
    Status.ACCEPTED,
)


class Row:
    """One message: its line in ``outbox``, ``queue`` and ``outcome``, and the attempts that open claims name."""

    __slots__ = (
        "attempts", "behind_of", "code", "due_at", "expires_at", "flights", "id", "key", "lane", "level", "reason",
        "sent_heard", "since", "skipped", "spent", "state", "status", "story", "told", "tried", "why",
    )  # fmt: skip

    def __init__(self, id: int, lane: str, level: int, *, key: str | None, expires_at: float | None) -> None:
        self.id = id  # as seq: ids are in the order of insertion
        self.lane = lane
        self.level = level
        self.key = key
        self.expires_at = expires_at
        self.state: str | None = None  # in the queue: ready, behind or unknown; None: not there
        self.due_at = 0.0
        self.attempts = 0
        self.spent = 0
        self.reason = ""
        self.skipped = False  # went on although one before it was held
        self.status: Status | None = None  # in outcome; None: not there
        self.code = ""
        self.told = 0  # outcome.attempts
        self.why = ""  # outcome.reason
        self.tried = 0  # the newest attempt in ``attempt`` that left
        self.sent_heard = 0  # the newest attempt of which a receipt said "sent"
        self.since: tuple[str | None, float] | None = None  # the attempt row of its doubt: sender, and when it left
        self.story: list[tuple[int, str]] = []  # the decisions in ``attempt``: which attempt, and what was decided
        self.flights: list[int] = []  # attempts named by open claims

    def where(self) -> Status:
        """Its status, as applications read it."""
        status = self.status
        if status is not None:
            return SENT if status is ACCEPTED and self.sent_heard >= self.told else status
        if self.state == "unknown":
            return UNKNOWN
        return SENDING if self.flights and self.attempts + 1 in self.flights and self.state == "ready" else QUEUED

    @property
    def in_flight(self) -> bool:
        """Whether its next attempt is in an open claim."""
        return self.state == "ready" and self.attempts + 1 in self.flights


@dataclass(slots=True)
class Lease:
    owner: int
    epoch: int
    until: float


@dataclass(slots=True)
class Claim:
    id: int
    grp: str
    owner: int
    epoch: int
    taken_at: float
    rows: list[tuple[Row, int]] = field(default_factory=list)


_KEPT = (
    "state", "due_at", "attempts", "spent", "reason", "skipped", "status", "code", "told", "why", "sent_heard", "since",
    "tried",
)  # fmt: skip


class Store:
    """Rows, leases and claims; every method is one statement of ``daemon/sql``, safe to run twice."""

    def __init__(self) -> None:
        self.rows: dict[int, Row] = {}
        self.leases: dict[str, Lease] = {}
        self.claims: dict[int, Claim] = {}
        self.unknown: dict[int, Row] = {}
        self._ready: dict[tuple[str, int], list[tuple[float, int, Row]]] = {}
        self._keys: dict[tuple[str, str], list[Row]] = {}  # what is in the queue, by order_key, as inserted
        self._claim_id = 0

    # What an application does.

    def insert(self, row: Row, now: float) -> None:
        self.rows[row.id] = row
        self._enter(row, "ready", now, 0)

    def cancel(self, row: Row) -> str:
        """``outrider.cancel``."""
        if row.state is None:
            return "too_late"
        if row.state == "unknown" or row.in_flight:
            return "requested"
        self._leave(row)
        self._end(row, Status.CANCELED, row.attempts, "canceled by the application")
        return "canceled"

    def replay(self, row: Row, now: float) -> bool:
        """``outrider.replay``."""
        if row.status not in REPLAYABLE or (row.expires_at is not None and row.expires_at <= now):
            return False
        attempts = max(row.told, row.tried)  # a number is never used twice
        row.story.append((attempts, "replayed"))
        row.status, row.code, row.why, row.told, row.since = None, "", "", 0, None
        if row.state is None:
            self._enter(row, "ready", now, attempts, ordered=False)
        return True

    # Leases.

    def lease_take(self, grp: str, owner: int, seconds: float, now: float) -> int | None:
        lease = self.leases.get(grp)
        if lease is None:
            lease = self.leases[grp] = Lease(owner, 0, now)
        elif lease.owner != owner and lease.until >= now:
            return None
        lease.owner, lease.epoch, lease.until = owner, lease.epoch + 1, now + seconds
        return lease.epoch

    def lease_renew(self, grp: str, owner: int, epoch: int, until: float) -> bool:
        """Also how one is dropped: with *until* now."""
        if not self.fence(owner, grp, epoch):
            return False
        self.leases[grp].until = until
        return True

    def fence(self, owner: int, grp: str, epoch: int) -> bool:
        """Whether *owner* may write under *epoch*."""
        lease = self.leases.get(grp)
        return lease is not None and lease.owner == owner and lease.epoch == epoch

    # The claim.

    def claim(
        self, owner: int, grp: str, epoch: int, wishes: Sequence[tuple[str, int, int]], now: float, held: Container[int]
    ) -> Claim | None:
        """Rows for *wishes* (lane, level, room) that are due and not *held*."""
        if not self.fence(owner, grp, epoch) or self.leases[grp].until <= now:
            return None
        taken: list[tuple[Row, int]] = []
        for lane, level, room in wishes:
            free = room
            for due_at, _, row in self._ready.get((lane, level), ()):
                if due_at > now or not free:
                    break
                if row.id not in held:
                    taken.append((row, row.attempts + 1))
                    free -= 1
        if not taken:
            return None
        self._claim_id += 1
        claim = self.claims[self._claim_id] = Claim(self._claim_id, grp, owner, epoch, now, taken)
        for row, attempt in taken:
            row.flights.append(attempt)
        return claim

    def open_claims(self, grp: str, epoch: int) -> list[Claim]:
        return [claim for claim in self.claims.values() if claim.grp == grp and claim.epoch < epoch]

    def close(self, claim: Claim) -> list[Row]:
        """A claim goes; the rows of it that leave the queue with it: evidence came for them before they left."""
        if self.claims.pop(claim.id, None) is None:
            return []
        gone = []
        for row, attempt in claim.rows:
            row.flights.remove(attempt)
            if row.status is not None and row.state == "ready" and row.attempts + 1 == attempt and not row.in_flight:
                self._leave(row)
                gone.append(row)
        return gone

    # Verdicts.

    def settle(
        self, owner: int, grp: str, epoch: int, row: Row, attempt: int, status: Status, code: str = "", why: str = ""
    ) -> bool:
        """``settle.sql``."""
        if not self.fence(owner, grp, epoch) or row.state is None or row.attempts != attempt - 1:
            return False
        self._leave(row)
        row.tried = max(row.tried, attempt)
        if row.status is ACCEPTED and row.sent_heard >= row.told:
            row.status = SENT  # that attempt will not speak on
        if row.status is None or RANKS[status] > RANKS[row.status]:
            row.status, row.code, row.why = status, code, why
        if RANKS[row.status] < RANKS[ACCEPTED] or RANKS[status] >= RANKS[ACCEPTED]:
            row.told = attempt  # else an earlier attempt speaks, and ours never left
        return True

    def give_back(
        self, owner: int, grp: str, epoch: int, row: Row, attempt: int, state: str, due_at: float, charge: int, why: str
    ) -> bool:
        """``giveback.sql``."""
        if not self.fence(owner, grp, epoch) or row.state is None or row.attempts != attempt - 1:
            return False
        skipped, row.tried = row.skipped, max(row.tried, attempt)
        self._leave(row, free=row.status is not None)
        if row.status is None:
            self._enter(row, state, due_at, attempt, ordered=False)
            row.spent, row.reason, row.skipped = row.spent + charge, why, skipped
        return True

    def late(self, row: Row, attempt: int, status: Status) -> None:
        """``late.sql``."""
        if row.state is not None and not row.in_flight:
            self._leave(row)
        if row.status is None or RANKS[status] > RANKS[row.status]:
            row.told = attempt if row.status is None else row.told
            row.status, row.code, row.why = status, "", ""
        row.tried = max(row.tried, attempt)

    def decide(self, row: Row, attempt: int, status: str, why: str, now: float) -> bool:
        """``decide.sql``, and the attempt row that names the decision."""
        if row.state != "unknown" or row.attempts != attempt:
            return False
        row.story.append((attempt, "resend" if status == "ready" else status))
        skipped = row.skipped
        self._leave(row, free=status != "ready")
        if status == "ready":
            self._enter(row, "ready", now, attempt, ordered=False)
            row.reason, row.skipped = why, skipped
        else:
            self._end(row, Status(status), attempt, why)
        return True

    def refuse(self, row: Row, attempts: int, status: Status, why: str) -> bool:
        """``refuse.sql``."""
        if row.state is None or row.attempts != attempts or row.state == "unknown" or row.in_flight:
            return False
        self._leave(row)
        self._end(row, status, attempts, why)
        return True

    # Receipts.

    def receive(self, row: Row, attempt: int, word: Status, code: str, *, final: bool) -> bool:
        """``receive.sql``; whether it took the row out of the queue."""
        if word is SENT and attempt > row.sent_heard:
            row.sent_heard = attempt
        rank = RANKS[word]
        if rank < ARRIVED:
            if row.state is None:
                counts = final
            elif row.state == "unknown":
                counts = attempt >= row.attempts
            else:
                counts = final and attempt > row.attempts
            if not counts:
                return False
        if row.status is None:
            row.status, row.told, row.code, row.why = word, attempt, code, ""
        elif rank >= ARRIVED or attempt >= row.told:
            here = Standing(row.status, row.code)
            news = receipt.merge(here, Standing(word, code))
            if news != here:
                row.status, row.code, row.why = news.status, news.code, ""
        if row.state is None or row.in_flight:
            return False
        self._leave(row)
        return True

    def doubts(self, lanes: Container[str], limit: int, now: float, next_look_s: float) -> list[Row]:
        """``doubts.sql``: those whose evidence is due; the next look at each is pushed out."""
        due = [row for row in self.unknown.values() if row.due_at <= now and row.lane in lanes][:limit]
        for row in due:
            row.due_at = now + next_look_s
        return due

    def free_order(self, now: float, hold_s: float) -> list[Row]:
        """``free_order.sql``: who waits behind nobody goes on, and who waits behind one in trouble, flagged."""
        freed = []
        for waiting in list(self._keys.values()):
            for before, row in zip([None, *waiting], waiting, strict=False):
                in_trouble = before is not None and before.since is not None and before.since[1] < now - hold_s
                if row.state == "behind" and (before is None or in_trouble):
                    row.skipped = before is not None
                    self._ready_now(row)
                    freed.append(row)
        return freed

    # A standby that lags, promoted.

    def reappear(self, row: Row, attempt: int, due_at: float) -> None:
        """What left by a claim that is undone: in doubt, under the number of that attempt."""
        skipped = row.skipped
        self._leave(row, free=False)
        self._enter(row, "unknown", due_at, attempt, ordered=False)
        row.reason, row.skipped = "its claim was undone after it had left", skipped

    def snapshot(self) -> object:
        rows = [(row, [getattr(row, name) for name in _KEPT], list(row.story)) for row in self.rows.values()]
        leases = {grp: (lease.owner, lease.epoch, lease.until) for grp, lease in self.leases.items()}
        claims = {id: list(claim.rows) for id, claim in self.claims.items()}
        return rows, leases, claims, dict(self.claims)

    def restore(self, snapshot: Any) -> list[Row]:
        """Everything since *snapshot* is undone. Returns the rows that are lost altogether: the application's loss."""
        rows, leases, claims, records = snapshot
        kept = {row.id for row, _, _ in rows}
        lost = [row for row in self.rows.values() if row.id not in kept]
        self.rows, self._ready, self._keys, self.unknown = {}, {}, {}, {}
        for row, values, story in rows:
            for name, value in zip(_KEPT, values, strict=True):
                setattr(row, name, value)
            row.story, row.flights = story, []
            self.rows[row.id] = row
            if row.state is not None:
                self._list(row)
        self.leases = {grp: Lease(*lease) for grp, lease in leases.items()}
        self.claims = {id: records[id] for id in claims}
        for id, named in claims.items():
            self.claims[id].rows = named
            for row, attempt in named:
                row.flights.append(attempt)
        for row in lost:
            row.state, row.status, row.flights = None, None, []
        return lost

    # The queue, its indexes and its order.

    def _enter(self, row: Row, state: str, due_at: float, attempts: int, *, ordered: bool = True) -> None:
        if row.key is not None and ordered and self._keys.get((row.lane, row.key)):
            state = "behind"
        row.state, row.due_at, row.attempts = state, due_at, attempts
        self._list(row)

    def _list(self, row: Row) -> None:
        if row.state == "ready":
            insort(self._ready.setdefault((row.lane, row.level), []), (row.due_at, row.id, row))
        elif row.state == "unknown":
            self.unknown[row.id] = row
        if row.key is not None:
            insort(self._keys.setdefault((row.lane, row.key), []), row, key=_id)

    def _leave(self, row: Row, *, free: bool = True) -> None:
        """Out of the queue; the next of its order_key may go."""
        self._unlist(row)
        row.state, row.reason, row.skipped = None, "", False
        if row.key is not None:
            waiting = self._keys[row.lane, row.key]
            waiting.remove(row)
            if not waiting:
                del self._keys[row.lane, row.key]
            elif free and waiting[0].state == "behind":
                self._ready_now(waiting[0])

    def _ready_now(self, row: Row) -> None:
        row.state = "ready"
        insort(self._ready.setdefault((row.lane, row.level), []), (row.due_at, row.id, row))

    def _unlist(self, row: Row) -> None:
        if row.state == "ready":
            ready = self._ready[row.lane, row.level]
            del ready[bisect_left(ready, (row.due_at, row.id))]  # a shorter tuple sorts before
        elif row.state == "unknown":
            del self.unknown[row.id]

    @staticmethod
    def _end(row: Row, status: Status, attempts: int, why: str) -> None:
        if row.status is None:  # ON CONFLICT DO NOTHING
            row.status, row.told, row.code, row.why = status, attempts, "", why


def _id(row: Row) -> int:
    return row.id
