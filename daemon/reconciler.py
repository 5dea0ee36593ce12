"""
The reconciler: receipts that did not come are asked for, and those nobody could place are looked at again.

What a provider answers is heard exactly as a receipt is (``receipts.py``, ``sql/receive.sql``), so it may be late,
repeated or overtaken. When to ask is decided in ``core/overdue.py``; how much at most, by the limiter that all
questions share.
"""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from daemon.core import overdue
from daemon.core.lifecycle import WAITING, Status
from daemon.core.outcome import Uncertain, Unreachable
from daemon.core.receipt import Receipt
from daemon.database import DatabaseDown, sleep_unless, storable
from daemon.provider import Absent, Unclear
from daemon.receipts import News, Overrun

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from aiolimiter import AsyncLimiter
    from asyncpg import Record

    from daemon.database import Line
    from daemon.desk import Desk
    from daemon.gates import Gate
    from daemon.observer import Observer
    from daemon.provider import LastWord
    from daemon.receipts import ReceiptBook

LOOK_S = 5.0
PARKED_S = 60.0
TAKEN = 500  # overdue messages taken at a time: 100/s, so that each has its moment even where few can be asked for
ASKED = 50  # of them asked for: 5 s of all questions there may be
PARKED = 100  # parked receipts looked at in one look
NEVER = datetime.max.replace(tzinfo=UTC)  # asyncpg's spelling of 'infinity'
KEPT = timedelta(days=90)  # anomalies
STATEMENTS = ("overdue", "quieted", "parked")  # on a hot line: they walk an index of what may be millions
SLOW_STATEMENTS = ("unpark", "heard_of", "anomalies")


