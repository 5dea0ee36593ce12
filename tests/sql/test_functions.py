"""What operators and applications call: cancel, pause, resume, opt_out, replay."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING
from uuid import uuid4

import asyncpg
import pytest

from daemon.core.lifecycle import FINAL, REPLAYABLE, WAITING, Status
from tests.sql.actor import Actor, blocked, ended, insert, waiting, where

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from uuid import UUID

    Connection = asyncpg.Connection[asyncpg.Record]
    Another = Callable[..., Awaitable[Connection]]

pytestmark = pytest.mark.every_postgres


async def cancel(connection: Connection, id: UUID) -> str:
    return await connection.fetchval("SELECT outrider.cancel($1)", id)  # type: ignore[no-any-return]


async def signals(connection: Connection) -> list[tuple[str, UUID | None, str | None]]:
    return [tuple(row) for row in await connection.fetch("SELECT kind, id, what FROM outrider.signal ORDER BY seq")]


# cancel


async def test_a_waiting_message_is_canceled_at_once(connection: Connection, actor: Actor) -> None:
    (id,) = await insert(connection)
    assert await cancel(connection, id) == "canceled"
    assert await cancel(connection, id) == "too_late"
    row = await ended(connection, id)
    assert (row["status"], row["reason"]) == ("canceled", "canceled by the application")
    assert await actor.claim() == []
    assert await signals(connection) == []


async def test_a_message_of_the_future_and_one_under_suspicion_are_canceled(connection: Connection) -> None:
    for columns in (
        {"send_at": datetime.now(UTC) + timedelta(days=1)},
        {"recipient": "?"},
        {"order_key": "a"},
        {"order_key": "a"},
    ):
        (id,) = await insert(connection, **columns)
        assert await cancel(connection, id) == "canceled"


async def test_one_in_flight_is_asked_for(connection: Connection, actor: Actor) -> None:
    (id,) = await insert(connection)
    (taken,) = await actor.claim()
    assert await cancel(connection, id) == "requested"
    assert await signals(connection) == [("cancel", id, None)]
    assert await where(connection, id) == "sending"
    await actor.give_back([taken], closed=[taken.claim])
    assert await cancel(connection, id) == "canceled", "it came back"


async def test_one_in_doubt_is_asked_for(connection: Connection, actor: Actor) -> None:
    (id,) = await insert(connection)
    await actor.give_back(await actor.claim(), "unknown")
    assert await cancel(connection, id) == "requested"
    assert await where(connection, id) == "unknown"


async def test_for_one_that_has_ended_it_is_too_late(connection: Connection, actor: Actor) -> None:
    (id,) = await insert(connection)
    await actor.settle(await actor.claim())
    assert await cancel(connection, id) == "too_late"
    assert await cancel(connection, uuid4()) == "too_late"


async def test_a_cancel_waits_for_a_claim_in_the_making(connection: Connection, actor: Actor, another: Another) -> None:
    (id,) = await insert(connection)
    canceller = await another()
    claim = actor.connection.transaction()
    await claim.start()
    assert [taken.id for taken in await actor.claim()] == [id]
    waits = asyncio.create_task(cancel(canceller, id))
    await blocked(connection, canceller)
    await claim.commit()
    assert await waits == "requested"
    assert await where(connection, id) == "sending"


async def test_a_transaction_that_cannot_see_the_claim_promises_less(
    connection: Connection, actor: Actor, another: Another
) -> None:
    """REPEATABLE READ: the claim is younger than its snapshot. The daemon must hear of it all the same."""
    (id,) = await insert(connection)
    canceller = await another()
    async with canceller.transaction(isolation="repeatable_read"):
        assert await where(canceller, id) == "queued"
        (taken,) = await actor.claim()
        assert await cancel(canceller, id) == "requested"
    assert await signals(connection) == [("cancel", id, None)]
    assert await actor.settled([taken]) == set()
    await actor.late(id, 1)
    assert await where(connection, id) == "accepted", "what was sent after all shows"


# pause and resume


@pytest.mark.parametrize("what", ["all", "service:otp", "sender:+12025550100", "provider:twilio"])
async def test_what_is_paused_stays_so_until_it_is_resumed(connection: Connection, what: str) -> None:
    for reason in ("first", "second"):
        await connection.execute("SELECT outrider.pause($1, $2)", what, reason)
    assert [tuple(row) for row in await connection.fetch("SELECT what, reason FROM outrider.pause")] == [
        (what, "first")
    ]
    assert await connection.fetchval("SELECT outrider.resume($1)", what) is True
    assert await connection.fetchval("SELECT outrider.resume($1)", what) is False
    assert await signals(connection) == [("pause", None, what), ("pause", None, what), ("resume", None, what)]


@pytest.mark.parametrize("what", ["", "everything", "service:", "otp", "Service:otp", "all ", "sender +1"])
async def test_what_cannot_be_paused_is_said_plainly(connection: Connection, what: str) -> None:
    with pytest.raises(
        asyncpg.RaiseError, match=r"cannot pause .*: say all, service:NAME, sender:ADDRESS or provider:NAME"
    ):
        await connection.execute("SELECT outrider.pause($1)", what)
    assert await signals(connection) == []


# opt_out


async def test_an_opt_out_stands_and_is_told_each_time(connection: Connection) -> None:
    await connection.execute(
        "SELECT outrider.opt_out('+12025550100'), outrider.opt_out('+12025550100', 'acme', 'STOP')"
    )
    await connection.execute("SELECT outrider.opt_out('+12025550100', reason => 'again')")
    rows = await connection.fetch("SELECT tenant, recipient, reason FROM outrider.suppression ORDER BY tenant")
    assert [tuple(row) for row in rows] == [("", "+12025550100", "opted out"), ("acme", "+12025550100", "STOP")]
    assert [what for _, _, what in await signals(connection)] == [" +12025550100", "acme +12025550100", " +12025550100"]


@pytest.mark.parametrize("recipient", ["", "0171 234", "12025550100", "+12025550100 ", "+0123456789"])
async def test_an_opt_out_wants_a_whole_number(connection: Connection, recipient: str) -> None:
    with pytest.raises(asyncpg.RaiseError, match=r"E\.164"):
        await connection.execute("SELECT outrider.opt_out($1)", recipient)


# replay


async def replay(connection: Connection, id: UUID) -> bool:
    return await connection.fetchval("SELECT outrider.replay($1)", id)  # type: ignore[no-any-return]


@pytest.mark.parametrize("status", sorted(FINAL | WAITING))
async def test_only_what_ended_badly_is_sent_again(connection: Connection, actor: Actor, status: Status) -> None:
    (id,) = await insert(connection, intent="otp", order_key="a")
    await actor.settle(await actor.claim(), status, reason="because")
    assert await replay(connection, id) == (status in REPLAYABLE)
    if status not in REPLAYABLE:
        assert await where(connection, id) == status
        return
    row = await waiting(connection, id)
    assert row is not None
    assert (row["state"], row["lane"], row["level"], row["attempts"], row["spent"], row["reason"]) == (
        "ready",
        "service",
        1,
        1,
        0,
        "replayed",
    )
    assert await where(connection, id) == "queued"
    assert await signals(connection) == [("replay", id, None)]
    story = await connection.fetch("SELECT kind, outcome, reason FROM outrider.attempt WHERE id = $1", id)
    assert [tuple(row) for row in story] == [("replay", "replayed", f"was {status}: because")]
    assert not await replay(connection, id), "once"
    (taken,) = await actor.claim()
    assert taken.attempt == 2
    await actor.settle([taken])
    assert await where(connection, id) == "accepted"


async def test_nothing_else_is_sent_again(connection: Connection, actor: Actor) -> None:
    assert not await replay(connection, uuid4())
    (queued,) = await insert(connection)
    assert not await replay(connection, queued)
    (first,) = await insert(connection, idempotency_key="k")
    (repeat,) = await insert(connection, idempotency_key="k")
    assert not await replay(connection, repeat), f"a repeat of {first}"
    (short,) = await insert(connection, service="short", expires_at=datetime.now(UTC) + timedelta(seconds=0.5))
    await actor.settle(await actor.claim(lanes=["short"]), Status.DEAD)
    await asyncio.sleep(0.5)
    assert not await replay(connection, short), "of no more use"


async def test_old_news_told_again_does_not_undo_a_replay(connection: Connection, actor: Actor) -> None:
    (id,) = await insert(connection)
    await actor.settle(await actor.claim())
    await actor.hear(id, 1, Status.UNDELIVERED)
    assert await replay(connection, id)
    for _ in range(2):
        await actor.hear(id, 1, Status.UNDELIVERED)
        await actor.hear(id, 1, Status.SENT)
    assert await where(connection, id) == "queued"
    await actor.settle(await actor.claim())
    await actor.hear(id, 1, Status.UNDELIVERED)
    assert await where(connection, id) == "accepted", "what was heard of the first attempt is not said of the second"
    await actor.hear(id, 1, Status.DELIVERED)
    assert await where(connection, id) == "delivered", "that it arrived is true, whichever arrived"


async def test_two_replays_at_once_send_it_once(connection: Connection, actor: Actor, another: Another) -> None:
    (id,) = await insert(connection)
    await actor.settle(await actor.claim(), Status.DEAD)
    operators = [await another() for _ in range(4)]
    assert sorted(await asyncio.gather(*(replay(operator, id) for operator in operators))) == [False] * 3 + [True]
    assert await connection.fetchval("SELECT count(*) FROM outrider.queue") == 1
