"""Signals, receipts, inspector and janitor on a real Postgres."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from email.utils import format_datetime
from typing import TYPE_CHECKING
from uuid import UUID, uuid4

import asyncpg
import pytest
from aiohttp import web

from daemon import inspector
from daemon.core.lifecycle import Status
from daemon.core.outcome import Uncertain
from daemon.core.receipt import Receipt
from daemon.core.verdict import Doubt
from daemon.database import DatabaseDown, statement
from daemon.horizon import OLD_S
from daemon.inspector import AHEAD, GRACE_S
from daemon.ledger import Exchange, word
from daemon.outbox import Wish
from daemon.receipts import News, Overrun, ReceiptBook, Unwritten
from daemon.settings import parse
from tests.shell.parts import OTHER, US, Wound, dialect, engine, message, settings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    from daemon.clock import Clock
    from daemon.core.message import Message
    from daemon.engine import Engine
    from daemon.settings import Settings

    Connection = asyncpg.Connection[asyncpg.Record]
    House = Callable[..., AbstractAsyncContextManager[Engine]]


@pytest.fixture
def house(database: str, tmp_path: Path) -> House:
    def of(
        name: str = "one", *, clock: Clock | None = None, configured: Settings | None = None
    ) -> AbstractAsyncContextManager[Engine]:
        (tmp_path / name).mkdir(exist_ok=True)
        return engine(database, tmp_path / name, clock=clock, configured=configured)

    return of


async def insert(connection: Connection, recipient: str = "+12025550101", service: str = "default") -> UUID:
    id: UUID = await connection.fetchval(
        "INSERT INTO outrider.outbox (recipient, service, body) VALUES ($1, $2, 'hello') RETURNING id",
        recipient,
        service,
    )
    return id


def german(service: str, sender: str) -> Settings:
    """A service that reads numbers as they are written in Germany, and has a template."""
    return parse(
        {
            "providers": {"sim": {"kind": "simulator"}},
            "senders": [{"address": sender, "provider": "sim", "type": "long_code", "country": "US"}],
            "services": {service: {"senders": [sender], "default_region": "DE"}},
            "templates": {"code": "Your code is {code}."},
        }
    )


# Signals.


async def test_what_sql_says_is_heard(house: House, connection: Connection) -> None:
    async with house() as made:
        await made.announce()
        await made.signals.begin()
        (id,) = [await insert(connection)]
        await connection.execute("INSERT INTO outrider.signal (kind, id) VALUES ('cancel', $1)", id)
        await connection.execute("SELECT outrider.opt_out('+12025550101', 'acme')")
        await connection.execute("SELECT outrider.pause('service:default', 'maintenance')")
        await made.signals.look()
        assert made.desk.canceled == {id}
        assert made.desk.opted_out == {("acme", "+12025550101")}
        assert made.desk.pauses == {"service:default": "maintenance"}
        await connection.execute("SELECT outrider.resume('service:default')")
        await made.signals.look()
        assert made.desk.pauses == {}


async def test_what_stood_before_is_read_at_the_start(house: House, connection: Connection) -> None:
    await connection.execute("SELECT outrider.opt_out('+12025550101')")
    await connection.execute("SELECT outrider.pause('all', 'maintenance')")
    async with house() as made:
        await made.signals.begin()
        assert made.desk.opted_out == {("", "+12025550101")}
        assert made.desk.paused("all") == "maintenance"


async def test_signals_that_commit_out_of_order_are_missed_by_nobody(
    house: House, connection: Connection, database: str
) -> None:
    slow = await asyncpg.connect(database)
    async with house() as made:
        await made.announce()
        await made.signals.begin()
        early, late = uuid4(), uuid4()
        open_one = slow.transaction()
        await open_one.start()
        await slow.execute("INSERT INTO outrider.signal (kind, id) VALUES ('cancel', $1)", early)
        await connection.execute("INSERT INTO outrider.signal (kind, id) VALUES ('cancel', $1)", late)
        for _ in range(3):
            await made.signals.look()
        assert made.desk.canceled == {late}
        await open_one.commit()
        await made.signals.look()
        assert made.desk.canceled == {late, early}
    await slow.close()


async def test_a_transaction_older_than_the_reader_is_heard_too(
    house: House, connection: Connection, database: str
) -> None:
    slow = await asyncpg.connect(database)
    open_one = slow.transaction()
    await open_one.start()
    await slow.execute("SELECT outrider.opt_out('+12025550101')")
    async with house() as made:
        await made.announce()
        await made.signals.begin()
        assert made.desk.opted_out == set()
        await open_one.commit()
        await made.signals.look()
        assert made.desk.opted_out == {("", "+12025550101")}
    await slow.close()


async def test_a_signal_is_heard_once_and_a_lost_answer_loses_none(house: House, connection: Connection) -> None:
    async with house() as made:
        await made.announce()
        await made.signals.begin()
        woken = 0

        def wake() -> None:
            nonlocal woken
            woken += 1

        made.signals._woken = wake
        await connection.execute("INSERT INTO outrider.signal (kind) VALUES ('replay')")
        real = made.chores.fetch

        async def fetch(name: str, *arguments: object) -> list[asyncpg.Record]:
            if name == "signals_ack":
                raise DatabaseDown("gone")
            return await real(name, *arguments)

        made.chores.fetch = fetch  # type: ignore[method-assign]
        with pytest.raises(DatabaseDown):
            await made.signals.look()
        made.chores.fetch = real  # type: ignore[method-assign]
        await made.signals.look()
        await made.signals.look()
        assert woken == 1
        acked = await connection.fetchval("SELECT acked::text::bigint FROM outrider.instance")
        assert acked > await connection.fetchval("SELECT xid::text::bigint FROM outrider.signal")


async def test_a_cancellation_outlives_the_hour_and_a_restart(house: House, connection: Connection) -> None:
    async with house() as made:
        await made.announce()
        await made.signals.begin()
        await made.leases._take()
        one = await in_doubt(made, connection)
        assert await connection.fetchval("SELECT outrider.cancel($1)", one.id) == "requested"
        await connection.execute("UPDATE outrider.signal SET at = now() - interval '2 hours'")
        await made.signals.look()
        await connection.execute("UPDATE outrider.instance SET acked = pg_current_xact_id()")
        await connection.execute("SELECT outrider.forget_signals()")
    async with house("again") as made:
        await made.signals.begin()
        assert made.desk.canceled == {one.id}


# The receipt book.


def news(status: Status = Status.DELIVERED, id: UUID | None = None) -> News:
    return News(id or uuid4(), 1, "sim", Receipt("SM1", status, "", "", final=True))


async def test_all_that_come_together_are_committed_together(house: House, connection: Connection) -> None:
    async with house() as made:
        commits = 0
        real = made.receipts.fetch

        async def fetch(name: str, *arguments: object) -> list[asyncpg.Record]:
            nonlocal commits
            commits += 1
            return await real(name, *arguments)

        made.receipts.fetch = fetch  # type: ignore[method-assign]
        await asyncio.gather(*(made.book.hear([news()]) for _ in range(300)))
        assert commits <= 2
        assert made.book.pending == 0
    assert await connection.fetchval("SELECT count(*) FROM outrider.receipt") == 300


async def test_whoever_returns_finds_the_news_durable(house: House, connection: Connection) -> None:
    async with house() as made:
        id = uuid4()
        await made.book.hear([news(id=id), news(Status.SENT, id=id)])
        assert await connection.fetchval("SELECT count(*) FROM outrider.receipt WHERE id = $1", id) == 2
        await made.book.hear([])


async def test_an_outage_reaches_everybody_who_waits(house: House) -> None:
    async with house() as made:
        down = ReceiptBook(made.receipts, made.book._observer)

        async def fetch(name: str, *arguments: object) -> list[asyncpg.Record]:
            await asyncio.sleep(0)
            raise DatabaseDown("gone")

        made.receipts.fetch = fetch  # type: ignore[method-assign]
        found = await asyncio.gather(*(down.hear([news()]) for _ in range(50)), return_exceptions=True)
        assert [type(one) for one in found] == [DatabaseDown] * 50
        assert down.pending == 0


async def test_our_own_fault_is_never_answered_with_a_yes(house: House) -> None:
    async with house() as made:

        async def fetch(name: str, *arguments: object) -> list[asyncpg.Record]:
            raise KeyError("a bug")

        made.receipts.fetch = fetch  # type: ignore[method-assign]
        found = await asyncio.gather(*(made.book.hear([news()]) for _ in range(3)), return_exceptions=True)
        assert [type(one) for one in found] == [Unwritten] * 3


async def test_more_than_it_can_hold_is_sent_away(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("daemon.receipts.PENDING_MAX", 5)
    async with house() as made:
        hold = asyncio.Event()
        real = made.receipts.fetch

        async def fetch(name: str, *arguments: object) -> list[asyncpg.Record]:
            await hold.wait()
            return await real(name, *arguments)

        made.receipts.fetch = fetch  # type: ignore[method-assign]
        first = asyncio.create_task(made.book.hear([news()]))
        await asyncio.sleep(0.01)  # on its way: it no longer waits for a commit
        waiting = [asyncio.create_task(made.book.hear([news()])) for _ in range(5)]
        await asyncio.sleep(0)
        with pytest.raises(Overrun):
            await made.book.hear([news()])
        hold.set()
        await asyncio.gather(first, *waiting)
        await made.book.hear([news()])


async def test_a_caller_who_goes_away_holds_up_nobody(house: House, connection: Connection) -> None:
    async with house() as made:
        going, staying = asyncio.create_task(made.book.hear([news()])), asyncio.create_task(made.book.hear([news()]))
        await asyncio.sleep(0)
        going.cancel()
        await asyncio.wait([going])
        await staying
    assert await connection.fetchval("SELECT count(*) FROM outrider.receipt") == 2


# The inspector.


async def test_the_inspector_reads_the_newest_first_and_misses_nothing(
    house: House, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inspector, "SETTLED_S", 0.0)
    async with house() as made:
        stretches: list[tuple[int, int]] = []
        real, fail = made.looks.fetch, {2}

        async def fetch(name: str, *arguments: object) -> list[asyncpg.Record]:
            if name == "ahead_numbers":
                if len(stretches) in fail:
                    fail.clear()
                    raise DatabaseDown("gone")
                stretches.append((int(str(arguments[0])), int(str(arguments[1]))))
            return await real(name, *arguments)

        made.looks.fetch = fetch  # type: ignore[method-assign]
        await connection.execute(
            "INSERT INTO outrider.outbox (recipient, service, body)"
            " SELECT '+12025550101', 'default', 'hello' FROM generate_series(1, $1::integer)",
            3 * AHEAD,
        )
        with pytest.raises(DatabaseDown):
            await made.inspector._ahead()
        await connection.execute(
            "INSERT INTO outrider.outbox (recipient, service, body) VALUES ('+12025550101', 'default', 'hello')"
        )
        await made.inspector._ahead()
        newest = 3 * AHEAD + 1
        assert stretches == [
            (2 * AHEAD, 3 * AHEAD),
            (AHEAD, 2 * AHEAD),
            (3 * AHEAD, newest),
            (0, AHEAD),
        ]
        await made.inspector._ahead()
        assert len(stretches) == 4


async def test_a_number_that_looks_right_and_is_none_ends_early(house: House, connection: Connection) -> None:
    good, bad = await insert(connection), await insert(connection, "+999123456789")
    async with house() as made:
        await made.inspector._ahead()
        assert await connection.fetchval("SELECT count(*) FROM outrider.outcome") == 0  # most are gone in a moment
        await asyncio.sleep(inspector.SETTLED_S)
        await made.inspector._ahead()
    assert await connection.fetchval("SELECT status FROM outrider.outcome WHERE id = $1", bad) == "suppressed"
    assert await connection.fetchval("SELECT count(*) FROM outrider.queue WHERE id = $1", good) == 1


async def test_suspects_are_judged_and_the_innocent_let_go(house: House, connection: Connection) -> None:
    innocent = await connection.fetchval(
        "INSERT INTO outrider.outbox (recipient, service, body, variables) VALUES ('+12025550101', 'default', 'hi', '{}')"
        " RETURNING id"
    )
    guilty = await insert(connection, "nobody")
    async with house() as made:
        await made.inspector._suspects()
    assert await connection.fetchval("SELECT state FROM outrider.queue WHERE id = $1", innocent) == "ready"
    assert await connection.fetchval("SELECT count(*) FROM outrider.outcome WHERE id = $1", guilty) == 1


async def test_another_daemons_service_is_not_ours_to_refuse(house: House, connection: Connection) -> None:
    theirs, nobodys = await insert(connection, service="theirs"), await insert(connection, service="nobodys")

    async def refused() -> set[UUID]:
        return {row["id"] for row in await connection.fetch("SELECT id FROM outrider.outcome")}

    clock = Wound()
    async with house("two", configured=settings({"theirs": [US]})) as other:
        await other.announce()
    async with house(clock=clock) as made:
        await made.inspector._strays()
        assert await refused() == {nobodys}
        # That daemon was last seen a while ago: it may be starting as we are.
        await connection.execute("UPDATE outrider.instance SET seen_at = now() - interval '10 minutes'")
        await made.inspector._strays()
        assert await refused() == {nobodys}
        clock.go(GRACE_S + 1)
        await made.inspector._strays()
        assert await refused() == {nobodys, theirs}


async def test_what_another_daemon_can_read_is_not_judged_by_us(
    house: House, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its template, its region, its sender: with other settings all of them look like mistakes."""
    monkeypatch.setattr(inspector, "SETTLED_S", 0.0)
    await connection.execute(
        "INSERT INTO outrider.outbox (recipient, service, sender, body, template, variables) VALUES"
        " ('+12025550101', 'theirs', NULL, NULL, 'code', '{\"code\": \"123\"}'),"
        " ('030 901820', 'theirs', NULL, 'hello', NULL, NULL),"
        " ('+12025550101', 'theirs', $1, 'hello', NULL, NULL),"
        " ('+12025550101', 'theirs', $1, NULL, 'code', '{\"code\": \"123\"}')",
        OTHER,
    )
    refused, ready = "SELECT reason FROM outrider.outcome", "SELECT count(*) FROM outrider.queue WHERE state = 'ready'"
    async with (
        house("ours", configured=settings({"default": [US]})) as ours,
        house("two", configured=german("theirs", OTHER)) as theirs,
    ):
        for made in (ours, theirs):
            await made.announce()
            await made.leases._take()
        await ours.inspector._suspects()
        await ours.inspector._strays()
        assert await connection.fetch(refused) == []
        await theirs.inspector._suspects()
        assert (await connection.fetch(refused), await connection.fetchval(ready)) == ([], 4)
        await ours.inspector._strays()
        await ours.inspector._ahead()
        assert await connection.fetch(refused) == []


