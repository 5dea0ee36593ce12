"""Outbox, ledger, leases and recovery on a real Postgres: nothing taken twice, nothing lost, nothing fenced forgotten."""

from __future__ import annotations

import asyncio
import time
from dataclasses import fields
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import asyncpg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon import outbox
from daemon.core.lifecycle import RANKS, Status
from daemon.core.message import Message
from daemon.core.outcome import Accepted, Fault, Rejected, Uncertain
from daemon.core.verdict import Again, Doubt, Ended, Handed
from daemon.database import RETRY_MIN_S, DatabaseDown, statement
from daemon.ledger import Exchange, Word, recalled, word
from daemon.outbox import TASTE, Wish, _cut
from tests.shell.parts import OTHER, US, Wound, engine, settings

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    from daemon.clock import Clock
    from daemon.core.verdict import Verdict
    from daemon.engine import Engine
    from daemon.settings import Settings

    Connection = asyncpg.Connection[asyncpg.Record]
    House = Callable[..., AbstractAsyncContextManager[Engine]]


@pytest.fixture
def house(database: str, tmp_path: Path) -> House:
    """Engines of one database, each in a folder named after it."""

    def of(
        name: str = "one", *, owner: UUID | None = None, clock: Clock | None = None, configured: Settings | None = None
    ) -> AbstractAsyncContextManager[Engine]:
        (tmp_path / name).mkdir(exist_ok=True)
        return engine(database, tmp_path / name, owner=owner, clock=clock, configured=configured)

    return of


async def insert(connection: Connection, count: int = 1, **columns: object) -> list[UUID]:
    columns = {"service": "default", "intent": "marketing", "body": "hello", **columns}
    marks = ", ".join(f"${number}" for number in range(2, 2 + len(columns)))
    rows = await connection.fetch(
        f"INSERT INTO outrider.outbox (recipient, {', '.join(columns)})"  # noqa: S608
        f" SELECT '+1202' || (5550000 + n)::text, {marks} FROM generate_series(1, $1::integer) AS n RETURNING id",
        count,
        *columns.values(),
    )
    return [row["id"] for row in rows]


async def claimed(made: Engine, *, room: int = 100, level: int = 3, lane: str = "default") -> list[Message]:
    """What a claim brings now."""
    taken: list[Message] = []
    made.outbox._deliver = taken.append
    made.outbox._wishes = lambda _levels: [Wish(US, lane, level, room)]
    await made.outbox._take(frozenset({level}))
    await made.outbox._send_out()
    return taken


async def written(made: Engine, *said: tuple[Message, Verdict]) -> None:
    await made.ledger.write([word(one, one.group, verdict, now=made.desk.now()) for one, verdict in said])


async def until(true: Callable[[], bool]) -> None:
    while not true():  # noqa: ASYNC110
        await asyncio.sleep(0.01)


async def states(connection: Connection) -> dict[str, int]:
    rows = await connection.fetch("SELECT status, count(*) FROM outrider.message GROUP BY 1")
    return {row["status"]: row["count"] for row in rows}


def sent(made: Engine, one: Message, outcome: Accepted | Uncertain | None = None) -> Exchange:
    made.journal.dispatched(one.id, one.attempt, US, 1, made._clock.tick())
    return Exchange("sim", US, outcome or Accepted("SM1"), 0.1)


# The outbox.


async def test_a_claim_speaks_of_a_message_by_its_own_names(connection: Connection) -> None:
    claim = await connection.prepare(statement("claim"))
    names = [column.name for column in claim.get_attributes()]
    assert names == [*(field.name for field in fields(Message)[: len(names) - 1]), "mark"]
    assert names[-2] == "group"


@given(
    wanted=st.lists(st.tuples(st.integers(1, 500), st.booleans()), min_size=1, max_size=12), room=st.integers(1, 500)
)
def test_what_is_wished_fits_into_the_hands_and_dry_lanes_are_only_tasted(
    wanted: list[tuple[int, bool]], room: int
) -> None:
    wishes = [Wish(US, f"lane {number}", 3, many) for number, (many, _) in enumerate(wanted)]
    dry = {(f"lane {number}", 3) for number, (_, empty) in enumerate(wanted) if empty}
    cut = _cut(wishes, room, dry)
    assert [wish[:3] for wish in cut] == [wish[:3] for wish in wishes]
    assert all(1 <= less.room <= wish.room for less, wish in zip(cut, wishes, strict=True))
    if sum(wish.room for wish in wishes) <= room:
        assert cut == wishes
        return
    assert sum(wish.room for wish in cut) <= room + len(wishes)
    assert all(wish.room <= TASTE for wish in cut if wish[1:3] in dry)
    full = _cut(wishes, room, ())
    assert all(wish.room >= plain.room for wish, plain in zip(cut, full, strict=True) if wish[1:3] not in dry)


