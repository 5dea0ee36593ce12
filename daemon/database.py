"""
Postgres: one connection for one purpose, statements by name, trouble retried in one place.

A *line* is one connection that comes back by itself. There are four (claims, settlements, receipts, everything else),
so that no message waits for a commit it does not need. Statements live in ``sql/*.sql``; a line prepares those it is
given when it connects, so that a wrong schema fails at the start and not at two in the morning.
"""

from __future__ import annotations

import asyncio
import re
import time
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any

import asyncpg
import orjson
import structlog

from daemon.pooler import LOST_SESSION, Passing, TransactionPooler, shares_sessions

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from asyncpg.prepared_stmt import PreparedStatement

log = structlog.get_logger()

CONNECT_TIMEOUT_S = 5.0
STATEMENT_TIMEOUT_S = 15.0
ROOM_S = 5.0  # a disk is called full until no statement has found it so for so long: one that writes nothing never does
RETRY_MIN_S, RETRY_MAX_S = 0.1, 1.0  # a database that is back is used within a second

# A generic plan, and no way to leave the indexes: on a table analysed at a bad moment the planner took a sequential
# scan inside a nested loop, 6 times the CPU (docs/decisions/0001). tests/sql/test_plans.py holds it under hostile
# statistics.
HOT_SETTINGS: Mapping[str, str] = {
    "plan_cache_mode": "force_generic_plan",
    "enable_seqscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    "enable_bitmapscan": "off",  # and no gathering of a whole backlog to sort it, where an index has the order
    "enable_sort": "off",
    "jit": "off",
}
SETTINGS: Mapping[str, str] = {"application_name": "outrider", "timezone": "UTC", "jit": "off"}
# Postgres's own limits, for what nobody on this side waits for any more: a statement whose daemon was killed or cut off
# must not stand in a lock queue with others behind it. Longer than ours, which end a wait that is still wanted. Set by
# the session, not on the role outrider_daemon: a role's settings do not reach the users it is granted to.
LIMITS: Mapping[str, str] = {
    "statement_timeout": "20s",
    "lock_timeout": "10s",
    "idle_in_transaction_session_timeout": "5s",
}

SET = "SELECT set_config(name, value, false) FROM unnest($1::text[], $2::text[]) AS setting (name, value)"

# Not our fault and not for ever: the connection is gone or the server is busy with itself. Everything else is a bug.
DOWN = (
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.CannotConnectNowError,
    asyncpg.TooManyConnectionsError,
    asyncpg.InsufficientResourcesError,
    asyncpg.ReadOnlySQLTransactionError,
    asyncpg.QueryCanceledError,
    asyncpg.LockNotAvailableError,
    asyncpg.SerializationError,
    asyncpg.DeadlockDetectedError,
    asyncpg.InvalidCachedStatementError,  # a migration has changed what a statement returns: prepare it again
    OSError,
    TimeoutError,
)
# The connection outlived these: the statement failed, not the line.
_STILL_UP = (
    asyncpg.QueryCanceledError,
    asyncpg.LockNotAvailableError,
    asyncpg.SerializationError,
    asyncpg.DeadlockDetectedError,
    asyncpg.DiskFullError,
)


_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")  # what Postgres refuses in a text
WORDS_MAX = 512  # characters of what somebody else says in one field


class DatabaseDown(Exception):
    """Postgres cannot be asked at the moment; whether a write took effect is unknown. Ask again."""


def storable(text: str | None) -> str | None:
    """*text* as a table takes it: cut short, without what Postgres refuses."""
    if text is None or (len(text) <= WORDS_MAX and text.isprintable()):
        return text
    return _UNSTORABLE.sub("\N{REPLACEMENT CHARACTER}", text[:WORDS_MAX])


@cache
def statement(name: str) -> str:
    """The SQL of ``sql/<name>.sql``."""
    return resources.files("daemon").joinpath("sql", f"{name}.sql").read_text(encoding="utf-8")


