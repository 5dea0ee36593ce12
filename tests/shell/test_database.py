"""Lines to a real Postgres that is taken away: trouble is told as DatabaseDown, and the line comes back."""

from __future__ import annotations

import asyncio
import re
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest

from daemon import identity
from daemon.database import (
    HOT_SETTINGS,
    LIMITS,
    SETTINGS,
    WORDS_MAX,
    DatabaseDown,
    Ear,
    Line,
    as_said,
    dial,
    first_of,
    sleep_unless,
    storable,
)
from tests.shell.parts import line

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import Cluster

    Connection = asyncpg.Connection[asyncpg.Record]

NOBODY = "postgresql://nobody@127.0.0.1:1/none"


async def cut_all(connection: Connection) -> None:
    await connection.execute(
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )


async def test_after_a_terminated_backend_all_is_well_again(database: str, connection: Connection) -> None:
    async with line(database, "lanes") as made:
        before = (await made.ask("SELECT pg_backend_pid() AS pid"))[0]["pid"]
        await cut_all(connection)
        with suppress(DatabaseDown):  # told, unless the hanging up was heard before the question
            await made.fetch("lanes")
        assert await made.fetch("lanes") == []
        assert made.up
        assert (await made.ask("SELECT pg_backend_pid() AS pid"))[0]["pid"] != before


async def test_a_backend_terminated_in_the_middle_is_told(database: str, connection: Connection) -> None:
    async with line(database) as made:
        asking = asyncio.create_task(made.ask("SELECT pg_sleep(30)"))
        busy = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(30)'"
        while not await connection.fetchval(busy):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        await cut_all(connection)
        with pytest.raises(DatabaseDown):
            await asking
        assert await made.ask("SELECT 1")


async def test_nobody_there_is_told_by_lines_and_dials(database: str) -> None:
    async with line(NOBODY, "lanes") as made:
        for _ in range(2):
            with pytest.raises(DatabaseDown):
                await made.fetch("lanes")
    with pytest.raises(DatabaseDown):
        await dial(NOBODY)


async def test_a_statement_that_fails_leaves_the_line_up(database: str, connection: Connection) -> None:
    async with line(database) as made:
        await made.ask("SELECT set_config('lock_timeout', '20ms', false)")
        async with connection.transaction():
            await connection.execute("LOCK TABLE outrider.lease")
            with pytest.raises(DatabaseDown):
                await made.ask("SELECT FROM outrider.lease FOR SHARE")
        assert made.up
        assert (await made.ask("SHOW lock_timeout"))[0][0] == "20ms"  # the same connection


async def test_our_own_mistake_is_not_called_trouble_of_the_database(database: str) -> None:
    async with line(database) as made:
        with pytest.raises(asyncpg.PostgresSyntaxError):
            await made.ask("SELEC")
        with pytest.raises(asyncpg.DataError):
            await made.ask("SELECT $1::integer", "nought")
        assert await made.ask("SELECT 1")


async def test_a_cancelled_wait_leaves_a_line_that_works(database: str) -> None:
    async with line(database) as made:
        asking = asyncio.create_task(made.ask("SELECT pg_sleep(30)"))
        await asyncio.sleep(0.1)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        try:
            found = await made.ask("SELECT 1 AS one")
        except DatabaseDown:
            found = await made.ask("SELECT 1 AS one")
        assert found[0]["one"] == 1


async def test_one_statement_at_a_time(database: str) -> None:
    async with line(database) as made:
        found = await asyncio.gather(*(made.ask("SELECT $1::integer AS n", n) for n in range(20)))
        assert [rows[0]["n"] for rows in found] == list(range(20))


async def test_a_changed_table_is_met_with_a_new_statement(database: str, connection: Connection) -> None:
    """As when a migration runs beside the daemon: the prepared statement returns another row than it did."""
    async with line(database, "signals") as made:
        await made.fetch("signals", "0")
        await connection.execute("ALTER TABLE outrider.signal ALTER COLUMN kind TYPE varchar(20)")
        with pytest.raises(DatabaseDown):
            await made.fetch("signals", "0")
        assert await made.fetch("signals", "0")


# --- as behind a transaction pooler (tests/road/test_pooler.py has a real one)

SET_NOW = "SELECT name, current_setting(name) FROM unnest($1::text[]) AS setting (name)"


