"""One INSERT and what it sets in motion: the queue, idempotency, order, weeks. No row an application writes may break it."""

from __future__ import annotations

import asyncio
import re
from calendar import monthrange
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import asyncpg
import pytest
import uvloop
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from daemon.core.lifecycle import FINAL, RANKS, WAITING, Status
from daemon.core.message import LEVELS, OnAmbiguous
from tests.sql.actor import blocked, ended, insert, waiting, where

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    Connection = asyncpg.Connection[asyncpg.Record]
    Another = Callable[..., Awaitable[Connection]]

pytestmark = pytest.mark.every_postgres


# What stands twice, in SQL and in core, and must agree.


async def test_the_levels_are_those_of_core(connection: Connection) -> None:
    rows = await connection.fetch("SELECT word, level FROM outrider.intent")
    assert {row["word"]: row["level"] for row in rows} == {word.value: level for word, level in LEVELS.items()}
    for intent, level in LEVELS.items():
        (id,) = await insert(connection, intent=intent.value)
        row = await waiting(connection, id)
        assert row is not None
        assert row["level"] == level
    (id,) = await insert(connection, intent=None)
    row = await waiting(connection, id)
    assert row is not None
    assert row["level"] == 3


async def words(connection: Connection, table: str, column: str) -> set[str]:
    """The words a CHECK allows."""
    checks = await connection.fetch(
        "SELECT pg_get_constraintdef(oid) AS text FROM pg_constraint WHERE conrelid = $1::text::regclass AND contype = 'c'"
        " AND pg_get_constraintdef(oid) LIKE '%' || $2 || '%'",
        f"outrider.{table}", column,
    )  # fmt: skip
    assert len(checks) == 1
    return set(re.findall(r"'(\w+)'", checks[0]["text"]))


async def test_the_words_of_an_outcome_are_those_of_core(connection: Connection) -> None:
    assert await words(connection, "outcome", "status") == {status.value for status in FINAL | WAITING}


async def test_the_ranks_written_by_sql_are_those_of_core(connection: Connection) -> None:
    first, second, third = [await insert(connection, idempotency_key=key) for key in ("a", "a", "b")]
    await connection.execute("SELECT outrider.cancel($1)", third[0])
    assert (await ended(connection, second[0]))["rank"] == RANKS[Status.SUPPRESSED]
    assert (await ended(connection, third[0]))["rank"] == RANKS[Status.CANCELED]
    assert await where(connection, first[0]) == "queued"
    # receive.sql takes rank 50 for "it arrived".
    assert {status for status, rank in RANKS.items() if rank >= 50} == {Status.DELIVERED, Status.READ}


@pytest.mark.parametrize(
    ("columns", "state"),
    [
        ({}, "ready"),
        ({"on_ambiguous": "drop"}, "ready"),
        ({"media": ["https://example.com/a.png"], "body": None}, "ready"),
        ({"recipient": "0171 234"}, "suspect"),
        ({"recipient": None}, "suspect"),
        ({"recipient": "+12025550100\n"}, "suspect"),
        ({"channel": "carrier pigeon"}, "suspect"),
        ({"body": None}, "suspect"),
        ({"body": " \n\t"}, "suspect"),
        ({"body": "x" * 1601}, "suspect"),
        ({"template": "welcome"}, "suspect"),
        ({"intent": "spam"}, "suspect"),
        ({"on_ambiguous": "shrug"}, "suspect"),
        ({"expires_at": datetime(2020, 1, 1, tzinfo=UTC)}, "suspect"),
        ({"validity": timedelta(0)}, "suspect"),
        ({"service": "s" * 101}, "suspect"),
        ({"sender": "s" * 100_000}, "suspect"),
    ],
)
async def test_a_row_in_doubt_is_set_apart_for_the_inspector(
    connection: Connection, columns: dict[str, Any], state: str
) -> None:
    (id,) = await insert(connection, **columns)
    row = await waiting(connection, id)
    assert row is not None
    assert row["state"] == state


