"""What the tests of the whole road ask for: a stage in a folder and a database of its own."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import pytest_asyncio

from tests.road.stage import Cast, Stage

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    from daemon.simulator import Faults


@pytest_asyncio.fixture
async def stage(tmp_path: Path, database: str) -> AsyncIterator[Callable[..., Awaitable[Stage]]]:
    """Sets a stage for a cast; the daemon is not started yet."""
    async with AsyncExitStack() as stack:

        async def set_up(cast: Cast, faults: Faults | None = None) -> Stage:
            return await stack.enter_async_context(Stage.set_up(cast, tmp_path, database, faults=faults))

        yield set_up
