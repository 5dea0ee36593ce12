"""
One message for one key, for as long as its window is: raced, in one transaction, taken back, by COPY, and at size.

What ends as a repeat never breaks the transaction it came in, and says whose repeat it is. (More in test_intake.py.)
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from daemon.core.lifecycle import Status
from tests.sql.actor import Actor, ended, insert, where

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from uuid import UUID

    import asyncpg

    Connection = asyncpg.Connection[asyncpg.Record]
    Another = Callable[..., Awaitable[Connection]]

pytestmark = pytest.mark.every_postgres

CALLERS, KEYS = 16, 200
INSERT = (
    "INSERT INTO outrider.outbox (recipient, service, body, idempotency_key)"
    " SELECT '+12025550100', 'service', 'Hello', key FROM unnest($1::text[]) AS key RETURNING id, idempotency_key"
)
# As they come to lie in 30 days of traffic: in the order of their windows, of which the first 10,000 are over.
FILL = """
INSERT INTO outrider.idempotency (digest, id, until)
SELECT outrider.key_digest('', 'old ' || n), gen_random_uuid(), now() + (n - 10000) * interval '0.25 seconds'
  FROM generate_series($1::int, $2::int) AS n
"""


async def verdicts(connection: Connection) -> tuple[dict[str, UUID], dict[UUID, tuple[str, str, str]]]:
    """Of each key the one that is queued; of all others their key, status and reason."""
    queued = await connection.fetch(
        "SELECT o.idempotency_key, o.id FROM outrider.queue q JOIN outrider.outbox o ON o.id = q.id"
    )
    assert max(Counter(row["idempotency_key"] for row in queued).values()) == 1
    ended = await connection.fetch(
        "SELECT o.id, o.idempotency_key, u.status, u.reason FROM outrider.outcome u JOIN outrider.outbox o ON o.id = u.id"
    )
    return {row["idempotency_key"]: row["id"] for row in queued}, {
        row["id"]: (row["idempotency_key"], row["status"], row["reason"]) for row in ended
    }


async def test_of_sixteen_that_race_for_two_hundred_keys_one_gets_each(
    connection: Connection, another: Another
) -> None:
    """Each caller inserts every key once, in an order and in statements of its own."""
    callers = [await another() for _ in range(CALLERS)]

    async def call(caller: Connection, seed: int) -> None:
        dice = random.Random(seed)
        keys = [f"key {n}" for n in range(KEYS)]
        dice.shuffle(keys)
        while keys:
            many = dice.choice([1, 1, 3, 20])
            await caller.fetch(INSERT, keys[:many])
            keys = keys[many:]

    await asyncio.gather(*(call(caller, seed) for seed, caller in enumerate(callers)))
    winners, others = await verdicts(connection)
    assert set(winners) == {f"key {n}" for n in range(KEYS)}
    assert len(others) == (CALLERS - 1) * KEYS
    assert all(
        (status, reason) == ("suppressed", f"duplicate of {winners[key]}") for key, status, reason in others.values()
    )


async def test_a_repeat_within_a_transaction_leaves_it_whole(connection: Connection) -> None:
    async with connection.transaction():
        (first,) = await insert(connection, idempotency_key="k")
        (again,) = await insert(connection, idempotency_key="k")
        (other,) = await insert(connection, idempotency_key="another")
        assert await where(connection, again) == "suppressed", "at once"
    assert [await where(connection, id) for id in (first, again, other)] == ["queued", "suppressed", "queued"]
    assert (await ended(connection, again))["reason"] == f"duplicate of {first}"


@pytest.mark.parametrize("whole", [True, False])
async def test_a_key_that_was_taken_back_is_free(connection: Connection, whole: bool) -> None:
    """By ROLLBACK, or to a savepoint in a transaction that goes on."""
    outer = connection.transaction()
    await outer.start()
    inner = connection.transaction()
    await inner.start()
    await insert(connection, idempotency_key="k")
    await inner.rollback()
    if whole:
        await outer.rollback()
    (second,) = await insert(connection, idempotency_key="k")
    if not whole:
        await outer.commit()
    assert await where(connection, second) == "queued"
    assert await connection.fetchval("SELECT id FROM outrider.idempotency") == second


async def test_a_row_that_was_not_inserted_claims_no_key(connection: Connection) -> None:
    (id,) = await insert(connection)
    query = (
        "INSERT INTO outrider.outbox (id, recipient, service, body, idempotency_key) VALUES ($1, '+12025550100', 'service', 'x', 'k')"
        " ON CONFLICT DO NOTHING"
    )
    assert await connection.execute(query, id) == "INSERT 0 0"
    (first,) = await insert(connection, idempotency_key="k")
    assert await where(connection, first) == "queued"
    assert await connection.execute(query, first) == "INSERT 0 0", "a retry with the same id and key changes nothing"
    assert await where(connection, first) == "queued"


async def test_copies_of_a_copy_are_repeats_too(connection: Connection) -> None:
    async def copy(keys: list[str]) -> None:
        await connection.copy_records_to_table(
            "outbox", schema_name="outrider", columns=["recipient", "service", "body", "idempotency_key"],
            records=[("+12025550100", "service", "Hello", key) for key in keys],
        )  # fmt: skip

    await copy([f"key {n % 50}" for n in range(100)])
    await copy([f"key {n}" for n in range(100)])
    winners, others = await verdicts(connection)
    assert set(winners) == {f"key {n}" for n in range(100)}
    assert Counter(key for key, _, _ in others.values()) == Counter({f"key {n}": 2 for n in range(50)})
    assert all(reason == f"duplicate of {winners[key]}" for key, _, reason in others.values())


@pytest.mark.parametrize("status", [Status.DELIVERED, Status.FAILED, Status.CANCELED])
async def test_a_key_holds_when_its_message_has_ended(connection: Connection, actor: Actor, status: Status) -> None:
    (first,) = await insert(connection, idempotency_key="k")
    await actor.settle(await actor.claim(), status)
    (again,) = await insert(connection, idempotency_key="k")
    assert (await ended(connection, again))["reason"] == f"duplicate of {first}"
    assert await actor.claim() == []


async def test_the_window_is_the_configured_one(connection: Connection) -> None:
    async with connection.transaction():
        await connection.execute("UPDATE outrider.keeping SET span = '90 minutes' WHERE what = 'idempotency'")
        await insert(connection, idempotency_key="k")
        left = await connection.fetchval("SELECT until - now() FROM outrider.idempotency")
        await connection.execute("UPDATE outrider.keeping SET span = '30 days' WHERE what = 'idempotency'")
    assert timedelta(minutes=90) <= left < timedelta(minutes=91)


async def test_over_and_over_again_when_each_window_is_over(connection: Connection, another: Another) -> None:
    """Raced at the moment the window ends, and against the sweep: one gets it each time."""
    callers = [await another() for _ in range(8)]
    for _ in range(10):
        await connection.execute("UPDATE outrider.idempotency SET until = now()")
        before = await connection.fetchval("SELECT count(*) FROM outrider.queue")
        await asyncio.gather(
            *(caller.fetch(INSERT, ["k"]) for caller in callers), connection.fetchval("SELECT outrider.forget_keys(10)")
        )
        assert await connection.fetchval("SELECT count(*) FROM outrider.queue") == before + 1
        await connection.execute("DELETE FROM outrider.queue")
    assert await connection.fetchval("SELECT count(*) FROM outrider.outcome") == 70


@pytest.mark.long
@pytest.mark.timeout(900)
async def test_what_a_key_costs_among_ten_million(own: Another) -> None:
    connection = await own()

    async def cost(prefix: str) -> float:
        """µs a row: 20 statements of 500 new keys, the middle one."""
        spans = []
        for turn in range(20):
            keys = [f"{prefix} {turn} {n}" for n in range(500)]
            begun = time.perf_counter()
            await connection.fetch(INSERT, keys)
            spans.append((time.perf_counter() - begun) / 500 * 1e6)
        return sorted(spans)[10]

    await cost("warm")
    alone = await cost("alone")
    begun, filled = time.perf_counter(), 0
    while filled < 10_000_000 and time.perf_counter() - begun < 300:
        await connection.execute(FILL, filled + 1, filled + 250_000, timeout=120)
        filled += 250_000
    await connection.execute("VACUUM ANALYZE outrider.idempotency", timeout=300)  # as autovacuum does in its time
    among = await cost("among")
    size = await connection.fetchval("SELECT pg_total_relation_size('outrider.idempotency') / 2 ^ 20")
    sweeps, gone = list[float](), 500
    while gone == 500:
        begun = time.perf_counter()
        gone = await connection.fetchval("SELECT outrider.forget_keys(500)")
        sweeps.append((time.perf_counter() - begun) * 1000)
    begun = time.perf_counter()
    repeated = await connection.fetch(INSERT, [f"old {n}" for n in range(20_001, 20_501)])
    repeat = (time.perf_counter() - begun) / 500 * 1e6
    print(  # noqa: T201 (the figure is the result)
        f"\nan INSERT with a key: {alone:.0f} µs a row alone, {among:.0f} µs among {filled:,} keys ({size:.0f} MB);"
        f" a repeat {repeat:.0f} µs; 500 keys forgotten in {sorted(sweeps)[len(sweeps) // 2]:.0f} ms, none in {sweeps[-1]:.0f} ms"
    )
    assert filled >= 2_000_000
    assert len(sweeps) >= 20
    queued = await connection.fetchval(
        "SELECT count(*) FROM outrider.queue WHERE id = ANY ($1::uuid[])", [row["id"] for row in repeated]
    )
    assert queued == 0