def test_every_policy_the_intake_knows_is_one_of_core() -> None:
    assert {policy.value for policy in OnAmbiguous} == {"resolve", "resend", "drop"}


async def test_a_pinned_sender_is_a_lane_of_its_own(connection: Connection) -> None:
    for service, sender, lane in [
        ("otp", None, "otp"),
        (None, None, "default"),
        ("otp", "+12025550100", "@+12025550100"),
    ]:
        (id,) = await insert(connection, service=service, sender=sender)
        row = await waiting(connection, id)
        assert row is not None
        assert row["lane"] == lane


# Idempotency.


async def test_of_twenty_that_come_at_once_exactly_one_is_queued(connection: Connection, database: str) -> None:
    callers = await asyncio.gather(*(asyncpg.connect(database) for _ in range(20)))
    ids = [id for (id,) in await asyncio.gather(*(insert(caller, idempotency_key="order 17") for caller in callers))]
    queued = [row["id"] for row in await connection.fetch("SELECT id FROM outrider.queue")]
    assert len(queued) == 1
    for id in set(ids) - set(queued):
        row = await ended(connection, id)
        assert (row["status"], row["reason"]) == ("suppressed", f"duplicate of {queued[0]}")
    for caller in callers:
        await caller.close()


async def test_within_one_statement_the_first_of_a_key_wins(connection: Connection) -> None:
    rows = await connection.fetch(
        "INSERT INTO outrider.outbox (recipient, body, idempotency_key) SELECT '+12025550100', 'Hello', 'key ' || n % 7"
        " FROM generate_series(1, 70) AS n RETURNING id, seq, idempotency_key"
    )
    first: dict[str, UUID] = {}
    for row in sorted(rows, key=lambda row: row["seq"]):
        first.setdefault(row["idempotency_key"], row["id"])
    assert {row["id"] for row in await connection.fetch("SELECT id FROM outrider.queue")} == set(first.values())
    told = await connection.fetch("SELECT id, reason FROM outrider.outcome")
    assert {row["id"]: row["reason"] for row in told} == {
        row["id"]: f"duplicate of {first[row['idempotency_key']]}" for row in rows if row["id"] not in first.values()
    }


@pytest.mark.parametrize("committed", [True, False])
async def test_whoever_waits_for_the_first_learns_how_it_ended(
    connection: Connection, another: Another, committed: bool
) -> None:
    first, second = await another(), await another()
    transaction = first.transaction()
    await transaction.start()
    await insert(first, idempotency_key="order 17")
    waits = asyncio.create_task(insert(second, idempotency_key="order 17"))
    await blocked(connection, second)
    await (transaction.commit() if committed else transaction.rollback())
    (id,) = await waits
    assert await where(connection, id) == ("suppressed" if committed else "queued")
    assert await connection.fetchval("SELECT count(*) FROM outrider.queue") == 1


async def test_two_bulk_inserts_of_the_same_keys_do_not_lock_each_other_out(
    connection: Connection, database: str
) -> None:
    many = 2000
    copies = []
    for step in (1, -1):
        caller = await asyncpg.connect(database)
        rows = [("+12025550100", "Hello", f"key {n}") for n in range(many)][::step]
        copies.append((caller, rows))
    await asyncio.gather(*(
        caller.copy_records_to_table("outbox", schema_name="outrider", records=rows, columns=["recipient", "body", "idempotency_key"])
        for caller, rows in copies
    ))  # fmt: skip
    assert await connection.fetchval("SELECT count(*) FROM outrider.queue") == many
    assert await connection.fetchval("SELECT count(*) FROM outrider.outcome") == many
    for caller, _ in copies:
        await caller.close()


async def test_tenants_do_not_share_keys_whatever_they_are_called(connection: Connection) -> None:
    pairs = [
        ("", "k"),
        ("a", "k"),
        ("b", "k"),
        ("a\x01", "k"),
        ("a", "\x01k"),
        ("1:a", "k"),
        ("", "1:ak"),
        ("ak", ""),
        ("a", "k "),
    ]
    ids = [(await insert(connection, tenant=tenant, idempotency_key=key))[0] for tenant, key in pairs]
    assert [await where(connection, id) for id in ids] == ["queued"] * len(pairs)
    (nobody,) = await insert(connection, tenant=None, idempotency_key="k")
    assert (await ended(connection, nobody))["reason"] == f"duplicate of {ids[0]}", "no tenant is the empty tenant"


