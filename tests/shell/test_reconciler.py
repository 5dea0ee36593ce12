"""Reconciler and auditor on a real Postgres, with a provider that answers questions over a real socket."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import TYPE_CHECKING
from uuid import UUID, uuid4

import pytest
import structlog
from aiohttp import web

from daemon.core.lifecycle import Status
from daemon.core.outcome import Accepted
from daemon.core.receipt import Receipt
from daemon.core.verdict import Handed
from daemon.ledger import Exchange, word
from daemon.outbox import Wish
from daemon.receipts import News
from tests.shell.parts import US, dialect, engine

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    import asyncpg

    from daemon.core.message import Message
    from daemon.engine import Engine

    Connection = asyncpg.Connection[asyncpg.Record]
    House = Callable[..., AbstractAsyncContextManager[Engine]]


@pytest.fixture
def house(database: str, tmp_path: Path) -> House:
    return lambda: engine(database, tmp_path)


@asynccontextmanager
async def provider(made: Engine, **standing: object) -> AsyncIterator[list[str]]:
    """A provider where every message stands so; which it was asked for. Without a status it knows of none."""
    asked: list[str] = []

    async def fetch(request: web.Request) -> web.Response:
        sid = request.path.rpartition("/")[2].removesuffix(".json")
        asked.append(sid)
        if "status" not in standing:
            return web.json_response({"code": 20404, "status": 404}, status=404)
        return web.json_response({"sid": sid, "num_segments": "1", "from": US, **standing})

    app = web.Application()
    app.router.add_get("/{path:.*}", fetch)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    made.gates["sim"].dialect = dialect(base_url=f"http://127.0.0.1:{runner.addresses[0][1]}")
    try:
        yield asked
    finally:
        await runner.cleanup()


async def handed(
    made: Engine, connection: Connection, many: int = 1, *, hours_ago: float = 2.0, segments: int = 1
) -> list[UUID]:
    """Messages that the provider accepted so long ago, each as SM and its id."""
    await made.leases._take()
    await connection.execute(
        "INSERT INTO outrider.outbox (recipient, service, body)"
        " SELECT '+12025550101', 'default', 'hello' FROM generate_series(1, $1::integer)",
        many,
    )
    taken: list[Message] = []
    made.outbox._deliver = taken.append
    made.outbox._wishes = lambda _levels: [Wish(US, "default", 3, 500)]
    await made.outbox._take(frozenset({3}))
    await made.outbox._send_out()
    words = []
    for one in taken:
        assert made.desk.prepare(one) is None
        outcome = Accepted(f"SM{one.id.hex}", segments=segments)
        exchange = Exchange("sim", US, outcome, 0.1)
        words.append(word(one, one.group, Handed(outcome), now=made.desk.now(), exchange=exchange))
    await made.ledger.write(words)
    ids = [one.id for one in taken]
    await connection.execute(
        "UPDATE outrider.outcome SET accepted_at = now() - $2::interval WHERE id = ANY ($1)",
        ids,
        timedelta(hours=hours_ago),
    )
    return ids


async def stands(connection: Connection, id: UUID) -> tuple[str, str | None]:
    row = await connection.fetchrow("SELECT status, reason FROM outrider.message WHERE id = $1", id)
    assert row is not None
    return row["status"], row["reason"]


async def kinds(connection: Connection) -> list[str]:
    rows = await connection.fetch("SELECT kind FROM outrider.anomaly ORDER BY kind")
    return [row["kind"] for row in rows]


# Overdue receipts.


async def test_what_a_provider_answers_counts_as_a_receipt(house: House, connection: Connection) -> None:
    async with house() as made, provider(made, status="undelivered", error_code=30005) as asked:
        (id,) = await handed(made, connection)
        assert await made.reconciler.ask() == 1
        assert asked == [f"SM{id.hex}"]
        assert (await stands(connection, id))[0] == "undelivered"
        row = await connection.fetchrow("SELECT id, attempt, provider, status, code FROM outrider.receipt")
        assert tuple(row or ()) == (id, 1, "sim", "undelivered", "30005")
        story = [row["what"] for row in await connection.fetch("SELECT what FROM outrider.why($1)", id)]
        assert "evidence 1" in story
        assert await made.reconciler.ask() == 0
        assert (
            b'outrider_overdue_asked_total{outcome="undelivered",provider="sim"} 1.0'
            in made.reconciler._observer.metrics()[0]
        )
        assert await kinds(connection) == []


async def test_what_is_still_on_its_way_is_heard_once_and_asked_for_again(house: House, connection: Connection) -> None:
    async with house() as made, provider(made, status="sent") as asked:
        (id,) = await handed(made, connection)
        for _ in range(3):
            await made.reconciler.ask()
            await connection.execute("UPDATE outrider.outcome SET quiet_from = now() - interval '61 minutes'")
        assert len(asked) == 3
        assert await connection.fetchval("SELECT count(*) FROM outrider.receipt") == 1
        assert await stands(connection, id) == ("sent", None)


async def test_nobody_is_asked_within_the_first_hour_nor_after_72(house: House, connection: Connection) -> None:
    async with house() as made, provider(made, status="delivered") as asked:
        await handed(made, connection, hours_ago=0.9)
        (old,) = await handed(made, connection, hours_ago=72.1)
        assert await made.reconciler.ask() == 1
        assert asked == []
        assert await connection.fetchval("SELECT reason FROM outrider.outcome WHERE id = $1", old) == "unconfirmed"
        assert await made.reconciler.ask() == 0
        await made.book.hear([News(old, 1, "sim", Receipt(f"SM{old.hex}", Status.DELIVERED))])
        assert await stands(connection, old) == ("delivered", None)


async def test_older_ones_are_asked_for_at_night(house: House, connection: Connection) -> None:
    async with house() as made, provider(made, status="sent"):
        await handed(made, connection, hours_ago=30)
        await made.reconciler.ask()
        at = await connection.fetchval(
            "SELECT to_char((quiet_from + interval '1 hour') AT TIME ZONE 'UTC', 'HH24:MI') FROM outrider.outcome"
        )
        assert at == "03:00"


async def test_no_more_are_asked_for_than_there_is_room(
    house: House, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("daemon.reconciler.ASKED", 3)
    async with house() as made, provider(made, status="delivered") as asked:
        await handed(made, connection, 8)
        assert await made.reconciler.ask() == 8
        assert len(asked) == 3
        assert await made.reconciler.ask() == 0, "the others have their turn in an hour"
        await connection.execute("UPDATE outrider.outcome SET quiet_from = now() - interval '2 hours'")
        assert await made.reconciler.ask() == 5


async def test_a_message_its_provider_does_not_know_is_told(house: House, connection: Connection) -> None:
    async with house() as made, provider(made):
        (id,) = await handed(made, connection)
        with structlog.testing.capture_logs() as said:
            await made.reconciler.ask()
        assert await kinds(connection) == ["unknown_there"]
        assert [(line["event"], line["kind"], line["message_id"]) for line in said if "kind" in line] == [
            ("anomaly.found", "unknown_there", str(id))
        ]
        assert (await stands(connection, id))[0] == "accepted"
        assert b'outrider_anomalies_total{kind="unknown_there"} 1.0' in made.reconciler._observer.metrics()[0]


async def served(
    made: Engine, answer: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
) -> asyncio.Server:
    """A provider that treats each connection so."""
    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    made.gates["sim"].dialect = dialect(base_url=f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    return server


async def test_a_provider_in_trouble_is_asked_for_one(house: House, connection: Connection) -> None:
    asked: set[bytes] = set()

    async def slam(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.add(await reader.readline())
        writer.close()

    async with house() as made:
        server = await served(made, slam)
        ids = await handed(made, connection, 5)
        await made.reconciler.ask()
        server.close()
    assert len(asked - {b""}) == 1
    assert {(await stands(connection, id))[0] for id in ids} == {"accepted"}


async def test_it_ends_although_a_provider_hangs(house: House, connection: Connection) -> None:
    asked = asyncio.Event()

    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        asked.set()
        await reader.read()  # until they hang up
        writer.close()

    async with house() as made:
        server = await served(made, hang)
        await handed(made, connection)
        stop = asyncio.Event()
        async with asyncio.timeout(10):
            running = asyncio.create_task(made.reconciler.run(stop))
            await asked.wait()
            stop.set()
            await running
        server.close()


async def test_a_provider_that_counts_otherwise_is_told(house: House, connection: Connection) -> None:
    async with house() as made:
        ids = await handed(made, connection, 2, segments=3)
        rows = await connection.fetch("SELECT kind, id, detail FROM outrider.anomaly")
        assert {row["id"] for row in rows} == set(ids)
        assert {(row["kind"], row["detail"]) for row in rows} == {("segments", "its provider counts 3 segments, not 1")}
        assert await connection.fetchval("SELECT min(segments) FROM outrider.outcome") == 3


# Parked receipts.


async def test_a_parked_receipt_is_merged_when_its_message_is_known(house: House, connection: Connection) -> None:
    async with house() as made:
        (id,) = await handed(made, connection, hours_ago=0)
        ref = f"SM{id.hex}"
        lost = [Receipt(ref, Status.SENT, final=False), Receipt(ref, Status.UNDELIVERED, "30005")]
        await made.book.hear([News(None, None, "sim", one) for one in lost])
        await made.book.hear([News(uuid4(), 1, "sim", Receipt("SM7", Status.DELIVERED))])
        await connection.execute("UPDATE outrider.parked SET look_at = now()")
        assert (await stands(connection, id))[0] == "accepted"
        assert await made.reconciler.place() == 1
        assert (await stands(connection, id))[0] == "undelivered"
        assert [row[0] for row in await connection.fetch("SELECT reference FROM outrider.parked")] == ["SM7"]
        assert b"outrider_receipts_parked 1.0" in made.reconciler._observer.metrics()[0]
        await connection.execute("UPDATE outrider.parked SET look_at = now(), since = now() - interval '73 hours'")
        assert await made.reconciler.place() == 0
        assert await kinds(connection) == ["orphan"]
        assert await connection.fetchval("SELECT count(*) FROM outrider.parked") == 0


# The books.


async def test_a_loss_is_told_when_two_looks_have_seen_it(house: House, connection: Connection) -> None:
    async with house() as made:
        ids = await handed(made, connection, 3)
        await connection.execute(
            "INSERT INTO outrider.outbox (recipient, service, body, intent, send_at)"
            " VALUES ('+12025550101', 'default', 'later', 'otp', now() + interval '1 hour')"
        )
        assert await made.auditor.look() == 0
        lost = await connection.fetchval("DELETE FROM outrider.queue RETURNING id")
        assert lost not in ids
        with structlog.testing.capture_logs() as said:
            assert await made.auditor.look() == 1
        assert [line for line in said if line["log_level"] == "error"] == [], "one look may be a mistake of ours"
        with structlog.testing.capture_logs() as said:
            assert await made.auditor.look() == 1
        (line,) = [line for line in said if line["log_level"] == "error"]
        assert (line["event"], line["difference"], line["message_ids"]) == ("conservation.broken", 1, [str(lost)])
        assert await connection.fetchval("SELECT id FROM outrider.anomaly WHERE kind = 'lost'") == lost
        books = made.auditor._observer.status().books
        assert [(one.intent, one.inserted, one.settled, one.open, one.difference) for one in books] == [
            ("otp", 1, 0, 0, 1),
            ("", 3, 3, 0, 0),
        ]
        assert b"outrider_conservation_difference 1.0" in made.auditor._observer.metrics()[0]
        assert any("lost" in trouble.what for trouble in made.auditor._observer.status().troubles)


async def test_an_anomaly_that_repeats_fills_no_log(house: House, connection: Connection) -> None:
    async with house() as made:
        with structlog.testing.capture_logs() as said:
            for _ in range(4):
                await handed(made, connection, 3, segments=2)
        assert len([line for line in said if line["event"] == "anomaly.found"]) == 1
        assert b'outrider_anomalies_total{kind="segments"} 12.0' in made.auditor._observer.metrics()[0]
