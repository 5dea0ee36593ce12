"""
The yardstick: aiohttp's client alone, tuned as far as it goes, posting the same bodies to the same sink.

Nothing is claimed, paced, judged or recorded.

Run as ``python -m bench.raw URL MESSAGES IN_FLIGHT``; prints one JSON object.
"""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING

import uvloop

from bench.load import spent
from bench.peers.client import Poster, calm

if TYPE_CHECKING:
    from collections.abc import Iterator


async def run(url: str, messages: int, in_flight: int) -> None:
    """Post *messages* times, *in_flight* at a time."""
    async with Poster(url, messages, in_flight) as poster:
        bodies = iter(poster.bodies)
        calm()
        with spent(messages):
            async with asyncio.TaskGroup() as group:
                for _ in range(in_flight):
                    group.create_task(_work(poster, bodies))


async def _work(poster: Poster, bodies: Iterator[bytes]) -> None:
    for body in bodies:
        await poster.post(body)


if __name__ == "__main__":
    uvloop.run(run(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
