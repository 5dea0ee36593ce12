"""
Runs the services. A crash drains the others; only the deadline cancels.

A bare TaskGroup would cancel thousands of half-sent requests because the metrics loop had a bug, and each would
become a message in doubt.
"""

from __future__ import annotations

import asyncio
import os
import socket
from contextlib import suppress
from typing import TYPE_CHECKING, Protocol

import structlog

if TYPE_CHECKING:
    from collections.abc import Sequence

log = structlog.get_logger()


class Service(Protocol):
    """Something that runs until it is told to stop, and finishes what it has in hand before it returns."""

    @property
    def name(self) -> str:
        """What it is called in logs."""
        ...

    async def run(self, stop: asyncio.Event) -> None:
        """Serve until *stop* is set, then finish and return."""
        ...


async def supervise(services: Sequence[Service], *, stop: asyncio.Event, grace_s: float) -> None:
    """
    Run *services* until *stop*, then let them finish for at most *grace_s* seconds.

    Raises ExceptionGroup when one of them failed, returned by itself, or did not finish in time.
    """
    failures: list[Exception] = []

    async def guard(service: Service) -> None:
        try:
            await _served(service, stop)
        except Exception as failure:
            log.exception("service.failed", service=service.name)
            failures.append(failure)
        finally:
            stop.set()

    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(None) as deadline, asyncio.TaskGroup() as group:
            for service in services:
                group.create_task(guard(service), name=service.name)
            await stop.wait()
            deadline.reschedule(loop.time() + grace_s)
    except TimeoutError as overdue:
        failures.append(overdue)
    if failures:
        raise ExceptionGroup("the daemon did not end well", failures)


async def _served(service: Service, stop: asyncio.Event) -> None:
    """Run *service* to its end, which is a failure unless it was told to stop, or cancelled by us."""
    try:
        await service.run(stop)
    except asyncio.CancelledError as stray:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        # Somebody it waited for was cancelled: a task group would take that for an orderly end.
        raise RuntimeError(f"{service.name} was cancelled, and by nobody") from stray
    if not stop.is_set():
        raise RuntimeError(f"{service.name} returned before it was told to stop")


def notify(*lines: str) -> None:
    """Tell systemd (sd_notify(3)): ``READY=1``, ``WATCHDOG=1``, ... Nothing happens where nobody listens."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    kind = socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
    with suppress(OSError), socket.socket(socket.AF_UNIX, kind) as bus:
        bus.connect("\0" + address[1:] if address.startswith("@") else address)
        bus.sendall("\n".join(lines).encode())
