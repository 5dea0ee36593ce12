"""The pulse: once a second, is the loop alive and the work going on? Feeds systemd's watchdog, only with progress."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from daemon.database import DatabaseDown, sleep_unless
from daemon.supervisor import notify

if TYPE_CHECKING:
    from daemon.engine import Engine
    from daemon.observer import Observer

BEAT_S = 1.0
ANNOUNCE_BEATS = 5


class Pulse:
    """Beats until told to stop."""

    name = "pulse"

    def __init__(self, engine: Engine, observer: Observer) -> None:
        self._engine = engine
        self._observer = observer

    async def run(self, stop: asyncio.Event) -> None:
        """Beat until *stop*."""
        loop = asyncio.get_running_loop()
        beats, expected = 0, loop.time() + BEAT_S
        while not await sleep_unless(stop, BEAT_S):
            self._observer.beat(lag_s=max(loop.time() - expected, 0.0))
            expected = loop.time() + BEAT_S
            self._engine.lanes.recover(BEAT_S)
            for gate in self._engine.gates.values():
                gate.watch()
            beats += 1
            if self._observer.health().progressing:
                notify("WATCHDOG=1")
            if beats % ANNOUNCE_BEATS == 0 and self._observer.is_open:
                try:
                    await self._engine.announce()
                    if self._engine.desk.held:
                        await self._engine.look_home()
                except DatabaseDown:
                    pass
