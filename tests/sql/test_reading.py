"""What people read: one status word for every situation, the whole story, and never a body or a number."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daemon.core.lifecycle import FINAL, REPLAYABLE, WAITING, Status
from tests.sql.actor import LONG_AGO, Actor, insert, where

if TYPE_CHECKING:
    import asyncpg

    Connection = asyncpg.Connection[asyncpg.Record]

pytestmark = pytest.mark.every_postgres

BODY, NUMBER = "your code is 314159", "+12025550143"


async def message(connection: Connection, id: object) -> asyncpg.Record:
    rows = await connection.fetch("SELECT * FROM outrider.message WHERE id = $1", id)
    assert len(rows) == 1, "one message, one row"
    return rows[0]


async def test_every_situation_has_its_word(connection: Connection, actor: Actor) -> None:
    seen: dict[str, str] = {}

    async def look(id: object, situation: str) -> None:
        row = await message(connection, id)
        seen[situation] = f"{row['status']}: {row['reason']}"

    (id,) = await insert(connection)
    await look(id, "fresh")
    (future,) = await insert(connection, send_at=datetime.now(UTC) + timedelta(hours=1))
    await look(future, "of the future")
    (doubtful,) = await insert(connection, recipient="?")
    await look(doubtful, "under suspicion")
    (first,) = await insert(connection, order_key="a", service="other")
    (behind,) = await insert(connection, order_key="a", service="other")
    await look(behind, "behind another")
    (taken,) = await actor.claim()
    await look(id, "in flight")
    await actor.give_back([taken], due_at=LONG_AGO, closed=[taken.claim])
    await look(id, "came back")
    (taken,) = await actor.claim()
    await look(id, "in flight again")
    await actor.give_back([taken], "unknown")
    await look(id, "in doubt")
    await actor.hear(id, 2, Status.ACCEPTED)
    await look(id, "accepted")
    await actor.hear(id, 2, Status.SENT)
    await look(id, "sent")
    await connection.execute("UPDATE outrider.outcome SET accepted_at = now() - interval '73 hours' WHERE id = $1", id)
    await look(id, "sent long ago")
    await actor.hear(id, 2, Status.UNDELIVERED)
    await look(id, "undelivered")
    await actor.hear(id, 2, Status.DELIVERED)
    await look(id, "delivered")
    due = (await message(connection, future))["due_at"]
    assert seen == {
        "fresh": "queued: waiting for its turn",
        "of the future": f"queued: not due before {await connection.fetchval('SELECT $1::timestamptz::text', due)}",
        "under suspicion": "queued: waiting for its turn",
        "behind another": "queued: behind an earlier message of its order_key",
        "in flight": "sending: None",
        "came back": "queued: came back ready",
        "in flight again": "sending: came back ready",
        "in doubt": "unknown: came back unknown",
        "accepted": "accepted: None",
        "sent": "sent: None",
        "sent long ago": "sent: unconfirmed",
        "undelivered": "undelivered: None",
        "delivered": "delivered: None",
    }
    assert await where(connection, first) == "queued"


@pytest.mark.parametrize("status", sorted(FINAL | WAITING))
async def test_an_outcome_shows_as_it_stands(connection: Connection, actor: Actor, status: Status) -> None:
    (id,) = await insert(connection)
    await actor.settle(await actor.claim(), status, reason="because")
    row = await message(connection, id)
    assert (row["status"], row["reason"], row["attempts"], row["segments"], row["sender"]) == (
        status,
        "because",
        1,
        1,
        "+12025550100",
    )
    dead = await connection.fetchval("SELECT count(*) FROM outrider.dead_letter WHERE id = $1", id)
    assert dead == (status in REPLAYABLE)


async def test_an_attempt_given_back_is_not_in_flight_any_more(connection: Connection, actor: Actor) -> None:
    """Its claim may stay open for the sake of others in it."""
    ids = await insert(connection, 2)
    taken = await actor.claim()
    await actor.give_back(taken[:1], due_at=datetime.now(UTC) + timedelta(hours=1))
    assert [await where(connection, id) for id in ids] == ["queued", "sending"]


async def test_messages_are_found_by_key_and_by_tags(connection: Connection) -> None:
    await insert(connection, idempotency_key="order 17")
    await connection.execute(
        "INSERT INTO outrider.outbox (recipient, body, tags) VALUES ($1, 'x', '{\"campaign\": 7}')", NUMBER
    )
    assert await connection.fetchval("SELECT count(*) FROM outrider.message WHERE idempotency_key = 'order 17'") == 1
    found = await connection.fetchval(
        "SELECT count(*) FROM outrider.message WHERE tags @> '{\"campaign\": 7}' AND id >= outrider.first_id(now() - interval '1 hour')"
    )
    assert found == 1


async def test_why_tells_the_whole_story_and_nothing_private(connection: Connection, actor: Actor) -> None:
    (id,) = await insert(connection, recipient=NUMBER, body=BODY, intent="otp", order_key="secret order", tags=None)
    await connection.execute(
        "INSERT INTO outrider.instance (id, host, pid, version, started_at, seen_at, config_hash, services, groups)"
        " VALUES ($1, 'sender-1', 42, '0', now(), now(), '', '{}', '{}')", actor.owner,
    )  # fmt: skip
    (taken,) = await actor.claim()
    story = await connection.fetch("SELECT * FROM outrider.why($1)", id)
    assert [row["what"] for row in story] == ["inserted", "claimed", "now sending"]
    assert story[1]["detail"] == "attempt 1 by sender-1/42, epoch 1"
    await actor.run(
        "attempts",
        [id],
        [1],
        ["exchange"],
        [datetime.now(UTC)],
        ["twilio"],
        ["+12025550100"],
        [2],
        ["uncertain"],
        [None],
        ["timed out"],
        [None],
    )
    await actor.give_back([taken], "unknown", closed=[taken.claim])
    await actor.hear(id, 1, Status.SENT)
    await actor.hear(id, 1, Status.UNDELIVERED, code="30003")
    assert await connection.fetchval("SELECT outrider.replay($1)", id)
    await actor.settle(await actor.claim())
    story = await connection.fetch("SELECT * FROM outrider.why($1)", id)
    assert [row["at"] for row in story] == sorted(row["at"] for row in story)
    told = [row["what"] for row in story]
    assert sorted(told[1:-1]) == sorted(["exchange 1", "receipt", "evidence 1", "receipt", "replay 1", "claimed"])
    assert (told[0], told[-1]) == ("inserted", "now accepted")
    text = "\n".join(f"{row['what']} {row['detail']}" for row in story)
    for needle in ("uncertain", "timed out", "2 segments", "30003", "replayed", "was undelivered"):
        assert needle in text
    for secret in (BODY, "314159", NUMBER, NUMBER[3:], "secret order"):
        assert secret not in text


async def test_no_view_shows_a_body_or_a_whole_number(connection: Connection, actor: Actor) -> None:
    (id,) = await insert(connection, recipient=NUMBER, body=BODY)
    await actor.settle(await actor.claim(), Status.DEAD)
    for view in ("message", "dead_letter", "backlog"):
        text = str(await connection.fetch(f"SELECT v::text FROM outrider.{view} AS v"))  # noqa: S608
        assert BODY not in text
        assert NUMBER not in text
    assert (await message(connection, id))["recipient"] == "+12*******43"


async def test_a_mask_shows_no_more_than_five_characters_of_anything(connection: Connection) -> None:
    recipients: list[str] = []

    @settings(max_examples=200)
    @given(st.text(st.characters(exclude_characters="*\x00", codec="utf-8"), max_size=40))
    def collect(recipient: str) -> None:
        recipients.append(recipient)

    collect()
    masked = await connection.fetchval(
        "SELECT array_agg(outrider.mask(r) ORDER BY n) FROM unnest($1::text[]) WITH ORDINALITY AS t (r, n)", recipients
    )
    for recipient, shown in zip(recipients, masked, strict=True):
        assert len(shown.replace("*", "")) <= 5
        assert len(recipient) > 7 or re.fullmatch(r"\**", shown)


async def test_the_backlog_counts_what_waits(connection: Connection) -> None:
    await insert(connection, 3)
    await insert(connection, 2, intent="otp", service="otp")
    await insert(connection, send_at=datetime.now(UTC) + timedelta(days=1), service="later")
    rows = await connection.fetch(
        "SELECT lane, level, state, messages, oldest_due IS NOT NULL AS due FROM outrider.backlog ORDER BY lane"
    )
    assert [tuple(row) for row in rows] == [
        ("later", 3, "ready", 1, False),
        ("otp", 1, "ready", 2, True),
        ("service", 3, "ready", 3, True),
    ]
