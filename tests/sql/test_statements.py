"""Claims, verdicts, receipts, decisions: each safe to run twice, fenced where it must be, and blind to order."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from itertools import permutations
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest

from daemon.core.lifecycle import FINAL, RANKS, WAITING, Status
from daemon.core.receipt import Receipt, Standing, standing
from tests.sql.actor import LONG_AGO, Actor, Try, ended, insert, reference, waiting, where

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from uuid import UUID

    import asyncpg

    Connection = asyncpg.Connection[asyncpg.Record]
    Enter = Callable[..., Awaitable[Actor]]

pytestmark = pytest.mark.every_postgres

S = Status


async def one(connection: Connection, actor: Actor, **columns: Any) -> Try:
    """Insert a message and take it."""
    (id,) = await insert(connection, **columns)
    (taken,) = await actor.claim()
    assert taken.id == id
    return taken


async def in_doubt(connection: Connection, actor: Actor, **columns: Any) -> Try:
    taken = await one(connection, actor, **columns)
    assert await actor.give_back([taken], "unknown", due_at=LONG_AGO, closed=[taken.claim])
    return taken


async def open_claims(connection: Connection) -> int:
    return await connection.fetchval("SELECT count(*) FROM outrider.claim")  # type: ignore[no-any-return]


# The claim.


async def test_two_claims_at_once_never_take_the_same_row(connection: Connection, actor: Actor, enter: Enter) -> None:
    ids = await insert(connection, 100)
    # The same daemon on a second connection: the lease does not keep them apart, the row locks do.
    other = await enter(owner=actor.owner, leased=False)
    other.epoch = actor.epoch
    async with actor.connection.transaction():
        first = await actor.claim(60)
        async with other.connection.transaction():
            second = await other.claim(60)
    assert [taken.id for taken in first] == ids[:60]
    assert [taken.id for taken in second] == ids[60:]


async def test_what_is_held_or_before_the_mark_is_not_taken_again(connection: Connection, actor: Actor) -> None:
    ids = await insert(connection, 10)
    first = await actor.claim(5)
    assert [taken.id for taken in await actor.claim(100, held=[taken.id for taken in first])] == ids[5:]
    last = first[-1]
    assert [taken.id for taken in await actor.claim(100, mark=last.due_at, held=[last.id])] == ids[5:]


@pytest.mark.parametrize("restarted", [True, False])
async def test_a_stale_epoch_takes_nothing(connection: Connection, actor: Actor, enter: Enter, restarted: bool) -> None:
    await insert(connection, 3)
    await connection.execute("UPDATE outrider.lease SET until = now() - interval '1 second'")
    heir = await enter(owner=actor.owner if restarted else None)
    assert heir.epoch == actor.epoch + 1
    assert await actor.claim() == []
    assert len(await heir.claim()) == 3


async def test_an_expired_lease_takes_nothing_and_writes_no_claim(connection: Connection, actor: Actor) -> None:
    await insert(connection, 3)
    await connection.execute("UPDATE outrider.lease SET until = now() - interval '1 second'")
    assert await actor.claim() == []
    assert await open_claims(connection) == 0


async def test_a_group_held_by_another_is_not_to_be_had(actor: Actor, enter: Enter) -> None:
    other = await enter(leased=False)
    assert not await other.lease()
    assert await actor.lease(), "whoever holds it may take it anew"
    await actor.run("lease_drop", *actor.fence)
    assert await other.lease()
    assert await actor.run("lease_renew", *actor.fence, 25.0, 8.0) == []


async def test_the_claim_record_names_exactly_what_was_taken(connection: Connection, actor: Actor) -> None:
    ids = await insert(connection, 5)
    first = await actor.claim(2)
    await actor.give_back(first, closed=[first[0].claim])
    taken = await actor.claim(4)
    record = await connection.fetchrow("SELECT * FROM outrider.claim")
    assert record is not None
    named = dict(zip(record["ids"], record["attempts"], strict=True))
    assert named == {one.id: one.attempt for one in taken}
    assert sorted(named.values()) == [1, 1, 1, 2]
    assert set(named) <= set(ids)
    assert (record["grp"], record["owner"], record["epoch"]) == (actor.group, actor.owner, actor.epoch)


async def test_nothing_due_leaves_no_claim_record(connection: Connection, actor: Actor) -> None:
    await insert(connection, send_at=datetime.now(UTC) + timedelta(hours=1))
    assert await actor.claim() == []
    assert await open_claims(connection) == 0


async def test_urgent_first_then_the_longest_due_then_the_first_inserted(connection: Connection, actor: Actor) -> None:
    ids: list[object] = []
    now = datetime.now(UTC)
    for intent, ago in [("marketing", 9), ("otp", 1), ("delivery", 5), ("otp", 3), ("marketing", 7), ("delivery", 5)]:
        ids += await insert(connection, intent=intent)
        await connection.execute(
            "UPDATE outrider.queue SET due_at = $2 WHERE id = $1", ids[-1], now - timedelta(seconds=ago)
        )
    assert [taken.id for taken in await actor.claim()] == [ids[3], ids[1], ids[2], ids[5], ids[0], ids[4]]


async def test_no_lane_and_level_gets_more_than_it_has_room_for(connection: Connection, actor: Actor) -> None:
    for service in ("one", "two"):
        for intent in ("otp", "marketing"):
            await insert(connection, 7, service=service, intent=intent)
    rows = await actor.claim_rows(3, lanes=("one", "two"))
    counts = {(row["lane"], row["level"]) for row in rows}
    assert len(rows) == 12
    assert counts == {("one", 1), ("one", 3), ("two", 1), ("two", 3)}


async def test_rows_under_an_uncommitted_cancel_are_skipped(
    connection: Connection, actor: Actor, another: Callable[[], Awaitable[Connection]]
) -> None:
    ids = await insert(connection, 3)
    canceller = await another()
    async with canceller.transaction():
        assert await canceller.fetchval("SELECT outrider.cancel($1)", ids[1]) == "canceled"
        assert [taken.id for taken in await actor.claim()] == [ids[0], ids[2]]


# Verdicts.


async def test_a_verdict_written_twice_is_written_once(connection: Connection, actor: Actor) -> None:
    ids = await insert(connection, 3)
    taken = await actor.claim()
    assert await actor.settled(taken, closed=[taken[0].claim]) == set(ids)
    before = [await ended(connection, id) for id in ids]
    assert await actor.settled(taken, S.FAILED, closed=[taken[0].claim]) == set(), "as after a lost COMMIT"
    assert [await ended(connection, id) for id in ids] == before
    assert await connection.fetchval("SELECT count(*) FROM outrider.queue") == 0
    assert await open_claims(connection) == 0


async def test_a_row_that_stands_in_a_batch_twice_is_settled_once(connection: Connection, actor: Actor) -> None:
    """Two open claims name it when the COMMIT of the first was lost; recovery then judges it twice."""
    taken = await one(connection, actor)
    (again,) = await actor.claim()
    assert (again.id, again.attempt) == (taken.id, taken.attempt)
    assert await where(connection, taken.id) == "sending", "and it is one message, not two"
    assert await connection.fetchval("SELECT count(*) FROM outrider.message") == 1
    assert await actor.settled([taken, again], closed=[taken.claim, again.claim]) == {taken.id}
    assert await where(connection, taken.id) == "accepted"


@pytest.mark.parametrize("restarted", [True, False])
async def test_a_fenced_verdict_changes_nothing(
    connection: Connection, actor: Actor, enter: Enter, restarted: bool
) -> None:
    taken = await one(connection, actor)
    await connection.execute("UPDATE outrider.lease SET until = now() - interval '1 second'")
    await enter(owner=actor.owner if restarted else None)
    assert await actor.settled([taken]) == set()
    assert await actor.give_back([taken]) == set()
    row = await waiting(connection, taken.id)
    assert row is not None
    assert (row["state"], row["attempts"]) == ("ready", 0)


async def test_an_old_attempt_has_no_say(connection: Connection, actor: Actor) -> None:
    first = await one(connection, actor)
    assert await actor.give_back([first], closed=[first.claim]) == {first.id}
    (second,) = await actor.claim()
    assert second.attempt == 2
    assert await actor.settled([first], S.FAILED) == set()
    assert await actor.give_back([first]) == set()
    assert await actor.settled([second]) == {first.id}


async def test_a_claim_is_closed_by_its_owner_alone(connection: Connection, actor: Actor, enter: Enter) -> None:
    taken = await one(connection, actor)
    stranger = await enter(group="other")
    await stranger.settle([], closed=[taken.claim])
    assert await open_claims(connection) == 1
    await actor.settle([taken], closed=[taken.claim])
    assert await open_claims(connection) == 0


async def test_a_row_that_comes_back_keeps_count(connection: Connection, actor: Actor) -> None:
    taken = await one(connection, actor)
    due = datetime.now(UTC) + timedelta(hours=1)
    assert await actor.give_back([taken], due_at=due, charge=1) == {taken.id}
    assert await actor.give_back([taken], due_at=LONG_AGO, charge=1) == set(), "twice"
    row = await waiting(connection, taken.id)
    assert row is not None
    assert (row["attempts"], row["spent"], row["due_at"], row["reason"]) == (1, 1, due, "came back ready")
    assert await actor.claim() == []


async def test_patience_never_overflows(connection: Connection, actor: Actor) -> None:
    taken = await one(connection, actor)
    await connection.execute("UPDATE outrider.queue SET spent = 32767")
    assert await actor.give_back([taken]) == {taken.id}


async def test_the_last_word_is_told_as_it_was_said(connection: Connection, actor: Actor) -> None:
    for status in sorted(FINAL | WAITING):
        taken = await one(connection, actor)
        assert await actor.settled([taken], status) == {taken.id}
        row = await ended(connection, taken.id)
        assert (row["status"], row["rank"], row["attempts"]) == (status, RANKS[status], 1)
        assert (row["accepted_at"] is not None) == (status in WAITING)


# A late acceptance.


async def test_an_acceptance_is_never_thrown_away_however_late(
    connection: Connection, actor: Actor, enter: Enter
) -> None:
    taken = await one(connection, actor)
    await connection.execute("UPDATE outrider.lease SET until = now() - interval '1 second'")
    heir = await enter()
    assert await heir.give_back([taken], "unknown") == {taken.id}
    assert await actor.settled([taken]) == set()
    for _ in range(2):
        await actor.late(taken.id, taken.attempt)
        assert await where(connection, taken.id) == "accepted"
        assert await waiting(connection, taken.id) is None


async def test_a_late_acceptance_takes_out_a_row_that_waits_but_not_one_in_flight(
    connection: Connection, actor: Actor
) -> None:
    first = await one(connection, actor)
    await actor.give_back([first], closed=[first.claim])
    (second,) = await actor.claim()
    await actor.late(first.id, first.attempt)
    assert await waiting(connection, first.id) is not None, "in flight: its own verdict takes it out"
    assert await actor.give_back([second]) == {first.id}
    assert await waiting(connection, first.id) is None, "and it is not sent a third time"
    assert await where(connection, first.id) == "accepted"


@pytest.mark.parametrize("status", [S.CANCELED, S.EXPIRED, S.DEAD, S.SUPPRESSED])
async def test_what_we_gave_up_on_may_prove_to_have_been_sent(
    connection: Connection, actor: Actor, status: Status
) -> None:
    taken = await one(connection, actor)
    await actor.settle([taken], status, reason="we thought so")
    await actor.late(taken.id, taken.attempt)
    row = await ended(connection, taken.id)
    assert (row["status"], row["reason"], row["reference"]) == ("accepted", None, reference(taken.id))


# Receipts.

WORDS: Sequence[Receipt] = [
    Receipt("SM1", S.ACCEPTED, final=False),
    Receipt("SM1", S.SENT, final=False),
    Receipt("SM1", S.UNDELIVERED, "30003"),
    Receipt("SM1", S.UNDELIVERED, "30005"),
    Receipt("SM1", S.FAILED, "30007"),
    Receipt("SM1", S.FAILED),
    Receipt("SM1", S.DELIVERED),
    Receipt("SM1", S.READ),
]


def samples() -> list[list[Receipt]]:
    """Permutations of some receipts, with repetitions: a thousand of them, always the same."""
    dice = random.Random(1)
    short = [list(order) for size in (1, 2, 3) for order in permutations(WORDS, size)]
    return [dice.choices(WORDS, k=dice.randint(1, 6)) for _ in range(600)] + dice.sample(short, 400)


async def test_receipts_in_any_order_and_number_leave_what_core_says(connection: Connection, actor: Actor) -> None:
    """Each sample one message, accepted before; the k-th receipts of all of them go together, or all at once."""
    cases = samples()
    ids = await insert(connection, len(cases))
    taken = await actor.claim(len(cases))
    assert len(await actor.settled(taken)) == len(cases)
    together = dict(zip(ids[::2], cases[::2], strict=True))
    await actor.receive([(id, 1, said) for id, case in together.items() for said in case])
    for k in range(6):
        await actor.receive(
            [(id, 1, case[k]) for id, case in zip(ids[1::2], cases[1::2], strict=True) if k < len(case)]
        )
    rows = {row["id"]: row for row in await connection.fetch("SELECT id, status, rank, code FROM outrider.outcome")}
    for id, case in zip(ids, cases, strict=True):
        expected = standing(Standing(S.ACCEPTED), (said for said in case if said.final))
        found = Standing(Status(rows[id]["status"]), rows[id]["code"] or "")
        assert found == expected, case
        assert rows[id]["rank"] == RANKS[expected.status]
    assert await connection.fetchval("SELECT count(*) FROM outrider.receipt") == sum(map(len, cases)), (
        "every one is kept"
    )


@pytest.mark.parametrize("news", [S.DELIVERED, S.UNDELIVERED, S.READ, S.FAILED])
async def test_a_receipt_may_come_before_our_own_answer(connection: Connection, actor: Actor, news: Status) -> None:
    taken = await one(connection, actor)
    assert await actor.hear(taken.id, 1, news, code="30003") == set()
    assert await waiting(connection, taken.id) is not None, "in flight"
    assert await where(connection, taken.id) == news
    assert await actor.settled([taken]) == {taken.id}
    row = await ended(connection, taken.id)
    assert (row["status"], row["code"], row["segments"], row["sender"]) == (news, "30003", 1, "+12025550100")
    assert row["rank"] == RANKS[news], "else older news would win over it"


async def test_a_row_that_comes_back_after_its_receipt_does_not_come_back(connection: Connection, actor: Actor) -> None:
    for state in ("ready", "unknown"):
        taken = await one(connection, actor)
        await actor.hear(taken.id, 1, S.DELIVERED)
        for _ in range(2):
            await actor.give_back([taken], state)
            assert await waiting(connection, taken.id) is None
            assert await where(connection, taken.id) == "delivered"


@pytest.mark.parametrize("news", [S.ACCEPTED, S.SENT, S.DELIVERED, S.UNDELIVERED])
async def test_any_receipt_of_the_attempt_in_doubt_ends_the_doubt(
    connection: Connection, actor: Actor, news: Status
) -> None:
    taken = await in_doubt(connection, actor)
    assert await actor.hear(taken.id, 1, news) == {taken.id}
    assert await actor.hear(taken.id, 1, news) == set()
    assert await waiting(connection, taken.id) is None
    assert await where(connection, taken.id) == news
    evidence = await connection.fetch("SELECT kind, outcome FROM outrider.attempt WHERE id = $1", taken.id)
    assert [tuple(row) for row in evidence] == [("evidence", "accepted")]


async def test_a_receipt_that_came_while_it_was_in_flight_is_found_by_the_first_look(
    connection: Connection, actor: Actor
) -> None:
    taken = await one(connection, actor)
    await actor.hear(taken.id, 1, S.SENT)
    await actor.give_back([taken], "unknown", due_at=LONG_AGO)
    (row,) = await actor.doubts()
    assert (row["id"], row["heard"]) == (taken.id, "accepted")


async def test_old_bad_news_does_not_end_a_later_attempt(connection: Connection, actor: Actor) -> None:
    taken = await in_doubt(connection, actor)
    await actor.decide(taken.id, 1, "ready")
    for news in (S.UNDELIVERED, S.SENT):
        assert await actor.hear(taken.id, 1, news) == set()
        assert await where(connection, taken.id) == "queued"
    (again,) = await actor.claim()
    await actor.hear(taken.id, 1, S.UNDELIVERED)
    assert await where(connection, taken.id) == "sending"
    await actor.give_back([again], "unknown")
    await actor.hear(taken.id, 1, S.UNDELIVERED)
    assert await where(connection, taken.id) == "unknown"
    await actor.hear(taken.id, 2, S.SENT)
    await actor.hear(taken.id, 1, S.UNDELIVERED)
    assert await where(connection, taken.id) == "sent"


async def test_what_arrived_is_not_sent_again(connection: Connection, actor: Actor) -> None:
    taken = await in_doubt(connection, actor)
    await actor.decide(taken.id, 1, "ready")
    assert await actor.hear(taken.id, 1, S.DELIVERED) == {taken.id}
    assert await actor.claim() == []
    assert await where(connection, taken.id) == "delivered"


async def test_the_newest_attempt_speaks_for_the_message(connection: Connection, actor: Actor) -> None:
    taken = await in_doubt(connection, actor)
    await actor.decide(taken.id, 1, "ready")
    (again,) = await actor.claim()
    await actor.give_back([again], "unknown")
    said = {attempt: Receipt("SM", word, final=word != S.SENT) for attempt, word in [(1, S.UNDELIVERED), (2, S.SENT)]}
    assert await actor.receive([(taken.id, attempt, news) for attempt, news in said.items()]) == {taken.id}
    assert (await ended(connection, taken.id))["status"] == "sent"


async def test_a_receipt_nobody_can_place_is_kept(connection: Connection, actor: Actor) -> None:
    await actor.receive([(None, None, Receipt("SM1", S.DELIVERED)), (uuid4(), None, Receipt("SM2", S.DELIVERED))])
    rows = await connection.fetch("SELECT id, reference FROM outrider.receipt ORDER BY reference")
    assert [(row["id"] is None, row["reference"]) for row in rows] == [(True, "SM1"), (False, "SM2")]


# Doubt.


async def test_a_doubt_is_looked_into_by_one_at_a_time(connection: Connection, actor: Actor) -> None:
    taken = await in_doubt(connection, actor)
    assert [row["id"] for row in await actor.doubts(lanes=["other"])] == []
    assert [row["id"] for row in await actor.doubts()] == [taken.id]
    assert await actor.doubts() == [], "its next look lies ahead"


async def test_a_decision_is_taken_once_and_evidence_wins(connection: Connection, actor: Actor) -> None:
    taken = await in_doubt(connection, actor)
    assert not await actor.decide(taken.id, 2, "dead"), "about another attempt"
    assert await actor.decide(taken.id, 1, "ready")
    assert not await actor.decide(taken.id, 1, "dead"), "once"
    (again,) = await actor.claim()
    await actor.give_back([again], "unknown")
    await actor.hear(taken.id, 2, S.SENT)
    assert not await actor.decide(taken.id, 2, "dead"), "evidence came meanwhile"
    dropped = await in_doubt(connection, actor)
    assert await actor.decide(dropped.id, 1, "dead", "parked")
    row = await ended(connection, dropped.id)
    assert (row["status"], row["rank"], row["attempts"], row["reason"]) == ("dead", RANKS[S.DEAD], 1, "parked")


@pytest.mark.parametrize(("status", "told"), [("ready", "resend"), ("dead", "dead")])
async def test_a_decision_and_its_story_are_one(connection: Connection, actor: Actor, status: str, told: str) -> None:
    taken = await in_doubt(connection, actor)
    await connection.execute(
        "INSERT INTO outrider.attempt (id, attempt, kind, provider, sender, segments, outcome)"
        " VALUES ($1, 1, 'exchange', 'twilio', '+12025550100', 2, 'uncertain')",
        taken.id,
    )
    await actor.decide(taken.id, 2, status, "about another attempt")
    await actor.decide(taken.id, 1, status, "why")
    await actor.decide(taken.id, 1, status, "once")
    stories = await connection.fetch(
        "SELECT attempt, provider, sender, segments, outcome, reason FROM outrider.attempt WHERE kind = 'decision'"
    )
    assert [tuple(row) for row in stories] == [(1, "twilio", "+12025550100", 2, told, "why")]


# The inspector's refusals.


async def test_a_refusal_ends_a_row_once_and_never_one_in_flight(connection: Connection, actor: Actor) -> None:
    taken = await one(connection, actor)
    assert not await actor.refuse(taken.id), "in flight"
    await actor.give_back([taken])
    assert not await actor.refuse(taken.id, 0), "judged as it was before"
    assert await actor.refuse(taken.id, 1, "suppressed", "bad number")
    assert not await actor.refuse(taken.id, 1)
    row = await ended(connection, taken.id)
    assert (row["status"], row["reason"], row["attempts"]) == ("suppressed", "bad number", 1)
    doubtful = await in_doubt(connection, actor)
    assert not await actor.refuse(doubtful.id, 1), "a provider may have it"


async def test_a_suspect_found_innocent_is_claimable(connection: Connection, actor: Actor) -> None:
    (id,) = await insert(connection, template="welcome", body=None)
    assert await actor.claim() == []
    await actor.refuse(id, 0, "ready")
    assert [taken.id for taken in await actor.claim()] == [id]


# order_key.


async def ordered(connection: Connection, many: int) -> list[UUID]:
    return await insert(connection, many, order_key="conversation")


async def states(connection: Connection) -> list[str]:
    return [row["state"] for row in await connection.fetch("SELECT state FROM outrider.queue ORDER BY seq")]


@pytest.mark.parametrize("how", ["settle", "late", "receive", "decide", "refuse", "cancel", "giveback"])
async def test_however_a_head_ends_its_successor_is_freed_and_no_other(
    connection: Connection, actor: Actor, how: str
) -> None:
    ids = await ordered(connection, 4)
    if how == "refuse":
        assert await actor.refuse(ids[0])
    elif how == "cancel":
        assert await connection.fetchval("SELECT outrider.cancel($1)", ids[0]) == "canceled"
    else:
        (head,) = await actor.claim()
        if how == "settle":
            rows = await actor.settle([head])
            assert [(row["lane"], row["level"]) for row in rows[1:]] == [("service", 3)], "to move the mark"
        elif how == "giveback":
            await actor.hear(head.id, 1, S.DELIVERED)
            await actor.give_back([head])
        else:
            await actor.give_back([head], "unknown")
            assert await states(connection) == ["unknown", "behind", "behind", "behind"]
            if how == "late":
                await actor.late(head.id, 1)
            elif how == "receive":
                await actor.hear(head.id, 1, S.DELIVERED)
            else:
                await actor.decide(head.id, 1, "dead")
    assert await states(connection) == ["ready", "behind", "behind"]
    assert [taken.id for taken in await actor.claim()] == [ids[1]]


async def test_one_that_was_skipped_ahead_does_not_free_what_waits_for_the_head(
    connection: Connection, actor: Actor
) -> None:
    ids = await ordered(connection, 3)
    (head,) = await actor.claim()
    await actor.give_back([head], "unknown")
    await connection.execute("UPDATE outrider.queue SET state = 'ready' WHERE id = $1", ids[1])
    (second,) = await actor.claim()
    assert await actor.settled([head, second]) == {ids[1]}, "the head is in doubt, and not settled by an old word"
    assert await states(connection) == ["unknown", "behind"]


async def test_a_row_in_the_middle_frees_nobody(connection: Connection, actor: Actor) -> None:
    ids = await ordered(connection, 4)
    assert await actor.refuse(ids[1])
    assert await states(connection) == ["ready", "behind", "behind"]


async def test_an_innocent_suspect_takes_its_place_in_the_order(connection: Connection, actor: Actor) -> None:
    (first,) = await insert(connection, order_key="conversation")
    (second,) = await insert(connection, order_key="conversation", template="welcome", body=None)
    assert await states(connection) == ["ready", "suspect"]
    await actor.refuse(second, 0, "ready")
    assert await states(connection) == ["ready", "behind"]
    (head,) = await actor.claim()
    assert head.id == first
    await actor.settle([head])
    assert await states(connection) == ["ready"]


async def test_a_row_committed_after_its_predecessor_was_settled_is_freed_by_the_janitor(
    connection: Connection, actor: Actor, another: Callable[[], Awaitable[Connection]]
) -> None:
    await insert(connection, order_key="conversation")
    slow = await another()
    async with slow.transaction():
        (late,) = await insert(slow, order_key="conversation")
        await actor.settle(await actor.claim())
    assert await states(connection) == ["behind"]
    assert [row["id"] for row in await actor.run("free_order", 500, 60.0)] == [late]
    assert await states(connection) == ["ready"]


async def test_a_head_in_trouble_for_too_long_is_skipped_and_one_that_waits_its_turn_is_not(
    connection: Connection, actor: Actor
) -> None:
    ids = await ordered(connection, 3)
    await connection.execute("UPDATE outrider.queue SET due_at = now() - interval '1 day'")
    assert await actor.run("free_order", 500, 60.0) == [], "a long queue is no trouble"
    (head,) = await actor.claim()
    await actor.give_back([head], "unknown")
    story = ("UPDATE outrider.attempt SET at = now() - interval '61 seconds'", "exchange")
    await connection.execute(
        "INSERT INTO outrider.attempt (id, attempt, kind, outcome) VALUES ($1, 1, $2, 'uncertain')", ids[0], story[1]
    )
    assert await actor.run("free_order", 500, 60.0) == []
    await connection.execute(story[0])
    assert [row["id"] for row in await actor.run("free_order", 500, 60.0)] == [ids[1]]
    row = await waiting(connection, ids[1])
    assert row is not None
    assert row["reason"] == "skipped a predecessor held too long"
    (second,) = await actor.claim()
    await actor.settle([second])
    assert await states(connection) == ["unknown", "behind"]
    assert [row["id"] for row in await actor.run("free_order", 500, 60.0)] == [ids[2]]


async def test_what_is_committed_late_is_found_by_the_sweep(
    connection: Connection, actor: Actor, another: Callable[[], Awaitable[Connection]]
) -> None:
    slow = await another()
    async with slow.transaction():
        (late,) = await insert(slow)
        await insert(connection)
        (taken,) = await actor.claim()
    assert await actor.claim(mark=taken.due_at, held=[taken.id]) == []
    (row,) = await actor.run("sweep", ["service"], [3], [taken.due_at], [])
    found = await actor.claim(mark=row["due_at"], held=[taken.id])
    assert [one.id for one in found] == [late]
    assert await actor.run("sweep", ["service"], [3], [taken.due_at], [late]) == []
