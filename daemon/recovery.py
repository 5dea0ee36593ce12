"""
Recovery: what a daemon that is gone had in hand, judged before its group speaks again, and what its senders still owe.

An open claim names what was in hand; the dispatch log tells what may have left. Not dispatched: the row was never
touched and is simply free again. Dispatched and answered, but not written back: the verdict is written now.
Dispatched and not answered: in doubt. Without that daemon's own log (another machine's, a lost folder, a power cut)
all of it is in doubt.

A message that was being prepared or on the wire when a daemon died, three times, is not tried a fourth: it may be what
they died of. The deaths are counted by what they left in ``attempt``.

A database that was rolled back (a standby promoted, a backup restored) may have lost the claim itself, so that what
was sent looks as if it never had been. The dispatch log knows better, and is asked about every row it names.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog

from daemon.core.lifecycle import RANKS, WAITING, Status
from daemon.ledger import FIRST_LOOK_S, Word, recalled

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from uuid import UUID

    from asyncpg import Record

    from daemon.database import Line
    from daemon.journal import Dispatch, Memory
    from daemon.lanes import Lanes
    from daemon.leases import Taken
    from daemon.ledger import Ledger

log = structlog.get_logger()

DEBT_S = 120.0  # how far back it matters for pacing what was sent: the longest message at the slowest rate
DEATHS_MAX = 3  # a message that was open in so many is tried no more
STATEMENTS = ("open_claims", "spoken", "release", "forgotten")
# Of acceptances those that Postgres does not know: the message waits, or was given up. Not what is sent once more
# because its receipt was bad: that the provider had accepted it before is no news.
_UNHEARD = """
    SELECT w.id FROM unnest($1::uuid[], $2::integer[]) AS w (id, attempt)
     WHERE (EXISTS (SELECT FROM outrider.queue q WHERE q.id = w.id)
            OR EXISTS (SELECT FROM outrider.outcome u WHERE u.id = w.id AND u.rank < $3))
       AND NOT EXISTS (SELECT FROM outrider.attempt a
                        WHERE a.id = w.id AND a.kind = 'replay' AND a.attempt >= w.attempt
                          AND a.reason ~ 'was (undelivered|failed)')