async def test_a_claim_that_brought_all_it_asked_for_does_not_rest(house: House, connection: Connection) -> None:
    await insert(connection, 15)
    async with house() as made:
        await made.leases._take()
        rested = []
        for brought in (10, 5, 0):
            made.outbox._wake.clear()
            assert len(await claimed(made, room=10)) == brought
            rested.append(not made.outbox._wake.is_set())
        assert rested == [False, True, True]
        assert made.outbox._dry == {("default", 3)}


async def test_hands_full_of_bulk_wait_until_a_fifth_is_free(house: House, connection: Connection) -> None:
    await insert(connection, 30)
    await insert(connection, 5, intent="otp")
    async with house() as made:
        await made.leases._take()
        made.outbox.in_hand_max = 20
        taken = await claimed(made, room=17)
        assert await claimed(made) == []  # three are free
        assert len(await claimed(made, level=1)) == 5  # what is urgent has a reserve, and waits for nothing
        made.outbox._wake.clear()
        await written(made, *((one, Handed(Accepted("SM1"))) for one in taken[:5]))
        assert not made.outbox._wake.is_set()
        await written(made, (taken[5], Handed(Accepted("SM1"))))
        assert made.outbox._wake.is_set()  # else it would rest up to a quarter of a second with empty hands
        assert len(await claimed(made)) == 4


async def test_a_row_becomes_a_message_with_all_it_said(house: House, connection: Connection) -> None:
    said: dict[str, Any] = {
        "service": "default", "body": None, "template": "code", "variables": '{"code": 7}', "order_key": "k",
        "media": ["https://example.org/a.png"], "send_at": datetime(2026, 1, 1, tzinfo=UTC), "on_ambiguous": "drop",
        "expires_at": datetime(2099, 1, 1, 0, 0, 0, 123456, tzinfo=UTC), "tenant": "t", "channel": "sms",
    }  # fmt: skip
    (id,) = await insert(connection, **said)
    # Rows with a template pass the inspector first.
    due_at = await connection.fetchval("UPDATE outrider.queue SET state = 'ready' RETURNING due_at")
    async with house() as made:
        await made.leases._take()
        (one,) = await claimed(made)
    assert (one.id, one.attempt, one.level, one.group, one.lane) == (id, 1, 3, US, "default")
    assert (one.body, one.template, one.variables, list(one.media)) == (None, "code", {"code": 7}, said["media"])
    assert (one.order_key, one.on_ambiguous, one.tenant, one.channel) == ("k", "drop", "t", "sms")
    assert one.due_at == due_at.timestamp()  # to the bit: marks are compared with it
    assert one.expires_at == datetime(2099, 1, 1, 0, 0, 0, 123456, tzinfo=UTC).timestamp()


async def test_rows_are_taken_once_and_in_order(house: House, connection: Connection) -> None:
    ids = await insert(connection, 10)
    async with house() as made:
        await made.leases._take()
        first, second, third = [await claimed(made, room=4) for _ in range(3)]
        assert [one.id for one in first + second + third] == ids
        assert await claimed(made) == []
        assert made.outbox.in_hand == 10
        assert first[0].group == US
        await written(made, *((one, Handed(Accepted("SM1"))) for one in first + second + third))
        assert made.outbox.in_hand == 0
    assert await connection.fetchval("SELECT count(*) FROM outrider.claim") == 0
    assert await states(connection) == {"accepted": 10}