async def test_a_lane_is_nobodys_when_all_who_live_have_had_time_to_declare_it(
    house: House, connection: Connection
) -> None:
    await insert(connection, service="nobodys")
    new = await insert(connection, service="new")
    clock = Wound()
    async with house("one", clock=clock) as made, house("two", configured=settings({"theirs": [OTHER]})) as other:
        await made.announce()
        await other.announce()
        clock.go(GRACE_S + 1)
        await made.inspector._strays()
        assert await connection.fetchval("SELECT count(*) FROM outrider.outcome") == 0
        other.reload(settings({"theirs": [OTHER], "new": [OTHER]}))
        await other.announce()
        clock.go(GRACE_S + 1)
        await made.inspector._strays()
        assert await connection.fetchval("SELECT count(*) FROM outrider.outcome") == 1
        assert await connection.fetchval("SELECT id FROM outrider.queue") == new


async def test_a_suspect_in_nobodys_lane_ends_as_well(house: House, connection: Connection) -> None:
    id = await insert(connection, "nobody", service="nobodys")
    async with house() as made:
        await made.announce()
        await made.inspector._suspects()
        await made.inspector._strays()
    reason = await connection.fetchval("SELECT reason FROM outrider.outcome WHERE id = $1", id)
    assert reason.startswith("unknown service 'nobodys'")


