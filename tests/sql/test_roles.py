"""Least privilege: what each of the four roles may do, and that it may do nothing else."""

from __future__ import annotations

import io
import re
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import asyncpg
import pytest

import daemon
from daemon.database import statement
from tests.sql.actor import insert

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    Connection = asyncpg.Connection[asyncpg.Record]

pytestmark = pytest.mark.every_postgres

STATEMENTS = sorted(path.stem for path in (Path(daemon.__file__).parent / "sql").glob("*.sql"))
ROLES = ("outrider_producer", "outrider_operator", "outrider_reader", "outrider_daemon")


@asynccontextmanager
async def acting_as(connection: Connection, role: str) -> AsyncIterator[None]:
    """SET ROLE within a transaction that is taken back."""
    transaction = connection.transaction()
    await transaction.start()
    try:
        await connection.execute(f"SET LOCAL ROLE {role}")
        yield
    finally:
        await transaction.rollback()


async def denied(connection: Connection, role: str, query: str) -> bool:
    async with acting_as(connection, role):
        try:
            await connection.execute(query)
        except asyncpg.InsufficientPrivilegeError:
            return True
        except asyncpg.SyntaxOrAccessError as error:
            raise AssertionError(f"{query}: {error}") from error
        return False


async def test_a_producer_inserts_every_column_of_its_own(connection: Connection) -> None:
    async with acting_as(connection, "outrider_producer"):
        id = await connection.fetchval(
            "INSERT INTO outrider.outbox (tenant, recipient, channel, service, sender, body, template, variables, subject, content,"
            " media, intent, send_at, validity, expires_at, idempotency_key, order_key, tags, on_ambiguous, fallback, callback_url,"
            " traceparent) SELECT 't', '+12025550100', 'sms', 's', null, 'x', null, null, null, null, null, 'otp', null, '1 day', null,"
            " 'key', 'order', '{}', 'drop', null, null, null RETURNING id"
        )
        assert (
            await connection.execute("INSERT INTO outrider.outbox (id, body) VALUES (gen_random_uuid(), 'x')")
            == "INSERT 0 1"
        )
        assert (
            await connection.copy_to_table(
                "outbox",
                schema_name="outrider",
                columns=["recipient", "body"],
                source=io.BytesIO(b"+12025550100\tHi\n"),
            )
            == "COPY 1"
        )
        assert (
            await connection.execute(
                "INSERT INTO outrider.outbox (id, body) VALUES ($1, 'x') ON CONFLICT (id) DO NOTHING", id
            )
            == "INSERT 0 0"
        )


@pytest.mark.parametrize(
    "query",
    [
        "SELECT body FROM outrider.outbox",
        "SELECT recipient FROM outrider.outbox",
        "INSERT INTO outrider.outbox (body) VALUES ('x') RETURNING body",
        "INSERT INTO outrider.outbox (body, seq) OVERRIDING SYSTEM VALUE VALUES ('x', 1)",
        "INSERT INTO outrider.outbox (body, created_at) VALUES ('x', now())",
        "INSERT INTO outrider.outbox_default (body) VALUES ('x')",
        "UPDATE outrider.outbox SET body = 'x'",
        "DELETE FROM outrider.outbox",
        "TRUNCATE outrider.outbox",
        "SELECT FROM outrider.queue",
        "INSERT INTO outrider.queue (id, seq, lane, level, due_at) VALUES (gen_random_uuid(), 1, 'x', 1, now())",
        "SELECT FROM outrider.outcome",
        "SELECT FROM outrider.message",
        "SELECT FROM outrider.idempotency",
        "SELECT FROM outrider.suppression",
        "SELECT FROM outrider.home",
        "SELECT outrider.cancel(gen_random_uuid())",
        "SELECT outrider.why(gen_random_uuid())",
        "SELECT outrider.make_weeks(1)",
        "CREATE TABLE outrider.mine ()",
    ],
)
async def test_a_producer_does_nothing_else(connection: Connection, query: str) -> None:
    assert await denied(connection, "outrider_producer", query)