async def test_a_row_that_came_back_and_was_taken_again_is_held_until_its_second_word(
    house: House, connection: Connection
) -> None:
    """The ledger's word on the first try may be late: it must not let go of the second, which is on its way."""
    await insert(connection)
    await insert(connection)  # its due time is the mark: the first lies before it
    async with house() as made:
        await made.leases._take()
        first, other = await claimed(made)
        again = word(first, US, Again(made.desk.now() - 1, "try again", spent=False), now=made.desk.now())
        await connection.execute(  # as giveback has done, and settle has not answered yet
            "UPDATE outrider.queue SET attempts = 1, due_at = clock_timestamp() WHERE id = $1", first.id
        )
        (second,) = await claimed(made)
        assert (second.id, second.attempt) == (first.id, 2)
        assert made.outbox.closing([again, word(other, US, Ended(Status.DEAD, ""), now=0.0)]) == [first.claim]
        made.outbox.released([again])
        assert made.outbox.in_hand == 2
        made.outbox.rewind("default", 3, datetime.fromtimestamp(second.due_at, UTC) - timedelta(hours=1))
        assert await claimed(made) == []
        assert made.outbox.closing([word(second, US, Ended(Status.DEAD, ""), now=0.0)]) == [second.claim]


async def test_what_was_committed_late_is_found_by_the_sweep(
    house: House, connection: Connection, database: str
) -> None:
    late = await asyncpg.connect(database)
    async with house() as made:
        await made.leases._take()
        open_one = late.transaction()
        await open_one.start()
        (early,) = await insert(late)
        (other,) = await insert(connection)
        assert [one.id for one in await claimed(made)] == [other]
        await open_one.commit()
        assert await claimed(made) == []  # it lies before the mark
        await made.outbox._sweep()
        assert [one.id for one in await claimed(made)] == [early]
    await late.close()


async def test_what_becomes_ready_while_a_claim_is_under_way_is_not_forgotten(
    house: House, connection: Connection
) -> None:
    await insert(connection)
    async with house() as made:
        await made.leases._take()
        (early,) = await claimed(made)
        await insert(connection)
        real, line = made.outbox._line.fetch, made.outbox._line

        async def fetch(name: str, *arguments: object) -> list[asyncpg.Record]:
            rows = await real(name, *arguments)
            made.outbox.rewind("default", 3, rows[0]["mark"] - timedelta(seconds=10))  # a successor was freed
            return rows

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(line, "fetch", fetch)
            await claimed(made)
        assert made.outbox._marks["default", 3].timestamp() < early.due_at
        assert made.outbox._wake.is_set()


async def test_a_claim_whose_answer_was_lost_is_disowned(house: House, connection: Connection) -> None:
    await insert(connection, 3)
    async with house() as made:
        await made.leases._take()
        real = made.outbox._line.fetch

        async def fetch(name: str, *arguments: object) -> list[asyncpg.Record]:
            await real(name, *arguments)
            raise DatabaseDown("the connection was lost after COMMIT")

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(made.outbox._line, "fetch", fetch)
            with pytest.raises(DatabaseDown):
                await claimed(made)
        assert await states(connection) == {"sending": 3}
        kept = await claimed(made, room=1)
        assert await connection.fetchval("SELECT count(*) FROM outrider.claim") == 2
        await made.outbox._tidy()
        assert [row["id"] for row in await connection.fetch("SELECT id FROM outrider.claim")] == [kept[0].claim]
        assert await states(connection) == {"sending": 1, "queued": 2}


async def test_the_outbox_looks_again_when_the_database_is_back(house: House, connection: Connection) -> None:
    async with house() as made:
        await made.leases._take()
        taken: list[Message] = []
        made.outbox._deliver = taken.append
        stop = asyncio.Event()
        running = asyncio.create_task(made.outbox.run(stop))
        await insert(connection)
        async with asyncio.timeout(20):
            await until(lambda: len(taken) == 1)
            await connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND application_name = 'outrider'"
            )
            await insert(connection)
            await until(lambda: len(taken) == 2)
        stop.set()
        await running
        assert made.outbox.in_hand_by_level() == {3: 2}


async def test_while_a_claim_is_under_way_what_is_left_of_the_last_one_goes(
    house: House, connection: Connection
) -> None:
    """And nobody is counted twice: what is on its way to a lane takes room there already."""
    await insert(connection, 300)
    async with house() as made:
        await made.leases._take()
        went: list[Message] = []
        asked: list[tuple[int, object]] = []
        real = made.claims.fetch

        async def fetch(name: str, *arguments: object) -> list[asyncpg.Record]:
            asked.append((len(went), arguments[4]))
            return await real(name, *arguments)

        made.claims.fetch = fetch  # type: ignore[method-assign]
        made.outbox._deliver = went.append
        made.outbox._wishes = lambda levels: [Wish(US, "default", 3, 200)] if 3 in levels else []
        bulk = frozenset({2, 3})
        assert await made.outbox._take(bulk) == 200
        assert went == []
        assert await made.outbox._take(bulk) == 72
        assert asked == [(0, [200]), (200 - outbox.LEAD, [200 - outbox.LEAD])]
        assert len(went) > 200 - outbox.LEAD, "it waited idly"
        await made.outbox._send_out()
        assert len({one.id for one in went}) == len(went) == 272


