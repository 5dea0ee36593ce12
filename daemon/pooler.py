"""
Behind a transaction pooler, where the next transaction may run in any session.

Nothing outlives a transaction there: no prepared statement, no setting, no LISTEN. So each statement is sent as BEGIN,
with all its settings; itself; COMMIT. That is four round trips instead of one, and each statement is planned anew.

Nor does a connection tell any more which server answers: the pooler leads on to another one without a word. Who must
know of that (outbox.py: a standby may have been promoted) asks for it within each transaction.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import asyncpg

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    _Connection = asyncpg.Connection[asyncpg.Record]
else:
    _Connection = asyncpg.Connection

PROBES = 5  # which of its sessions a pooler lends out next is its own affair, and others may be quicker
SINCE = "SELECT pg_postmaster_start_time()::text AS since"
WHO = "SELECT pg_backend_pid() AS pid"
# As if the connection had been closed (57P01): to whoever asked it is the same.
_SAME = """; DO $$ BEGIN IF pg_postmaster_start_time() <> '{since}' THEN
RAISE 'another server answers than before' USING ERRCODE = 'admin_shutdown'; END IF; END $$"""
# What comes of a prepared statement whose session is another's now.
LOST_SESSION = (
    asyncpg.DuplicatePreparedStatementError,
    asyncpg.InvalidSQLStatementNameError,
    asyncpg.ProtocolViolationError,
)


class TransactionPooler(Exception):
    """A transaction pooler stands before Postgres, and the configuration does not say so."""

    def __init__(self, key: str = "url") -> None:
        super().__init__(
            f"[database] {key} leads through a transaction pooler (PgBouncer's pool_mode = transaction): "
            + ('say pooler = "transaction"' if key == "url" else "it must be a direct address, or none")
        )


class Passing(_Connection):
    """A connection whose statements each are a transaction of their own, with their settings in it."""

    __slots__ = ("_begin",)

    async def settle(self, settings: Mapping[str, str], *, wary: bool) -> None:
        """Each transaction has *settings* from now on; *wary*: and runs on the server that answers now."""
        # Else, when it asks for a type, the library turns jit off for the session: and that is another's next.
        self._server_caps: Any = self._server_caps._replace(jit=False)
        self._begin = "BEGIN; " + "; ".join(f"SET LOCAL {name} = '{value}'" for name, value in settings.items())
        if wary:
            self._begin += _SAME.format(since=await self.fetchval(SINCE))

    @asynccontextmanager
    async def within(self) -> AsyncIterator[None]:
        """A transaction, with the settings. Only one that Postgres itself has refused is rolled back in good order."""
        ended = False
        try:
            await self.execute(self._begin)
            yield
            await self.execute("COMMIT")
            ended = True
        except (asyncpg.PostgresError, asyncpg.InterfaceError):
            if not self.is_closed():
                await self.execute("ROLLBACK")
                ended = True
            raise
        finally:
            if not ended:  # timed out, cancelled, cut off: nobody knows where it stands
                self.terminate()

    async def fetch(self, query: str, *args: object, **options: Any) -> list[asyncpg.Record]:  # type: ignore[override]
        """Rows."""
        async with self.within():
            return await super().fetch(query, *args, **options)

    async def fetchrow(self, query: str, *args: object, **options: Any) -> asyncpg.Record | None:  # type: ignore[override]
        """One row, or none."""
        async with self.within():
            row: asyncpg.Record | None = await super().fetchrow(query, *args, **options)
            return row

    async def fetchval(self, query: str, *args: object, **options: Any) -> Any:
        """One value."""
        async with self.within():
            return await super().fetchval(query, *args, **options)


async def shares_sessions(dsn: str, *, timeout_s: float) -> bool:
    """Whether two connections to *dsn* meet in one session: then a transaction pooler stands between."""
    one = await asyncpg.connect(dsn, statement_cache_size=0, timeout=timeout_s, command_timeout=timeout_s)
    try:
        if one.get_server_pid() == await _session(one):
            return False  # nobody stands between
        other = await asyncpg.connect(dsn, statement_cache_size=0, timeout=timeout_s, command_timeout=timeout_s)
        try:
            ones, others = zip(*[(await _session(one), await _session(other)) for _ in range(PROBES)], strict=True)
            return len(set(ones)) > 1 or not set(ones).isdisjoint(others)
        finally:
            other.terminate()
    finally:
        one.terminate()


async def _session(connection: asyncpg.Connection[asyncpg.Record]) -> int:
    async with connection.transaction():
        pid: int = await connection.fetchval(WHO)
        return pid
