"""
The auditor: are the books balanced? Every message inserted stands in the queue or in outcome, at any moment.

The counting is SQL (``outrider.balance``, page by page, only where something has moved); here it is asked for each
minute, and a difference that two looks have seen is told: an error in the log, an anomaly for each message.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog

from daemon.database import DatabaseDown, sleep_unless
from daemon.watch import Balance

if TYPE_CHECKING:
    import asyncio

    from daemon.database import Line
    from daemon.observer import Observer

log = structlog.get_logger()

LOOK_S = 60.0
FIRST_S = 5.0  # whoever starts with a full queue has better things to do
PAGES = 20  # of 10,000 messages, counted in one look: 1 s at most
NAMED = 100  # lost messages named in one look
DAYS = 2  # shown on the page
STATEMENTS = ("anomalies",)


class Auditor:
    """Looks into the books."""

    name = "auditor"

    def __init__(self, line: Line, observer: Observer) -> None:
        self._line = line
        self._observer = observer
        self._seen = 0  # the difference at the last look

    async def run(self, stop: asyncio.Event) -> None:
        """Look each minute until *stop*."""
        await sleep_unless(stop, FIRST_S)
        while not stop.is_set():
            try:
                await self.look(patience_s=LOOK_S / 2)
            except DatabaseDown:
                await sleep_unless(stop, 1.0)
            await sleep_unless(stop, LOOK_S)

    async def look(self, *, patience_s: float = 0.0) -> int:
        """The difference. Another daemon's look within *patience_s* seconds serves as ours. Raises DatabaseDown."""
        await self._line.ask("SELECT outrider.balance($1, $2)", PAGES, patience_s)
        rows = await self._line.ask(
            "SELECT to_char(day, 'YYYY-MM-DD') AS day, intent, inserted, settled, open, difference"
            " FROM outrider.conservation WHERE day > (now() AT TIME ZONE 'UTC')::date - $1::integer OR difference <> 0"
            " ORDER BY difference DESC, day DESC, intent",
            DAYS,
        )
        difference: int = sum(row["difference"] for row in rows)
        self._observer.balanced([Balance(**row) for row in rows], difference)
        if difference and self._seen:
            await self._tell(difference)
        self._seen = difference
        return difference

    async def _tell(self, difference: int) -> None:
        """Two looks have seen it: messages are in neither place, and nobody will ever send them."""
        lost = await self._line.ask("SELECT id FROM outrider.missing($1)", NAMED)
        ids = [row["id"] for row in lost]
        log.error("conservation.broken", difference=difference, message_ids=[str(id) for id in ids[:10]])
        many = len(ids)
        words = "inserted, and neither in the queue nor ended"
        self._observer.anomalies.found(
            await self._line.fetch(
                "anomalies", ["lost"] * many, ids, [None] * many, [None] * many, [None] * many, [words] * many
            )
        )
