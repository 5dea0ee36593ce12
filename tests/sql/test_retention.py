"""What is forgotten when its time is over; and, each time, what must not be."""

from __future__ import annotations

import asyncio
import re
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest
import pytest_asyncio

from daemon.core.lifecycle import RANKS, Status
from tests.sql.actor import Actor, blocked, ended, insert, waiting, where

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    import asyncpg

    Connection = asyncpg.Connection[asyncpg.Record]
    Another = Callable[..., Awaitable[Connection]]

pytestmark = pytest.mark.every_postgres

CONTENT = "body variables subject content media fallback".split()
LONG_AGO = timedelta(days=120)  # past every figure
A_WHILE_AGO = timedelta(days=40)  # past the text's, and that of receipts


WEEKS_OF_THEN = """
DO $do$
DECLARE monday timestamptz := date_trunc('week', now() - interval '{} seconds', 'UTC'); parent text; week text;
BEGIN
    FOREACH parent IN ARRAY ARRAY['outbox', 'outcome', 'attempt', 'receipt'] LOOP
        week := parent || '_' || to_char(monday AT TIME ZONE 'UTC', 'IYYY"w"IW');
        CONTINUE WHEN to_regclass('outrider.' || week) IS NOT NULL;
        EXECUTE format('CREATE TABLE outrider.%I PARTITION OF outrider.%I FOR VALUES FROM (%L) TO (%L)', week, parent,
            CASE parent WHEN 'receipt' THEN monday::text ELSE outrider.first_id(monday)::text END,
            CASE parent WHEN 'receipt' THEN (monday + interval '1 week')::text
                        ELSE outrider.first_id(monday + interval '1 week')::text END);
    END LOOP;
END $do$
"""


@pytest_asyncio.fixture(autouse=True)
async def figures(connection: Connection) -> AsyncIterator[None]:
    """As shipped, however a test has left them."""
    rows = await connection.fetch("SELECT * FROM outrider.keeping")
    yield
    async with connection.transaction():
        await connection.execute("DELETE FROM outrider.keeping")
        await connection.executemany("INSERT INTO outrider.keeping VALUES ($1, $2, $3)", [tuple(row) for row in rows])


async def make_weeks(connection: Connection, ago: timedelta) -> None:
    """The weeks of then, which make_weeks would have made then."""
    await connection.execute(WEEKS_OF_THEN.format(int(ago.total_seconds())))


async def then(connection: Connection, ago: timedelta, **columns: Any) -> UUID:
    """A message of that time: its id, created_at and due time are of then."""
    await make_weeks(connection, ago)
    moment = datetime.now(UTC) - ago
    id = await connection.fetchval(
        "SELECT overlay(outrider.first_id($1)::text PLACING right(outrider.new_id()::text, 20) FROM 17)::uuid", moment
    )
    await insert(connection, id=id, created_at=moment, **columns)
    return id  # type: ignore[no-any-return]


async def end(connection: Connection, id: UUID, status: Status, ago: timedelta = timedelta(0)) -> None:
    """As it would stand had it ended so, so long ago."""
    await connection.execute("DELETE FROM outrider.queue WHERE id = $1", id)
    await connection.execute(
        "INSERT INTO outrider.outcome (id, status, rank, attempts, reason, accepted_at, updated_at)"
        " VALUES ($1, $2, $3, 1, 'ended', now() - $4::interval, now() - $4::interval)",
        id, status.value, RANKS[status], ago,
    )  # fmt: skip


async def run(connection: Connection, duty: str, most: int = 500) -> int:
    """Until there is no more to do; how many pieces it took."""
    for pieces in range(1, 100):
        if await connection.fetchval(f"SELECT outrider.{duty}($1)", most) < most:
            return pieces
    raise AssertionError(f"{duty} does not end")


async def texts(connection: Connection) -> set[UUID]:
    """Messages whose text is still there."""
    return {row["id"] for row in await connection.fetch("SELECT id FROM outrider.outbox WHERE body IS NOT NULL")}