class Line:
    """One connection for one purpose. One statement at a time; whoever comes meanwhile waits."""

    def __init__(
        self,
        name: str,
        dsn: str,
        *,
        statements: Sequence[str],
        pooled: bool = False,
        hot: bool = False,
        wary: bool = False,
    ) -> None:
        self.name = name
        # What answers after a connection was lost may be another database: a wary line runs no statement of its own on
        # it, whoever it was that met the loss, until somebody has asked around and vouches for it.
        self._wary = wary
        self.losses = self._vouched = 0
        self._dsn = dsn
        self._pooled = pooled
        self._settings = {**SETTINGS, **LIMITS, **(HOT_SETTINGS if hot else {})}
        self._statements = tuple(statements)
        self._prepared: dict[str, PreparedStatement[asyncpg.Record]] = {}
        self._connection: asyncpg.Connection[asyncpg.Record] | None = None
        self._lock = asyncio.Lock()
        self.up = False  # whether the last statement reached Postgres
        self.full: str | None = None  # the statement for which Postgres has no room on its disk, until it has
        self._full_at = 0.0

    async def fetch(self, name: str, *arguments: object) -> list[asyncpg.Record]:
        """Run statement *name* in a transaction of its own. Raises DatabaseDown."""
        async with self._lock:
            if self._wary and self._vouched != self.losses:
                raise DatabaseDown(f"{self.name}: nobody vouches yet for what answers there now")
            try:
                connection = await self._connect()
                if self._pooled:
                    rows = await connection.fetch(statement(name), *arguments, timeout=STATEMENT_TIMEOUT_S)
                else:
                    rows = await self._prepared[name].fetch(*arguments, timeout=STATEMENT_TIMEOUT_S)
            except LOST_SESSION as lost:
                await self._hang_up()
                raise TransactionPooler from lost
            except DOWN as trouble:
                await self._failed(trouble, name)
                raise DatabaseDown(f"{self.name}: {type(trouble).__name__}: {trouble}") from trouble
            if self.full == name and time.monotonic() - self._full_at > ROOM_S:
                log.info("database.roomy", line=self.name)
                self.full = None
            return rows

    async def ask(self, query: str, *arguments: object) -> list[asyncpg.Record]:
        """Run *query*, which is not worth preparing. Raises DatabaseDown."""
        async with self._lock:
            try:
                connection = await self._connect()
                return await connection.fetch(query, *arguments, timeout=STATEMENT_TIMEOUT_S)
            except DOWN as trouble:
                await self._failed(trouble)
                raise DatabaseDown(f"{self.name}: {type(trouble).__name__}: {trouble}") from trouble

    def vouch(self, losses: int) -> None:
        """What answers since so many losses is the database that is meant."""
        self._vouched = losses

    async def close(self) -> None:
        """Hang up."""
        async with self._lock:
            self.up = False
            await self._hang_up()

    async def _connect(self) -> asyncpg.Connection[asyncpg.Record]:
        if self._connection is not None:
            if not self._connection.is_closed():
                return self._connection
            if self._wary:
                raise asyncpg.ConnectionDoesNotExistError("it was closed while nobody was asking")
        connection = await connect(self._dsn, self._settings, pooled=self._pooled, wary=self._wary)
        try:
            if type(connection) is Passing:  # to isinstance() the library says yes of every connection
                async with connection.within():  # kept by nobody: that they can be
                    for name in self._statements:
                        await connection.prepare(statement(name))
            else:
                self._prepared = {name: await connection.prepare(statement(name)) for name in self._statements}
            self._connection = connection
        finally:
            if self._connection is not connection:
                connection.terminate()
        self.up = True
        return connection

    async def _failed(self, trouble: BaseException, name: str | None = None) -> None:
        if isinstance(trouble, asyncpg.DiskFullError) and name is not None:
            if self.full is None:
                log.error("database.full", line=self.name, error=str(trouble), hint="trying again until there is room")
            self.full, self._full_at = name, time.monotonic()
        if isinstance(trouble, _STILL_UP):
            return
        if self.up:
            log.warning("database.lost", line=self.name, error=type(trouble).__name__)
        self.up = False
        await self._hang_up()

    async def _hang_up(self) -> None:
        connection, self._connection, self._prepared = self._connection, None, {}
        if connection is not None:
            self.losses += 1
            connection.terminate()