async def test_a_key_whose_time_is_over_may_be_used_again(connection: Connection) -> None:
    await insert(connection, idempotency_key="order 17")
    await connection.execute("UPDATE outrider.idempotency SET until = now() - interval '1 second'")
    (again,) = await insert(connection, idempotency_key="order 17")
    assert await where(connection, again) == "queued"
    (third,) = await insert(connection, idempotency_key="order 17")
    assert (await ended(connection, third))["reason"] == f"duplicate of {again}"


async def test_ten_thousand_rows_by_copy(connection: Connection) -> None:
    rows = [
        (f"+1202{5550000 + n}", "Hello", "otp" if n % 10 == 0 else "marketing", f"key {n // 2}" if n < 2000 else None)
        for n in range(10_000)
    ]
    await connection.copy_records_to_table(
        "outbox", schema_name="outrider", records=rows, columns=["recipient", "body", "intent", "idempotency_key"]
    )
    assert await connection.fetchval("SELECT count(*) FROM outrider.queue WHERE state = 'ready'") == 9_000
    assert await connection.fetchval("SELECT count(*) FROM outrider.outcome WHERE status = 'suppressed'") == 1_000


READ = """
SELECT sum(seq_tup_read + idx_tup_read)::bigint
  FROM (SELECT seq_tup_read, 0 AS idx_tup_read, relname FROM pg_stat_user_tables WHERE schemaname = 'outrider'
        UNION ALL
        SELECT 0, idx_tup_read, relname FROM pg_stat_user_indexes WHERE schemaname = 'outrider') AS counts
 WHERE relname ~ '^(queue|idempotency|outbox|outcome)'
"""


@pytest.mark.parametrize("first", [1, 5000])
async def test_the_first_insert_of_a_session_does_not_spoil_the_plans_of_all_that_follow(
    own: Another, first: int
) -> None:
    """The trigger's plans are kept for the session: made while all is empty, or for many rows."""
    other, connection = await own(), await own()
    await insert(other, idempotency_key="the only one", order_key="conversation")
    await other.execute("VACUUM ANALYZE")
    for many in (first, 5000):
        await connection.execute(
            "INSERT INTO outrider.outbox (recipient, body, idempotency_key, order_key)"
            " SELECT '+12025550100', 'Hello', gen_random_uuid()::text, n % 100 FROM generate_series(1, $1::int) AS n",
            many,
        )
    await connection.execute("SELECT pg_stat_force_next_flush()")
    before = await connection.fetchval(READ)
    assert before < 20 * (first + 5000), "a few index entries for each row, never a table for each"
    for number in range(20):
        await insert(connection, idempotency_key=f"key {number}", order_key="conversation")
    await connection.execute("SELECT pg_stat_force_next_flush()")
    assert await connection.fetchval(READ) - before < 20 * 50


async def test_no_plan_of_the_intake_is_compiled_or_reads_a_table_from_end_to_end(own: Another) -> None:
    """In the application's session, under its settings: compiling one INSERT took 0.3 s."""
    connection, plans = await own(), list[str]()
    connection.add_log_listener(lambda _connection, message: plans.append(str(message)))
    await connection.execute(
        "LOAD 'auto_explain'; SET auto_explain.log_min_duration = 0; SET auto_explain.log_nested_statements = on;"
        " SET auto_explain.log_analyze = on; SET client_min_messages = log; SET jit = on"
    )
    for _ in range(2):
        await insert(connection, idempotency_key="the same", order_key="conversation", intent="otp")
    text = "\n".join(plans)
    for needle in ("queue_order", "queue_pkey", "idempotency_pkey"):
        assert needle in text, "else nothing was looked at"
    assert "JIT" not in text
    assert not re.findall(r"Seq Scan on (?:queue|outbox|outcome|idempotency)", text)