async def weeks(connection: Connection, parent: str = "outbox") -> list[str]:
    rows = await connection.fetch(
        "SELECT relname FROM pg_class WHERE relnamespace = 'outrider'::regnamespace AND relkind = 'r' AND relname ~ ('^' || $1 || '_[0-9]') ORDER BY 1",
        parent,
    )
    return [row["relname"].removeprefix(f"{parent}_") for row in rows]


def week(ago: timedelta) -> str:
    return f"{datetime.now(UTC) - ago:%Gw%V}"


async def drop(connection: Connection) -> list[str]:
    return await connection.fetchval("SELECT outrider.drop_weeks()")  # type: ignore[no-any-return]


# Texts.


@pytest.mark.parametrize(
    ("status", "ago", "gone"),
    [
        (Status.DELIVERED, timedelta(0), True),
        (Status.READ, timedelta(0), True),
        (Status.EXPIRED, timedelta(0), True),
        (Status.CANCELED, timedelta(0), True),
        (Status.SUPPRESSED, timedelta(0), True),
        (Status.ACCEPTED, timedelta(hours=71), False),
        (Status.SENT, timedelta(hours=71), False),
        (Status.ACCEPTED, timedelta(hours=73), True),
        (Status.DEAD, timedelta(hours=23), False),
        (Status.UNDELIVERED, timedelta(hours=23), False),
        (Status.FAILED, timedelta(hours=25), True),
        (Status.DEAD, timedelta(hours=25), True),
    ],
)
async def test_a_login_code_loses_its_text_once_nothing_more_can_come_of_it(
    connection: Connection, status: Status, ago: timedelta, gone: bool
) -> None:
    (code,) = await insert(connection, intent="otp")
    (other,) = await insert(connection)
    for id in (code, other):
        await end(connection, id, status, ago)
    await run(connection, "blank_codes")
    assert await texts(connection) == ({other} if gone else {code, other})


async def test_a_dead_login_code_that_has_expired_loses_its_text_at_once(connection: Connection) -> None:
    (code,) = await insert(connection, intent="otp", validity=timedelta(seconds=0.2))
    await end(connection, code, Status.DEAD)
    await run(connection, "blank_codes")
    assert await texts(connection) == {code}
    await asyncio.sleep(0.2)
    await run(connection, "blank_codes")
    assert await texts(connection) == set()


async def test_a_login_code_that_waits_or_is_in_hand_or_in_doubt_keeps_its_text(
    connection: Connection, actor: Actor
) -> None:
    ids = await insert(connection, 3, intent="otp")
    flying, doubtful = (await actor.claim(2))[:2]
    await actor.give_back([doubtful], "unknown")
    await actor.hear(flying.id, 1, Status.DELIVERED)  # in flight all the same: its verdict is not written
    await run(connection, "blank_codes")
    assert await texts(connection) == set(ids)


async def test_nothing_but_the_text_goes(connection: Connection) -> None:
    id = await then(
        connection, A_WHILE_AGO, intent="events", tags='{"a": 1}', template="t", variables='{"code": "123"}', subject="s",
        content="{}", media=["https://example.com/a.png"], fallback="[]", idempotency_key="k", callback_url="https://x",
    )  # fmt: skip
    await end(connection, id, Status.DELIVERED, A_WHILE_AGO)
    before = dict(await connection.fetchrow("SELECT * FROM outrider.outbox WHERE id = $1", id) or {})
    await run(connection, "blank_texts")
    after = dict(await connection.fetchrow("SELECT * FROM outrider.outbox WHERE id = $1", id) or {})
    assert {name for name in before if before[name] != after[name]} == {*CONTENT, "blanked_at"}
    assert all(after[name] is None for name in CONTENT)
    assert await where(connection, id) == "delivered"


