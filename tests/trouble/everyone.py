"""Behaviours of the catalogue, each on a port of its own, in a process of its own: says where, and serves until killed."""

from __future__ import annotations

import asyncio
import json
import sys
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tests.shell.peer import serving
from tests.shell.test_catalogue import CATALOGUE, YES

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from tests.shell.peer import Caller, Script


@asynccontextmanager
async def everyone(*names: str) -> AsyncIterator[Mapping[str, str]]:
    """The behaviours *names*, and the URL of each."""
    root = Path(__file__).parents[2]
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.trouble.everyone", *names, cwd=root, stdout=asyncio.subprocess.PIPE
    )
    assert child.stdout is not None
    try:
        yield json.loads(await child.stdout.readline())
    finally:
        child.kill()
        await child.wait()


async def healthy(caller: Caller) -> None:
    """A provider as one would wish, 50 ms away."""
    while await caller.request():
        await asyncio.sleep(0.05)
        caller.say(YES)


async def serve(scripts: Mapping[str, Script], names: list[str]) -> None:
    async with AsyncExitStack() as stack:
        urls = {name: (await stack.enter_async_context(serving(scripts[name]))).url for name in names}
        sys.stdout.write(json.dumps(urls) + "\n")
        sys.stdout.flush()
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(serve({**{name: script for name, (script, _) in CATALOGUE.items()}, "healthy": healthy}, sys.argv[1:]))
