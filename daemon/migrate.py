"""
The schema's steps: numbered plain SQL files, applied once each, forward only.

``sql/migrations/NNNN_name.sql`` runs whole in one transaction, together with the row in ``outrider.migration`` that
says so. A file whose first lines hold ``-- no-transaction`` runs statement by statement, for ``CREATE INDEX
CONCURRENTLY``: each statement ends with a semicolon at the end of a line and can be repeated (``IF NOT EXISTS``).

Several daemons may start at once, so one of them migrates at a time. The others *poll* ``pg_try_advisory_lock``: a
statement waiting in ``pg_advisory_lock`` holds a snapshot, ``CREATE INDEX CONCURRENTLY`` waits for every snapshot, and
the two deadlock (seen with four runners). The lock belongs to a session: migrate over a direct connection, not through
a transaction pooler.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import asyncpg

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping, Sequence

EXPECTED = range(8, 9)  # the schemas this code works with; the last is the last file (a test compares)
FOLDER = Path(__file__).parent / "sql" / "migrations"

LOCK = 0x6F75747269646572  # "outrider" in ASCII; advisory locks are per database
LOCK_POLL_S = 0.2
LOCK_PATIENCE_S = 3600.0  # an index over many weeks of messages takes long
LOCK_TIMEOUT = "5s"  # then a file gives up its place in a table's lock queue: whoever comes later stands behind it
LOCK_TIMEOUT_TRIES = 5
LOCK_TIMEOUT_PAUSE_S = 1.0
STEP_TIMEOUT_S = 6 * 3600.0

NO_TRANSACTION = re.compile(r"\A(?:--.*\n)*?-- no-transaction\b")
STATEMENT_END = re.compile(r";[ \t]*(?:--.*)?$", re.MULTILINE)
NAME = re.compile(r"(\d{4})_([a-z0-9_]+)\.sql")

MAKE_LIST = """
CREATE SCHEMA IF NOT EXISTS outrider;
CREATE TABLE IF NOT EXISTS outrider.migration (
    number      integer PRIMARY KEY,
    name        text NOT NULL,
    sha256      text NOT NULL,
    applied_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    took_ms     bigint NOT NULL
);
"""
HAS_LIST = "SELECT to_regclass('outrider.migration') IS NOT NULL"
READ_LIST = "SELECT number, sha256 FROM outrider.migration ORDER BY number"
RECORD = "INSERT INTO outrider.migration (number, name, sha256, took_ms) VALUES ($1, $2, $3, $4)"
# An index that a failed CONCURRENTLY left invalid costs every write and serves no read. Two kinds: one of ours, to be
# built again, and the half-built double of a rebuild (ccnew) or what it was to replace (ccold), to be dropped. One that
# is being built just now is invalid too. relkind 'i' leaves out indexes of partitioned tables, which are never built.
REPAIRS = """
SELECT format(CASE WHEN relname ~ '_cc(new|old)[0-9]*$' THEN 'DROP INDEX CONCURRENTLY %I.%I'
                   ELSE 'REINDEX INDEX CONCURRENTLY %I.%I' END, nspname, relname)
  FROM pg_catalog.pg_index
  JOIN pg_catalog.pg_class ON pg_class.oid = indexrelid
  JOIN pg_catalog.pg_namespace ON pg_namespace.oid = relnamespace
 WHERE nspname = 'outrider'
   AND relkind = 'i'
   AND NOT indisvalid
   AND NOT EXISTS (SELECT FROM pg_catalog.pg_stat_progress_create_index AS at_work
                    WHERE at_work.relid = indrelid AND at_work.datname = current_database())
 ORDER BY relname ~ '_cc(new|old)[0-9]*$' DESC, relname
"""


class SchemaError(Exception):
    """The schema is not one that this code knows, or cannot become one; the text says what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Migration:
    """One file, as it stands in the source."""

    number: int
    name: str
    sql: str

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.sql.encode()).hexdigest()

    @property
    def in_transaction(self) -> bool:
        return NO_TRANSACTION.match(self.sql) is None

    def __str__(self) -> str:
        return f"{self.number:04}_{self.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class SchemaState:
    """Where a database stands. ``current`` is the number of its last step, 0 if it has none."""

    current: int
    expected: range
    problem: str | None


async def check(connection: asyncpg.Connection[asyncpg.Record]) -> SchemaState:
    """Make sure that this code may work with this schema, or raise SchemaError. Writes nothing."""
    state = await look(connection)
    if state.problem is not None:
        raise SchemaError(state.problem)
    return state


async def look(
    connection: asyncpg.Connection[asyncpg.Record],
    *,
    folder: Path = FOLDER,
    expected: range = EXPECTED,
) -> SchemaState:
    """Where the schema stands, and what is wrong with it."""
    applied = await _applied(connection)
    current = max(applied, default=0)
    problem = _contradiction(read(folder), applied)
    if problem is None and current < expected.start:
        wanted = f"{expected.start:04}" if len(expected) == 1 else f"{expected.start:04} to {expected[-1]:04}"
        problem = f"the schema stands at {current:04}, this outrider needs {wanted}: run outrider migrate"
    return SchemaState(current=current, expected=expected, problem=problem)


