"""
Recovery: what a daemon that is gone had in hand, judged before its group speaks again.

An open claim names what was in hand; the dispatch log tells what may have left. Not dispatched: the row was never
touched and is simply free again. Dispatched and answered, but not written back: the verdict is written now.
Dispatched and not answered: in doubt. Without that daemon's own log (another machine's, a lost folder, a power cut)
all of it is in doubt.

A database that was rolled back (a standby promoted, a backup restored) may have lost the claim itself, so that what
was sent looks as if it never had been. The dispatch log knows better, and is asked about every row it names.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog

from daemon.ledger import FIRST_LOOK_S, Word, recalled

if TYPE_CHECKING:
    from collections.abc import Callable
    from uuid import UUID

    from asyncpg import Record

    from daemon.database import Line
    from daemon.journal import Dispatch, Memory
    from daemon.ledger import Ledger

log = structlog.get_logger()

STATEMENTS = ("open_claims", "forgotten")


class Recovery:
    """Reconciles the open claims of a group with the dispatch log of the last run."""

    def __init__(
        self,
        line: Line,
        ledger: Ledger,
        memory: Memory,
        *,
        owner: UUID,
        now: Callable[[], float],
        provider_of: Callable[[str], str | None],
        tick: Callable[[], float],
        group_of: Callable[[str], str | None],
    ) -> None:
        self._line = line
        self._ledger = ledger
        self._owner = owner
        self._now = now
        self._tick = tick
        self._provider_of = provider_of
        self._group_of = group_of
        self.counts: dict[str, int] = {"free": 0, "answered": 0, "doubt": 0}
        self.remember(memory)

    def remember(self, memory: Memory) -> None:
        """Judge by *memory* from here on, every group anew. It must hold all that was sent until now."""
        self._memory = memory
        self._done: set[str] = set()  # groups reconciled by this memory
        self._forgotten: dict[str, list[Record]] | None = None  # by group; None: not looked for yet

    async def reconcile(self, grp: str, epoch: int) -> None:
        """Judge what is open in *grp*, which we hold under *epoch*. Raises DatabaseDown, and may be run again."""
        rows = await self._line.fetch("open_claims", grp, epoch)
        # A row may stand in two claims: in one whose COMMIT we never heard of, and in the one that took it again.
        open_rows = {row["id"]: row for row in rows if row["in_flight"]}
        words = [said for row in open_rows.values() if (said := self._judge(row, grp)) is not None]
        free = len(open_rows) - len(words)
        forgotten = [row for row in await self._look_for_forgotten(grp) if row["id"] not in open_rows]
        words += [self._recollect(row, grp) for row in forgotten]
        if words:
            await self._ledger.write(words, fence={grp: epoch})
        await self._line.ask("DELETE FROM outrider.claim WHERE grp = $1 AND epoch < $2", grp, epoch)
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

    def _judge(self, row: Record, grp: str) -> Word | None:
        """What became of a row of an open claim; None when it never left."""
        key = (row["id"], row["attempt"])
        # What the log says was true when it was read; of a lease lost and taken again since then it says nothing.
        ours = row["owner"] == self._owner and grp not in self._done
        if ours and key in self._memory.answered:
            self.counts["answered"] += 1
            return recalled(self._memory.answered[key], row["id"], grp)
        if ours and not self._memory.left(key):
            return None
        dispatch = self._memory.dispatched.get(key) if ours else None
        reason = (
            "the daemon died while it was on the wire"
            if dispatch
            else "the daemon died, and its dispatch log cannot tell"
        )
        return self._doubt(row, grp, dispatch, reason, row["taken_at"].timestamp())

    def _recollect(self, row: Record, grp: str) -> Word:
        """What became of a row whose claim the database has lost: our log knows that it left, and perhaps more."""
        key = (row["id"], row["attempt"])
        if row["plain"] and key in self._memory.answered:
            self.counts["answered"] += 1
            return recalled(self._memory.answered[key], row["id"], grp)
        reason = "it was sent, and the database had forgotten it"
        return self._doubt(row, grp, self._memory.dispatched.get(key), reason, self._now())

    def _doubt(self, row: Record, grp: str, dispatch: Dispatch | None, reason: str, taken_at: float) -> Word:
        self.counts["doubt"] += 1
        sender = dispatch.sender if dispatch else None
        return Word(
            grp=grp,
            id=row["id"],
            attempt=row["attempt"],
            status="unknown",
            segments=dispatch.segments if dispatch else None,
            sender=sender,
            provider=self._provider_of(sender) if sender else None,
            reason=reason,
            at=self._now() - (self._tick() - dispatch.tick) if dispatch else taken_at,
            due_at=self._now() + FIRST_LOOK_S,
            story="uncertain" if dispatch else "lost",
        )
