"""
The inspector: judges new rows ahead of the claims, so that a bad one ends with a reason within seconds however long the
queue in front of it is.

Four looks, each a few milliseconds: rows the intake has doubts about; rows in lanes that nobody serves; the next rows
of a lane in which something too late was met; and the numbers of all other rows, the newest first, because a number can
look right and not exist. What slips through (committed very late) is judged at its claim.

Only rows of our own lanes are judged: what we know of services, senders, templates and regions is no measure for those
of another daemon.

What is too late stands together, at the head of its lane: claimed by the handful that its senders can use soon, a
hundred thousand held up for minutes what was of use. Here they leave by the thousand.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

import structlog

from daemon.core.address import plausible
from daemon.core.inspection import Refusal
from daemon.core.lifecycle import RANKS, Status
from daemon.database import DatabaseDown, sleep_unless

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Sequence
    from datetime import datetime

    from asyncpg import Record

    from daemon.database import Line
    from daemon.desk import Desk
    from daemon.observer import Observer
    from daemon.outbox import Outbox

log = structlog.get_logger()

LOOK_S = 0.25
BATCH = 1000  # rows judged at a time: 5 to 10 ms of the loop
AHEAD = 5000  # numbers read at a time
ROUNDS = 10  # batches in a row, before the other looks have their turn
# Numbers are read once their rows have waited so long: most are gone by then, and were judged at their claim. Read at
# once, they cost a drain 5 % of its throughput.
SETTLED_S = 2.0
GRACE_S = 30.0  # a lane that another daemon declared within so long is that daemon's to judge
LATELY_S = 86_400.0  # within so long, when we have only just begun: the other one may be starting too
STATEMENTS = ("suspects", "strays", "lanes", "lanes_apart", "declared", "next_in_lane", "ahead_numbers")


class Manifest:
    """Which lanes nobody serves, as one of several daemons can tell."""

    def __init__(self, line: Line, desk: Desk) -> None:
        self._line = line
        self._desk = desk
        self._began = desk.tick()
        self._since: dict[str, float] = {}  # lanes that nobody has declared, and since when

    async def unserved(self, lanes: frozenset[str]) -> list[str]:
        """Those of *lanes* that nobody serves, asked for again and again. Raises DatabaseDown."""
        strange = lanes - self._desk.lanes.keys()
        if not strange:
            self._since = {}
            return []
        now = self._desk.tick()
        new = now < self._began + GRACE_S
        declared = await self._line.fetch("declared", LATELY_S if new else GRACE_S, GRACE_S)
        strange -= {row["lane"] for row in declared}
        # Others that live may have yet to say so: just reloaded, or waiting for the lease of their senders.
        grace_s = GRACE_S if declared and declared[0]["daemons"] > 1 else 0.0
        self._since = {lane: self._since.get(lane, now) for lane in strange}
        return sorted(lane for lane in strange if now - self._since[lane] >= grace_s)


class Inspector:
    """Reads ahead and ends what cannot be sent."""

    name = "inspector"

    def __init__(self, line: Line, outbox: Outbox, desk: Desk, observer: Observer) -> None:
        self._line = line
        self._outbox = outbox
        self._desk = desk
        self._observer = observer
        self.lanes_seen: frozenset[str] = frozenset()  # lanes that had rows at the last look
        self._manifest = Manifest(line, desk)
        self._top = 0  # the highest row number seen
        self._fresh: deque[tuple[float, int, int]] = deque()  # stretches too new to be read, and when they were seen
        self._unread: list[tuple[int, int]] = []  # stretches of numbers not read yet, the newest last
        # Lanes and levels that have much that is too late, and the row up to which they were looked at.
        self._clearing: dict[tuple[str, int], tuple[datetime, int]] = {}

    async def run(self, stop: asyncio.Event) -> None:
        """Look until *stop*."""
        while not await sleep_unless(stop, 0.0 if self._unread or self._clearing else LOOK_S):
            try:
                await self._suspects()
                await self._strays()
                await self._outdated()
                await self._ahead()
            except DatabaseDown:
                await sleep_unless(stop, 1.0)

    async def _suspects(self) -> None:
        mine = sorted(await self._suspected() & self._desk.lanes.keys())
        for _ in range(ROUNDS if mine else 0):
            rows = await self._line.fetch("suspects", mine, BATCH)
            await self._end([(row, self._desk.inspect(row)) for row in rows])
            if len(rows) < BATCH:
                return

    async def _suspected(self) -> frozenset[str]:
        return frozenset(row["lane"] for row in await self._line.fetch("lanes_apart", "suspect"))

    async def _strays(self) -> None:
        lanes = frozenset(row["lane"] for row in await self._line.fetch("lanes"))
        if any(lane.startswith("@") for lane in lanes - self.lanes_seen):
            self._outbox.wake()
        self.lanes_seen = lanes
        unserved = await self._manifest.unserved(lanes | await self._suspected())
        if unserved:
            rows = [
                *await self._line.fetch("strays", unserved, BATCH),
                *await self._line.fetch("suspects", unserved, BATCH),
            ]
            await self._end(
                [(row, self._desk.inspect(row) or Refusal.failed("nobody serves its lane")) for row in rows]
            )

    async def _outdated(self) -> None:
        for lane, level in self._desk.outdated - set(self._clearing):
            self._clearing[lane, level] = self._outbox.mark(lane, level), -1
        self._desk.outdated.clear()
        for _ in range(ROUNDS):
            for (lane, level), after in list(self._clearing.items()):
                rows = await self._line.fetch("next_in_lane", lane, level, *after, BATCH)
                late = [(row, refusal) for row in rows if (refusal := self._desk.too_late(row)) is not None]
                await self._end(late)
                if 2 * len(late) < BATCH:  # those that are left are met one by one, or call us again
                    del self._clearing[lane, level]
                else:
                    self._clearing[lane, level] = rows[-1]["due_at"], rows[-1]["seq"]

    async def _ahead(self) -> None:
        row = (await self._line.ask("SELECT min(seq) AS lowest, max(seq) AS newest FROM outrider.queue"))[0]
        if row["newest"] is not None and row["newest"] > self._top:
            self._fresh.append((self._desk.tick(), max(self._top, row["lowest"] - 1), row["newest"]))
            self._top = row["newest"]
        while self._fresh and self._fresh[0][0] <= self._desk.tick() - SETTLED_S:
            self._unread.append(self._fresh.popleft()[1:])
        for _ in range(ROUNDS):
            if not self._unread:
                return
            after, upto = self._unread[-1]
            start = max(after, upto - AHEAD)
            rows = await self._line.fetch("ahead_numbers", start, upto)
            ours = (row for row in rows if row["lane"] in self._desk.lanes)
            judged = [(row, self._desk.unreadable(row)) for row in ours if not plausible(row["recipient"] or "")]
            await self._end([(row, refusal) for row, refusal in judged if refusal is not None])
            # Only now: had the connection been lost, this stretch would be read again.
            self._unread.pop()
            if start > after:
                self._unread.append((after, start))

    async def _end(self, judged: Sequence[tuple[Record, Refusal | None]]) -> None:
        if not judged:
            return
        words = [(row, refusal or Refusal(Status.QUEUED, "")) for row, refusal in judged]
        ended = await self._outbox.refuse(
            [row["id"] for row, _ in words],
            [row["attempts"] for row, _ in words],
            ["ready" if refusal.status is Status.QUEUED else refusal.status.value for _, refusal in words],
            [RANKS[refusal.status] for _, refusal in words],
            [refusal.reason for _, refusal in words],
        )
        if ended:
            log.info(
                "rows.refused",
                count=ended,
                first_reason=next(r.reason for _, r in words if r.status is not Status.QUEUED),
            )
        for _, refusal in words:
            if refusal.status is not Status.QUEUED:
                self._observer.refused(refusal.status.value)
