"""What is overdue, what is parked, what is odd, and whether all is there: the statements behind reconciler and auditor."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING
from uuid import UUID, uuid4

import pytest

from daemon.core.lifecycle import Status
from daemon.core.receipt import Receipt
from tests.sql.actor import Actor, ended, insert, reference, where

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    import asyncpg

    Connection = asyncpg.Connection[asyncpg.Record]
    Enter = Callable[..., Awaitable[Actor]]

pytestmark = pytest.mark.every_postgres

S = Status
NEVER = datetime.max.replace(tzinfo=UTC)


async def accepted(connection: Connection, actor: Actor, many: int = 1, *, hours_ago: float = 0.0) -> list[UUID]:
    """Messages a provider has had for so long."""
    ids = await insert(connection, many)
    assert len(await actor.settled(await actor.claim(many))) == many
    await connection.execute(
        "UPDATE outrider.outcome SET accepted_at = now() - $2::interval WHERE id = ANY ($1)",
        ids,
        timedelta(hours=hours_ago),
    )
    return ids


async def overdue(actor: Actor, limit: int = 100) -> set[UUID]:
    return {row["id"] for row in await actor.run("overdue", limit)}


async def odd(connection: Connection) -> list[tuple[str, UUID | None, str | None]]:
    rows = await connection.fetch("SELECT kind, id, reference FROM outrider.anomaly ORDER BY kind, reference")
    return [(row["kind"], row["id"], row["reference"]) for row in rows]


# Overdue receipts.


async def test_only_what_has_been_quiet_for_an_hour_and_has_no_last_word_is_overdue(
    connection: Connection, actor: Actor
) -> None:
    (fresh,) = await accepted(connection, actor, hours_ago=0.9)
    quiet = await accepted(connection, actor, 3, hours_ago=1.1)
    await actor.hear(quiet[0], 1, S.SENT)
    await actor.hear(quiet[1], 1, S.DELIVERED)
    rows = await actor.run("overdue", 100)
    assert {row["id"]: row["handed_on"] for row in rows} == {quiet[0]: True, quiet[2]: False}
    assert await overdue(actor) == set(), "their next look lies an hour ahead"
    assert fresh not in quiet


async def test_each_overdue_message_is_taken_by_one_the_quietest_first(connection: Connection, actor: Actor) -> None:
    ids = [(await accepted(connection, actor, hours_ago=hours))[0] for hours in (2, 4, 3)]
    assert await overdue(actor, 1) == {ids[1]}
    assert await overdue(actor, 1) == {ids[2]}
    assert await overdue(actor, 100) == {ids[0]}


async def test_a_message_without_a_last_word_is_final_after_its_time_and_still_corrected(
    connection: Connection, actor: Actor
) -> None:
    (late, done) = await accepted(connection, actor, 2, hours_ago=73)
    assert await overdue(actor) == {late, done}
    await actor.hear(done, 1, S.DELIVERED)
    await actor.run("quieted", [late, done], [NEVER, NEVER])
    assert (await ended(connection, late))["reason"] == "unconfirmed"
    assert ((await ended(connection, done))["status"], (await ended(connection, done))["reason"]) == ("delivered", None)
    await connection.execute("UPDATE outrider.outcome SET accepted_at = now() - interval '700 hours'")
    assert await overdue(actor) == set(), "nobody asks for it again"
    await actor.hear(late, 1, S.DELIVERED)
    row = await ended(connection, late)
    assert (row["status"], row["reason"]) == ("delivered", None)


# Parked receipts.


async def hear(actor: Actor, id: UUID | None, ref: str, status: Status = S.DELIVERED) -> set[UUID]:
    return await actor.receive([(id, None if id is None else 1, Receipt(ref, status))])


async def due(connection: Connection, *, age: str = "0") -> None:
    await connection.execute("UPDATE outrider.parked SET look_at = now(), since = since - $1::text::interval", age)


async def test_a_receipt_of_no_message_of_ours_makes_none(connection: Connection, actor: Actor) -> None:
    stranger = uuid4()
    for _ in range(2):
        assert await hear(actor, stranger, "SM1") == set()
    assert await connection.fetchval("SELECT count(*) FROM outrider.outcome") == 0
    assert await connection.fetchval("SELECT count(*) FROM outrider.receipt") == 2
    rows = await connection.fetch("SELECT provider, reference, id FROM outrider.parked")
    assert [tuple(row) for row in rows] == [("twilio", "SM1", stranger)]


async def test_a_parked_receipt_finds_its_message_by_id_or_by_reference(connection: Connection, actor: Actor) -> None:
    early = uuid4()
    await hear(actor, early, "SM early")
    await hear(actor, None, "SM nobody")
    (known,) = await insert(connection)
    await hear(actor, None, reference(known))
    assert await actor.run("parked", 100) == [], "a minute later"
    await due(connection)
    assert {row["reference"]: row["id"] for row in await actor.run("parked", 100)} == {
        "SM early": None,
        "SM nobody": None,
        reference(known): None,
    }
    await insert(connection, id=early)  # its transaction was slower than its receipt
    await actor.settle(await actor.claim())
    await due(connection)
    found = {row["reference"]: (row["id"], row["attempt"]) for row in await actor.run("parked", 100)}
    assert found == {"SM early": (early, 1), "SM nobody": (None, None), reference(known): (known, 1)}
    heard = await actor.run("heard_of", "twilio", reference(known), None, datetime.now(UTC) - timedelta(minutes=1))
    assert [row["status"] for row in heard] == ["delivered"]
    await actor.run("unpark", ["twilio", "twilio"], ["SM early", reference(known)], [False, False])
    assert await connection.fetchval("SELECT array_agg(reference) FROM outrider.parked") == ["SM nobody"]
    assert await odd(connection) == []


async def test_after_72_hours_it_is_an_orphan_and_told(connection: Connection, actor: Actor) -> None:
    await hear(actor, None, "SM1")
    await due(connection, age="71 hours")
    assert [row["over"] for row in await actor.run("parked", 100)] == [False]
    assert await connection.fetchval("SELECT look_at <= since + interval '72 hours' FROM outrider.parked")
    await due(connection, age="2 hours")
    assert [row["over"] for row in await actor.run("parked", 100)] == [True]
    told = await actor.run("unpark", ["twilio"], ["SM1"], [True])
    assert [(row["kind"], row["about"]) for row in told] == [("orphan", None)]
    assert await odd(connection) == [("orphan", None, "SM1")]
    assert await connection.fetchval("SELECT count(*) FROM outrider.parked") == 0


# Anomalies.


async def test_an_ordinary_story_holds_no_anomaly(connection: Connection, actor: Actor) -> None:
    (id,) = await accepted(connection, actor)
    for status in (S.ACCEPTED, S.SENT, S.DELIVERED, S.DELIVERED, S.READ):
        await actor.hear(id, 1, status)
    (other,) = await insert(connection)
    await actor.give_back(await actor.claim(), "unknown", due_at=datetime.now(UTC))
    await actor.hear(other, 1, S.UNDELIVERED)
    assert await connection.fetchval("SELECT outrider.replay($1)", other)
    await actor.settle(await actor.claim())
    await actor.hear(other, 2, S.DELIVERED)
    assert await odd(connection) == [], "an attempt that failed, and the next that did not, contradict nobody"


@pytest.mark.parametrize("first", [S.DELIVERED, S.FAILED])
@pytest.mark.parametrize("together", [False, True])
async def test_delivered_and_not_delivered_is_a_contradiction(
    connection: Connection, actor: Actor, first: Status, together: bool
) -> None:
    (id,) = await accepted(connection, actor)
    second = S.UNDELIVERED if first is S.DELIVERED else S.READ
    said = [(id, 1, Receipt(reference(id), status)) for status in (first, second)]
    for one in [said] if together else [[one] for one in said]:
        await actor.receive(one)
    assert await odd(connection) == [("contradiction", id, reference(id))]
    detail = await connection.fetchval("SELECT detail FROM outrider.anomaly")
    assert detail == ("delivered and not delivered, told at once" if together else f"{first}, then {second}")
    await actor.receive(said)
    assert len(await odd(connection)) == 1, "told once"


async def test_two_references_of_one_attempt_are_told(connection: Connection, actor: Actor) -> None:
    ids = await accepted(connection, actor, 2)
    await actor.receive([(ids[0], 1, Receipt("SM other", S.DELIVERED))])
    assert await odd(connection) == [("two_references", ids[0], "SM other")]
    (third,) = await insert(connection)
    await actor.claim()
    await actor.receive([(third, 1, Receipt("SM a", S.SENT, final=False)), (third, 1, Receipt("SM b", S.DELIVERED))])
    assert {(kind, id) for kind, id, _ in await odd(connection)} == {
        ("two_references", ids[0]),
        ("two_references", third),
    }
    await actor.receive([(ids[1], 2, Receipt("SM later", S.DELIVERED))])
    assert len(await odd(connection)) == 2, "another attempt has another reference"


async def test_a_receipt_for_what_was_never_sent_counts_and_is_told(connection: Connection, actor: Actor) -> None:
    (id,) = await insert(connection)
    assert await hear(actor, id, "SM1") == {id}
    assert await where(connection, id) == "delivered", "a restored database has forgotten that it sent it"
    assert await odd(connection) == [("unsent", id, "SM1")]


# The books.


async def look(connection: Connection, most: int = 100) -> int:
    difference: int = await connection.fetchval("SELECT outrider.balance($1)", most)
    return difference


async def books(connection: Connection) -> list[tuple[str, int, int, int, int]]:
    rows = await connection.fetch(
        "SELECT intent, inserted, settled, open, difference FROM outrider.conservation ORDER BY intent"
    )
    return [tuple(row) for row in rows]


async def test_what_was_inserted_is_settled_or_open(connection: Connection, actor: Actor) -> None:
    assert await look(connection) == 0
    await insert(connection, 7, intent="otp")
    await insert(connection, 5)
    await insert(connection, 2, intent="no such word", idempotency_key="one")
    assert await look(connection) == 0
    assert await books(connection) == [("", 2, 1, 1, 0), ("marketing", 5, 0, 5, 0), ("otp", 7, 0, 7, 0)]
    taken = await actor.claim(12)
    await actor.settle(taken[:6])
    await actor.hear(taken[7].id, 1, S.DELIVERED)  # in both places, until its own verdict is written
    assert await look(connection) == 0
    assert [line[2] + line[3] for line in await books(connection)] == [2, 5, 7]
    assert sum(line[2] for line in await books(connection)) == 8


async def test_a_loss_is_told_named_and_not_forgotten(connection: Connection) -> None:
    ids = await insert(connection, 5)
    assert await look(connection) == 0
    await connection.execute("DELETE FROM outrider.queue WHERE id = $1", ids[3])
    assert await look(connection) == 1
    assert await look(connection) == 1
    assert await books(connection) == [("marketing", 5, 0, 4, 1)]
    rows = await connection.fetch("SELECT * FROM outrider.missing()")
    assert [(row["id"], row["service"]) for row in rows] == [(ids[3], "service")]
    await connection.execute(
        "INSERT INTO outrider.queue (id, seq, lane, level, due_at) SELECT id, seq, 'service', 3, now() FROM outrider.missing()"
    )
    assert await look(connection) == 0
    assert await connection.fetch("SELECT * FROM outrider.missing()") == []


async def test_a_lost_outcome_is_found_although_nothing_moves(connection: Connection, actor: Actor) -> None:
    """Pages are counted again in turn, the one counted longest ago first."""
    await connection.execute("SELECT setval('outrider.outbox_seq_seq', 100000)")
    (id,) = await accepted(connection, actor)
    await connection.execute("SELECT setval('outrider.outbox_seq_seq', 1000000)")
    await insert(connection, 1)
    for _ in range(5):
        assert await look(connection) == 0
    await connection.execute("DELETE FROM outrider.outcome WHERE id = $1", id)
    found = [await look(connection) for _ in range(60)]
    assert found[-1] == 1


async def test_only_what_moved_is_counted_again(connection: Connection) -> None:
    for page in range(8):
        await connection.execute("SELECT setval('outrider.outbox_seq_seq', $1)", max(page * 10_000, 1))
        await insert(connection, 3)
    await look(connection)
    await connection.execute("UPDATE outrider.page SET counted_at = now() + interval '1 hour' WHERE number < 6")
    moved = await connection.fetchval("SELECT id FROM outrider.queue WHERE seq / 10000 = 2 LIMIT 1")
    await connection.execute("SELECT outrider.cancel($1)", moved)
    before = await connection.fetchval("SELECT clock_timestamp()")
    await connection.execute("UPDATE outrider.page SET counted_at = counted_at - interval '1 day' WHERE number = 5")
    assert await look(connection, 4) == 0
    rows = await connection.fetch("SELECT number FROM outrider.page WHERE counted_at BETWEEN $1 AND now()", before)
    assert {row["number"] for row in rows} == {2, 6, 7, 5}, "moved, the newest two, and the one counted longest ago"
    assert await connection.fetchval("SELECT sum(settled) FROM outrider.conservation") == 1


async def test_of_two_lookers_one_looks(connection: Connection, enter: Enter) -> None:
    await insert(connection, 1)
    other = (await enter(leased=False)).connection
    async with other.transaction():
        assert await other.fetchval("SELECT outrider.balance()") == 0
        assert await connection.fetchval("SELECT outrider.balance()") is None
    assert await connection.fetchval("SELECT outrider.balance(20, 30)") is None, "somebody has just looked"
    assert await connection.fetchval("SELECT outrider.balance(20, 0)") == 0


async def test_books_stay_balanced_while_all_is_in_motion(connection: Connection, actor: Actor, enter: Enter) -> None:
    """One snapshot sees each message in exactly one place, or in both: never in none."""
    auditor, seen = (await enter(leased=False)).connection, list[int]()
    done = asyncio.Event()

    async def audit() -> None:
        while not done.is_set():
            seen.append(await look(auditor))

    looking = asyncio.create_task(audit())
    for _ in range(30):
        await insert(connection, 20)
        taken = await actor.claim(20)
        await actor.settle(taken[:15], closed=[taken[0].claim])
        await actor.give_back(taken[15:], due_at=datetime.now(UTC))
    done.set()
    await looking
    assert len(seen) > 5
    assert set(seen) == {0}
    assert await look(connection) == 0
    assert sum(line[1] for line in await books(connection)) == 600
