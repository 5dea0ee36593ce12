"""
What the tests of the SQL ask for: daemons to act as, and applications to insert as.

One database serves a whole file and is emptied after each test: 2 ms against 0.3 s for a database of one's own.
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import asyncpg
import pytest
import pytest_asyncio
import uvloop

from tests.sql.actor import GROUP, Actor

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
    from uuid import UUID

    from tests.conftest import Cluster

EMPTY = """
DELETE FROM outrider.outbox; DELETE FROM outrider.queue; DELETE FROM outrider.claim; DELETE FROM outrider.outcome;
DELETE FROM outrider.attempt; DELETE FROM outrider.receipt; DELETE FROM outrider.inbound; DELETE FROM outrider.idempotency;
DELETE FROM outrider.suppression; DELETE FROM outrider.pause; DELETE FROM outrider.signal; DELETE FROM outrider.lease;
DELETE FROM outrider.instance; DELETE FROM outrider.home; DELETE FROM outrider.straggler;
DELETE FROM outrider.parked; DELETE FROM outrider.anomaly; DELETE FROM outrider.page; DELETE FROM outrider.tally;
UPDATE outrider.progress SET upto = '00000000-0000-0000-0000-000000000000', block = 0;
"""


@pytest.fixture(scope="module")
def shared_database(postgres: Cluster) -> Iterator[tuple[str, asyncio.Runner, asyncpg.Connection[asyncpg.Record]]]:
    """One database of the file, and a connection to empty it with."""
    name = postgres.clone()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        connection = runner.run(asyncpg.connect(postgres.server.dsn(name)))
        yield postgres.server.dsn(name), runner, connection
        runner.run(connection.close())
    postgres.drop(name)


@pytest.fixture
def database(shared_database: tuple[str, asyncio.Runner, asyncpg.Connection[asyncpg.Record]]) -> Iterator[str]:
    """The DSN of a migrated database without a message in it."""
    dsn, runner, connection = shared_database
    yield dsn
    runner.run(connection.execute(EMPTY))


@pytest_asyncio.fixture
async def own(postgres: Cluster) -> AsyncIterator[Callable[..., Awaitable[asyncpg.Connection[asyncpg.Record]]]]:
    """Opens connections to a database of the test's own: it may change the schema."""
    name = await asyncio.to_thread(postgres.clone)
    async with AsyncExitStack() as stack:

        async def open_one(**settings: str) -> asyncpg.Connection[asyncpg.Record]:
            connection = await asyncpg.connect(postgres.server.dsn(name), server_settings=settings)
            stack.push_async_callback(connection.close)
            return connection

        yield open_one
    await asyncio.to_thread(postgres.drop, name)


@pytest_asyncio.fixture
async def actor(database: str) -> AsyncIterator[Actor]:
    """A daemon that holds the lease of its group."""
    actor = await Actor.enter(database)
    yield actor
    await actor.leave()


@pytest_asyncio.fixture
async def enter(database: str) -> AsyncIterator[Callable[..., Awaitable[Actor]]]:
    """Lets one more daemon enter; arguments as of Actor.enter."""
    async with AsyncExitStack() as stack:

        async def one_more(*, owner: UUID | None = None, group: str = GROUP, leased: bool = True) -> Actor:
            actor = await Actor.enter(database, owner=owner, group=group, leased=leased)
            stack.push_async_callback(actor.leave)
            return actor

        yield one_more


@pytest_asyncio.fixture
async def another(database: str) -> AsyncIterator[Callable[[], Awaitable[asyncpg.Connection[asyncpg.Record]]]]:
    """Opens one more plain connection to the same database."""
    async with AsyncExitStack() as stack:

        async def open_one() -> asyncpg.Connection[asyncpg.Record]:
            connection = await asyncpg.connect(database)
            stack.push_async_callback(connection.close)
            return connection

        yield open_one