async def test_what_is_too_late_leaves_by_the_thousand_once_one_was_met(house: House, connection: Connection) -> None:
    """Ended where it stands, in the order of claiming, until what is of use comes; by the row's hour or its service's."""

    async def fill(service: str, many: int, *, useful_s: float | None = None, at_once: bool = False) -> None:
        await connection.execute(
            "INSERT INTO outrider.outbox (recipient, service, body, expires_at, send_at)"
            " SELECT '+12025550101', $1, 'hello', clock_timestamp() + $3::float8 * interval '1 s',"
            " CASE WHEN $4 THEN now() - interval '1 h' END FROM generate_series(1, $2::integer)",
            service, many, useful_s, at_once,
        )  # fmt: skip

    async def left(service: str) -> int:
        return await connection.fetchval("SELECT count(*) FROM outrider.queue WHERE lane = $1", service) or 0

    configured = parse(
        {
            "providers": {"sim": {"kind": "simulator"}},
            "senders": [{"address": US, "provider": "sim", "type": "long_code", "country": "US"}],
            "services": {"rows": {"senders": [US]}, "short": {"senders": [US], "validity": "1s"}},
        }
    )
    # Half of them due at one moment: their numbers alone tell how far we are.
    await fill("rows", 1_500, useful_s=1.0, at_once=True)
    await fill("rows", 1_500, useful_s=1.0)
    await fill("rows", 300)
    await fill("short", 1_200)
    await asyncio.sleep(1.1)
    async with house(configured=configured) as made:
        await made.inspector._outdated()
        assert (await left("rows"), await left("short")) == (3_300, 1_200)  # nothing was met yet: nothing is looked at
        made.desk.prepare(message(lane="rows", service="rows", expires_at=made.desk.now() - 1))
        made.desk.prepare(message(lane="rows", service="rows"))
        while made.inspector._clearing or made.desk.outdated:
            await made.inspector._outdated()
        assert (await left("rows"), await left("short")) == (300, 1_200)
        made.desk.prepare(message(lane="short", service="short", first_due=made.desk.now() - 2))
        while made.inspector._clearing or made.desk.outdated:
            await made.inspector._outdated()
        assert (await left("rows"), await left("short")) == (300, 0)
    reasons = await connection.fetch("SELECT DISTINCT status, substr(reason, 1, 9) AS reason FROM outrider.outcome")
    assert [tuple(row) for row in reasons] == [("expired", "too late:")]


