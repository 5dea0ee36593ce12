"""Dead letters sent again: which, which not and why, how fast, and what a race may never do."""

from __future__ import annotations

import asyncio
import json
import time
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import asyncpg
import pytest
import uvloop
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from daemon.core import doubt, segments
from daemon.core.lifecycle import Status
from tests.sql.actor import Actor, blocked, ended, insert, waiting, where

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from uuid import UUID

    Connection = asyncpg.Connection[asyncpg.Record]
    Another = Callable[..., Awaitable[Connection]]

pytestmark = pytest.mark.every_postgres

ALL = "since => '-infinity', until => 'infinity'"
PREVIEW = f"SELECT message, answer, segments FROM outrider.replay_preview({ALL})"  # noqa: S608
EVERYTHING = """
SELECT (SELECT jsonb_agg(to_jsonb(x) ORDER BY x.id) FROM outrider.outbox x), (SELECT jsonb_agg(to_jsonb(x) ORDER BY x.id) FROM outrider.outcome x),
       (SELECT jsonb_agg(to_jsonb(x) ORDER BY x.id) FROM outrider.queue x), (SELECT count(*) FROM outrider.attempt),
       (SELECT count(*) FROM outrider.signal)
"""


async def dead(connection: Connection, actor: Actor, status: Status = Status.DEAD, /, **columns: Any) -> UUID:
    """A message that ended so."""
    (id,) = await insert(connection, **columns)
    await actor.settle(await actor.claim(), status, reason=columns.get("body", "gave up"))
    return id


async def tried(
    connection: Connection, id: UUID, outcome: str = "uncertain", kind: str = "exchange", reason: str = "timed out"
) -> None:
    await connection.execute(
        "INSERT INTO outrider.attempt (id, attempt, kind, provider, segments, outcome, reason) VALUES ($1, 1, $2, 'twilio', 2, $3, $4)",
        id, kind, outcome, reason,
    )  # fmt: skip


async def replay(connection: Connection, ids: list[UUID], per_second: float = 1000, **more: Any) -> dict[UUID, str]:
    rows = await connection.fetch(
        "SELECT * FROM outrider.replay($1::uuid[], $2, starting => $3, doubtful => $4)",
        ids, per_second, more.get("starting"), more.get("doubtful", False),
    )  # fmt: skip
    return {row["message"]: row["answer"] for row in rows}


async def cases(connection: Connection, actor: Actor) -> dict[str, UUID]:
    """One message for each answer there is."""
    stopped = "+12025550111"
    found = {
        "replayed": await dead(connection, actor, tags=json.dumps({"campaign": "spring"})),
        "forgotten": await dead(connection, actor, Status.FAILED),
        "opted out": await dead(connection, actor, Status.UNDELIVERED, recipient=stopped, tenant="shop"),
        "too old": await dead(connection, actor, intent="otp"),
        "expired": await dead(connection, actor, expires_at=datetime.now(UTC) + timedelta(hours=1)),
        "in doubt": await dead(connection, actor),
    }
    await connection.execute(
        "UPDATE outrider.outbox SET body = NULL, blanked_at = now() WHERE id = $1", found["forgotten"]
    )
    await connection.execute("SELECT outrider.opt_out($1, 'shop')", stopped)
    await connection.execute(
        "UPDATE outrider.outcome SET updated_at = now() - interval '25 hours' WHERE id = $1", found["too old"]
    )
    await connection.execute("UPDATE outrider.outbox SET expires_at = now() WHERE id = $1", found["expired"])
    await tried(connection, found["in doubt"])
    return found


async def test_a_preview_says_what_a_replay_would_do_and_changes_nothing(connection: Connection, actor: Actor) -> None:
    found = await cases(connection, actor)
    before = await connection.fetchrow(EVERYTHING)
    told = {row["message"]: row["answer"] for row in await connection.fetch(PREVIEW)}
    assert told == {id: answer for answer, id in found.items()}
    assert await connection.fetchrow(EVERYTHING) == before
    rows = await connection.fetch(f"SELECT message, answer FROM outrider.replay({ALL})")  # noqa: S608
    assert [tuple(row) for row in rows] == [(found["replayed"], "replayed")]
    assert await replay(connection, list(found.values())) == told | {found["replayed"]: "already queued"}
    assert [row["id"] for row in await connection.fetch("SELECT id FROM outrider.queue")] == [found["replayed"]]


