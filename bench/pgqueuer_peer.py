"""
The best Python queue on Postgres we know, doing the same job: PgQueuer claims, aiohttp's client posts, PgQueuer
records.

It is given the tuned client of :mod:`bench.raw`, the sink, the Postgres and the bodies that everybody has, and
batches of 100; it paces nobody, has no doubts and keeps no dispatch log. Not one of our dependencies: run where it is
installed.

Run as ``python -m bench.pgqueuer_peer URL MESSAGES IN_FLIGHT DSN``; prints one JSON object.
"""

from __future__ import annotations

import gc
import sys
from dataclasses import replace
from importlib.util import find_spec
from typing import TYPE_CHECKING

import aiohttp
import asyncpg
import orjson
import uvloop
from yarl import URL

from bench.load import client, cpu_with_children_s, postmaster_pid, spent
from bench.messages import requests

if TYPE_CHECKING:
    from bench.load import Run, Sink
    from daemon.embedded import Server

BATCH = 100  # its best: 1,955 a second; with 500 it did 1,841, with its default of 10 less (facts: performance, B)
INSTALLED = find_spec("pgqueuer") is not None
HOW = "not installed; to have it beside us: python -m pip install pgqueuer"


async def drain(server: Server, sink: Sink, messages: int, in_flight: int, *, name: str) -> Run:
    """Let it work through *messages* in a fresh database *name*."""
    admin = await asyncpg.connect(server.dsn("postgres"))
    await admin.execute(f"CREATE DATABASE {name}")
    try:
        used = cpu_with_children_s(postmaster_pid(server))
        run = await client("pgqueuer_peer", sink, messages, in_flight, server.dsn(name))
        used = cpu_with_children_s(postmaster_pid(server)) - used
        return replace(run, cpu=run.cpu + used / messages * 1000)
    finally:
        await admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
        await admin.close()


async def run(url: str, messages: int, in_flight: int, dsn: str) -> None:
    """Enqueue *messages*, then post and record them all."""
    from pgqueuer.db import AsyncpgDriver  # type: ignore[import-not-found]
    from pgqueuer.models import Job  # type: ignore[import-not-found]  # noqa: TC002 (PgQueuer reads the annotation)
    from pgqueuer.qm import QueueManager  # type: ignore[import-not-found]
    from pgqueuer.queries import Queries  # type: ignore[import-not-found]
    from pgqueuer.types import QueueExecutionMode  # type: ignore[import-not-found]

    ready = requests(url, messages)
    target, headers = URL(ready[0].url, encoded=True), ready[0].headers
    connection = await asyncpg.connect(dsn)
    queries = Queries(AsyncpgDriver(connection))
    await queries.install()
    for first in range(0, messages, 1000):
        bodies = [request.body for request in ready[first : first + 1000]]
        await queries.enqueue(["send"] * len(bodies), list(bodies), [0] * len(bodies))
    manager = QueueManager(queries)
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=in_flight),
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=None),
        auto_decompress=False,
    ) as session:

        @manager.entrypoint("send")  # type: ignore[untyped-decorator]
        async def send(job: Job) -> None:
            async with session.post(target, data=job.payload, headers=headers, allow_redirects=False) as reply:
                if reply.status != 201:
                    raise SystemExit("the sink said no")
                orjson.loads(await reply.read())

        gc.collect()
        gc.freeze()
        gc.set_threshold(50_000, 50, 100)
        with spent(messages):
            most = max(in_flight, 2 * BATCH)
            await manager.run(batch_size=BATCH, mode=QueueExecutionMode.drain, max_concurrent_tasks=most)
    await connection.close()


if __name__ == "__main__":
    uvloop.run(run(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]))