# When a message is of no more use.

MOMENTS = st.sampled_from(
    ["infinity", "-infinity", "4713-01-01 BC", "294276-12-31 23:59:59.999999", "0001-01-01", "9999-12-31"]
)
DATES = st.datetimes(datetime(2000, 1, 1), datetime(2100, 1, 1)).map(lambda moment: moment.isoformat())  # noqa: DTZ001
MONTHS = st.one_of(st.integers(-130, 130), st.integers(-(2**31), 2**31 - 1))
DAYS = st.one_of(st.integers(-4000, 4000), st.integers(-(2**31), 2**31 - 1))
MICROSECONDS = st.one_of(st.integers(-(10**13), 10**13), st.integers(-(2**62), 2**62))
SPANS = st.one_of(
    st.tuples(st.just(0), st.just(0), st.integers(0, 10**13)),
    st.tuples(MONTHS, DAYS, MICROSECONDS),
    # What compares as next to nothing and is monstrous in its parts.
    st.integers(-71_000_000, 71_000_000).map(lambda months: (months, -30 * months, 1)),
)
LEAST, MOST, FAR = datetime(2, 1, 1), datetime(9999, 1, 1), datetime(9900, 1, 1)  # noqa: DTZ001
TEN_YEARS_US = 3600 * 86_400 * 10**6  # as Postgres compares: a month is 30 days


def moment(text: str | None) -> datetime | None:
    if text is None:
        return None
    if text in {"-infinity", "4713-01-01 BC"}:
        return datetime.min  # noqa: DTZ901
    return datetime.max if text == "infinity" or text.startswith("294276") else datetime.fromisoformat(text)  # noqa: DTZ901


def later(start: datetime, months: int, days: int, microseconds: int) -> datetime:
    year, month = divmod(start.year * 12 + start.month - 1 + months, 12)
    moved = start.replace(year=year, month=month + 1, day=min(start.day, monthrange(year, month + 1)[1]))
    return moved + timedelta(days=days, microseconds=microseconds)


def useless_at(
    created: str, send: str | None, span: tuple[int, int, int] | None, expires: str | None
) -> datetime | None:
    """The model: the earlier of expires_at and due time + validity, of which no more than ten years either way count."""
    if span is None and expires is None:
        return None
    ends = [moment(expires)] if expires is not None else []
    if span is not None:
        due = min(max(filter(None, [moment(send), moment(created)])), FAR)
        size = (span[0] * 30 + span[1]) * 86_400 * 10**6 + span[2]
        if abs(size) >= TEN_YEARS_US:
            ends.append(later(due, 120 if size > 0 else -120, 0, 0))
        else:
            ends.append(later(due, *span))
    return max(min(end for end in [*ends, MOST] if end is not None), LEAST)


def plain(span: tuple[int, int, int] | None) -> bool:
    return span is None or (abs(span[0]) <= 1200 and abs(span[1]) <= 40_000)