async def test_an_old_text_goes_when_its_message_has_long_ended_and_no_sooner(
    connection: Connection, actor: Actor
) -> None:
    day = timedelta(days=1)
    gone = [await then(connection, A_WHILE_AGO) for _ in range(3)]
    kept = [await then(connection, A_WHILE_AGO) for _ in range(5)]
    for id, status in zip(gone, (Status.DELIVERED, Status.EXPIRED, Status.ACCEPTED), strict=True):
        await end(connection, id, status, 35 * day)
    waits, late, dead, unheard, young = kept
    await end(connection, late, Status.DELIVERED, 20 * day)  # it was not due for weeks
    await end(connection, dead, Status.DEAD, 35 * day)  # can be replayed for 90 days
    await end(connection, unheard, Status.SENT, 32 * day)  # its end is 72 hours after
    (young,) = await insert(connection)
    await end(connection, young, Status.DELIVERED)
    kept[-1:] = [young, kept[-1]]
    assert await run(connection, "blank_texts", 3) > 2, "in small pieces"
    assert await texts(connection) == set(kept)
    # What was passed is come back to.
    await end(connection, waits, Status.DELIVERED, 31 * day)
    await connection.execute(
        "UPDATE outrider.outcome SET updated_at = updated_at - interval '60 days' WHERE id <> $1", young
    )
    await connection.execute(
        "UPDATE outrider.outcome SET accepted_at = accepted_at - interval '60 days' WHERE id <> $1", young
    )
    await run(connection, "blank_texts")
    assert await texts(connection) == set(kept), "not before their time"
    await connection.execute("UPDATE outrider.straggler SET look_at = now()")
    await run(connection, "blank_texts")
    assert await texts(connection) == {kept[-1], young}
    assert [row["id"] for row in await connection.fetch("SELECT id FROM outrider.straggler")] == [kept[-1]]


async def test_a_dead_letter_keeps_its_text_for_as_long_as_it_can_be_replayed(connection: Connection) -> None:
    await connection.execute("INSERT INTO outrider.keeping VALUES ('dead', 'marketing', '180 days')")
    marketing, events = [await then(connection, LONG_AGO, intent=word) for word in ("marketing", "events")]
    for id in (marketing, events):
        await end(connection, id, Status.FAILED, LONG_AGO)
    await run(connection, "blank_texts")
    assert await texts(connection) == {marketing}
    assert await connection.fetchval("SELECT outrider.replay($1)", marketing)
    assert not await connection.fetchval("SELECT outrider.replay($1)", events)


async def test_ids_of_another_kind_lose_their_text_as_well(connection: Connection) -> None:
    ids = [await connection.fetchval("SELECT gen_random_uuid()") for _ in range(4)]
    for id, ago in zip(ids, (A_WHILE_AGO, A_WHILE_AGO, A_WHILE_AGO, timedelta(0)), strict=True):
        await insert(connection, id=id, created_at=datetime.now(UTC) - ago)
    old, dead, waits, young = ids
    await end(connection, old, Status.DELIVERED, A_WHILE_AGO)
    await end(connection, dead, Status.DEAD, A_WHILE_AGO)
    await end(connection, young, Status.DELIVERED)
    assert await run(connection, "blank_texts", 2) < 10
    assert await texts(connection) == {dead, waits, young}


async def test_a_text_is_not_taken_while_its_message_is_replayed(connection: Connection, another: Another) -> None:
    (id,) = await insert(connection, intent="otp")
    await end(connection, id, Status.DEAD, timedelta(hours=12))
    operator, keeper = await another(), await another()
    transaction = operator.transaction()
    await transaction.start()
    assert await operator.fetchval("SELECT outrider.replay($1)", id)
    await connection.execute("UPDATE outrider.keeping SET span = '1 hour' WHERE (what, intent) = ('dead', 'otp')")
    waits = asyncio.create_task(run(keeper, "blank_codes"))
    await blocked(connection, keeper)
    await transaction.commit()
    await waits
    assert await texts(connection) == {id}


