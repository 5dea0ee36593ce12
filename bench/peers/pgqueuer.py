"""
PgQueuer, the quickest queue on Postgres for Python that we know.

Run as ``python -m bench.peers.pgqueuer URL MESSAGES IN_FLIGHT DSN``; prints one JSON object.
"""

from __future__ import annotations

import sys

import asyncpg
import uvloop

from bench.load import spent
from bench.peers.client import Poster, calm

BATCH = 100  # its best: 1,955 a second; with 500 it did 1,841, with its default of 10 less (facts: performance, B)


async def run(url: str, messages: int, in_flight: int, dsn: str) -> None:
    """Enqueue *messages*, then post and record them all."""
    from pgqueuer.db import AsyncpgDriver  # type: ignore[import-not-found,unused-ignore]
    from pgqueuer.models import Job  # type: ignore[import-not-found,unused-ignore]  # noqa: TC002 (it is read)
    from pgqueuer.qm import QueueManager  # type: ignore[import-not-found,unused-ignore]
    from pgqueuer.queries import Queries  # type: ignore[import-not-found,unused-ignore]
    from pgqueuer.types import QueueExecutionMode  # type: ignore[import-not-found,unused-ignore]

    connection = await asyncpg.connect(dsn)
    queries = Queries(AsyncpgDriver(connection))
    await queries.install()
    async with Poster(url, messages, in_flight) as poster:
        bodies = poster.bodies
        for first in range(0, messages, 1000):
            some = bodies[first : first + 1000]
            await queries.enqueue(["send"] * len(some), list(some), [0] * len(some))
        manager = QueueManager(queries)

        @manager.entrypoint("send")  # type: ignore[untyped-decorator,unused-ignore]
        async def send(job: Job) -> None:
            await poster.post(job.payload or b"")

        calm()
        with spent(messages):
            most = max(in_flight, 2 * BATCH)
            await manager.run(batch_size=BATCH, mode=QueueExecutionMode.drain, max_concurrent_tasks=most)
    await connection.close()


if __name__ == "__main__":
    uvloop.run(run(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]))
