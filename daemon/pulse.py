"""The pulse: once a second, is the loop alive and the work going on? Feeds systemd's watchdog, only with progress."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING

from daemon.database import DatabaseDown, sleep_unless
from daemon.supervisor import notify

if TYPE_CHECKING:
    from daemon.engine import Engine
    from daemon.observer import Observer

BEAT_S = 1.0
ANNOUNCE_S = 5.0


class Pulse:
    """Beats until told to stop."""

    name = "pulse"

    def __init__(self, engine: Engine, observer: Observer) -> None:
        self._engine = engine
        self._observer = observer

    async def run(self, stop: asyncio.Event) -> None:
        """Beat until *stop*. Postgres may be slow; the beat is not."""
        async with asyncio.TaskGroup() as group:
            telling = group.create_task(self._tell(stop))
            await self._beat(stop)
            telling.cancel()

    async def _beat(self, stop: asyncio.Event) -> None:
        loop = asyncio.get_running_loop()
        expected = loop.time() + BEAT_S
        while not await sleep_unless(stop, BEAT_S):
            self._observer.beat(lag_s=max(loop.time() - expected, 0.0))
            expected = loop.time() + BEAT_S
            self._engine.lanes.recover(BEAT_S)
            self._engine.journal.mend()
            for gate in self._engine.gates.values():
                gate.watch()
            if self._observer.health().progressing:
                notify("WATCHDOG=1")

    async def _tell(self, stop: asyncio.Event) -> None:
        while not await sleep_unless(stop, ANNOUNCE_S):
            if self._observer.is_open:
                with suppress(DatabaseDown):
                    await self._engine.announce()
                    await self._engine.look_home()
