"""
Retention: what is done is forgotten when its time is over (``[retention]`` of the configuration).

What may go is decided in ``sql/migrations/0006_afterlife.sql``: each duty is a function there that does a bounded piece
and takes nothing unfinished. Here is only when: one duty after the other, on a connection that nobody waits for, in
pieces small enough that nobody feels them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog

from daemon.database import DatabaseDown, Line, sleep_unless

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Mapping

    from daemon.desk import Desk
    from daemon.settings import Retention

log = structlog.get_logger()

LOOK_S = 5.0  # when there was little to do
BUSY_S = 0.5  # when a duty had its hands full: 1,000 messages a second, and 2 % of Postgres
WEEKS_S = 600.0  # how often it is asked whether a week may go
PIECE = 500  # rows, or blocks of receipts, in one transaction: some 10 ms
STATEMENTS = ("keep",)

# Each returns how much it looked at: as much as it was allowed means that there is more.
DUTIES: Mapping[str, str] = {
    "codes": "SELECT outrider.blank_codes($1) AS looked",
    "texts": "SELECT outrider.blank_texts($1) AS looked",
    "keys": "SELECT outrider.forget_keys($1) AS looked",
    "signals": "SELECT outrider.forget_signals($1) AS looked",
    "instances": "SELECT outrider.forget_instances($1) AS looked",
    "other ids": "SELECT outrider.sweep_default($1) AS looked",
    "receipts": "SELECT outrider.drop_receipts($1) AS looked",
}


class Keeper:
    """Forgets what is due."""

    name = "retention"

    def __init__(self, dsn: str, desk: Desk, *, pooled: bool = False) -> None:
        self._line = Line("retention", dsn, statements=STATEMENTS, pooled=pooled)
        self._desk = desk
        self._published: Retention | None = None
        self._weeks_at = 0.0

    async def run(self, stop: asyncio.Event) -> None:
        """Forget until *stop*. A database that is held as a copy is left as it was found."""
        try:
            pause = LOOK_S  # whoever starts with a full queue has better things to do
            while not await sleep_unless(stop, pause):
                busy = False
                try:
                    if not self._desk.held:
                        busy = await self.look()
                except DatabaseDown as down:
                    log.info("retention.interrupted", error=str(down))
                pause = BUSY_S if busy else LOOK_S
        finally:
            await self._line.close()

    async def look(self) -> bool:
        """One piece of each duty; whether any left more to do. Raises DatabaseDown."""
        await self._publish(self._desk.settings.retention)
        looked = [(await self._line.ask(query, PIECE))[0]["looked"] for query in DUTIES.values()]
        if self._desk.tick() >= self._weeks_at:
            self._weeks_at = self._desk.tick() + WEEKS_S
            weeks = (await self._line.ask("SELECT outrider.drop_weeks() AS weeks"))[0]["weeks"]
            if weeks:
                log.info("weeks.dropped", weeks=weeks)
        return any(count >= PIECE for count in looked)

    async def _publish(self, kept: Retention) -> None:
        """The figures stand in the database: the intake and the duties read them there. The last daemon told wins."""
        if kept is self._published:
            return
        spans = {("outbox", ""): kept.outbox, ("body", ""): kept.body, ("idempotency", ""): kept.idempotency}
        spans |= {("receipts", ""): kept.receipts, ("dead", ""): kept.dead}
        spans |= {("dead", word.value): span for word, span in kept.dead_by_intent.items()}
        await self._line.fetch(
            "keep",
            [what for what, _ in spans],
            [intent for _, intent in spans],
            [float(span) for span in spans.values()],
        )
        self._published = kept