async def test_a_replay_waits_for_whoever_takes_the_text_and_is_refused(
    connection: Connection, another: Another
) -> None:
    (id,) = await insert(connection, intent="otp")
    await end(connection, id, Status.DEAD, timedelta(hours=25))
    operator, keeper = await another(), await another()
    transaction = keeper.transaction()
    await transaction.start()
    await run(keeper, "blank_codes")
    waits = asyncio.create_task(operator.fetchrow("SELECT * FROM outrider.replay(ARRAY[$1::uuid], 1)", id))
    await blocked(connection, operator)
    await connection.execute("UPDATE outrider.keeping SET span = '90 days' WHERE (what, intent) = ('dead', 'otp')")
    await transaction.commit()
    row = await waits
    assert row is not None
    assert row["answer"] == "forgotten"


async def test_two_daemons_do_not_do_the_same_work(connection: Connection, another: Another) -> None:
    ids = await insert(connection, 3, intent="otp")
    for id in ids:
        await end(connection, id, Status.DELIVERED)
    first, second = await another(), await another()
    async with first.transaction():
        assert await first.fetchval("SELECT outrider.blank_codes(2)") == 2
        assert await second.fetchval("SELECT outrider.blank_codes(2)") == 0
        assert await second.fetchval("SELECT outrider.blank_texts(2)") == 0
    await run(second, "blank_codes", 2)
    assert await texts(connection) == set()


async def test_codes_are_found_by_their_own_index(connection: Connection) -> None:
    """However many other messages lie there."""
    await connection.execute("SET session_replication_role = replica")
    await insert(connection, 5000)
    await connection.execute("SET session_replication_role = origin")
    await insert(connection, 3, intent="otp")
    await connection.execute("SET enable_seqscan = off")
    plan = await connection.fetch(
        "EXPLAIN (COSTS OFF) SELECT o.id FROM outrider.outbox o WHERE o.intent = 'otp' AND o.blanked_at IS NULL"
        " AND o.id > '00000000-0000-0000-0000-000000000000' ORDER BY o.id LIMIT 500"
    )
    text = "\n".join(row[0] for row in plan)
    assert "_pkey" not in text
    assert not re.search("-> +Sort", text)


# Weeks.


async def test_a_week_goes_whole_when_all_in_it_is_past_its_time(connection: Connection, actor: Actor) -> None:
    id = await then(connection, LONG_AGO, idempotency_key="k")
    await end(connection, id, Status.DELIVERED, timedelta(days=119))
    await connection.execute(
        "INSERT INTO outrider.attempt (id, attempt, kind, outcome) VALUES ($1, 1, 'exchange', 'throttled')", id
    )
    (young,) = await insert(connection)
    before = await weeks(connection)
    assert await drop(connection) == [week(LONG_AGO)]
    for parent in ("outbox", "outcome", "attempt"):
        assert await weeks(connection, parent) == [name for name in before if name != week(LONG_AGO)]
    assert week(LONG_AGO) in await weeks(connection, "receipt"), "those go by their own figure"
    assert await drop(connection) == []
    assert await where(connection, young) == "queued"
    (again,) = await insert(connection, idempotency_key="k")
    assert (await ended(connection, again))["reason"] == f"duplicate of {id}", "a key outlives its message"


async def unfinished(connection: Connection, actor: Actor, what: str) -> None:
    """One message in the old week that must hold it."""
    id = await then(connection, LONG_AGO)
    match what:
        case "in the queue":
            pass
        case "not due yet":
            await connection.execute("UPDATE outrider.queue SET due_at = now() + interval '1 year' WHERE id = $1", id)
        case "in doubt":
            await actor.give_back(await actor.claim(), "unknown")
        case "in hand":
            assert await actor.claim() != []
        case "in an open claim, though out of the queue":
            assert await actor.claim() != []
            await end(connection, id, Status.DELIVERED, LONG_AGO)
        case "ended lately":
            await end(connection, id, Status.DELIVERED, timedelta(days=80))
        case "accepted lately":
            await end(connection, id, Status.ACCEPTED, timedelta(days=1))
        case "dead, and can be replayed":
            await connection.execute(
                "UPDATE outrider.keeping SET span = '365 days' WHERE (what, intent) = ('dead', '')"
            )
            await end(connection, id, Status.DEAD, timedelta(days=110))
        case "dead, of an intent that keeps them longer":
            await connection.execute("INSERT INTO outrider.keeping VALUES ('dead', 'marketing', '180 days')")
            await end(connection, id, Status.UNDELIVERED, timedelta(days=110))