async def connect(
    dsn: str, settings: Mapping[str, str] = SETTINGS, *, pooled: bool = False, wary: bool = False
) -> asyncpg.Connection[asyncpg.Record]:
    """A connection as every part of Outrider wants it: UTC, JSON by orjson, a bounded wait."""
    connection: asyncpg.Connection[asyncpg.Record] = await asyncpg.connect(
        dsn,
        timeout=CONNECT_TIMEOUT_S,
        command_timeout=STATEMENT_TIMEOUT_S,
        statement_cache_size=0 if pooled else 100,  # 100 is the library's own
        connection_class=Passing if pooled else asyncpg.Connection,
    )
    try:
        if type(connection) is Passing:
            await connection.settle(settings, wary=wary)
        else:
            # Not in the startup packet: a pooler refuses what it does not know there, or drops it without a word.
            await connection.execute(SET, list(settings), list(settings.values()))
        await connection.set_type_codec("jsonb", schema="pg_catalog", encoder=_dumps, decoder=_loads)
    except BaseException:
        connection.terminate()
        raise
    return connection


async def dial(dsn: str, *, pooled: bool = False) -> asyncpg.Connection[asyncpg.Record]:
    """A connection of one's own, for once. Raises DatabaseDown."""
    try:
        return await connect(dsn, pooled=pooled)
    except DOWN as trouble:
        raise DatabaseDown(f"{type(trouble).__name__}: {trouble}") from trouble


async def as_said(dsn: str, *, pooled: bool, listen: str | None) -> None:
    """Are the addresses what the configuration says of them? Raises TransactionPooler or DatabaseDown."""
    try:
        if not pooled and await shares_sessions(dsn, timeout_s=CONNECT_TIMEOUT_S):
            raise TransactionPooler
        if listen is not None and await shares_sessions(listen, timeout_s=CONNECT_TIMEOUT_S):
            raise TransactionPooler("listen_url")
    except DOWN as trouble:
        raise DatabaseDown(f"{type(trouble).__name__}: {trouble}") from trouble


class Ear:
    """Listens for NOTIFY on a connection of its own; where it cannot, polling goes on without it."""

    def __init__(self, dsn: str, heard: Callable[[], None]) -> None:
        self._dsn = dsn
        self._heard = heard
        self.name = "ear"

    async def run(self, stop: asyncio.Event) -> None:
        """Listen until *stop*, dialling again whenever the connection is lost."""
        pause = RETRY_MIN_S
        while not stop.is_set():
            try:
                connection = await connect(self._dsn)
                try:
                    lost = asyncio.Event()
                    connection.add_termination_listener(lambda _connection, lost=lost: lost.set())
                    await connection.add_listener("outrider", lambda *_notice: self._heard())
                    self._heard()
                    pause = RETRY_MIN_S
                    await first_of(lost, stop)
                finally:
                    connection.terminate()
            except DOWN:
                await sleep_unless(stop, pause)
                pause = min(pause * 2, RETRY_MAX_S)


async def sleep_unless(stop: asyncio.Event, seconds: float) -> bool:
    """Sleep for *seconds*, or until *stop*; whether it was *stop*."""
    try:
        async with asyncio.timeout(seconds):
            await stop.wait()
    except TimeoutError:
        return False
    return True


async def first_of(*events: asyncio.Event) -> None:
    """Return when any of *events* is set."""
    waiting = [asyncio.ensure_future(event.wait()) for event in events]
    try:
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in waiting:
            task.cancel()


def _dumps(value: Any) -> str:
    return orjson.dumps(value).decode()


def _loads(text: str) -> object:
    """What Postgres has stored, and our reader cannot read (too deep, or a number no float can hold), stays a text."""
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return text


def as_object(variables: str | None) -> object:
    """The variables of a row, which come as text: no number an application can write may fail a whole claim."""
    if variables is None:
        return None
    try:
        return orjson.loads(variables)
    except orjson.JSONDecodeError:  # Postgres takes numbers no float can hold
        return "not readable as JSON"