async def migrate(
    connection: asyncpg.Connection[asyncpg.Record],
    *,
    report: Callable[[str], None],
    folder: Path = FOLDER,
) -> list[str]:
    """
    Apply what is missing; returns the names of the files applied, which is nothing if another runner was quicker.

    *report* hears one line for each file, and one when there is something to wait for.
    """
    files = read(folder)
    async with _alone(connection, report):
        async with connection.transaction():
            if not await connection.fetchval(HAS_LIST):
                await connection.execute(MAKE_LIST)
        applied = await _applied(connection)
        if problem := _contradiction(files, applied):
            raise SchemaError(problem)
        await _repair(connection, report)
        missing = [file for file in files if file.number not in applied]
        for file in missing:
            await _apply(connection, file, report)
    return [str(file) for file in missing]


def read(folder: Path) -> Sequence[Migration]:
    """Read the files of *folder*, in order. Numbers go up from 1 without a gap."""
    files = []
    for number, path in enumerate(sorted(folder.glob("*.sql")), start=1):
        match = NAME.fullmatch(path.name)
        if match is None or int(match[1]) != number:
            raise SchemaError(f"{path.name}: expected a file named {number:04}_some_name.sql")
        files.append(Migration(number=number, name=match[2], sql=path.read_text(encoding="utf-8")))
    return files


async def _applied(connection: asyncpg.Connection[asyncpg.Record]) -> Mapping[int, str]:
    if not await connection.fetchval(HAS_LIST):
        return {}
    return {row["number"]: row["sha256"] for row in await connection.fetch(READ_LIST)}


def _contradiction(files: Sequence[Migration], applied: Mapping[int, str]) -> str | None:
    """Say how the database's past differs from the one in our files, if it does."""
    latest = len(files)
    if applied and max(applied) > latest:
        return f"the schema stands at {max(applied):04}, this outrider knows {latest:04}: install the newer outrider"
    for file in files:
        if file.number in applied and applied[file.number] != file.sha256:
            return f"{file} was changed after it was applied: a step is never edited, write a new one"
        if file.number not in applied and any(number > file.number for number in applied):
            return f"{file} was never applied, though later steps were: the list in outrider.migration is damaged"
    return None


@asynccontextmanager
async def _alone(
    connection: asyncpg.Connection[asyncpg.Record],
    report: Callable[[str], None],
) -> AsyncIterator[None]:
    """Be the only runner of this database."""
    deadline = time.monotonic() + LOCK_PATIENCE_S
    told = False
    while not await connection.fetchval("SELECT pg_try_advisory_lock($1)", LOCK):
        if not told:
            report("waiting: another outrider is migrating this database")
            told = True
        if time.monotonic() > deadline:
            raise SchemaError(f"another outrider has been migrating this database for {LOCK_PATIENCE_S / 60:.0f} min")
        await asyncio.sleep(LOCK_POLL_S)
    try:
        yield
    finally:
        if not connection.is_closed():
            await connection.execute("SELECT pg_advisory_unlock($1)", LOCK)


async def _apply(
    connection: asyncpg.Connection[asyncpg.Record],
    file: Migration,
    report: Callable[[str], None],
) -> None:
    began = time.monotonic()
    try:
        if file.in_transaction:
            await _apply_whole(connection, file, report)
        else:
            await _apply_in_steps(connection, file)
            await connection.execute(RECORD, file.number, file.name, file.sha256, _since(began))
    except asyncpg.PostgresError as error:
        where = f" ({error.context})" if getattr(error, "context", None) else ""
        raise SchemaError(f"{file} failed and was not recorded: {error}{where}") from error
    report(f"{file} applied in {_since(began)} ms")


async def _apply_whole(
    connection: asyncpg.Connection[asyncpg.Record],
    file: Migration,
    report: Callable[[str], None],
) -> None:
    for tries_left in reversed(range(LOCK_TIMEOUT_TRIES)):
        began = time.monotonic()
        try:
            async with connection.transaction():
                await connection.execute("SELECT set_config('lock_timeout', $1, true)", LOCK_TIMEOUT)
                await connection.execute("SET LOCAL statement_timeout = 0")
                await connection.execute(file.sql, timeout=STEP_TIMEOUT_S)
                if not connection.is_in_transaction():
                    raise SchemaError(f"{file} ends the transaction it runs in: part of it may stay if it fails")
                await connection.execute(RECORD, file.number, file.name, file.sha256, _since(began))
        except asyncpg.LockNotAvailableError:
            if not tries_left:
                raise
            report(f"{file} waits for a table that is in use")
            await asyncio.sleep(LOCK_TIMEOUT_PAUSE_S)
        else:
            return


async def _apply_in_steps(connection: asyncpg.Connection[asyncpg.Record], file: Migration) -> None:
    """If one fails, the next run begins the file again, after repairing what this one left (see REPAIRS)."""
    for statement in STATEMENT_END.split(file.sql):
        if any(line.strip() and not line.lstrip().startswith("--") for line in statement.splitlines()):
            await connection.execute(statement, timeout=STEP_TIMEOUT_S)


async def _repair(connection: asyncpg.Connection[asyncpg.Record], report: Callable[[str], None]) -> None:
    """Rebuild or drop what a failed CONCURRENTLY left behind."""
    for row in await connection.fetch(REPAIRS):
        report(f"an index was left unfinished: {row[0]}")
        try:
            await connection.execute(row[0], timeout=STEP_TIMEOUT_S)
        except asyncpg.PostgresError as error:
            raise SchemaError(f"{row[0]} failed: {error}") from error


def _since(began: float) -> int:
    return round((time.monotonic() - began) * 1000)