@pytest.mark.parametrize(
    "what",
    [
        "in the queue", "not due yet", "in doubt", "in hand", "in an open claim, though out of the queue", "ended lately",
        "accepted lately", "dead, and can be replayed", "dead, of an intent that keeps them longer",
    ],
)  # fmt: skip
async def test_a_week_stays_for_the_sake_of_one_message(connection: Connection, actor: Actor, what: str) -> None:
    other = await then(connection, LONG_AGO)
    await end(connection, other, Status.DELIVERED, LONG_AGO)
    await unfinished(connection, actor, what)
    assert await drop(connection) == []
    assert await where(connection, other) == "delivered"
    assert await connection.fetchval("SELECT count(*) FROM outrider.outbox") == 2
    await connection.execute("DELETE FROM outrider.queue; DELETE FROM outrider.claim; DELETE FROM outrider.outcome")
    assert await drop(connection) == [week(LONG_AGO)], "it was that message"


async def test_the_present_never_goes(connection: Connection) -> None:
    await connection.execute("UPDATE outrider.keeping SET span = '1 second'")
    (id,) = await insert(connection)
    await end(connection, id, Status.DELIVERED, LONG_AGO)
    before = await weeks(connection)
    assert [name for name in await drop(connection) if name >= week(timedelta(days=3))] == []
    assert week(timedelta(0)) in await weeks(connection)
    assert len(await weeks(connection)) >= len(before) - 1


async def test_a_replay_under_way_holds_its_week(connection: Connection, another: Another) -> None:
    """The replay is not committed when the week is looked at: nothing in the queue points there yet."""
    id = await then(connection, LONG_AGO)
    await end(connection, id, Status.DEAD, timedelta(days=91))
    operator = await another()
    transaction = operator.transaction()
    await transaction.start()
    await operator.execute("UPDATE outrider.keeping SET span = '92 days' WHERE (what, intent) = ('dead', '')")
    assert await operator.fetchval("SELECT outrider.replay($1)", id)
    assert await drop(connection) == [], "in use: given up within 200 ms"
    await transaction.commit()
    assert await drop(connection) == []
    assert await where(connection, id) == "queued"


async def test_a_replay_that_commits_while_its_week_is_about_to_go_is_seen(
    connection: Connection, another: Another
) -> None:
    id = await then(connection, LONG_AGO)
    await end(connection, id, Status.DEAD, timedelta(days=91))
    operator, keeper = await another(), await another()
    transaction = operator.transaction()
    await transaction.start()
    await operator.execute("UPDATE outrider.keeping SET span = '92 days' WHERE (what, intent) = ('dead', '')")
    assert await operator.fetchval("SELECT outrider.replay($1)", id)
    dropping = asyncio.create_task(drop(keeper))
    await blocked(connection, keeper)  # it has looked, and found nothing in the way
    await transaction.commit()
    assert await dropping == []
    assert await where(connection, id) == "queued"


async def test_who_inserts_is_not_kept_waiting_for_a_week_to_go(connection: Connection, another: Another) -> None:
    id = await then(connection, LONG_AGO)
    await end(connection, id, Status.DELIVERED, LONG_AGO)
    application, keeper, other = await another(), await another(), await another()
    async with application.transaction():
        await insert(application)
        dropping = asyncio.create_task(drop(keeper))
        await blocked(connection, keeper)
        await insert(other)  # behind the one who waits, who gives up
        assert await dropping == []
    assert await drop(connection) == [week(LONG_AGO)]


