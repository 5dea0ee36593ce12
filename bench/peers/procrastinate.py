"""
Procrastinate, the most used queue on Postgres for asyncio.

Run as ``python -m bench.peers.procrastinate URL MESSAGES IN_FLIGHT DSN``; prints one JSON object.
"""

from __future__ import annotations

import logging
import sys

import uvloop

from bench.load import spent
from bench.peers.client import Poster, calm


async def run(url: str, messages: int, in_flight: int, dsn: str) -> None:
    """Enqueue *messages*, then post and record them all."""
    from procrastinate import App, PsycopgConnector  # type: ignore[import-not-found,unused-ignore]

    logging.disable(logging.WARNING)  # it would rather be told where it lives
    app = App(connector=PsycopgConnector(conninfo=dsn, min_size=4, max_size=20))
    async with Poster(url, messages, in_flight) as poster, app.open_async():

        @app.task(name="send")  # type: ignore[untyped-decorator,unused-ignore]
        async def send(body: str) -> None:
            await poster.post(body.encode("ascii"))

        await app.schema_manager.apply_schema_async()
        bodies = poster.bodies
        for first in range(0, messages, 1000):
            await send.batch_defer_async(*({"body": body.decode("ascii")} for body in bodies[first : first + 1000]))
        calm()
        with spent(messages):
            await app.run_worker_async(wait=False, concurrency=in_flight, install_signal_handlers=False)


if __name__ == "__main__":
    uvloop.run(run(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]))