@pytest.fixture
def asked(database: str) -> Iterator[Callable[..., datetime | None]]:
    """Asks Postgres, from a session in a zone with a daylight-saving time."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        connection = runner.run(asyncpg.connect(database, server_settings={"timezone": "America/New_York"}))
        query = (
            "SELECT outrider.useless_at($1::text::timestamptz, $2::text::timestamptz, $3::text::interval, $4::text::timestamptz)"
            " AT TIME ZONE 'UTC'"
        )

        def utc(text: str | None) -> str | None:
            return text if text is None or "infinity" in text else f"{text}+00".replace(" BC+00", "+00 BC")

        def ask(created: str, send: str | None, span: str | None, expires: str | None) -> datetime | None:
            told: datetime | None = runner.run(connection.fetchval(query, utc(created), utc(send), span, utc(expires)))
            return told

        yield ask
        runner.run(connection.close())


def test_when_a_message_is_of_no_more_use_agrees_with_a_model(asked: Callable[..., datetime | None]) -> None:
    @settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @example(created="2025-03-08T12:00:00", send=None, span=(0, 1, 0), expires=None)  # 24 hours, also in a night of 23
    @example(created="2025-01-31T00:00:00", send=None, span=(1, 0, 0), expires=None)
    @example(created="2025-01-01T00:00:00", send=None, span=None, expires="9999-12-31")
    @example(created="2025-01-01T00:00:00", send="infinity", span=(2**31 - 1, 0, 0), expires="infinity")
    @example(created="2025-01-01T00:00:00", send=None, span=(71_000_000, -2_130_000_000, 0), expires=None)
    @given(
        created=DATES,
        send=st.none() | DATES | MOMENTS,
        span=st.none() | SPANS,
        expires=st.none() | DATES | MOMENTS,
    )
    def agree(created: str, send: str | None, span: tuple[int, int, int] | None, expires: str | None) -> None:
        text = None if span is None else f"{span[0]} months {span[1]} days {span[2]} microseconds"
        told = asked(created, send, text, expires)
        if plain(span):
            assert told == useless_at(created, send, span, expires)
        else:
            assert told is not None
            assert LEAST <= told <= MOST, "monsters are counted somehow, and never overflow"

    agree()


# Waking.


async def test_urgent_rows_alone_wake_the_daemons(connection: Connection, another: Another) -> None:
    ear, told = await another(), asyncio.Queue[str]()
    await ear.add_listener("outrider", lambda *notice: told.put_nowait(str(notice[3])))
    for intent in ("marketing", "delivery", None, "nonsense"):
        await insert(connection, 3, intent=intent)
    assert await connection.fetchval("SELECT count(*) FROM outrider.queue WHERE level = 1") == 0
    await insert(connection, 3, intent="otp")
    assert await told.get() == ""
    await ear.execute("SELECT 1")
    assert told.empty(), "once a statement, and not for the others before it"


# Order.


async def states(connection: Connection) -> list[str]:
    return [row["state"] for row in await connection.fetch("SELECT state FROM outrider.queue ORDER BY seq")]


async def test_only_the_first_of_a_key_is_claimable(connection: Connection) -> None:
    await insert(connection, 3, order_key="a")
    await insert(connection, order_key="a")
    await insert(connection, order_key="b")
    await insert(connection)
    assert await states(connection) == ["ready", "behind", "behind", "behind", "ready", "ready"]


async def test_an_order_holds_within_one_service(connection: Connection) -> None:
    await insert(connection, order_key="a", service="one")
    await insert(connection, order_key="a", service="two")
    assert await states(connection) == ["ready", "ready"]


async def test_a_row_of_the_future_blocks_none_of_today_and_an_otp_waits_for_nobody(connection: Connection) -> None:
    await insert(connection, order_key="a", send_at=datetime.now(UTC) + timedelta(hours=1))
    await insert(connection, order_key="a")
    await insert(connection, order_key="a", intent="otp")
    await insert(connection, order_key="a", send_at=datetime.now(UTC) - timedelta(hours=1))
    assert await states(connection) == ["ready", "ready", "ready", "behind"]


async def test_a_key_as_long_as_a_novel_still_orders(connection: Connection) -> None:
    await insert(connection, 2, order_key="x" * 500_000)
    await insert(connection, order_key="x" * 500_001)
    assert await states(connection) == ["ready", "behind", "ready"]


# Weeks.


async def homes(connection: Connection, *ids: UUID) -> list[str]:
    rows = [
        await connection.fetchval("SELECT tableoid::regclass::text FROM outrider.outbox WHERE id = $1", id)
        for id in ids
    ]
    return [name.removeprefix("outrider.") for name in rows]


async def test_a_row_lies_in_the_week_of_its_id(connection: Connection) -> None:
    now = datetime.now(UTC)
    (ours,) = await insert(connection)
    next_week = await connection.fetchval("SELECT outrider.first_id($1)", now + timedelta(weeks=1))
    foreign = uuid4()
    for id in (next_week, foreign):
        await insert(connection, id=id)
    assert await homes(connection, ours, next_week, foreign) == [
        f"outbox_{now:%Gw%V}", f"outbox_{now + timedelta(weeks=1):%Gw%V}", "outbox_default",
    ]  # fmt: skip
    assert await where(connection, foreign) == "queued"


async def test_ids_are_ordered_by_time_and_of_version_7(connection: Connection) -> None:
    before = datetime.now(UTC)
    (id,) = await insert(connection)
    (after,) = await insert(connection)
    assert (id.version, id.variant) == (7, uuid4().variant)
    assert (
        before - timedelta(milliseconds=2)
        <= datetime.fromtimestamp((id.int >> 80) / 1000, UTC)
        <= datetime.now(UTC) + timedelta(milliseconds=2)
    )
    assert id.int >> 80 <= after.int >> 80


@pytest.mark.parametrize("table", ["outbox", "outcome", "attempt"])
async def test_a_look_up_by_id_reads_one_week(connection: Connection, table: str) -> None:
    await connection.execute("SET plan_cache_mode = force_generic_plan")
    await connection.execute(f"PREPARE look (uuid) AS SELECT * FROM outrider.{table} WHERE id = $1")  # noqa: S608
    (id,) = await insert(connection)
    plan = await connection.fetch(f"EXPLAIN (ANALYZE, COSTS OFF) EXECUTE look ('{id}')")
    text = "\n".join(row[0] for row in plan)
    assert "Subplans Removed" in text
    assert set(re.findall(r" on (\w+)", text)) == {f"{table}_{datetime.now(UTC):%Gw%V}"}
    await connection.execute("DEALLOCATE look")


BOUNDS = """
SELECT parent.relname AS parent, week.relname AS week, pg_get_expr(week.relpartbound, week.oid) AS bound
  FROM pg_inherits JOIN pg_class parent ON parent.oid = inhparent JOIN pg_class week ON week.oid = inhrelid
 WHERE parent.relnamespace = 'outrider'::regnamespace AND parent.relkind = 'p' AND week.relname !~ 'default'
 ORDER BY 1, 2