"""


class Recovery:
    """Reconciles the open claims of a group with the dispatch log of the last run."""

    def __init__(
        self,
        line: Line,
        ledger: Ledger,
        memory: Memory,
        lanes: Lanes,
        *,
        owner: UUID,
        now: Callable[[], float],
        tick: Callable[[], float],
        provider_of: Callable[[str], str | None],
        group_of: Callable[[str], str | None],
        cost: Callable[[Record], int],
    ) -> None:
        self._line = line
        self._ledger = ledger
        self._memory = memory
        self._lanes = lanes
        self._owner = owner
        self._now = now
        self._tick = tick
        self._provider_of = provider_of
        self._group_of = group_of
        self._cost = cost  # segments of a row that was in flight
        self._spoken: set[tuple[str, int]] = set()  # leases this run has held
        self.counts: dict[str, int] = {"free": 0, "answered": 0, "doubt": 0, "dead": 0}
        self.remember(memory)

    def remember(self, memory: Memory) -> None:
        """Judge by *memory* from here on, every group anew. It must hold all that was sent until now."""
        self._memory = memory
        self._done: set[str] = set()  # groups reconciled by this memory
        self._forgotten: dict[str, list[Record]] | None = None  # by group; None: not looked for yet

    async def reconcile(self, taken: Taken) -> None:
        """Judge what is open in a group just taken, and reckon its pace. Raises DatabaseDown, and may be run again."""
        grp, epoch = taken.grp, taken.epoch
        rows = await self._line.fetch("open_claims", grp, epoch)
        # A row may stand in two claims: in one whose COMMIT we never heard of, and in the one that took it again.
        open_rows = {row["id"]: row for row in rows if row["in_flight"]}
        words = [said for row in open_rows.values() if (said := self._judge(row, grp)) is not None]
        free = len(open_rows) - len(words)
        forgotten = [row for row in await self._look_for_forgotten(grp) if row["id"] not in open_rows]
        words += [self._recollect(row, grp) for row in forgotten]
        await self._inherit(taken, open_rows.values())
        if words:
            await self._ledger.write(words, fence={grp: epoch})
        await self._line.fetch("release", grp, epoch)
        self._spoken.add((grp, epoch))
        self._done.add(grp)
        self.counts["free"] += free
        if rows or forgotten:
            counts = {**self.counts, "free": free, "forgotten": len(forgotten)}
            log.warning("claims.reconciled", group=grp, **counts)

    async def _look_for_forgotten(self, grp: str) -> list[Record]:
        """Rows of *grp* that left by our log, and never did by the database. Asked once for all groups."""
        if grp in self._done:
            return []
        if self._forgotten is None:
            keys = list(self._memory.dispatched)
            found: dict[str, list[Record]] = {}
            for row in await self._line.fetch("forgotten", [id for id, _ in keys], [attempt for _, attempt in keys]):
                found.setdefault(self._group_of(row["lane"]) or "", []).append(row)
            self._forgotten = found
        return self._forgotten.get(grp, [])

    async def testify(self) -> None:
        """
        Tell of acceptances that Postgres never heard of, although another daemon has judged our claims since: without
        our log it could only doubt. Raises DatabaseDown, and may be run again.
        """
        waiting = {key: said for key, said in self._memory.answered.items() if said.get("status") in WAITING}
        newest = dict(sorted(waiting))  # of several tries the last speaks, as everywhere
        rows = await self._line.ask(_UNHEARD, list(newest), list(newest.values()), RANKS[Status.ACCEPTED])
        unheard = [(row["id"], newest[row["id"]]) for row in rows]
        await self._ledger.late([recalled(waiting[id, attempt], id, "") for id, attempt in unheard])

    async def _inherit(self, taken: Taken, open_rows: Iterable[Record]) -> None:
        """
        The pace goes on where the last holder left it. What we sent ourselves our lanes know, or our log; of another it
        is known what providers have accepted, and for how long it has been silent. What it had in hand may have left
        at its last moment, by any of its senders. A sender that came from another group may have spoken until now.
        """
        mine, lease = taken.last_owner == self._owner, (taken.grp, taken.last_epoch)
        known = mine and (lease in self._spoken or (lease in self._memory.leases and not self._memory.damaged))
        named = frozenset(taken.last_senders or ())
        heirs = [sender for sender in taken.senders if not (known and sender in named)]
        if not heirs:
            return
        said: dict[str, list[tuple[float, int]]] = {sender: [] for sender in heirs}
        now = self._tick()
        for row in await self._line.fetch("spoken", heirs, DEBT_S):
            said[row["sender"]].append((now - row["ago_s"], row["segments"]))
        silent_at = now - max(taken.silent_s or 0.0, 0.0)
        longest = max((self._cost(row) for row in open_rows), default=0)
        strangers = {sender: said.pop(sender) for sender in heirs if sender not in named}
        if longest:
            for events in said.values():
                events.append((silent_at, longest))
        self._lanes.inherit(said, silent_at=silent_at, afresh=True)
        self._lanes.inherit(strangers, silent_at=now, afresh=False)

    def _judge(self, row: Record, grp: str) -> Word | None:
        key, mine = (row["id"], row["attempt"]), row["owner"] == self._owner
        if mine and key in self._memory.answered:
            self.counts["answered"] += 1
            return recalled(self._memory.answered[key], row["id"], grp)
        dispatch = self._memory.dispatched.get(key) if mine else None
        if mine and self._memory.unsent(key, grp, row["epoch"]):
            return self._stumbled(row, grp) if key in self._memory.in_the_works else None
        if row["died"] + 1 >= DEATHS_MAX:
            return self._dead(row, grp, dispatch, "it may have been sent")
        self.counts["doubt"] += 1
        return self._word(row, grp, dispatch, status="unknown", due_at=self._now() + FIRST_LOOK_S)

    def _recollect(self, row: Record, grp: str) -> Word:
        """What became of a row whose claim the database has lost: our log knows that it left, and perhaps more."""
        key = (row["id"], row["attempt"])
        if row["plain"] and key in self._memory.answered:
            self.counts["answered"] += 1
            return recalled(self._memory.answered[key], row["id"], grp)
        self.counts["doubt"] += 1
        dispatch = self._memory.dispatched.get(key)
        said = self._word(row, grp, dispatch, status="unknown", due_at=self._now() + FIRST_LOOK_S)
        said.reason = "it was sent, and the database had forgotten it"
        return said

    def _stumbled(self, row: Record, grp: str) -> Word:
        """The daemon died while it prepared this very one: tried again, but it is remembered."""
        if row["died"] + 1 >= DEATHS_MAX:
            return self._dead(row, grp, None, "it was not sent")
        said = self._word(row, grp, None, status="ready", due_at=self._now())
        said.reason, said.story = "in the works when the daemon died, before anything was sent", "died"
        return said

    def _dead(self, row: Record, grp: str, dispatch: Dispatch | None, sent: str) -> Word:
        self.counts["dead"] += 1
        said = self._word(row, grp, dispatch, status=Status.DEAD.value, due_at=0.0)
        said.rank = RANKS[Status.DEAD]
        said.reason = f"poison: it was open in {DEATHS_MAX} crashes of the daemon; the last time {sent}"
        return said

    def _word(self, row: Record, grp: str, dispatch: Dispatch | None, *, status: str, due_at: float) -> Word:
        return Word(
            grp=grp,
            id=row["id"],
            attempt=row["attempt"],
            status=status,
            segments=dispatch.segments if dispatch else None,
            sender=dispatch.sender if dispatch else None,
            provider=self._provider_of(dispatch.sender) if dispatch else None,
            reason="the daemon died while it was on the wire"
            if dispatch
            else "the daemon died, and its dispatch log cannot tell",
            at=self._now() - (self._tick() - dispatch.tick) if dispatch else row["taken_at"].timestamp(),
            due_at=due_at,
            story="uncertain" if dispatch else "lost",
        )