# The janitor.


@asynccontextmanager
async def provider(answer: Callable[[web.Request], web.Response]) -> AsyncIterator[tuple[str, list[str]]]:
    """A provider that answers questions: its address, and what it was asked."""
    asked: list[str] = []

    async def hear(request: web.Request) -> web.Response:
        asked.append(request.query_string)
        return answer(request)

    app = web.Application()
    app.router.add_get("/{path:.*}", hear)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}", asked
    finally:
        await runner.cleanup()


async def in_doubt(made: Engine, connection: Connection, **columns: object) -> Message:
    """A message of which nobody knows whether it was sent, due for a look."""
    columns = {"recipient": "+12025550101", "service": "default", "body": "hello", **columns}
    marks = ", ".join(f"${number}" for number in range(1, 1 + len(columns)))
    await connection.execute(
        f"INSERT INTO outrider.outbox ({', '.join(columns)}) VALUES ({marks})",  # noqa: S608
        *columns.values(),
    )
    return await doubted(made, connection)


async def doubted(made: Engine, connection: Connection) -> Message:
    """What waits is sent, and no answer comes."""
    taken: list[Message] = []
    made.outbox._deliver = taken.append
    made.outbox._wishes = lambda _levels: [Wish(US, "default", 3, 10)]
    await connection.execute("UPDATE outrider.queue SET state = 'ready' WHERE state = 'suspect'")
    await made.outbox._take(frozenset({3}))
    await made.outbox._send_out()
    one = taken[-1]
    exchange = Exchange("sim", US, Uncertain("no answer"), 0.1)
    await made.ledger.write([word(one, one.group, Doubt("no answer"), now=made.desk.now(), exchange=exchange)])
    await connection.execute("UPDATE outrider.queue SET due_at = clock_timestamp() WHERE id = $1", one.id)
    return one