async def test_a_late_word_for_a_week_that_is_gone_is_kept_and_swept_in_its_turn(
    connection: Connection, actor: Actor
) -> None:
    """A receipt is parked, for it names no message any more; an acceptance is never thrown away."""
    id = await then(connection, LONG_AGO)
    await end(connection, id, Status.DELIVERED, LONG_AGO)
    assert await drop(connection) == [week(LONG_AGO)]
    await actor.hear(id, 1, Status.READ)
    assert await connection.fetchval("SELECT count(*) FROM outrider.outcome") == 0
    assert await connection.fetchval("SELECT id FROM outrider.parked") == id
    await actor.late(id, 1)
    await actor.hear(id, 1, Status.READ)
    await run(connection, "sweep_default")
    assert (await ended(connection, id))["status"] == "read"
    await connection.execute("UPDATE outrider.outcome SET updated_at = now() - interval '91 days'")
    await run(connection, "sweep_default")
    assert await connection.fetchval("SELECT count(*) FROM outrider.outcome") == 0


async def test_ids_of_another_kind_go_one_by_one(connection: Connection, actor: Actor) -> None:
    ids = [await connection.fetchval("SELECT gen_random_uuid()") for _ in range(5)]
    for id in ids:
        await insert(connection, id=id, created_at=datetime.now(UTC) - LONG_AGO)
    gone, waits, lately, dead, also = ids
    await end(connection, gone, Status.DELIVERED, LONG_AGO)
    await end(connection, also, Status.FAILED, LONG_AGO)
    await end(connection, lately, Status.DELIVERED, timedelta(days=1))
    await connection.execute("INSERT INTO outrider.keeping VALUES ('dead', 'marketing', '180 days')")
    await connection.execute("UPDATE outrider.outbox SET intent = 'events' WHERE id = $1", also)
    await end(connection, dead, Status.DEAD, LONG_AGO)
    await connection.execute(
        "INSERT INTO outrider.attempt (id, attempt, kind, outcome) SELECT id, 1, 'exchange', 'x' FROM outrider.outbox"
    )
    await run(connection, "sweep_default", 1)
    for table in ("outbox", "attempt"):
        left = {row["id"] for row in await connection.fetch(f"SELECT id FROM outrider.{table}")}  # noqa: S608
        assert left == {waits, lately, dead}, table
    assert {row["id"] for row in await connection.fetch("SELECT id FROM outrider.outcome")} == {lately, dead}


# Receipts.


async def receipt(connection: Connection, id: UUID | None, status: str, ago: timedelta, attempt: int = 1) -> None:
    await make_weeks(connection, ago)
    await connection.execute(
        "INSERT INTO outrider.receipt (at, id, attempt, provider, reference, status) VALUES (now() - $4::interval, $1, $2, 'twilio', 'SM', $3)",
        id, attempt, status, ago,
    )  # fmt: skip


async def test_old_receipts_go_and_what_they_told_stays(connection: Connection) -> None:
    sent, accepted, old_news, delivered = [await then(connection, A_WHILE_AGO) for _ in range(4)]
    for id in (sent, accepted, old_news):
        await end(connection, id, Status.ACCEPTED, A_WHILE_AGO)
    await end(connection, delivered, Status.DELIVERED, A_WHILE_AGO)
    await connection.execute("UPDATE outrider.outcome SET attempts = 2 WHERE id = $1", old_news)
    for id in (sent, old_news, delivered):
        await receipt(connection, id, "sent", A_WHILE_AGO)
    await receipt(connection, accepted, "accepted", A_WHILE_AGO)
    await receipt(connection, None, "sent", A_WHILE_AGO)
    await receipt(connection, sent, "sent", timedelta(days=1))
    statuses = {id: await where(connection, id) for id in (sent, accepted, old_news, delivered)}
    assert list(statuses.values()) == ["sent", "accepted", "accepted", "delivered"]
    await connection.execute("DELETE FROM outrider.receipt WHERE at > now() - interval '2 days'")
    await receipt(connection, delivered, "delivered", timedelta(days=1))
    await run(connection, "drop_receipts")
    assert week(A_WHILE_AGO) not in await weeks(connection, "receipt")
    assert await connection.fetchval("SELECT count(*) FROM outrider.receipt") == 1
    assert {id: await where(connection, id) for id in statuses} == statuses
    assert (await ended(connection, sent))["rank"] == RANKS[Status.SENT]


