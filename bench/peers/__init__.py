"""
What a user would otherwise pick, doing the same job: claim in Postgres, post with aiohttp's client, record.

All but Celery, which neither awaits nor records, are given the tuned client of :mod:`bench.peers.client`; all have the
sink, the Postgres and the bodies that everybody has. None of them paces a sender, has doubts, or keeps a dispatch log.
None is one of our dependencies: each runs where it is installed (``make bench`` sees to the packages).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib.util import find_spec
from shutil import which
from typing import TYPE_CHECKING

from bench.load import client, cpu_with_children_s, database, postmaster_pid

if TYPE_CHECKING:
    from bench.load import Run, Sink
    from daemon.embedded import Server


@dataclass(frozen=True, slots=True)
class Peer:
    """One of them: its key in the ratios, how people call it, and at most how many messages it is given."""

    key: str
    name: str
    messages_max: int
    needs: str | None = None  # a package that is not ours
    program: str | None = None  # and a program

    @property
    def installed(self) -> bool:
        """Whether it can run here."""
        found = self.needs is None or find_spec(self.needs) is not None
        return found and (self.program is None or which(self.program) is not None)

    async def drain(self, server: Server, sink: Sink, messages: int, in_flight: int, *, name: str) -> Run:
        """Let it work through its messages in a fresh database *name*; its Postgres counts as its own."""
        count = min(messages, self.messages_max)
        async with database(server, name) as dsn:
            used = cpu_with_children_s(postmaster_pid(server))
            run = await client(f"peers.{self.key}", sink, count, in_flight, dsn)
            used = cpu_with_children_s(postmaster_pid(server)) - used
        return replace(run, cpu=run.cpu + used / count * 1000)


# The slow ones are given fewer, lest everybody wait for them: a rate is a rate.
PEERS = (
    Peer("pgqueuer", "PgQueuer + aiohttp", 100_000, "pgqueuer"),
    Peer("naive", "a loop with SKIP LOCKED", 5_000),
    Peer("procrastinate", "Procrastinate + aiohttp", 2_000, "procrastinate"),
    Peer("celery", "Celery + Redis", 2_000, "celery", "redis-server"),
)
