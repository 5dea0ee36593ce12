"""
The loop that every article on queues in Postgres shows: lock a row with SKIP LOCKED, do the work, mark it, commit.

Each worker has a connection of its own and holds its transaction while the provider answers.

Run as ``python -m bench.peers.naive URL MESSAGES IN_FLIGHT DSN``; prints one JSON object.
"""

from __future__ import annotations

import asyncio
import sys

import asyncpg
import uvloop

from bench.load import spent
from bench.peers.client import Poster, calm

WORKERS = 32  # connections; a server has a hundred
SCHEMA = """
    CREATE TABLE job (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, body bytea NOT NULL,
                      status text NOT NULL DEFAULT 'queued', created_at timestamptz NOT NULL DEFAULT now());
    CREATE INDEX job_queued ON job (created_at) WHERE status = 'queued';
"""
TAKE = "SELECT id, body FROM job WHERE status = 'queued' ORDER BY created_at LIMIT 1 FOR UPDATE SKIP LOCKED"
DONE = "UPDATE job SET status = 'sent' WHERE id = $1"


async def run(url: str, messages: int, in_flight: int, dsn: str) -> None:
    """Insert *messages*, then post and record them all."""
    workers = min(WORKERS, in_flight)
    async with Poster(url, messages, workers) as poster:
        connections = [await asyncpg.connect(dsn) for _ in range(workers)]
        await connections[0].execute(SCHEMA)
        await connections[0].copy_records_to_table("job", records=[(one,) for one in poster.bodies], columns=["body"])
        await connections[0].execute("ANALYZE job")
        calm()
        with spent(messages):
            async with asyncio.TaskGroup() as group:
                for connection in connections:
                    group.create_task(_work(connection, poster))
        for connection in connections:
            await connection.close()


async def _work(connection: asyncpg.Connection[asyncpg.Record], poster: Poster) -> None:
    while True:
        async with connection.transaction():
            job = await connection.fetchrow(TAKE)
            if job is None:
                return
            await poster.post(job["body"])
            await connection.execute(DONE, job["id"])


if __name__ == "__main__":
    uvloop.run(run(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]))