async def test_what_has_not_ended_badly_is_named_and_told_why_not(connection: Connection, actor: Actor) -> None:
    named: dict[UUID, str] = {uuid4(): "not found"}
    for status, answer in [
        (Status.ACCEPTED, "with its provider"), (Status.DELIVERED, "delivered"), (Status.READ, "delivered"),
        (Status.CANCELED, "canceled"), (Status.SUPPRESSED, "suppressed"), (Status.EXPIRED, "expired"),
    ]:  # fmt: skip
        named[await dead(connection, actor, status)] = answer
    (doubtful,) = await insert(connection)
    await actor.give_back(await actor.claim(), "unknown")
    (queued,) = await insert(connection)
    named |= {doubtful: "in doubt", queued: "already queued"}
    before = await connection.fetchrow(EVERYTHING)
    assert await replay(connection, list(named), doubtful=True) == named
    assert await connection.fetchrow(EVERYTHING) == before


async def test_a_doubt_that_was_told_of_is_none(connection: Connection, actor: Actor) -> None:
    ids = [
        await dead(connection, actor, status) for status in (Status.UNDELIVERED, Status.DEAD, Status.DEAD, Status.DEAD)
    ]
    for id in ids:
        await tried(connection, id)
    heard, denied, policy, silent = ids
    await connection.execute(
        "INSERT INTO outrider.receipt (id, attempt, provider, reference, status) VALUES ($1, 1, 'twilio', 'SM', 'undelivered')",
        heard,
    )
    absent = {
        "since": 0.0,
        "absent_since": 0.0,
        "askable": True,
        "dispatched": True,
        "policy": "resend",
        "resolve_for_s": 8.0,
    }
    step = doubt.next_step(now=1000.0, expires_at=None, canceled=False, **absent)  # type: ignore[arg-type]
    assert isinstance(step, doubt.Decide)
    await tried(connection, denied, "resend", "decision", step.reason)
    step = doubt.next_step(now=1000.0, expires_at=None, canceled=False, **{**absent, "absent_since": None})  # type: ignore[arg-type]
    assert isinstance(step, doubt.Decide)
    await tried(connection, policy, "resend", "decision", step.reason)
    told = {row["message"]: row["answer"] for row in await connection.fetch(PREVIEW)}
    assert told == {heard: "replayed", denied: "replayed", policy: "in doubt", silent: "in doubt"}
    assert await replay(connection, [policy], doubtful=True) == {policy: "replayed"}
    assert await connection.fetchval("SELECT outrider.replay($1)", silent), "naming one is the decision"


@pytest.mark.parametrize(
    ("words", "fits"),
    [
        ("since => now() - interval '1 hour', until => now() + interval '1 hour'", "ab"),
        ("since => now() + interval '1 second', until => 'infinity'", ""),
        ("since => '-infinity', until => now() - interval '1 hour'", "c"),
        (f"{ALL}, provider => 'twilio'", "abc"),
        (f"{ALL}, provider => 'other'", ""),
        (f"{ALL}, reason => '%price%'", "b"),
        (f"{ALL}, reason => '30003'", "a"),
        (f'{ALL}, tags => \'{{"campaign": "spring"}}\'', "bc"),
        (f"{ALL}, intent => 'events'", "a"),
        (f"{ALL}, service => 'other'", ""),
        (f"{ALL}, tenant => 'shop'", "c"),
        (f"{ALL}, status => 'undelivered'", "a"),
        (f"{ALL}, status => 'suppressed'", ""),
        (f"{ALL}, most => 2", "ab"),
        (ALL, "abc"),
    ],
)
async def test_each_filter_takes_what_fits_it(connection: Connection, actor: Actor, words: str, fits: str) -> None:
    a = await dead(connection, actor, Status.UNDELIVERED, intent="events")
    b = await dead(connection, actor, body="wrong price", tags=json.dumps({"campaign": "spring", "n": 1}))
    c = await dead(connection, actor, tags=json.dumps({"campaign": "spring"}), tenant="shop")
    await dead(connection, actor, Status.DELIVERED)
    await connection.execute("UPDATE outrider.outcome SET code = '30003' WHERE id = $1", a)
    await connection.execute("UPDATE outrider.outcome SET updated_at = now() - interval '2 hours' WHERE id = $1", c)
    rows = await connection.fetch(f"SELECT message FROM outrider.replay({words})")  # noqa: S608
    assert {row["message"] for row in rows} == {{"a": a, "b": b, "c": c}[letter] for letter in fits}
    assert await connection.fetchval("SELECT count(*) FROM outrider.queue") == len(fits)