@pytest.mark.parametrize(
    "query",
    [
        "SELECT FROM outrider.outbox",
        "SELECT FROM outrider.queue",
        "SELECT FROM outrider.outcome",
        "SELECT FROM outrider.attempt",
        "SELECT FROM outrider.receipt",
        "SELECT FROM outrider.inbound",
        "SELECT FROM outrider.suppression",
        "SELECT FROM outrider.idempotency",
        "SELECT token_key FROM outrider.home",
        "SELECT outrider.make_weeks(1)",
        "INSERT INTO outrider.outbox (body) VALUES ('x')",
        "CREATE TABLE outrider.mine ()",
    ],
)
@pytest.mark.parametrize("role", ["outrider_reader", "outrider_operator"])
async def test_who_looks_and_who_operates_sees_neither_body_nor_number(
    connection: Connection, role: str, query: str
) -> None:
    assert await denied(connection, role, query)


OPERATIONS = [
    "SELECT outrider.cancel(gen_random_uuid())",
    "SELECT outrider.replay(gen_random_uuid())",
    "SELECT outrider.replay(ARRAY[gen_random_uuid()], 1)",
    "SELECT outrider.replay(since => now(), until => now())",
    "SELECT outrider.replay_preview(since => now())",
    "SELECT outrider.replay_answers(ARRAY[gen_random_uuid()])",
    "SELECT outrider.pause('all')",
    "SELECT outrider.resume('all')",
    "SELECT outrider.opt_out('+12025550100')",
]
LOOKS = [
    "SELECT * FROM outrider.message",
    "SELECT * FROM outrider.backlog",
    "SELECT * FROM outrider.dead_letter",
    "SELECT * FROM outrider.dead_letters()",
    "SELECT * FROM outrider.keeping",
    "SELECT * FROM outrider.pause",
    "SELECT * FROM outrider.lease",
    "SELECT host, seen_at FROM outrider.instance",
    "SELECT * FROM outrider.why(gen_random_uuid())",
    "SELECT * FROM outrider.anomaly",
    "SELECT * FROM outrider.parked",
    "SELECT * FROM outrider.conservation",
    "SELECT * FROM outrider.missing()",
]


async def test_an_operator_operates_and_a_reader_only_looks(connection: Connection) -> None:
    await insert(connection)
    for query in LOOKS:
        assert not await denied(connection, "outrider_reader", query), query
        assert not await denied(connection, "outrider_operator", query), query
    for query in OPERATIONS:
        assert not await denied(connection, "outrider_operator", query), query
        assert await denied(connection, "outrider_reader", query), query
    for role in ("outrider_reader", "outrider_operator"):
        for query in ("INSERT INTO outrider.pause VALUES ('all', now(), 'x')", "DELETE FROM outrider.lease"):
            assert await denied(connection, role, query), query


@pytest.mark.parametrize("name", STATEMENTS)
async def test_the_daemon_may_run_each_of_its_statements(connection: Connection, name: str) -> None:
    async with acting_as(connection, "outrider_daemon"):
        prepared = await connection.prepare(statement(name))
        # Typed NULLs and empty arrays: enough for every right to be checked.
        nothing: list[list[object] | None] = [
            [] if parameter.kind == "array" else None for parameter in prepared.get_parameters()
        ]
        try:
            await prepared.fetch(*nothing)
        except asyncpg.NotNullViolationError:
            assert name in {"announce", "inbound", "lease_take"}, "only what inserts its bare arguments"


@pytest.mark.parametrize(
    "query",
    [
        "CREATE TABLE outrider.mine ()",
        "DROP TABLE outrider.claim",
        "ALTER TABLE outrider.queue ADD x integer",
        "TRUNCATE outrider.queue",
        "CREATE ROLE another",
        "INSERT INTO outrider.outbox (body) VALUES ('x')",
        "DELETE FROM outrider.outbox",
        "UPDATE outrider.outbox SET body = NULL",
        "SELECT outrider.blank('{}', false)",
        "UPDATE outrider.progress SET block = 0",
        "DELETE FROM outrider.straggler",
        "DELETE FROM outrider.outcome",
        "UPDATE outrider.attempt SET outcome = 'x'",
        "DELETE FROM outrider.attempt",
        "DELETE FROM outrider.receipt",
        "UPDATE outrider.anomaly SET detail = 'x'",
        "UPDATE outrider.page SET difference = 0",
        "DELETE FROM outrider.tally",
        "DELETE FROM outrider.suppression",
        "UPDATE outrider.suppression SET reason = 'x'",
        "INSERT INTO outrider.migration VALUES (99, 'x', 'x')",
    ],
)
async def test_the_daemon_makes_no_tables_and_rewrites_no_history(connection: Connection, query: str) -> None:
    assert await denied(connection, "outrider_daemon", query)