async def test_a_pooled_line_brings_its_settings_along_and_leaves_none(database: str, connection: Connection) -> None:
    wanted = {**SETTINGS, **LIMITS, **HOT_SETTINGS}
    names = list(wanted)
    plain = [*await connection.fetch(SET_NOW, names)]
    async with line(database, "lanes", pooled=True, hot=True) as made:
        for _ in range(2):
            assert {row[0]: row[1] for row in await made.ask(SET_NOW, names)} == wanted
            assert await made.fetch("lanes") == []
        assert made._connection is not None
        left: list[asyncpg.Record] = await asyncpg.Connection.fetch(made._connection, SET_NOW, names)
        kept = await asyncpg.Connection.fetch(
            made._connection, "SELECT name FROM pg_prepared_statements WHERE name <> ''"
        )
        assert left == plain
        assert kept == []


async def test_a_pooled_statement_that_fails_is_rolled_back_and_leaves_the_line_up(
    database: str, connection: Connection
) -> None:
    async with line(database, pooled=True) as made:
        before = (await made.ask("SELECT pg_backend_pid() AS pid"))[0]["pid"]
        with pytest.raises(asyncpg.PostgresSyntaxError):
            await made.ask("SELEC")
        with pytest.raises(asyncpg.DataError):
            await made.ask("SELECT $1::integer", "nought")
        with pytest.raises(DatabaseDown):
            await made.ask("SELECT pg_cancel_backend(pg_backend_pid()), pg_sleep(5)")
        assert made.up
        assert (await made.ask("SELECT pg_backend_pid() AS pid"))[0]["pid"] == before
        busy = await connection.fetchval(
            "SELECT count(*) FROM pg_stat_activity WHERE state LIKE 'idle in transaction%'"
        )
        assert busy == 0


async def test_a_pooled_wait_that_is_cancelled_ends_its_transaction(database: str, connection: Connection) -> None:
    async with line(database, pooled=True) as made:
        asking = asyncio.create_task(made.ask("CREATE TABLE outrider.cancelled AS SELECT 1 AS one FROM pg_sleep(30)"))
        await asyncio.sleep(0.2)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        assert await made.ask("SELECT 1")
        assert await connection.fetchval("SELECT to_regclass('outrider.cancelled')") is None


async def test_a_wary_pooled_line_tells_when_another_server_answers(database: str) -> None:
    async with line(database, "lanes", pooled=True, wary=True) as made:
        for _ in range(2):
            assert await made.fetch("lanes") == []
            connection: Any = made._connection
            connection._begin = re.sub(r"<> '\d{4}", "<> '1999", connection._begin)  # as if it had met one of long ago
            with pytest.raises(DatabaseDown, match="another server answers"):
                await made.fetch("lanes")
            made.vouch(made.losses)


async def test_whoever_meets_the_loss_a_wary_line_runs_nothing_until_somebody_vouches(
    database: str, connection: Connection
) -> None:
    async with line(database, "lanes", "sweep", wary=True) as made:
        assert await made.fetch("lanes") == []
        before = made.losses
        await cut_all(connection)
        with pytest.raises(DatabaseDown):
            await made.ask("SELECT 1")  # somebody else, who has no part in what is claimed
        with pytest.raises(DatabaseDown, match="nobody vouches"):
            await made.fetch("lanes")
        assert await made.ask("SELECT 1")  # to look around
        with pytest.raises(DatabaseDown, match="nobody vouches"):
            await made.fetch("lanes")
        made.vouch(before)  # who looked before it was lost has seen another
        with pytest.raises(DatabaseDown, match="nobody vouches"):
            await made.fetch("lanes")
        made.vouch(made.losses)
        assert await made.fetch("lanes") == []


async def test_a_direct_address_is_not_taken_for_a_pooler(database: str) -> None:
    await as_said(database, pooled=False, listen=database)
    await as_said(database, pooled=True, listen=None)
    with pytest.raises(DatabaseDown):
        await as_said(NOBODY, pooled=False, listen=None)


async def test_an_ear_hears_and_dials_again(database: str, connection: Connection) -> None:
    heard = asyncio.Event()
    stop = asyncio.Event()
    listening = asyncio.create_task(Ear(database, heard.set).run(stop))
    async with asyncio.timeout(10):
        for _ in range(2):
            await heard.wait()  # it looks at once when it begins to listen
            heard.clear()
            await connection.execute("NOTIFY outrider")
            await heard.wait()
            heard.clear()
            await cut_all(connection)
        await heard.wait()
        stop.set()
        await listening