def listing(*bodies: str) -> Callable[[web.Request], web.Response]:
    def answer(_request: web.Request) -> web.Response:
        entries = [
            {
                "sid": "SM" + f"{number:032x}",
                "body": body,
                "from": US,
                "to": "+12025550101",
                "status": "sent",
                "direction": "outbound-api",
                "date_created": format_datetime(datetime.now(UTC)),
                "num_segments": "1",
            }
            for number, body in enumerate(bodies, start=1)
        ]
        return web.json_response({"messages": entries, "next_page_uri": None})

    return answer


async def test_whoever_keeps_vacuum_from_its_work_is_named_once(house: House, database: str) -> None:
    clock = Wound()
    async with house(clock=clock) as made:
        culprit = await asyncpg.connect(database, server_settings={"application_name": "a report"})
        snapshot = culprit.transaction(isolation="repeatable_read")
        await snapshot.start()
        pid = await culprit.fetchval("SELECT pg_backend_pid()")
        observer, held = made.janitor._observer, []

        async def look() -> None:
            await made.janitor._look_at_the_horizon()
            held.append(observer.health().detail["vacuum_held"])

        await look()
        clock.go(OLD_S + 60)
        await look()
        await look()
        gauge = f'outrider_vacuum_held_seconds{{who="process {pid} (a report)"}} 360.0'
        assert gauge in observer.metrics()[0].decode()
        await snapshot.rollback()
        await look()
        assert "outrider_vacuum_held_seconds{" not in observer.metrics()[0].decode()
        await culprit.close()
        named = f"process {pid} (a report) has kept vacuum from its work for 6 min"
        assert held == [None, named, named, None]  # at first it has only just been seen
        assert [one.what for one in observer._troubles] == [named]


