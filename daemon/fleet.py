"""The fleet: every message in flight is a task of its own, and none is left behind."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from daemon.core.message import Message
    from daemon.courier import Courier
    from daemon.lanes import Lanes


class Fleet:
    """Sends couriers out; returns when all are back."""

    name = "fleet"

    def __init__(self, courier: Courier, lanes: Lanes) -> None:
        self._courier = courier
        self._lanes = lanes
        self._group: asyncio.TaskGroup | None = None

    def take(self, message: Message) -> None:
        """Send a courier out with *message*."""
        assert self._group is not None  # the outbox starts after the fleet and ends before it
        self._group.create_task(self._courier.deliver(message))

    async def run(self, stop: asyncio.Event) -> None:
        """Until *stop*; then whoever still waits for a turn is released, and whoever is on the wire comes home."""
        async with asyncio.TaskGroup() as self._group:
            await stop.wait()
            self._lanes.close()