async def test_what_a_decision_ended_is_found_by_the_provider_that_had_it(connection: Connection, actor: Actor) -> None:
    (id,) = await insert(connection)
    await actor.give_back(await actor.claim(), "unknown")
    await tried(connection, id)
    assert await actor.decide(id, 1, "dead", "dropped")
    assert await ended_by(connection, "twilio") == [id]
    assert await ended_by(connection, "other") == []


async def ended_by(connection: Connection, provider: str) -> list[UUID]:
    rows = await connection.fetch(
        "SELECT id, carrier FROM outrider.dead_letters(provider => $1, reason => '%')", provider
    )
    assert {row["carrier"] for row in rows} <= {provider}
    return [row["id"] for row in rows]


async def test_a_mere_null_is_no_filter_and_an_unknown_literal_still_means_one_message(
    connection: Connection, actor: Actor
) -> None:
    id = await dead(connection, actor)
    assert await connection.fetchval(f"SELECT outrider.replay('{id}')") is True
    assert await connection.fetch("SELECT * FROM outrider.replay(NULL::uuid[], 1)") == []


# How fast.


async def test_no_more_than_so_many_become_due_in_any_second(connection: Connection, actor: Actor) -> None:
    ids = await insert(connection, 50)
    await actor.settle(await actor.claim(), Status.DEAD)
    before = datetime.now(UTC)
    rows = await connection.fetch(f"SELECT * FROM outrider.replay({ALL}, per_second => 7)")  # noqa: S608
    due = [row["due_at"] for row in await connection.fetch("SELECT due_at FROM outrider.queue ORDER BY seq")]
    assert sorted(row["due_at"] for row in rows) == due
    assert len(due) == len(ids)
    assert due == sorted(due), "the oldest first"
    assert due[0] >= before, "from now on, not from the past"
    spans = [(later - earlier).total_seconds() for earlier, later in pairwise(due[::7])]
    assert spans == pytest.approx([1.0] * 7, abs=2e-6)
    assert await actor.claim() != []
    assert len(await actor.claim()) < 50, "the others wait"


async def test_one_batch_goes_on_where_the_last_ended(connection: Connection, actor: Actor) -> None:
    ids = await insert(connection, 4)
    await actor.settle(await actor.claim(), Status.DEAD)
    then = datetime.now(UTC) + timedelta(hours=1)
    await replay(connection, ids[:2], 1)
    await replay(connection, ids[2:], 1, starting=then)
    due = [row["due_at"] for row in await connection.fetch("SELECT due_at FROM outrider.queue ORDER BY seq")]
    assert due[2:] == [then, then + timedelta(seconds=1)]
    assert due[1] < then


async def test_what_would_be_of_no_use_when_its_turn_comes_is_left_where_it_is(
    connection: Connection, actor: Actor
) -> None:
    ids = await insert(connection, 3, validity=timedelta(seconds=100))
    await actor.settle(await actor.claim(), Status.DEAD)
    answers = await replay(connection, ids, 1 / 60)
    assert [answers[id] for id in ids] == ["replayed", "replayed", "expired"]
    assert await where(connection, ids[2]) == "dead"


@pytest.mark.parametrize("per_second", [0, -1, None, float("nan"), float("inf")])
async def test_a_rate_that_is_none_is_refused(connection: Connection, per_second: float | None) -> None:
    with pytest.raises(asyncpg.RaiseError, match="a second"):
        await connection.fetch("SELECT * FROM outrider.replay($1::uuid[], $2::float8)", [uuid4()], per_second)