async def test_urgent_rows_go_before_bulk_that_was_taken_earlier(house: House, connection: Connection) -> None:
    await insert(connection, 100)
    (code,) = await insert(connection, 1, intent="otp")
    async with house() as made:
        await made.leases._take()
        went: list[Message] = []
        made.outbox._deliver = went.append
        made.outbox._wishes = lambda levels: [Wish(US, "default", level, 100) for level in levels]
        await made.outbox._take(frozenset({3}))
        made.outbox._sending_out = lambda asked: asked  # type: ignore[method-assign]  # Postgres answers at once
        await made.outbox._take(frozenset({1}))
        assert [one.id for one in went] == [code]


@pytest.mark.parametrize("how", ["stopped", "down"])
async def test_what_was_taken_goes_to_a_courier_even_when_no_claim_follows(
    house: House, connection: Connection, how: str
) -> None:
    await insert(connection, 50)
    async with house() as made:
        await made.leases._take()
        went: list[Message] = []
        stop = asyncio.Event()
        real = made.claims.fetch

        async def fetch(name: str, *arguments: object) -> list[asyncpg.Record]:
            if made.outbox.in_hand:
                raise DatabaseDown("gone")
            rows = await real(name, *arguments)
            if rows and how == "stopped":
                stop.set()
            return rows

        made.claims.fetch = fetch  # type: ignore[method-assign]
        made.outbox._deliver = went.append
        made.outbox._wishes = lambda levels: (
            [Wish(US, "default", 3, 100 if made.outbox.in_hand else 50)] if 3 in levels else []
        )
        running = asyncio.create_task(made.outbox.run(stop))
        async with asyncio.timeout(20):
            await until(lambda: len(went) == 50)
            stop.set()
            await running


async def test_urgent_rows_have_room_of_their_own(house: House, connection: Connection) -> None:
    await insert(connection, 20)
    await insert(connection, 1, intent="otp")
    async with house() as made:
        await made.leases._take()
        made.outbox.in_hand_max = 8
        assert len(await claimed(made, room=50)) == 8
        assert await claimed(made, room=50) == []
        assert len(await claimed(made, level=1)) == 1


async def test_login_codes_without_end_leave_room_for_others(house: House, connection: Connection) -> None:
    await insert(connection, 50, intent="otp")
    await insert(connection, 10)
    async with house() as made:
        await made.leases._take()
        made.outbox.in_hand_max = 20
        assert len(await claimed(made, level=1)) == 25
        bulk = await claimed(made)
        assert len(bulk) == 5  # a quarter of the hands, however full they are
        assert await claimed(made) == []
        await written(made, *((one, Handed(Accepted("SM1"))) for one in bulk))
        assert len(await claimed(made)) == 5


# The ledger.


async def test_a_verdict_survives_an_outage_and_is_written_once(house: House, connection: Connection) -> None:
    await insert(connection, 5)
    async with house() as made:
        await made.leases._take()
        taken = await claimed(made)
        real, down = made.settlements.fetch, 3

        async def fetch(name: str, *arguments: object) -> list[asyncpg.Record]:
            nonlocal down
            if down:
                down -= 1
                if name == "settle":
                    await real(name, *arguments)  # the COMMIT came through, its answer did not
                raise DatabaseDown("gone")
            return await real(name, *arguments)

        made.settlements.fetch = fetch  # type: ignore[method-assign]
        stop = asyncio.Event()
        running = asyncio.create_task(made.ledger.run(stop))
        for one in taken[:4]:
            made.ledger.put(word(one, US, Handed(Accepted("SM1")), now=made.desk.now(), exchange=sent(made, one)))
        made.ledger.put(word(taken[4], US, Again(made.desk.now() + 60, "later", spent=True), now=made.desk.now()))
        assert made.ledger.pending == 5
        stop.set()
        async with asyncio.timeout(20):
            await running
        assert made.ledger.pending == 0
        assert made.outbox.in_hand == 0
        took = made.desk._observer._metrics.settle
        assert (sum(took.counts), took.total_s > RETRY_MIN_S) == (1, True), "from the first verdict to its COMMIT"
        assert not any(made.journal.knows(one.id, one.attempt) for one in taken)
    assert await states(connection) == {"accepted": 4, "queued": 1}
    assert await connection.fetchval("SELECT count(*) FROM outrider.claim") == 0