async def test_a_transaction_that_only_wrote_and_a_prepared_one_are_seen_too(
    connection: Connection, database: str
) -> None:
    writer = await asyncpg.connect(database, server_settings={"application_name": "a writer"})
    async with writer.transaction():
        await writer.execute("INSERT INTO outrider.pause (what, reason) VALUES ('all', 'x')")
        (row,) = await connection.fetch(statement("horizon"))
        assert "(a writer)" in row["who"]
        assert row["age_s"] >= 0  # a superuser may know
    assert await connection.fetch(statement("horizon")) == []
    await writer.close()


async def test_an_unprivileged_daemon_sees_who_and_remembers_since_when(connection: Connection, database: str) -> None:
    holder = await asyncpg.connect(database, server_settings={"application_name": "a report"})
    async with holder.transaction(isolation="repeatable_read"):
        await holder.fetchval("SELECT 1")
        await connection.execute("SET ROLE outrider_daemon")
        (row,) = await connection.fetch(statement("horizon"))
        assert "(a report)" in row["who"]
        assert row["age_s"] is None
    await holder.close()


async def test_a_provider_that_knows_the_message_ends_the_doubt(house: House, connection: Connection) -> None:
    configured = settings(templates={"code": "Your code is {code}."})
    async with house(configured=configured) as made, provider(listing("hello", "Your code is 123.")) as (url, asked):
        made.gates["sim"].dialect = dialect(base_url=url)
        await made.leases._take()
        plain = await in_doubt(made, connection)
        filled = await in_doubt(made, connection, body=None, template="code", variables='{"code": "123"}')
        await made.janitor._doubts()
        assert len(asked) == 2
        rows = await connection.fetch("SELECT id, reference FROM outrider.outcome ORDER BY reference")
        assert [row["id"] for row in rows] == [plain.id, filled.id]