async def test_too_many_at_once_are_refused_whole(connection: Connection) -> None:
    with pytest.raises(asyncpg.RaiseError, match="10,000"):
        await connection.fetch("SELECT * FROM outrider.replay($1::uuid[], 1)", [uuid4()] * 10_001)


# Told.


async def test_a_replay_is_told_beside_the_decision_before_it_and_so_is_the_next(
    connection: Connection, actor: Actor
) -> None:
    (id,) = await insert(connection)
    await actor.give_back(await actor.claim(), "unknown")
    assert await actor.decide(id, 1, "dead", "parked in doubt")  # which tells its own story
    assert await replay(connection, [id]) == {id: "replayed"}
    assert await actor.refuse(id, 1, "failed", "no such service")
    assert await replay(connection, [id]) == {id: "replayed"}
    rows = await connection.fetch("SELECT what, detail FROM outrider.why($1)", id)
    story = {row["what"]: row["detail"] for row in rows}
    assert "parked in doubt" in story["decision 1"]
    assert "was dead: parked in doubt; again, was failed: no such service" in story["replay 1"]


async def test_a_receipt_that_outran_our_own_verdict_is_not_forgotten(connection: Connection, actor: Actor) -> None:
    """In flight, and already known as undelivered: it is not dead yet, and a replay must not wipe that out."""
    (id,) = await insert(connection)
    taken = await actor.claim()
    await actor.hear(id, 1, Status.UNDELIVERED, code="30003")
    assert await where(connection, id) == "undelivered"
    assert not await connection.fetchval("SELECT outrider.replay($1)", id)
    await actor.settle(taken)
    assert (await ended(connection, id))["code"] == "30003"


async def test_many_are_told_to_the_daemons_in_one_signal(connection: Connection, actor: Actor) -> None:
    ids = await insert(connection, 3)
    await actor.settle(await actor.claim(), Status.DEAD)
    await replay(connection, ids)
    assert [tuple(row) for row in await connection.fetch("SELECT kind, id, what FROM outrider.signal")] == [
        ("replay", None, "3 messages")
    ]


# Races.


@pytest.mark.parametrize("word", ["receipt", "late acceptance"])
async def test_news_that_comes_while_it_is_replayed_is_heard(
    connection: Connection, actor: Actor, another: Another, word: str
) -> None:
    """Either alone would be right; together they sent a message again that had arrived."""
    id, operator = await dead(connection, actor), await another()
    transaction = operator.transaction()
    await transaction.start()
    assert await replay(operator, [id]) == {id: "replayed"}
    news = actor.hear(id, 1, Status.DELIVERED) if word == "receipt" else actor.late(id, 1)
    waits = asyncio.create_task(news)
    await blocked(connection, actor.connection)
    await transaction.commit()
    await waits
    assert await waiting(connection, id) is None
    assert await where(connection, id) == ("delivered" if word == "receipt" else "accepted")


@pytest.mark.parametrize("word", ["receipt", "late acceptance"])
async def test_a_replay_that_comes_while_news_is_written_is_refused(
    connection: Connection, actor: Actor, another: Another, word: str
) -> None:
    id, operator = await dead(connection, actor), await another()
    transaction = actor.connection.transaction()
    await transaction.start()
    await (actor.hear(id, 1, Status.DELIVERED) if word == "receipt" else actor.late(id, 1))
    waits = asyncio.create_task(replay(operator, [id]))
    await blocked(connection, operator)
    await transaction.commit()
    assert await waits == {id: "delivered" if word == "receipt" else "with its provider"}
    assert await waiting(connection, id) is None


async def test_of_many_replays_at_once_each_message_is_sent_again_by_one(
    connection: Connection, actor: Actor, another: Another
) -> None:
    ids = await insert(connection, 300)
    while tries := await actor.claim():
        await actor.settle(tries, Status.DEAD)
    operators = [await another() for _ in range(6)]
    by_name = [replay(operator, ids[::step]) for operator, step in zip(operators[:3], (1, -1, 1), strict=True)]
    by_filter = [
        operator.fetch(f"SELECT message, answer FROM outrider.replay({ALL})")  # noqa: S608
        for operator in operators[3:]
    ]
    named, fitted = await asyncio.gather(asyncio.gather(*by_name), asyncio.gather(*by_filter))
    answers = [pair for one in named for pair in one.items()]
    answers += [(row["message"], row["answer"]) for rows in fitted for row in rows]
    assert sorted(id for id, answer in answers if answer == "replayed") == sorted(ids)
    assert {answer for _, answer in answers} <= {"replayed", "already queued"}
    assert await connection.fetchval("SELECT count(*) FROM outrider.attempt WHERE kind = 'replay'") == len(ids)
    assert await connection.fetchval("SELECT count(*) FROM outrider.queue") == len(ids)


