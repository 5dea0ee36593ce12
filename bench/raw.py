"""
The yardstick: aiohttp's client alone, tuned as far as it goes, posting the same bodies to the same sink.

Bytes as body, URL and headers made beforehand, no cookies, no decompression, no deadline, answers parsed by orjson,
and the collector calmed as the daemon calms its own. Nothing is claimed, paced, judged or recorded.

Run as ``python -m bench.raw URL MESSAGES IN_FLIGHT``; prints one JSON object.
"""

from __future__ import annotations

import asyncio
import gc
import sys

import aiohttp
import orjson
import uvloop
from yarl import URL

from bench.load import spent
from bench.messages import requests


async def run(url: str, messages: int, in_flight: int) -> None:
    """Post *messages* times, *in_flight* at a time."""
    ready = requests(url, messages)
    target, headers = URL(ready[0].url, encoded=True), ready[0].headers
    bodies = iter([request.body for request in ready])

    async def worker(session: aiohttp.ClientSession) -> None:
        for body in bodies:
            async with session.post(target, data=body, headers=headers, allow_redirects=False) as reply:
                if reply.status != 201:
                    raise SystemExit("the sink said no")
                orjson.loads(await reply.read())

    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=in_flight),
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=None),
        auto_decompress=False,
    ) as session:
        gc.collect()
        gc.freeze()
        gc.set_threshold(50_000, 50, 100)
        with spent(messages):
            async with asyncio.TaskGroup() as group:
                for _ in range(in_flight):
                    group.create_task(worker(session))


if __name__ == "__main__":
    uvloop.run(run(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