async def test_a_week_of_receipts_is_read_in_pieces_before_it_goes(connection: Connection) -> None:
    ids = [await then(connection, A_WHILE_AGO) for _ in range(3)]
    for id in ids:
        await end(connection, id, Status.ACCEPTED, A_WHILE_AGO)
    for id in ids:
        await receipt(connection, id, "sent", A_WHILE_AGO)
        await connection.execute(
            "INSERT INTO outrider.receipt (at, provider, reference, status) SELECT now() - $1::interval, 'twilio', repeat('x', 100), 'accepted'"
            " FROM generate_series(1, 200)",
            A_WHILE_AGO,
        )
    assert await run(connection, "drop_receipts", 1) > 5
    assert week(A_WHILE_AGO) not in await weeks(connection, "receipt")
    assert [await where(connection, id) for id in ids] == ["sent"] * 3


async def test_a_receipt_that_may_resolve_a_doubt_stays(connection: Connection, actor: Actor) -> None:
    id = await then(connection, A_WHILE_AGO)
    await actor.give_back(await actor.claim(), "unknown")
    await receipt(connection, id, "sent", A_WHILE_AGO)
    await run(connection, "drop_receipts")
    assert week(A_WHILE_AGO) in await weeks(connection, "receipt")
    await connection.execute("DELETE FROM outrider.queue")
    await run(connection, "drop_receipts")
    assert week(A_WHILE_AGO) not in await weeks(connection, "receipt")


async def test_parked_receipts_stay_for_three_days_whatever_is_configured(own: Another) -> None:
    """In the default partition, as after a month in which nobody made weeks: there they go one by one."""
    connection = await own()
    for name in await weeks(connection, "receipt"):
        await connection.execute(f"DROP TABLE outrider.receipt_{name}")
    await connection.execute("UPDATE outrider.keeping SET span = '1 second' WHERE what = 'receipts'")
    for hours in (0, 71, 73, 2000):
        await connection.execute(
            "INSERT INTO outrider.receipt (at, provider, reference, status) VALUES (now() - $1::interval, 'twilio', $2, 'sent')",
            timedelta(hours=hours), f"{hours}",
        )  # fmt: skip
    await run(connection, "drop_receipts")
    rows = await connection.fetch("SELECT reference FROM outrider.receipt")
    assert {row["reference"] for row in rows} == {"0", "71"}


# Keys, signals, daemons.


async def test_keys_go_when_their_window_is_over(connection: Connection) -> None:
    ids = [(await insert(connection, idempotency_key=f"key {n}"))[0] for n in range(10)]
    await connection.execute(
        "UPDATE outrider.idempotency SET until = now() - interval '1 second' WHERE id = ANY ($1::uuid[])", ids[:7]
    )
    assert await connection.fetchval("SELECT outrider.forget_keys(3)") == 3, "no more than it was allowed"
    await run(connection, "forget_keys", 3)
    assert {row["id"] for row in await connection.fetch("SELECT id FROM outrider.idempotency")} == set(ids[7:])


async def test_a_key_in_use_again_is_not_forgotten(connection: Connection, another: Another) -> None:
    """Whoever renews an expired key holds it: the sweep leaves it alone."""
    await insert(connection, idempotency_key="k")
    await connection.execute("UPDATE outrider.idempotency SET until = now() - interval '1 second'")
    application = await another()
    async with application.transaction():
        (again,) = await insert(application, idempotency_key="k")
        assert await connection.fetchval("SELECT outrider.forget_keys(10)") == 0
    await run(connection, "forget_keys")
    assert await connection.fetchval("SELECT id FROM outrider.idempotency") == again
    (third,) = await insert(connection, idempotency_key="k")
    assert await where(connection, third) == "suppressed"


async def daemon(connection: Connection, acked: str, seen_ago: timedelta = timedelta(0)) -> UUID:
    return await connection.fetchval(  # type: ignore[no-any-return]
        "INSERT INTO outrider.instance VALUES (gen_random_uuid(), 'host', 1, 'v', now(), now() - $2::interval, 'hash', '{}', '{}', $1::text::xid8)"
        " RETURNING id",
        acked, seen_ago,
    )  # fmt: skip


