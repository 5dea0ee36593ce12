"""
The best Python queue on Postgres we know, doing the same job: PgQueuer claims, aiohttp's client posts, PgQueuer records.

It is given the tuned client of :mod:`bench.raw`, the sink, the Postgres and the bodies that everybody has, and batches of
500; it paces nobody, has no doubts and keeps no dispatch log. Not one of our dependencies: run where it is installed.

Run as ``python -m bench.pgqueuer_peer DSN URL MESSAGES IN_FLIGHT``; prints one JSON object.
"""

from __future__ import annotations

import asyncio
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

from bench.load import client, cpu_with_children_s, postmaster, spent
from bench.messages import requests

if TYPE_CHECKING:
    from bench.load import Run, Sink
    from daemon.embedded import Server

BATCH = 500  # 100 were not slower; 10 were
INSTALLED = find_spec("pgqueuer") is not None
HOW = "not installed; to have it beside us: python -m pip install pgqueuer"


async def drain(server: Server, sink: Sink, messages: int, in_flight: int, *, name: str) -> Run:
    """Let it work through *messages* in a fresh database *name*."""
    admin = await asyncpg.connect(server.dsn("postgres"))
    await admin.execute(f"CREATE DATABASE {name}")
    try:
        used = cpu_with_children_s(postmaster(server))
        run = await client("pgqueuer_peer", sink, messages, in_flight, before=[server.dsn(name)])
        used = cpu_with_children_s(postmaster(server)) - used
        return replace(run, cpu=run.cpu + used / messages * 1000)
    finally:
        await admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
        await admin.close()