async def test_an_acceptance_under_a_lost_lease_is_never_thrown_away(house: House, connection: Connection) -> None:
    await insert(connection, 2)
    async with house() as made:
        await made.leases._take()
        accepted, doubtful = await claimed(made)
        await connection.execute("UPDATE outrider.lease SET owner = $1, epoch = epoch + 1", uuid4())
        await made.ledger.write(
            [
                word(accepted, US, Handed(Accepted("SM1")), now=made.desk.now(), exchange=sent(made, accepted)),
                word(
                    doubtful, US, Doubt("no answer"), now=made.desk.now(), exchange=sent(made, doubtful, Uncertain("?"))
                ),
            ]
        )
        # The doubt was not ours to write; the claim that tells the next holder of it must stay.
        assert await connection.fetchval("SELECT reference FROM outrider.outcome WHERE id = $1", accepted.id) == "SM1"
        assert await connection.fetchval("SELECT state FROM outrider.queue WHERE id = $1", doubtful.id) == "ready"
        assert await connection.fetchval("SELECT count(*) FROM outrider.claim WHERE $1 = ANY (ids)", doubtful.id) == 1
        assert made.outbox.in_hand == 0
        assert (
            await connection.fetchval("SELECT outcome FROM outrider.attempt WHERE id = $1", doubtful.id) == "uncertain"
        )


async def test_a_providers_words_never_hold_up_the_others(house: House, connection: Connection) -> None:
    await insert(connection, 3)
    async with house() as made:
        await made.leases._take()
        one, two, three = await claimed(made)
        bad = Rejected(Fault.CONTENT, "1\0", "no\0 \ud800 " + "x" * 9_000)
        said = [
            word(
                one, US, Handed(Accepted("SM\0\ud800", segments=10**9)), now=made.desk.now(), exchange=sent(made, one)
            ),
            word(two, US, Ended(Status.FAILED, bad.reason, bad.code), now=made.desk.now(), exchange=sent(made, two)),
            word(three, US, Doubt("\ud800"), now=made.desk.now(), exchange=sent(made, three, Uncertain("\ud800"))),
        ]
        for each in said:
            made.ledger.put(each)
        stop = asyncio.Event()
        stop.set()
        async with asyncio.timeout(10):
            await made.ledger.run(stop)
    assert await states(connection) == {"accepted": 1, "failed": 1, "unknown": 1}