@pytest.mark.parametrize(
    "query",
    [
        "SELECT outrider.make_weeks(1)",
        "SELECT outrider.drop_weeks()",
        *(f"SELECT outrider.{duty}(1)" for duty in (
            "blank_codes", "blank_texts", "forget_keys", "forget_signals", "forget_instances", "sweep_default", "drop_receipts",
        )),
    ],
)  # fmt: skip
async def test_the_daemon_makes_and_drops_by_the_functions_alone(connection: Connection, query: str) -> None:
    assert not await denied(connection, "outrider_daemon", query)
    for role in ROLES[:3]:
        assert await denied(connection, role, query)


async def test_the_public_may_do_nothing(connection: Connection) -> None:
    await connection.execute("DROP ROLE IF EXISTS outrider_test_nobody; CREATE ROLE outrider_test_nobody")
    try:
        for query in (
            "SELECT FROM outrider.message",
            "SELECT outrider.new_id()",
            "INSERT INTO outrider.outbox (body) VALUES ('x')",
        ):
            assert await denied(connection, "outrider_test_nobody", query), query
    finally:
        await connection.execute("DROP ROLE outrider_test_nobody")
    public = await connection.fetch(
        "SELECT p.oid::regprocedure::text AS name FROM pg_proc p CROSS JOIN LATERAL aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) AS acl"
        " WHERE p.pronamespace = 'outrider'::regnamespace AND acl.grantee = 0"
    )
    assert [row["name"] for row in public] == []


async def test_no_search_path_can_change_what_a_function_means(connection: Connection) -> None:
    """A body bound when it was made, or a search_path of its own with pg_temp last."""
    rows = await connection.fetch(
        "SELECT p.proname AS name, p.prosecdef AS definer, p.prosqlbody IS NOT NULL AS bound, p.proconfig AS config FROM pg_proc p"
        " WHERE p.pronamespace = 'outrider'::regnamespace"
    )
    assert len(rows) > 10
    for row in rows:
        fixed = "search_path=pg_catalog, pg_temp" in (row["config"] or [])
        assert row["bound"] or fixed, row["name"]
        assert fixed or not row["definer"], row["name"]


async def test_no_role_can_log_in_or_do_more_than_it_was_granted(connection: Connection) -> None:
    rows = await connection.fetch("SELECT * FROM pg_roles WHERE rolname = ANY ($1::text[])", ROLES)
    assert len(rows) == len(ROLES)
    for row in rows:
        assert not any(
            row[what]
            for what in ("rolcanlogin", "rolsuper", "rolcreaterole", "rolcreatedb", "rolbypassrls", "rolreplication")
        )


async def test_a_temporary_table_named_like_ours_fools_nobody(connection: Connection) -> None:
    async with acting_as(connection, "outrider_producer"):
        await connection.execute("CREATE TEMP TABLE fresh (id uuid)")
        await connection.execute("SET LOCAL search_path = pg_temp, pg_catalog")
        assert await connection.fetchval(
            "INSERT INTO outrider.outbox (body, idempotency_key) VALUES ('x', 'k') RETURNING id"
        )


def test_the_header_of_each_statement_names_its_parameters() -> None:
    for name in STATEMENTS:
        text = statement(name)
        header, body = text.split("\n\n")[0], text
        lines = [line for line in header.splitlines() if line.startswith("--")]
        used = {int(number) for number in re.findall(r"\$(\d+)", re.sub(r"--.*", "", body))}
        named = {int(number) for line in lines for number in re.findall(r"\$(\d+)", line)}
        assert used == named, name
        assert used == set(range(1, len(used) + 1)), name
