"""What can be seen while the demo runs, and when it is over: asked of the tables and the provider, not the daemon."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

import aiohttp

from daemon.database import connect

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping

    from daemon.demo.inserter import Application
    from daemon.demo.stage import Stage

LOOK_S = 0.5
QUIET_LOOKS = 3  # looks in a row that find nothing to wait for: a receipt may be between two places at one of them

COUNTS = """
SELECT (SELECT count(*) FROM outrider.outbox) AS inserted,
       (SELECT count(*) FROM outrider.queue) AS waiting,
       (SELECT count(*) FROM outrider.queue WHERE state = 'unknown') AS doubtful,
       (SELECT coalesce(jsonb_object_agg(status, many), '{}')
          FROM (SELECT status, count(*) AS many FROM outrider.outcome GROUP BY status) AS s) AS statuses
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """One look at everything. Times in seconds."""

    passed_s: float
    expected: int
    inserted: int
    waiting: int
    doubtful: int
    statuses: Mapping[str, int]
    senders: Mapping[str, int]  # segments each sender has sent
    receipts_pending: int

    @property
    def settled(self) -> int:
        """Messages out of the queue: a provider has them, or they have ended."""
        return sum(self.statuses.values())

    @property
    def delivered(self) -> int:
        """Messages whose handset has them."""
        return self.statuses.get("delivered", 0) + self.statuses.get("read", 0)


class Watch:
    """Looks twice a second."""

    def __init__(self, stage: Stage, application: Application) -> None:
        self._stage = stage
        self._application = application

    async def until_quiet(self, patience_s: float) -> AsyncGenerator[View]:
        """A view for each look, until nothing is waited for any more, or *patience_s* seconds have passed."""
        loop = asyncio.get_running_loop()
        begun, quiet = loop.time(), 0
        connection = await connect(self._stage.dsn)
        try:
            async with aiohttp.ClientSession(self._stage.provider_url) as provider:
                while quiet < QUIET_LOOKS and loop.time() - begun < patience_s:
                    self._stage.check_alive()
                    counts = await connection.fetchrow(COUNTS)
                    assert counts is not None
                    async with provider.get("/_simulator/") as answer:
                        told = await answer.json()
                    view = View(
                        passed_s=loop.time() - begun,
                        expected=self._application.scenario.inserted,
                        inserted=counts["inserted"],
                        waiting=counts["waiting"],
                        doubtful=counts["doubtful"],
                        statuses=counts["statuses"],
                        senders={address: seen["segments"] for address, seen in told["senders"].items()},
                        receipts_pending=told["receipts"]["pending"],
                    )
                    yield view
                    over = self._application.finished and not view.waiting and not view.receipts_pending
                    quiet = quiet + 1 if over else 0
                    await asyncio.sleep(LOOK_S)
        finally:
            connection.terminate()
