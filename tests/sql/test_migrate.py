from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import asyncpg
import pytest

from daemon import migrate as migration
from daemon.migrate import EXPECTED, FOLDER, SchemaError, check, look, migrate, read

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

pytestmark = pytest.mark.every_postgres

CONCURRENTLY = """-- An index that is built while others write.
-- no-transaction

CREATE INDEX CONCURRENTLY IF NOT EXISTS fruit_name ON outrider.fruit (name);  -- the first
CREATE UNIQUE INDEX CONCURRENTLY IF NOT EXISTS fruit_weight
    ON outrider.fruit (weight);
"""
INVALID = "SELECT count(*) FROM pg_index WHERE NOT indisvalid AND indrelid = 'outrider.fruit'::regclass"


class Steps:
    """A folder of migrations, written as a test goes along."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.told: list[str] = []

    def write(self, name: str, sql: str) -> None:
        (self.folder / f"{name}.sql").write_text(sql)

    async def migrate(self, connection: asyncpg.Connection[asyncpg.Record]) -> list[str]:
        return await migrate(connection, report=self.told.append, folder=self.folder)


@pytest.fixture
def steps(tmp_path: Path) -> Steps:
    steps = Steps(tmp_path)
    steps.write("0001_fruit", "CREATE TABLE outrider.fruit (name text, weight integer);")
    return steps


@pytest.fixture
async def empty(empty_database: str) -> AsyncIterator[asyncpg.Connection[asyncpg.Record]]:
    connection = await asyncpg.connect(empty_database)
    yield connection
    await connection.close()


async def applied(connection: asyncpg.Connection[asyncpg.Record]) -> list[int]:
    return [row["number"] for row in await connection.fetch("SELECT number FROM outrider.migration ORDER BY number")]


async def test_the_shipped_schema_is_the_one_expected(connection: asyncpg.Connection[asyncpg.Record]) -> None:
    state = await check(connection)
    assert (state.current, state.problem) == (EXPECTED[-1], None)
    assert EXPECTED[-1] == len(read(FOLDER)), "a new migration: raise EXPECTED in daemon/migrate.py"
    assert await migrate(connection, report=print) == []


async def test_an_empty_database_is_told_to_migrate(empty: asyncpg.Connection[asyncpg.Record]) -> None:
    with pytest.raises(SchemaError, match=r"stands at 0000, .* run outrider migrate"):
        await check(empty)
    assert await empty.fetchval("SELECT to_regnamespace('outrider')") is None


async def test_each_step_is_applied_once_and_recorded(empty: asyncpg.Connection[asyncpg.Record], steps: Steps) -> None:
    steps.write(
        "0002_apple", "INSERT INTO outrider.fruit VALUES ('apple', 100); INSERT INTO outrider.fruit VALUES ('fig')"
    )
    assert await steps.migrate(empty) == ["0001_fruit", "0002_apple"]
    steps.write("0003_pear", "INSERT INTO outrider.fruit VALUES ('pear', 200);")
    assert await steps.migrate(empty) == ["0003_pear"]
    assert await steps.migrate(empty) == []
    assert await empty.fetchval("SELECT count(*) FROM outrider.fruit") == 3
    assert await applied(empty) == [1, 2, 3]
    assert [line.partition(" in ")[0] for line in steps.told] == [
        "0001_fruit applied",
        "0002_apple applied",
        "0003_pear applied",
    ]


async def test_a_step_that_fails_halfway_leaves_nothing(
    empty: asyncpg.Connection[asyncpg.Record], steps: Steps
) -> None:
    steps.write("0002_half", "INSERT INTO outrider.fruit VALUES ('half');\nSELECT 1 / 0;")
    with pytest.raises(SchemaError, match="0002_half failed and was not recorded: division by zero"):
        await steps.migrate(empty)
    assert await applied(empty) == [1]
    assert await empty.fetchval("SELECT count(*) FROM outrider.fruit") == 0
    steps.write("0002_half", "INSERT INTO outrider.fruit VALUES ('whole');")
    assert await steps.migrate(empty) == ["0002_half"]


async def test_a_step_may_not_end_its_transaction(empty: asyncpg.Connection[asyncpg.Record], steps: Steps) -> None:
    steps.write("0002_commit", "INSERT INTO outrider.fruit VALUES ('half'); COMMIT;")
    with pytest.raises(SchemaError, match="0002_commit ends the transaction"):
        await steps.migrate(empty)
    assert await applied(empty) == [1]


async def test_a_step_changed_after_it_was_applied_is_refused(
    empty: asyncpg.Connection[asyncpg.Record], steps: Steps
) -> None:
    await steps.migrate(empty)
    steps.write("0001_fruit", "CREATE TABLE outrider.fruit (name text, weight bigint);")
    with pytest.raises(SchemaError, match="0001_fruit was changed after it was applied"):
        await steps.migrate(empty)
    state = await look(empty, folder=steps.folder, expected=range(1, 2))
    assert state.current == 1
    assert "changed" in str(state.problem)


async def test_a_newer_schema_is_refused_by_older_code(
    empty: asyncpg.Connection[asyncpg.Record], steps: Steps, tmp_path: Path
) -> None:
    steps.write("0002_newer", "SELECT 1;")
    await steps.migrate(empty)
    (tmp_path / "0002_newer.sql").unlink()
    with pytest.raises(SchemaError, match="stands at 0002, this outrider knows 0001: install the newer"):
        await steps.migrate(empty)
    assert "newer" in str((await look(empty, folder=steps.folder, expected=range(1, 2))).problem)


async def test_a_gap_in_the_list_is_refused(empty: asyncpg.Connection[asyncpg.Record], steps: Steps) -> None:
    steps.write("0002_second", "SELECT 1;")
    await steps.migrate(empty)
    await empty.execute("DELETE FROM outrider.migration WHERE number = 1")
    with pytest.raises(SchemaError, match="0001_fruit was never applied"):
        await steps.migrate(empty)


@pytest.mark.parametrize("name", ["0003_gap", "2_short", "0002-dash", "0001_twice"])
def test_files_are_numbered_without_gap_or_double(steps: Steps, name: str) -> None:
    steps.write(name, "SELECT 1;")
    with pytest.raises(SchemaError, match="expected a file named"):
        read(steps.folder)


async def test_of_four_runners_at_once_one_applies_and_none_deadlocks(
    empty: asyncpg.Connection[asyncpg.Record], empty_database: str, steps: Steps, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migration, "LOCK_POLL_S", 0.01)
    steps.write("0002_index", CONCURRENTLY)
    steps.write("0003_slow", "SELECT pg_sleep(0.2);")
    runners = [await asyncpg.connect(empty_database) for _ in range(4)]
    try:
        done = await asyncio.gather(*(steps.migrate(runner) for runner in runners))
    finally:
        for runner in runners:
            await runner.close()
    assert sorted(map(len, done)) == [0, 0, 0, 3]
    assert await applied(empty) == [1, 2, 3]
    assert steps.told.count("waiting: another outrider is migrating this database") == 3


async def test_the_lock_is_let_go_after_success_and_failure(
    empty: asyncpg.Connection[asyncpg.Record], steps: Steps
) -> None:
    held = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
    await steps.migrate(empty)
    assert await empty.fetchval(held) == 0
    steps.write("0002_bad", "SELECT 1 / 0;")
    with pytest.raises(SchemaError):
        await steps.migrate(empty)
    assert await empty.fetchval(held) == 0


async def test_an_index_left_invalid_is_built_again(empty: asyncpg.Connection[asyncpg.Record], steps: Steps) -> None:
    await steps.migrate(empty)
    await empty.execute("INSERT INTO outrider.fruit VALUES ('apple', 1), ('pear', 1)")
    steps.write("0002_index", CONCURRENTLY)
    with pytest.raises(SchemaError, match="0002_index failed and was not recorded: could not create unique index"):
        await steps.migrate(empty)
    assert await applied(empty) == [1]
    assert await empty.fetchval(INVALID) == 1
    # Repeated without the cause removed, it fails in plain words, and leaves a half-built double at most.
    with pytest.raises(SchemaError, match="fruit_weight failed: could not create unique index"):
        await steps.migrate(empty)
    await empty.execute("UPDATE outrider.fruit SET weight = 2 WHERE name = 'pear'")
    assert await steps.migrate(empty) == ["0002_index"]
    assert await empty.fetchval(INVALID) == 0
    assert (
        await empty.fetchval("SELECT count(*) FROM pg_indexes WHERE schemaname = 'outrider' AND tablename = 'fruit'")
        == 2
    )


async def test_a_table_in_use_delays_a_step_but_nobody_behind_it(
    empty: asyncpg.Connection[asyncpg.Record], empty_database: str, steps: Steps, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migration, "LOCK_TIMEOUT", "20ms")
    monkeypatch.setattr(migration, "LOCK_TIMEOUT_PAUSE_S", 0.01)
    await steps.migrate(empty)
    steps.write("0002_column", "ALTER TABLE outrider.fruit ADD COLUMN color text;")
    reader = await asyncpg.connect(empty_database)
    transaction = reader.transaction()
    await transaction.start()
    await reader.execute("SELECT FROM outrider.fruit")
    with pytest.raises(
        SchemaError, match="0002_column failed and was not recorded: canceling statement due to lock timeout"
    ):
        await steps.migrate(empty)
    assert steps.told.count("0002_column waits for a table that is in use") == migration.LOCK_TIMEOUT_TRIES - 1
    await transaction.rollback()
    await reader.close()
    assert await steps.migrate(empty) == ["0002_column"]