class Reconciler:
    """Asks for what is missing. *hot* and *slow* are lines: what may take a second goes over the second."""

    name = "reconciler"

    def __init__(
        self,
        hot: Line,
        slow: Line,
        desk: Desk,
        gates: Mapping[str, Gate],
        *,
        book: ReceiptBook,
        questions: AsyncLimiter,
        observer: Observer,
    ) -> None:
        self._hot = hot
        self._slow = slow
        self._desk = desk
        self._gates = gates
        self._book = book
        self._questions = questions
        self._observer = observer

    async def run(self, stop: asyncio.Event) -> None:
        """Reconcile until *stop*. Questions under way are left: they change nothing."""
        async with asyncio.TaskGroup() as group:
            asking = group.create_task(self._asking())
            while not stop.is_set():
                try:
                    await self.place()
                    await self._forget()
                except (DatabaseDown, Overrun):
                    await sleep_unless(stop, 1.0)
                await sleep_unless(stop, PARKED_S)
            asking.cancel()

    async def _asking(self) -> None:
        while True:
            try:
                full = await self.ask() == TAKEN
            except (DatabaseDown, Overrun):
                full = False
            await asyncio.sleep(1.0 if full else LOOK_S)

    # Overdue receipts.

    async def ask(self) -> int:
        """Ask for what is overdue; how many messages were. Raises DatabaseDown: their next look will come."""
        if self._desk.held:  # a copied database is left as it was found
            return 0
        rows = await self._hot.fetch("overdue", TAKEN)
        if not rows:
            return 0
        now = self._desk.now()
        looks = {row["id"]: overdue.next_look(now, row["accepted_at"].timestamp()) for row in rows}
        moments = [NEVER if at is None else datetime.fromtimestamp(at - overdue.QUIET_S, UTC) for at in looks.values()]
        await self._hot.fetch("quieted", list(looks), moments)
        self._observer.unconfirmed(moments.count(NEVER))
        by_provider: dict[str, list[Record]] = {}
        for row in [row for row in rows if looks[row["id"]] is not None and row["reference"]][:ASKED]:
            by_provider.setdefault(row["provider"] or "", []).append(row)
        # One after the other at each provider, so that one that hangs holds up nothing but its own.
        async with asyncio.TaskGroup() as group:
            for name, asked in by_provider.items():
                if name in self._gates:
                    group.create_task(self._ask_all(self._gates[name], asked))
        return len(rows)

    async def _ask_all(self, gate: Gate, rows: Iterable[Record]) -> None:
        for row in rows:
            question = gate.dialect.fetch(row["reference"])
            if question is None or gate.state == "open":
                continue
            async with self._questions:
                answer = await gate.link.exchange(question, deadline_s=gate.timeout_s)
            if isinstance(answer, Unreachable | Uncertain):
                return  # it has trouble of its own: the others are asked for in an hour
            try:
                await self._heard(row, gate.dialect.fetched(row["reference"], answer))
            except (DatabaseDown, Overrun):
                return

    async def _heard(self, row: Record, word: LastWord) -> None:
        match word:
            case Receipt():
                self._observer.asked(row["provider"], word.status.value)
                if word.final or (word.status is Status.SENT and not row["handed_on"]):
                    await self._story(row, word)
                    await self._book.hear([News(row["id"], row["attempts"], row["provider"], _storable(word))])
                if word.segments and row["segments"] and word.segments != row["segments"]:
                    counted = f"its provider counts {word.segments} segments, not {row['segments']}"
                    await self._odd(row, "segments", counted)
            case Absent():
                self._observer.asked(row["provider"], "absent")
                await self._odd(row, "unknown_there", "accepted, and its provider, when asked, does not know it")
            case Unclear():
                self._observer.asked(row["provider"], "unclear")

    async def _story(self, row: Record, word: Receipt) -> None:
        await self._slow.ask(
            "INSERT INTO outrider.attempt (id, attempt, kind, provider, sender, segments, outcome, reason, reference)"
            " VALUES ($1, $2, 'evidence', $3, $4, $5, $6, 'no receipt had come: its provider was asked', $7)"
            " ON CONFLICT (id, attempt, kind) DO NOTHING",
            row["id"], row["attempts"], row["provider"], row["sender"], row["segments"], word.status.value,
            row["reference"],
        )  # fmt: skip

    async def _odd(self, row: Record, kind: str, detail: str) -> None:
        self._observer.anomalies.found(
            await self._slow.fetch(
                "anomalies", [kind], [row["id"]], [row["attempts"]], [row["provider"]], [row["reference"]], [detail]
            )
        )

    # Parked receipts.

    async def place(self) -> int:
        """Look at parked receipts again; how many found their message. Raises DatabaseDown or Overrun."""
        if self._desk.held:
            return 0
        rows = await self._hot.fetch("parked", PARKED)
        placed = [row for row in rows if row["id"] is not None]
        for row in placed:
            await self._place(row)
        orphans = [row for row in rows if row["id"] is None and row["over"]]
        await self._unpark([*placed, *orphans], orphans=len(orphans))
        (count,) = await self._slow.ask("SELECT count(*) AS parked FROM outrider.parked")
        self._observer.parked(count["parked"])
        return len(placed)

    async def _place(self, row: Record) -> None:
        """Hear what was parked once more, under the name of its message."""
        kept = await self._slow.fetch(
            "heard_of", row["provider"], row["reference"], row["id"], row["since"] - timedelta(minutes=1)
        )
        receipts = [
            Receipt(
                row["reference"], status := Status(one["status"]), one["code"] or "", one["reason"] or "",
                final=status not in WAITING,
            )
            for one in kept
        ]  # fmt: skip
        await self._book.hear([News(row["id"], row["attempt"], row["provider"], receipt) for receipt in receipts])

    async def _unpark(self, rows: Sequence[Record], *, orphans: int) -> None:
        if rows:
            many = len(rows)
            self._observer.anomalies.found(
                await self._slow.fetch(
                    "unpark", [row["provider"] for row in rows], [row["reference"] for row in rows],
                    [False] * (many - orphans) + [True] * orphans,
                )
            )  # fmt: skip

    async def _forget(self) -> None:
        await self._slow.ask(
            "DELETE FROM outrider.anomaly WHERE ctid = ANY (ARRAY("
            "SELECT ctid FROM outrider.anomaly WHERE at < now() - $1::interval ORDER BY at LIMIT 1000))",
            KEPT,
        )


def _storable(word: Receipt) -> Receipt:
    return Receipt(
        word.reference, word.status, storable(word.code) or "", storable(word.reason) or "", word.segments, word.sender,
        word.final,
    )  # fmt: skip