"""


async def test_weeks_follow_each_other_without_a_gap_in_any_zone(own: Another) -> None:
    connection = await own(timezone="America/New_York")
    for ahead in (10, 30, 52):  # over both changes of the clock
        await connection.execute("SELECT outrider.make_weeks($1)", ahead)
    assert await connection.fetchval("SELECT outrider.make_weeks(52)") == 0, "again changes nothing"
    await connection.execute("SET timezone = 'UTC'")
    rows = await connection.fetch(BOUNDS)
    assert len(rows) == 4 * 53
    for parent in ("outbox", "outcome", "attempt", "receipt"):
        ranges = [re.findall(r"'([^']+)'", row["bound"]) for row in rows if row["parent"] == parent]
        assert all(earlier[1] == after[0] for earlier, after in pairwise(ranges))


async def test_two_that_make_weeks_at_once_make_them_once(own: Another) -> None:
    makers = [await own() for _ in range(4)]
    made = await asyncio.gather(*(maker.fetchval("SELECT outrider.make_weeks(12)") for maker in makers))
    assert sum(made) == 4 * 8


async def test_rows_in_the_way_of_a_week_do_not_keep_the_others_from_being_made(own: Another) -> None:
    """As after a month without a daemon, or with an id of another kind that fell there by chance."""
    connection = await own()
    in_the_way = await connection.fetchval("SELECT outrider.first_id(now() + interval '6 weeks')")
    await insert(connection, id=in_the_way)
    assert await connection.fetchval("SELECT outrider.make_weeks(8)") == 4 * 4 - 1
    assert await homes(connection, in_the_way) == ["outbox_default"]
    assert await connection.fetchval("SELECT outrider.make_weeks(8)") == 0


async def test_a_week_gives_up_when_a_writer_is_in_the_way(own: Another) -> None:
    connection, writer = await own(), await own()
    async with writer.transaction():
        await insert(writer, id=uuid4())
        assert await connection.fetchval("SELECT outrider.make_weeks(5)") == 3, "of outbox none: it is in use"
    assert await connection.fetchval("SELECT outrider.make_weeks(5)") == 1