async def test_a_signal_goes_once_every_daemon_has_heeded_it(connection: Connection) -> None:
    await connection.execute("SELECT outrider.pause('all')")
    await connection.execute("UPDATE outrider.signal SET at = now() - interval '2 hours'")
    await connection.execute("SELECT outrider.resume('all')")
    xid = await connection.fetchval("SELECT max(xid)::text FROM outrider.signal")
    await daemon(connection, str(int(xid) + 1))
    slow = await daemon(connection, "3")
    await run(connection, "forget_signals")
    assert await connection.fetchval("SELECT count(*) FROM outrider.signal") == 2, "one has not heard"
    await connection.execute(
        "UPDATE outrider.instance SET acked = $1::text::xid8 WHERE id = $2", str(int(xid) + 1), slow
    )
    await run(connection, "forget_signals")
    assert [row["kind"] for row in await connection.fetch("SELECT kind FROM outrider.signal")] == ["resume"], (
        "too young"
    )


async def test_a_cancellation_is_kept_while_its_message_is_unfinished(connection: Connection, actor: Actor) -> None:
    for _ in await insert(connection, 2):
        (taken,) = await actor.claim(1)
        await actor.give_back([taken], "unknown")
        assert await connection.fetchval("SELECT outrider.cancel($1)", taken.id) == "requested"
    await connection.execute("UPDATE outrider.signal SET at = now() - interval '2 hours'")
    await actor.decide(taken.id, 1, "canceled")
    await run(connection, "forget_signals")
    kept = await connection.fetch("SELECT id FROM outrider.signal")
    assert [row["id"] for row in kept] == [await connection.fetchval("SELECT id FROM outrider.queue")]


async def test_a_daemon_is_forgotten_when_nothing_is_left_in_its_name(connection: Connection, actor: Actor) -> None:
    old = timedelta(days=8)
    gone, lately = await daemon(connection, "3", old), await daemon(connection, "3", timedelta(days=6))
    leased, claimed = await daemon(connection, "3", old), await daemon(connection, "3", old)
    await connection.execute("INSERT INTO outrider.lease VALUES ('g', $1, 1, now())", leased)
    await connection.execute(
        "INSERT INTO outrider.claim (grp, owner, epoch, ids, attempts) VALUES ('h', $1, 1, '{}', '{}')", claimed
    )
    await run(connection, "forget_instances")
    left = {row["id"] for row in await connection.fetch("SELECT id FROM outrider.instance")}
    assert left == {lately, leased, claimed}
    assert gone not in left


async def test_nobody_waits_in_the_queue_for_a_message_that_is_gone(connection: Connection, actor: Actor) -> None:
    """All duties at once, over messages of every age and state: what is unfinished is claimed and sent as ever."""
    open_ids, ages = set[UUID](), [timedelta(days=n) for n in (0, 20, 40, 80, 100, 120)]
    for ago in ages:
        for state in ("queued", "doubt", *Status):
            id = await then(connection, ago)
            if state in {"queued", "doubt"}:
                open_ids.add(id)
                if state == "doubt":
                    await connection.execute(
                        "UPDATE outrider.queue SET state = 'unknown', attempts = 1 WHERE id = $1", id
                    )
            elif state not in {Status.QUEUED, Status.SENDING, Status.UNKNOWN}:
                await end(connection, id, Status(state), ago)
            else:
                open_ids.add(id)
    for _ in range(2):
        for duty in (
            "blank_codes",
            "blank_texts",
            "forget_keys",
            "forget_signals",
            "forget_instances",
            "sweep_default",
            "drop_receipts",
        ):
            await run(connection, duty)
        await drop(connection)
    rows = await connection.fetch(
        "SELECT q.id FROM outrider.queue q JOIN outrider.outbox o ON o.id = q.id WHERE o.body = 'Hello' AND o.recipient IS NOT NULL"
    )
    assert {row["id"] for row in rows} == open_ids
    row = await waiting(connection, next(iter(open_ids)))
    assert row is not None