async def test_one_message_of_theirs_is_never_the_answer_for_two_of_ours(house: House, connection: Connection) -> None:
    async with house() as made, provider(listing("hello")) as (url, _):
        made.gates["sim"].dialect = dialect(base_url=url)
        await made.leases._take()
        for _ in range(3):
            await in_doubt(made, connection)
        await made.janitor._doubts()
        assert await connection.fetchval("SELECT count(*) FROM outrider.outcome") == 1
        assert await connection.fetchval("SELECT count(*) FROM outrider.queue WHERE state = 'unknown'") == 2


async def test_what_was_sent_by_a_template_that_is_gone_stays_in_doubt(house: House, connection: Connection) -> None:
    """An empty list would prove nothing: nobody knows what to look for."""
    async with (
        house(configured=settings(templates={"code": "Hi {code}."})) as made,
        provider(listing()) as (url, asked),
    ):
        made.gates["sim"].dialect = dialect(base_url=url)
        await made.leases._take()
        await in_doubt(made, connection, body=None, template="code", variables='{"code": "123"}')
        made.reload(settings())
        await made.janitor._doubts()
        assert asked == []
        assert made.janitor._absent == {}
        assert await connection.fetchval("SELECT state FROM outrider.queue") == "unknown"


async def orphaned(made: Engine, connection: Connection, lane: str = "default", **columns: object) -> UUID:
    """A message in doubt, long since and due for a look, whose service or sender a reload has removed."""
    await made.announce()
    await made.leases._take()
    one = await in_doubt(made, connection, **columns)
    made.reload(settings({"another": [US]}, templates={"code": "{code} it is."}))
    await made.announce()
    await connection.execute("UPDATE outrider.lease SET senders = $1", [US])  # as when it is taken anew
    await connection.execute("UPDATE outrider.queue SET lane = $1", lane)
    await connection.execute("UPDATE outrider.attempt SET at = at - interval '1 hour'")
    return one.id


@pytest.mark.parametrize("lane", ["default", f"@{OTHER}"])
@pytest.mark.parametrize("policy", ["resolve", "resend"])
async def test_a_doubt_in_a_lane_that_nobody_serves_any_more_ends(
    house: House, connection: Connection, lane: str, policy: str
) -> None:
    async with house() as made:
        id = await orphaned(made, connection, lane, on_ambiguous=policy)
        await made.janitor._nobodys_doubts()
    row = await connection.fetchrow("SELECT status, reason FROM outrider.outcome WHERE id = $1", id)
    assert row is not None
    assert row["status"] == "dead"
    assert row["reason"].startswith("parked in doubt"), "there is nobody to send it again"


async def test_the_provider_is_asked_about_it_all_the_same(house: House, connection: Connection) -> None:
    async with house() as made, provider(listing("hello")) as (url, _):
        made.gates["sim"].dialect = dialect(base_url=url)
        id = await orphaned(made, connection)
        await connection.execute("UPDATE outrider.attempt SET at = at + interval '1 hour'")
        await made.janitor._nobodys_doubts()
    assert await connection.fetchval("SELECT status FROM outrider.outcome WHERE id = $1", id) == "sent"


@pytest.mark.parametrize(
    ("columns", "proves"),
    [
        ({}, True),
        ({"recipient": "030 901820"}, False),
        ({"body": None, "template": "code", "variables": '{"code": "123"}'}, False),
    ],
)
async def test_an_empty_list_proves_nothing_where_words_or_number_may_have_been_others(
    house: House, connection: Connection, columns: dict[str, object], *, proves: bool
) -> None:
    async with house(configured=german("default", US)) as made, provider(listing()) as (url, _):
        made.gates["sim"].dialect = dialect(base_url=url)
        id = await orphaned(made, connection, "default", **columns)
        await made.janitor._nobodys_doubts()
        assert (id in made.janitor._absent) is proves


