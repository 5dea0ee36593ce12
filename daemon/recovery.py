"""
Recovery: what a daemon that is gone had in hand, judged before its group speaks again.

An open claim names what was in hand; the dispatch log tells what may have left. Not dispatched: the row was never
touched and is simply free again. Dispatched and answered, but not written back: the verdict is written now.
Dispatched and not answered: in doubt. Without that daemon's own log (another machine's, a lost folder, a power cut)
all of it is in doubt.
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
    from daemon.journal import Memory
    from daemon.ledger import Ledger

log = structlog.get_logger()

STATEMENTS = ("open_claims", "release")


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
    ) -> None:
        self._line = line
        self._ledger = ledger
        self._memory = memory
        self._owner = owner
        self._now = now
        self._tick = tick
        self._provider_of = provider_of
        self._done: set[str] = set()  # groups reconciled by this run
        self.counts: dict[str, int] = {"free": 0, "answered": 0, "doubt": 0}

    async def reconcile(self, grp: str, epoch: int) -> None:
        """Judge what is open in *grp*, which we hold under *epoch*. Raises DatabaseDown, and may be run again."""
        rows = await self._line.fetch("open_claims", grp, epoch)
        # A row may stand in two claims: in one whose COMMIT we never heard of, and in the one that took it again.
        open_rows = {row["id"]: row for row in rows if row["in_flight"]}
        words = [said for row in open_rows.values() if (said := self._judge(row, grp)) is not None]
        free = len(open_rows) - len(words)
        if words:
            await self._ledger.write(words, fence={grp: epoch})
        await self._line.fetch("release", grp, epoch)
        self._done.add(grp)
        self.counts["free"] += free
        if rows:
            log.warning(
                "claims.reconciled", group=grp, free=free, **{k: v for k, v in self.counts.items() if k != "free"}
            )

    def _judge(self, row: Record, grp: str) -> Word | None:
        key = (row["id"], row["attempt"])
        # What the log says of the last run; of a lease lost and taken again in this one it says nothing.
        ours = row["owner"] == self._owner and grp not in self._done
        if ours and key in self._memory.answered:
            self.counts["answered"] += 1
            return recalled(self._memory.answered[key], row["id"], grp)
        if ours and not self._memory.left(key):
            return None
        self.counts["doubt"] += 1
        dispatch = self._memory.dispatched.get(key) if ours else None
        sender = dispatch.sender if dispatch else None
        reason = (
            "the daemon died while it was on the wire"
            if dispatch
            else "the daemon died, and its dispatch log cannot tell"
        )
        return Word(
            grp=grp,
            id=row["id"],
            attempt=row["attempt"],
            status="unknown",
            segments=dispatch.segments if dispatch else None,
            sender=sender,
            provider=self._provider_of(sender) if sender else None,
            reason=reason,
            at=self._now() - (self._tick() - dispatch.tick) if dispatch else row["taken_at"].timestamp(),
            due_at=self._now() + FIRST_LOOK_S,
            story="uncertain" if dispatch else "lost",
        )
