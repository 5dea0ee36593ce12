"""
Signals: what SQL functions say to running daemons. Cancel, pause, resume and opt-out take effect here within 250 ms.

Numbers commit out of order, so a reader that remembers the highest would miss some. It remembers instead the oldest
transaction still running at its last look, and reads again everything that such a transaction or a younger one said.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from uuid import UUID

import structlog

from daemon.database import DatabaseDown, sleep_unless

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from daemon.database import Line
    from daemon.desk import Desk
    from daemon.observer import Observer

log = structlog.get_logger()

LOOK_S = 0.2  # the promise is 250 ms here, 1 s everywhere
STATEMENTS = ("signals", "signals_ack")


class Signals:
    """Reads signals and tells the desk."""

    name = "signals"

    def __init__(self, line: Line, desk: Desk, *, owner: UUID, woken: Callable[[], None], observer: Observer) -> None:
        self._line = line
        self._desk = desk
        self._owner = owner
        self._woken = woken
        self._observer = observer
        self._horizon = "0"
        self._seen: set[int] = set()

    async def begin(self) -> None:
        """Read what stands: opt-outs, pauses, cancellations, and where the signals are. Raises DatabaseDown."""
        rows = await self._line.ask("SELECT pg_snapshot_xmin(pg_current_snapshot())::text AS horizon")
        self._horizon, self._seen = rows[0]["horizon"], set()
        for row in await self._line.ask("SELECT tenant, recipient FROM outrider.suppression"):
            self._desk.opted_out.add((row["tenant"], row["recipient"]))
        # Of what was in another daemon's hands, and came back from them, or is in doubt: nobody says it a second time.
        for row in await self._line.ask(
            "SELECT s.id FROM outrider.signal s JOIN outrider.queue q ON q.id = s.id WHERE s.kind = 'cancel'"
        ):
            self._desk.cancel(row["id"])
        await self._read_pauses()

    async def run(self, stop: asyncio.Event) -> None:
        """Look until *stop*."""
        while not await sleep_unless(stop, LOOK_S):
            try:
                await self.look()
            except DatabaseDown:
                await sleep_unless(stop, 0.5)

    async def look(self) -> None:
        """Read once. Raises DatabaseDown."""
        rows = await self._line.fetch("signals", self._horizon)
        fresh = [row for row in rows if row["seq"] is not None and row["seq"] not in self._seen]
        if any(row["kind"] in {"pause", "resume"} for row in fresh):
            await self._read_pauses()  # the table, not the signals: of two at once nobody can tell which was last
        for row in fresh:
            self._heard(row["kind"], row["id"], row["what"])
        self._seen = {row["seq"] for row in rows if row["seq"] is not None}
        horizon = rows[0]["horizon"]
        if horizon != self._horizon or fresh:
            await self._line.fetch("signals_ack", self._owner, horizon)
            self._horizon = horizon

    async def _read_pauses(self) -> None:
        rows = await self._line.ask("SELECT what, reason FROM outrider.pause")
        self._desk.pauses = {row["what"]: row["reason"] for row in rows}

    def _heard(self, kind: str, id: UUID | None, what: str | None) -> None:
        self._observer.signal(kind)
        log.info(
            "signal.heard",
            kind=kind,
            message_id=str(id) if id else None,
            what=what if kind in {"pause", "resume"} else None,
        )
        match kind, id, what:
            case "cancel", UUID(), _:
                self._desk.cancel(id)
            case "opt_out", _, str():
                tenant, _, recipient = what.rpartition(" ")
                self._desk.opted_out.add((tenant, recipient))
            case "replay", UUID(), _:
                self._desk.uncancel(id)
                self._woken()
            case "resume" | "replay", _, _:
                self._woken()