async def test_a_full_disk_costs_the_journal_and_not_the_verdict(
    house: House, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    await insert(connection)
    async with house() as made:
        await made.leases._take()
        (one,) = await claimed(made)

        def full(*_args: object) -> None:
            raise OSError("No space left on device")

        monkeypatch.setattr(made.journal, "answered", full)
        made.ledger.put(word(one, US, Handed(Accepted("SM1")), now=made.desk.now(), exchange=sent(made, one)))
        stop = asyncio.Event()
        stop.set()
        await made.ledger.run(stop)
    assert await states(connection) == {"accepted": 1}


async def test_while_the_dispatch_log_is_full_nothing_is_asked_for_and_it_is_told(
    house: House, connection: Connection
) -> None:
    await insert(connection)
    async with house() as made:
        await made.leases._take()
        assert made.wishes(frozenset({3}))
        made.journal.full = "No space left on device"
        assert made.wishes(frozenset({3})) == []
        assert made.desk._observer.ready() == (False, "the dispatch log cannot be written: No space left on device")
        assert b'outrider_disk_full{where="state"} 1.0' in made.desk._observer.metrics()[0]


def test_a_word_of_another_version_is_still_read() -> None:
    id = uuid4()
    said = recalled(
        {"status": "accepted", "attempt": 2, "rank": 10, "colour": "red", "id": "?", "grp": "old"}, id, "new"
    )
    assert said == Word(grp="new", id=id, attempt=2, status="accepted", rank=10)


# Leases.


async def test_one_speaks_and_the_other_waits_until_the_lease_has_run_out(house: House, connection: Connection) -> None:
    async with house("one") as first, house("two") as second:
        await first.leases._take()
        await second.leases._take()
        assert (dict(first.leases.held), dict(second.leases.held)) == ({US: 1}, {})
        assert first.leases.may_write(US)
        assert not second.leases.may_write(US)
        await connection.execute("UPDATE outrider.lease SET until = clock_timestamp() - interval '1 ms'")
        await first.leases._renew()  # late, but nobody has taken it
        await second.leases._take()
        assert not second.leases.held
        await connection.execute("UPDATE outrider.lease SET until = clock_timestamp() - interval '1 ms'")
        await second.leases._take()
        assert dict(second.leases.held) == {US: 2}
        await first.leases._renew()
        assert not first.leases.held
        assert not first.leases.may_write(US)


async def test_no_write_starts_that_could_end_after_the_lease(house: House) -> None:
    clock = Wound()
    async with house(clock=clock) as made:
        await made.leases._take()
        clock.go(7.9)
        assert made.leases.may_write(US)
        clock.go(0.2)
        assert not made.leases.may_write(US)
        assert made.wishes(frozenset({3})) == []
        await made.leases._renew()
        assert made.leases.may_write(US)


async def test_a_lease_is_long_enough_for_the_slowest_exchange(house: House, connection: Connection) -> None:
    async with house() as made:
        made.leases.__init__(  # type: ignore[misc]  # as with timeout_s = 120
            made.chores, owner=made.owner, groups=made._groups, digest=made._digest, journal=made.journal,
            reconcile=made.recovery.reconcile, tick=made._clock.tick, exchange_s=120.0, in_hand=made.outbox.holds,
            release=made.lanes.release, taken=made.announce,
        )  # fmt: skip
        await made.leases._take()
        assert made.leases.may_write(US)
        left = await connection.fetchval(
            "SELECT extract(epoch FROM until - clock_timestamp())::float8 FROM outrider.lease"
        )
        assert left > 120


async def test_a_lease_is_given_back_only_with_empty_hands(house: House, connection: Connection) -> None:
    await insert(connection)
    async with house() as made:
        await made.leases._take()
        taken = await claimed(made)
        await made.leases.drop()
        assert await connection.fetchval("SELECT until > clock_timestamp() FROM outrider.lease")
        await written(made, *((one, Ended(Status.FAILED, "so")) for one in taken))
        await made.leases.drop()
        assert not await connection.fetchval("SELECT until > clock_timestamp() FROM outrider.lease")


async def test_a_group_a_reload_has_removed_is_given_back_when_its_rows_are_home(
    house: House, connection: Connection
) -> None:
    await insert(connection, service="old")
    async with house(configured=settings({"old": [US], "kept": [OTHER]})) as made:
        await made.leases._take()
        (one,) = await claimed(made, lane="old")
        made.reload(settings({"kept": [OTHER]}))
        await made.leases._leave()
        assert set(made.leases.held) == {US, OTHER}
        await written(made, (one, Doubt("no answer")))  # under the group it was taken with
        assert await states(connection) == {"unknown": 1}
        await made.leases._leave()
        assert set(made.leases.held) == {OTHER}


# Recovery.


async def crash(made: Engine, taken: Sequence[Message]) -> None:
    """Of four: one waits, one is on the wire, one is answered and one is answered and was given up."""
    _, wire, answered, refused = taken
    sent(made, wire)
    for one, verdict in ((answered, Handed(Accepted("SM7"))), (refused, Ended(Status.FAILED, "bad", "9"))):
        said = word(one, US, verdict, now=made.desk.now(), exchange=sent(made, one))
        made.journal.answered(one.id, one.attempt, said.json())


async def test_the_dispatch_log_tells_what_a_dead_daemon_had_in_hand(house: House, connection: Connection) -> None:
    await insert(connection, 4)
    owner = uuid4()
    async with house(owner=owner) as made:
        await made.leases._take()
        taken = await claimed(made)
        await crash(made, taken)
    async with house(owner=owner) as again:
        await again.leases._take()
        assert again.recovery.counts == {"free": 1, "answered": 2, "doubt": 1, "dead": 0}
        assert await states(connection) == {"queued": 1, "unknown": 1, "accepted": 1, "failed": 1}
        assert await connection.fetchval("SELECT reference FROM outrider.outcome WHERE id = $1", taken[2].id) == "SM7"
        assert [one.id for one in await claimed(again)] == [taken[0].id]
        row = await connection.fetchrow(
            "SELECT provider, sender, outcome FROM outrider.attempt WHERE id = $1", taken[1].id
        )
        assert row is not None
        assert tuple(row) == ("sim", US, "uncertain")
        # Once its open claims are judged, the old log may go.
        await again.announce()
        assert len(list((again.journal._folder).glob("*.log"))) == 1


async def test_what_earlier_runs_have_left_is_forgotten_once_it_is_judged(house: House, connection: Connection) -> None:
    await insert(connection, 4)
    owner, stop = uuid4(), asyncio.Event()
    for _ in range(3):  # deaths so early that nothing is told yet: every one leaves a file, to be read by the next
        async with house(owner=owner) as made:
            await made.leases._take()
            (one,) = await claimed(made, room=1)
            sent(made, one)
    async with house(owner=owner) as again:
        files = again.journal._folder
        assert len(list(files.glob("*.log"))) == 4
        running = asyncio.create_task(again.leases.run(stop))
        await until(lambda: bool(again.leases.held) and len(list(files.glob("*.log"))) == 1)
        stop.set()
        await running


async def test_without_the_dead_daemons_log_all_of_it_is_in_doubt(house: House, connection: Connection) -> None:
    await insert(connection, 4)
    async with house("one") as made:
        await made.leases._take()
        await crash(made, await claimed(made))
    await connection.execute("UPDATE outrider.lease SET until = clock_timestamp() - interval '1 s'")
    async with house("two") as other:
        await other.leases._take()
        assert await states(connection) == {"unknown": 4}
        assert await connection.fetchval("SELECT count(*) FROM outrider.attempt WHERE outcome = 'lost'") == 4


async def test_a_row_in_two_open_claims_is_judged_once(house: House, connection: Connection) -> None:
    await insert(connection)
    owner = uuid4()
    async with house(owner=owner) as made:
        await made.leases._take()
        (one,) = await claimed(made)
        await connection.execute(
            "INSERT INTO outrider.claim SELECT gen_random_uuid(), grp, owner, epoch, taken_at, ids, attempts FROM outrider.claim"
        )
        said = word(one, US, Handed(Accepted("SM7")), now=made.desk.now(), exchange=sent(made, one))
        made.journal.answered(one.id, one.attempt, said.json())
    async with house(owner=owner) as again:
        await again.leases._take()
        assert again.recovery.counts == {"free": 0, "answered": 1, "doubt": 0, "dead": 0}
    assert await states(connection) == {"accepted": 1}


async def test_a_crash_and_changed_settings_leave_no_group_unjudged(house: House, connection: Connection) -> None:
    """The rows stand in the lanes of a group with another name now: they must be judged before it is claimed from."""
    await insert(connection, 4)
    owner = uuid4()
    async with house(owner=owner) as made:
        await made.leases._take()
        await crash(made, await claimed(made))
    renamed = settings({"default": [US, OTHER], "also": [OTHER, "+15550100000"]})
    async with house(owner=owner, configured=renamed) as again:
        await again.leases._take()
        assert again.recovery.counts == {"free": 1, "answered": 2, "doubt": 1, "dead": 0}
        assert await connection.fetchval("SELECT count(*) FROM outrider.claim") == 0
        await again.leases._leave()
        assert set(again.leases.held) == {"+15550100000"}


async def test_a_lease_lost_and_taken_again_frees_nothing_the_log_has_not_seen(
    house: House, connection: Connection
) -> None:
    """The memory is of the last run: of what this one sent before it lost its lease it says nothing."""
    await insert(connection, 2)
    async with house() as made:
        await made.leases._take()
        taken = await claimed(made)
        for one in taken:
            sent(made, one)
        await connection.execute("UPDATE outrider.lease SET owner = $1, epoch = epoch + 1", uuid4())
        await made.leases._renew()
        await connection.execute("UPDATE outrider.lease SET until = clock_timestamp() - interval '1 s'")
        await made.leases._take()
        assert not made.leases.held  # not while they are in hand
        await written(made, *((one, Doubt("no answer")) for one in taken))
        await made.leases._take()
        assert made.leases.held
        assert await states(connection) == {"unknown": 2}


async def test_recovery_may_be_run_again(house: House, connection: Connection) -> None:
    await insert(connection, 4)
    owner = uuid4()
    async with house(owner=owner) as made:
        await made.leases._take()
        await crash(made, await claimed(made))
    async with house(owner=owner) as again:
        real = again.chores.fetch

        async def fetch(name: str, *arguments: object) -> list[asyncpg.Record]:
            if name == "release":
                raise DatabaseDown("gone before the claims were closed")
            return await real(name, *arguments)

        again.chores.fetch = fetch  # type: ignore[method-assign]
        with pytest.raises(DatabaseDown):
            await again.leases._take()
        assert not again.leases.held
        again.chores.fetch = real  # type: ignore[method-assign]
        await again.leases._take()
    assert await states(connection) == {"queued": 1, "unknown": 1, "accepted": 1, "failed": 1}
    assert RANKS[Status.FAILED] == await connection.fetchval(
        "SELECT rank FROM outrider.outcome WHERE status = 'failed'"
    )


# A database that was rolled back to a moment before the claim, as an asynchronous standby that was promoted is.

ROLLED_BACK = (
    "WITH undone AS (DELETE FROM outrider.outcome RETURNING id)"
    " INSERT INTO outrider.queue (id, seq, lane, level, due_at) SELECT o.id, o.seq, 'default', 3, o.created_at"
    " FROM undone JOIN outrider.outbox o USING (id)"
)


async def forget(connection: Connection) -> None:
    await connection.execute(ROLLED_BACK)
    await connection.execute("DELETE FROM outrider.claim")
    await connection.execute("UPDATE outrider.queue SET state = 'ready', attempts = 0, due_at = now()")


async def sent_and_accepted(made: Engine) -> list[Message]:
    await made.leases._take()
    taken = await claimed(made)
    for one in taken:
        said = word(one, one.group, Handed(Accepted("SM1")), now=made.desk.now(), exchange=sent(made, one))
        made.journal.answered(one.id, one.attempt, said.json())
        await made.ledger.write([said])
    return taken


async def test_what_the_database_has_forgotten_is_not_sent_again(house: House, connection: Connection) -> None:
    owner = uuid4()
    await insert(connection, 3)
    async with house(owner=owner) as made:
        (first, second, _) = await sent_and_accepted(made)
        made.journal.dispatched(first.id, 2, US, 1, made._clock.tick())  # sent again later, and all of that is undone
    await insert(connection, 1)
    await forget(connection)
    async with house(owner=owner) as again:
        await again.leases._take()
        assert await states(connection) == {"accepted": 2, "unknown": 1, "queued": 1}
        story = await connection.fetchrow("SELECT * FROM outrider.attempt WHERE id = $1", first.id)
        assert story is not None
        assert (story["provider"], story["sender"], story["reason"]) == (
            "sim",
            US,
            "it was sent, and the database had forgotten it",
        )
        reference = await connection.fetchval("SELECT reference FROM outrider.outcome WHERE id = $1", second.id)
        assert reference == "SM1"  # the log knew the answer
        assert len(await claimed(again)) == 1


async def test_a_confirmed_copy_is_held_against_what_this_very_run_has_sent(
    house: House, connection: Connection
) -> None:
    await insert(connection, 2)
    async with house() as made:
        await made.look_home()
        await sent_and_accepted(made)
        await insert(connection, 1)
        await forget(connection)
        await connection.execute("UPDATE outrider.home SET timeline = timeline + 1")
        await made.look_home()
        assert made.desk.held
        assert made.wishes(frozenset({3})) == []
        await connection.execute("UPDATE outrider.home SET timeline = timeline - 1")
        await made.look_home()
        assert not made.leases.may_write(US)  # nothing leaves before the log was asked
        await made.leases._take()
        assert made.leases.may_write(US)
        assert await states(connection) == {"accepted": 2, "queued": 1}


async def test_a_database_lost_while_nobody_asked_is_looked_at_before_the_next_claim(
    house: House, connection: Connection
) -> None:
    async with house() as made:
        await made.leases._take()
        await claimed(made)
        await connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database()"
            " AND application_name = 'outrider'"
        )
        await asyncio.sleep(0.1)
        with pytest.raises(DatabaseDown, match="while nobody was asking"):
            await claimed(made)
        with pytest.raises(DatabaseDown, match="nobody vouches"):
            await claimed(made)
        await made.outbox._tidy()
        assert await claimed(made) == []


async def test_announcing_tells_the_hour_of_the_database(house: House) -> None:
    clock = Wound()  # years behind
    async with house(clock=clock) as made:
        await made.announce()
        assert abs(made.desk.now() - time.time()) < 5