async def test_a_doubt_in_another_daemons_lane_is_left_to_it(house: House, connection: Connection) -> None:
    async with house() as made, house("two") as other:
        await orphaned(made, connection)
        await other.announce()
        await made.janitor._doubts()
        await made.janitor._nobodys_doubts()
    assert await connection.fetchval("SELECT state FROM outrider.queue") == "unknown"
    assert await connection.fetchval("SELECT due_at <= now() FROM outrider.queue"), "nor put off"


async def test_two_that_look_into_it_at_once_decide_once(house: House, connection: Connection) -> None:
    clock, another = Wound(), settings({"another": [US]})
    async with house(clock=clock) as made, house("two", clock=clock, configured=another) as other:
        await orphaned(made, connection)
        await other.announce()
        for one in (made, other):
            await one.janitor._nobodys_doubts()
        assert await connection.fetchval("SELECT state FROM outrider.queue") == "unknown", "the grace"
        clock.go(GRACE_S + 1)
        seen = await connection.fetch(statement("doubts"), ["default"], 1, 0.0)
        await asyncio.gather(made.janitor._nobodys_doubts(), other.janitor._resolve_all(seen))
    assert await connection.fetchval("SELECT count(*) FROM outrider.attempt WHERE kind = 'decision'") == 1
    assert await connection.fetchval("SELECT status FROM outrider.outcome") == "dead"


async def test_what_a_provider_never_had_is_told_of_each_attempt_anew(house: House, connection: Connection) -> None:
    clock = Wound()
    async with house(clock=clock) as made, provider(listing()) as (url, asked):
        made.gates["sim"].dialect = dialect(base_url=url)
        await made.announce()
        await made.leases._take()
        first = await in_doubt(made, connection)
        await made.janitor._doubts()
        assert await made.looks.fetch("decide", first.id, 1, "ready", 0, "by another daemon")
        await connection.execute("UPDATE outrider.queue SET due_at = created_at FROM outrider.outbox")
        clock.go(70)
        again = await doubted(made, connection)
        assert (again.id, again.attempt) == (first.id, 2)
        states = []
        for _ in range(2):
            await made.janitor._doubts()
            states.append(await connection.fetchval("SELECT state FROM outrider.queue"))
            await connection.execute("UPDATE outrider.queue SET due_at = clock_timestamp()")
            clock.go(70)
        assert len(asked) == 3
        assert states == ["unknown", "ready"], "one empty answer is not two"


async def test_doubts_that_ended_elsewhere_are_forgotten(house: House, connection: Connection) -> None:
    async with house() as made, provider(listing()) as (url, _):
        made.gates["sim"].dialect = dialect(base_url=url)
        await made.announce()
        await made.leases._take()
        heard, doubtful, tried = [await in_doubt(made, connection) for _ in range(3)]
        await made.janitor._doubts()
        assert made.janitor._absent.keys() == {heard.id, doubtful.id, tried.id}
        await made.book.hear([news(id=heard.id)])
        await connection.execute("UPDATE outrider.queue SET attempts = 2 WHERE id = $1", tried.id)
        await made.janitor._forget()
        assert made.janitor._absent.keys() == {doubtful.id}


async def test_a_provider_that_hangs_holds_up_neither_the_duty_nor_the_end(
    house: House, connection: Connection
) -> None:
    async with house() as made:

        async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read()  # until they hang up
            writer.close()

        server = await asyncio.start_server(hang, "127.0.0.1", 0)
        made.gates["sim"].dialect = dialect(base_url=f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        await made.leases._take()
        for number in range(3):
            await in_doubt(made, connection, recipient=f"+1202555010{number}")
        stop = asyncio.Event()
        async with asyncio.timeout(10):
            running = asyncio.create_task(made.janitor.run(stop))
            await asyncio.sleep(1.2)
            done = made.janitor._observer._in_doubt  # sampled although three questions hang
            stop.set()
            await running
        assert done == 3
        server.close()
        await server.wait_closed()