async def test_receipts_and_replays_in_a_crowd_leave_nothing_in_two_places(
    connection: Connection, actor: Actor, enter: Callable[..., Awaitable[Actor]], another: Another
) -> None:
    ids = await insert(connection, 100)
    await actor.settle(await actor.claim(), Status.DEAD)
    ear, operators = await enter(leased=False, group="other"), [await another() for _ in range(2)]

    async def hear() -> None:
        for start in range(0, 100, 5):
            for id in ids[start : start + 5 : 2]:
                await ear.hear(id, 1, Status.DELIVERED)

    async def send_again(operator: Connection, step: int) -> None:
        for start in range(0, 100, 10):
            await replay(operator, ids[::step][start : start + 10])

    await asyncio.gather(hear(), send_again(operators[0], 1), send_again(operators[1], -1))
    arrived = {id for start in range(0, 100, 5) for id in ids[start : start + 5 : 2]}
    assert {row["id"] for row in await connection.fetch("SELECT id FROM outrider.queue")} == set(ids) - arrived
    assert {row["id"] for row in await connection.fetch("SELECT id FROM outrider.outcome")} == arrived


# Segments of what was never tried.


@pytest.fixture
def counted(database: str) -> Iterator[Callable[[str], int]]:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        connection = runner.run(asyncpg.connect(database))

        def ask(text: str) -> int:
            told: int = runner.run(connection.fetchval("SELECT outrider.segments_at_least($1)", text))
            return told

        yield ask
        runner.run(connection.close())


def test_segments_are_counted_as_core_does_while_the_text_is_plain(counted: Callable[[str], int]) -> None:
    plain = st.text(st.sampled_from(segments.BASIC), max_size=500)
    mixed = st.text(st.sampled_from(segments.BASIC + segments.EXTENSION), max_size=400)

    @settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @example(text=segments.BASIC)
    @example(text="x" * 161)
    @example(text="Привет" * 12)
    @example(text="€" * 80)
    @given(
        text=st.one_of(
            plain, mixed, st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=300)
        )
    )
    def agree(text: str) -> None:
        told, exact = counted(text), segments.segments(text)
        if set(text) <= set(segments.BASIC):
            assert told == exact
        elif set(text) <= set(segments.BASIC + segments.EXTENSION):
            assert exact - 1 <= told <= exact
        else:
            assert told <= exact

    agree()


async def test_a_preview_counts_what_was_sent_as_it_was_counted_then(connection: Connection, actor: Actor) -> None:
    tried_once = await dead(connection, actor)
    (never,) = await insert(connection, body="x" * 200)
    assert await actor.refuse(never, 0, "failed")
    await connection.execute("UPDATE outrider.outcome SET segments = NULL WHERE id = $1", tried_once)
    await tried(connection, tried_once, "throttled")
    assert {row["message"]: row["segments"] for row in await connection.fetch(PREVIEW)} == {tried_once: 2, never: 2}


@pytest.mark.long
async def test_what_ten_thousand_cost(connection: Connection, actor: Actor) -> None:
    ids = await insert(connection, 10_000)
    while tries := await actor.claim(500):
        await actor.settle(tries, Status.DEAD)
    begun = time.perf_counter()
    told = await connection.fetch(PREVIEW)
    seen = time.perf_counter()
    answers = await replay(connection, ids)
    took = time.perf_counter() - seen
    print(f"\n10,000 dead letters: preview {seen - begun:.2f} s, replay {took:.2f} s")  # noqa: T201 (a figure)
    assert len(told) == 10_000
    assert set(answers.values()) == {"replayed"}
