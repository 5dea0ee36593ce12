"""A running simulator, and those outside."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from aiohttp import web

from daemon.simulator import Simulator
from tests.simulator.outside import Client, Target

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@pytest.fixture
async def simulator() -> AsyncIterator[Simulator]:
    async with Simulator() as running:
        yield running


@pytest.fixture
async def client(simulator: Simulator) -> AsyncIterator[Client]:
    async with Client(simulator) as ready:
        yield ready


@pytest.fixture
async def target() -> AsyncIterator[Target]:
    target = Target()
    runner = web.ServerRunner(web.Server(target.hear))
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    target.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield target
    await runner.cleanup()