@pytest.mark.parametrize(
    "text", ["a\0b", "\ud800", "ok", "", None, "line\nbreak", "x" * 5_000, "\N{GRINNING FACE}" * 600]
)
async def test_what_is_storable_can_be_stored(connection: Connection, text: str | None) -> None:
    kept = storable(text)
    assert await connection.fetchval("SELECT $1::text", kept) == kept
    assert kept is None or len(kept) <= WORDS_MAX
    if text in {"ok", "", None, "line\nbreak"}:
        assert kept == text


async def test_waiting_ends_when_told() -> None:
    stop, other = asyncio.Event(), asyncio.Event()
    assert not await sleep_unless(stop, 0.001)
    assert not await sleep_unless(stop, 0.0)
    asyncio.get_running_loop().call_later(0.01, stop.set)
    assert await sleep_unless(stop, 60)
    await first_of(other, stop)


async def test_a_copied_database_holds_until_told(postgres: Cluster, database: str, connection: Connection) -> None:
    name = await connection.fetchval("SELECT current_database()")
    async with line(database) as made:
        first = await identity.at_home(made)
        assert first.stranger is None
        assert await identity.at_home(made) == first
    await connection.close()
    copy = f"{name}_copy"
    await asyncio.to_thread(postgres._run, postgres._admin.execute(f"CREATE DATABASE {copy} TEMPLATE {name}"))
    try:
        async with line(postgres.server.dsn(copy)) as made:
            found = await identity.at_home(made)
            assert found.stranger is not None
            assert "restored beside the original" in found.stranger
            assert found.token_key == first.token_key
    finally:
        await asyncio.to_thread(postgres.drop, copy)


@pytest.mark.parametrize(
    ("fact", "meaning"), [("system_identifier", "another server"), ("timeline", "a standby was promoted")]
)
async def test_another_server_or_timeline_holds_too(
    database: str, connection: Connection, fact: str, meaning: str
) -> None:
    async with line(database) as made:
        await identity.at_home(made)
        await connection.execute(f"UPDATE outrider.home SET {fact} = {fact} + 1")  # noqa: S608
        found = await identity.at_home(made)
        assert found.stranger is not None
        assert meaning in found.stranger


def test_an_instance_keeps_its_name(tmp_path: Path) -> None:
    assert identity.instance_id(tmp_path / "state") == identity.instance_id(tmp_path / "state")
    assert identity.instance_id(tmp_path / "state") != identity.instance_id(tmp_path / "other")


@pytest.mark.parametrize("left", [b"", b"no id", b"\xff\0"])
def test_a_damaged_id_is_as_good_as_none(tmp_path: Path, left: bytes) -> None:
    (tmp_path / "instance").write_bytes(left)
    made = identity.instance_id(tmp_path)
    assert made == identity.instance_id(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["instance"]


async def test_a_line_whose_statements_cannot_be_prepared_keeps_no_connection(
    database: str, connection: Connection
) -> None:
    made = Line("test", database, statements=("lanes",))
    await connection.execute("ALTER TABLE outrider.queue RENAME TO queued")
    for _ in range(3):
        with pytest.raises(asyncpg.UndefinedTableError):
            await made.fetch("lanes")
    await asyncio.sleep(0.1)
    assert (
        await connection.fetchval(
            "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'outrider' AND datname = current_database()"
        )
        == 0
    )
    await connection.execute("ALTER TABLE outrider.queued RENAME TO queue")
    assert await made.fetch("lanes") == []
    await made.close()


async def test_json_that_our_reader_cannot_read_stays_a_text(database: str) -> None:
    """Deeper than it goes, or a number no float can hold: Postgres has taken it, and one row must not fail the others."""
    async with line(database) as made:
        (row,) = await made.ask(
            "SELECT (repeat('[', 5000) || repeat(']', 5000))::jsonb AS deep, '1e400'::jsonb AS huge, '{\"a\": 1}'::jsonb AS good"
        )
        assert isinstance(row["deep"], str)
        assert isinstance(row["huge"], str)
        assert row["good"] == {"a": 1}
