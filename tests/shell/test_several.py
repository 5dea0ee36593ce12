"""Several engines on one database: who speaks for what, what a dead one leaves to the others, and what it owes."""

from __future__ import annotations

import asyncio
import io
import os
import socket
from typing import TYPE_CHECKING
from uuid import UUID, uuid4

import pytest
from rich.console import Console

from daemon.cli import queries
from daemon.cli.overview import Overview, show
from daemon.core.lifecycle import Status
from daemon.core.outcome import Accepted, Uncertain
from daemon.core.permission import Go, Hold, Refuse
from daemon.core.verdict import Again, Doubt, Ended, Handed
from daemon.janitor import WHO_MAX
from daemon.ledger import word
from daemon.outbox import Wish
from tests.shell.parts import OTHER, US, dialect, engine, message, settings
from tests.shell.test_engine import claimed, crash, insert, sent, states, written
from tests.shell.test_watchers import listing, provider

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    from daemon.core.message import Message
    from daemon.engine import Engine
    from daemon.settings import Settings
    from tests.shell.test_engine import Connection, House

ADDRESSES = [f"+1555010{number:04}" for number in range(1, 5)]
FOUR = settings({f"s{number}": [address] for number, address in enumerate(ADDRESSES)})
SLOW = settings(rate=1.0)
LONG = "x" * 1_520  # ten segments
EXPIRE = (
    "UPDATE outrider.lease SET until = clock_timestamp() - interval '1 ms', speaks = clock_timestamp() - interval '{}'"
)


@pytest.fixture
def house(database: str, tmp_path: Path) -> House:
    """Engines of one database, each in a folder named after it."""

    def of(
        name: str = "one", *, owner: UUID | None = None, configured: Settings | None = None
    ) -> AbstractAsyncContextManager[Engine]:
        (tmp_path / name).mkdir(exist_ok=True)
        return engine(database, tmp_path / name, owner=owner, configured=configured)

    return of


# Shares.


async def test_a_newcomer_gets_its_share_when_what_is_in_hand_has_come_home(
    house: House, connection: Connection
) -> None:
    async with house("one", configured=FOUR) as first, house("two", configured=FOUR) as second:
        await first.announce()
        await first.leases._take()
        assert set(first.leases.held) == set(ADDRESSES)
        leaving = ADDRESSES[3]
        await insert(connection, 2, service="s3")
        lane = first.lanes[leaving]
        lane.pace.start_full(first._clock.tick())
        first.outbox._deliver = lambda _message: None
        await first.outbox._take(frozenset({3}))
        await first.outbox._send_out()
        waiting = lane.join(3, 1)
        await second.announce()
        await first.leases._take()
        await first.leases._leave()
        assert set(first.leases.held) == {*ADDRESSES[:2], leaving}
        assert waiting.granted is False  # sent away, to wait there
        assert first.leases.may_write(leaving)  # what is on its way still goes
        assert leaving not in {wish.grp for wish in first.wishes(frozenset({3}))}
        await second.leases._take()
        assert set(second.leases.held) == {ADDRESSES[2]}
        await written(first, *((one, Doubt("no answer")) for one in list(first.outbox._held.values())))
        await first.leases._leave()
        await second.leases._take()
        assert set(second.leases.held) == set(ADDRESSES[2:])
        await first.leases._take()
        assert set(first.leases.held) == set(ADDRESSES[:2])  # and there it stays


async def test_who_withdraws_lets_go_of_all_and_is_not_counted(house: House) -> None:
    async with house("one", configured=FOUR) as first, house("two", configured=FOUR) as second:
        await first.announce()
        await second.announce()
        await first.leases._take()
        await second.leases._take()
        assert [len(made.leases.held) for made in (first, second)] == [2, 2]
        await first.withdraw()
        await first.leases._leave()
        await second.leases._take()
        assert [len(made.leases.held) for made in (first, second)] == [0, 4]


async def test_who_cannot_write_its_log_leaves_the_groups_to_others(
    house: House, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with house("one", configured=FOUR) as full, house("two", configured=FOUR) as other:
        await full.announce()
        await other.announce()

        def leased(_grp: str, _epoch: int) -> None:
            raise OSError("No space left on device")

        monkeypatch.setattr(full.journal, "leased", leased)
        await full.leases._take()
        await full.leases._take()
        assert not full.leases.held
        tried = await connection.fetch("SELECT grp, epoch FROM outrider.lease")
        assert [row["epoch"] for row in tried] == [1]  # not again and again
        await connection.execute(EXPIRE.format("20 s").replace("1 ms", "4 s"))
        await other.leases._take()
        assert tried[0]["grp"] in other.leases.held


async def test_a_claim_under_way_is_as_good_as_in_hand(house: House, connection: Connection) -> None:
    await insert(connection)
    async with house() as made:
        await made.leases._take()
        real = made.claims.fetch
        held: list[bool] = []

        async def fetch(name: str, *arguments: object) -> object:
            held.append(made.outbox.holds(US))
            return await real(name, *arguments)

        made.claims.fetch = fetch  # type: ignore[method-assign, assignment]
        assert not made.outbox.holds(US)
        made.outbox._wishes = lambda _levels: []
        await claimed(made, room=1)
        assert held == [True]


async def test_a_group_is_not_taken_under_other_settings_while_its_last_holder_lives_and_wants_it(
    house: House, connection: Connection
) -> None:
    async with house("one") as first, house("two", configured=settings(rate=11.0)) as second:
        await first.announce()
        await second.announce()
        await first.leases._take()
        await first.leases.drop()
        await second.leases._take()
        assert not second.leases.held
        await first.withdraw()
        await second.leases._take()
        assert set(second.leases.held) == {US}
        await second.leases.drop()
        await second.announce()
        first.withdrawn = False
        await first.announce()
        await first.leases._take()
        assert not first.leases.held
        await connection.execute("UPDATE outrider.instance SET seen_at = now() - interval '1 minute'")
        await first.leases._take()
        assert set(first.leases.held) == {US}


async def test_no_sender_is_spoken_for_twice_under_two_names_of_its_group(house: House) -> None:
    async with house("one") as first, house("two", configured=settings({"default": [OTHER]})) as second:
        await first.leases._take()
        await second.leases._take()
        assert (set(first.leases.held), set(second.leases.held)) == ({US}, set())
        await first.leases.drop()
        await second.leases._take()
        await first.leases._take()
        assert (set(first.leases.held), set(second.leases.held)) == (set(), {OTHER})


async def test_what_a_daemon_of_other_settings_left_is_its_own(house: House, connection: Connection) -> None:
    await insert(connection, 4)
    async with house("one") as made:
        await made.announce()
        await made.leases._take()
        await crash(made, await claimed(made))
    await connection.execute(EXPIRE.format("20 s"))
    await connection.execute("UPDATE outrider.instance SET seen_at = now() - interval '1 minute'")
    async with house("two", configured=settings({"another": ["+15550100009"]})) as other:
        await other.leases._take()
        assert await states(connection) == {"sending": 4}
        await connection.execute("UPDATE outrider.instance SET seen_at = now() - interval '1 hour'")
        await other.leases._take()
        assert await states(connection) == {"unknown": 4}


# Reloads, one daemon at a time.

A, B, X, _ = ADDRESSES
EARLIER = "+15550000001"  # in the alphabet: a group is named after the first of its senders
BEFORE = settings({"a": [A, X], "b": [B], "c": [B]})
AFTER = settings({"a": [A], "b": [B, X], "c": [A]})  # a sender and a service have moved


async def reloaded(made: Engine, configured: Settings) -> None:
    made.reload(configured)
    await made.announce()


async def shared(first: Engine, second: Engine) -> None:
    """The first speaks for A and X, the second for B."""
    for made in (first, second):
        await made.announce()
    for made in (first, second):
        await made.leases._take()
    assert (set(first.leases.held), set(second.leases.held)) == ({A}, {B})


async def test_a_sender_that_moved_is_spoken_for_by_one_at_a_time(house: House, connection: Connection) -> None:
    ids = sorted((uuid4(), uuid4()))
    async with (
        house("one", owner=ids[0], configured=BEFORE) as first,
        house("two", owner=ids[1], configured=BEFORE) as second,
    ):
        await shared(first, second)
        moved = message(group=B, lane="b", service="b")
        await reloaded(second, AFTER)
        assert isinstance(second.desk.ask(moved, B), Go)
        assert isinstance(second.desk.ask(moved, X), Hold)  # its lease does not name that one
        assert not second.leases.may_claim(B)
        for _ in range(2):
            await second.leases._leave()
            await second.leases._take()
            assert B not in second.leases.held  # the other still speaks for X
        assert isinstance(first.desk.ask(message(group=A), X), Go)
        await reloaded(first, AFTER)
        assert not first.leases.may_claim(A)
        await first.leases._take()
        assert not first.leases.may_claim(A)  # not by the settings that are, for they are not those it was taken by
        await first.leases._leave()
        await first.leases._take()
        await second.leases._take()
        assert (set(first.leases.held), set(second.leases.held)) == ({A}, {B})
        assert isinstance(second.desk.ask(moved, X), Go)
        assert isinstance(first.desk.ask(message(group=A), X), Hold)
        assert second.leases.may_claim(B)
        now = second._clock.tick()
        assert 0.5 < second.lanes[X].pace.earliest(1, now) - now <= 1.02  # it may have spoken until a moment ago


async def test_a_service_that_moved_is_claimed_by_one_at_a_time(house: House, connection: Connection) -> None:
    ids = sorted((uuid4(), uuid4()))
    async with (
        house("one", owner=ids[0], configured=BEFORE) as first,
        house("two", owner=ids[1], configured=BEFORE) as second,
    ):
        await shared(first, second)
        await insert(connection, 3, service="c")
        second.outbox._wishes = lambda _levels: [Wish(B, "c", 3, 10)]
        second.outbox._deliver = lambda _message: None
        assert await second.outbox._take(frozenset({3})) == 3
        await reloaded(first, AFTER)
        assert "c" not in {wish.lane for wish in first.wishes(frozenset({3}))}
        for _ in range(2):
            await first.leases._leave()
            await first.leases._take()
            assert A not in first.leases.held
        await reloaded(second, AFTER)
        await second.leases._leave()
        assert B in second.leases.held  # three are still in hand
        await first.leases._take()
        assert A not in first.leases.held
        await written(second, *((one, Doubt("no answer")) for one in list(second.outbox._held.values())))
        await second.leases._leave()
        await first.leases._take()
        assert A in first.leases.held
        assert "c" in {wish.lane for wish in first.wishes(frozenset({3}))}


async def test_a_group_that_was_split_is_freed_for_others(house: House) -> None:
    together, apart = settings({"a": [A, X]}), settings({"a": [A], "x": [X]})
    ids = sorted((uuid4(), uuid4()))
    async with (
        house("one", owner=ids[0], configured=together) as first,
        house("two", owner=ids[1], configured=apart) as second,
    ):
        await first.announce()
        await first.leases._take()
        await reloaded(first, apart)
        await second.announce()
        await second.leases._take()
        assert not second.leases.held
        await first.leases._leave()
        await first.leases._take()
        await second.leases._take()
        assert (set(first.leases.held), set(second.leases.held)) == ({A}, {X})


async def test_what_was_left_under_another_name_of_the_group_is_judged_first(
    house: House, connection: Connection
) -> None:
    """A container that was killed, and started again with one sender more and without its folder."""
    await insert(connection, 4)
    more = settings({"default": [EARLIER, US]})
    async with house("one") as made, house("two", configured=more) as again:
        await made.announce()
        await made.leases._take()
        await crash(made, await claimed(made))
        await again.announce()
        await again.leases._take()
        assert not again.leases.held  # it may still be alive, and speak
        await connection.execute(EXPIRE.format("20 s"))
        await again.leases._take()
        assert not again.leases.held  # it was seen a moment ago, and only it can tell what it sent
        await connection.execute("UPDATE outrider.instance SET seen_at = seen_at - interval '1 minute'")
        await again.announce()
        await again.leases._take()
        assert EARLIER in again.leases.held
        assert await states(connection) == {"unknown": 4}
        names = "SELECT senders FROM outrider.lease WHERE grp = $1"
        assert await connection.fetchval(names, US) == [
            US,
            OTHER,
        ]  # until it is given back: whoever is quicker waits as well
        await again.leases._leave()
        assert set(again.leases.held) == {EARLIER}
        await made.leases._renew()  # should it only have been frozen: its lease is another's now
        assert not made.leases.held


# Debt.


async def owed(made: Engine) -> float:
    """Seconds until its first sender may speak."""
    now = made._clock.tick()
    return made.lanes[US].pace.earliest(1, now) - now


async def test_what_a_sender_said_before_it_changed_hands_is_paid_for(house: House, connection: Connection) -> None:
    await insert(connection, body=LONG)
    async with house("one", configured=SLOW) as first, house("two", configured=SLOW) as second:
        await first.leases._take()
        (one,) = await claimed(first)
        first.lanes[US].pace.take(10, first._clock.tick())
        await first.ledger.write(
            [word(one, US, Handed(Accepted("SM1", segments=10)), now=first.desk.now(), exchange=sent(first, one))]
        )
        await first.leases.drop()
        await second.leases._take()
        assert await owed(second) == pytest.approx(10.0, abs=0.8)
        await second.leases.drop()
        await first.leases._take()  # back again: its own debt is not counted twice
        assert await owed(first) == pytest.approx(10.0, abs=0.8)


@pytest.mark.parametrize(("silent", "left"), [("0 s", 10.0), ("4 s", 6.0), ("17 s", 0.0)])
async def test_what_a_dead_daemon_had_in_hand_may_have_left_at_its_last_moment(
    house: House, connection: Connection, silent: str, left: float
) -> None:
    await insert(connection, body=LONG)
    async with house("one", configured=SLOW) as first:
        await first.leases._take()
        await claimed(first)
    await connection.execute(EXPIRE.format(silent))
    async with house("two", configured=SLOW) as second:
        await second.leases._take()
        assert await owed(second) == pytest.approx(left, abs=0.8)


async def test_our_own_log_knows_our_own_debt_and_none_is_guessed(house: House) -> None:
    owner = uuid4()
    async with house(owner=owner) as made:
        await made.leases._take()
        assert 0.5 < await owed(made) <= 1.02  # nobody knows what was said before
    async with house(owner=owner) as again:
        await again.leases._take()
        assert await owed(again) == 0.0
    for path in (again.journal._folder).glob("*.log"):
        path.unlink()
    async with house(owner=owner) as mute:
        await mute.leases._take()
        assert 0.5 < await owed(mute) <= 1.02


# Logs that are not there.


async def died(house: House, connection: Connection, owner: UUID, **columns: object) -> Sequence[Message]:
    """Four messages in hand of a daemon that is gone: see crash."""
    await insert(connection, 4, **columns)
    async with house(owner=owner) as made:
        await made.leases._take()
        taken = await claimed(made)
        await crash(made, taken)
    return taken


async def test_without_its_log_a_daemon_frees_nothing_it_had_in_hand(
    house: House, connection: Connection, tmp_path: Path
) -> None:
    owner = uuid4()
    await died(house, connection, owner)
    for path in (tmp_path / "one" / "state").glob("*.log"):
        path.unlink()
    async with house(owner=owner) as again:
        await again.leases._take()
        assert await states(connection) == {"unknown": 4}


async def test_the_log_of_another_daemon_frees_nothing(house: House, connection: Connection, tmp_path: Path) -> None:
    owner = uuid4()
    await died(house, connection, owner)
    async with house("other") as other:
        other.journal.leased(US, 1)  # the very lease, by its name
    (mine,) = (tmp_path / "one" / "state").glob("*.log")
    (theirs,) = (tmp_path / "other" / "state").glob("*.log")
    theirs.replace(mine)
    async with house(owner=owner) as again:
        await again.leases._take()
        assert await states(connection) == {"unknown": 4}


async def test_what_no_log_shows_to_have_left_is_parked_and_not_dropped(
    house: House, connection: Connection, tmp_path: Path
) -> None:
    owner = uuid4()
    _, on_the_wire, *_ = await died(house, connection, owner, on_ambiguous="drop")
    async with house(owner=owner) as again:
        await again.leases._take()
    (lost,) = await insert(connection, on_ambiguous="drop")
    await connection.execute("UPDATE outrider.queue SET due_at = due_at + interval '1 hour' WHERE id <> $1", lost)
    async with house(owner=owner) as made:
        await made.leases._take()
        await claimed(made)
    for path in (tmp_path / "one" / "state").glob("*.log"):
        path.unlink()
    async with house(owner=owner) as again:
        await again.leases._take()
        await connection.execute("UPDATE outrider.attempt SET at = at - interval '1 hour'")
        await connection.execute("UPDATE outrider.queue SET due_at = now() WHERE state = 'unknown'")
        await again.janitor._doubts()
        why = "SELECT status || ': ' || reason FROM outrider.outcome WHERE id = $1"
        assert "dropped" in await connection.fetchval(why, on_the_wire.id)
        parked = await connection.fetchval(why, lost)
        assert parked.startswith("dead: parked in doubt")


async def test_a_log_that_comes_back_testifies_to_what_was_accepted(house: House, connection: Connection) -> None:
    owner = uuid4()
    taken = await died(house, connection, owner)
    await connection.execute(EXPIRE.format("20 s"))
    async with house("two") as other:
        await other.leases._take()
        assert await states(connection) == {"unknown": 4}
    async with house(owner=owner) as again:
        await again.recovery.testify()
        assert await states(connection) == {"unknown": 3, "accepted": 1}
        assert await connection.fetchval("SELECT reference FROM outrider.outcome WHERE id = $1", taken[2].id) == "SM7"


async def test_it_is_heard_after_the_doubt_was_given_up_as_well(house: House, connection: Connection) -> None:
    owner = uuid4()
    taken = await died(house, connection, owner)
    await connection.execute(EXPIRE.format("20 s"))
    async with house("two") as other:
        await other.leases._take()
        await connection.execute("UPDATE outrider.claim SET taken_at = taken_at - interval '1 hour'")
        await connection.execute("UPDATE outrider.attempt SET at = at - interval '1 hour'")
        await connection.execute("UPDATE outrider.queue SET due_at = now() WHERE state = 'unknown'")
        await other.janitor._doubts()
        assert await states(connection) == {"dead": 4}
    async with house(owner=owner) as again:
        await again.recovery.testify()
        assert await states(connection) == {"dead": 3, "accepted": 1}
        assert await connection.fetchval("SELECT reference FROM outrider.outcome WHERE id = $1", taken[2].id) == "SM7"


async def test_a_replay_is_not_undone_by_what_was_accepted_before_it(house: House, connection: Connection) -> None:
    """Twice accepted, twice undelivered, sent again each time: the log of a clean restart knows both acceptances."""
    owner = uuid4()
    (id,) = await insert(connection)
    for reference in ("SM1", "SM2"):
        async with house(owner=owner) as made:
            await made.recovery.testify()
            await made.leases._take()
            (one,) = await claimed(made)
            made.journal.dispatched(one.id, one.attempt, US, 1, made._clock.tick())
            said = word(one, US, Handed(Accepted(reference)), now=made.desk.now(), exchange=sent(made, one))
            made.journal.answered(one.id, one.attempt, said.json())
            await made.ledger.write([said])
            await made.leases.drop()
        bad = "UPDATE outrider.outcome SET status = 'undelivered', rank = 8 WHERE id = $1"
        await connection.execute(bad, id)
        assert await connection.fetchval("SELECT outrider.replay($1)", id)
    async with house(owner=owner) as again:
        await again.recovery.testify()
        assert await states(connection) == {"queued": 1}


async def test_of_two_acceptances_of_a_message_the_last_is_told(house: House, connection: Connection) -> None:
    owner = uuid4()
    taken = await died(house, connection, owner)
    async with house(owner=owner) as made:
        lost = taken[2]
        said = word(lost, US, Handed(Accepted("SM8")), now=made.desk.now(), exchange=sent(made, lost))
        said.attempt = 2
        made.journal.answered(lost.id, 2, said.json())
    async with house(owner=owner) as again:
        await again.recovery.testify()
        assert await connection.fetchval("SELECT reference FROM outrider.outcome WHERE id = $1", lost.id) == "SM8"


async def lost(house: House, connection: Connection, configured: Settings | None = None) -> UUID:
    """A message in doubt of which no log tells by whom it was sent, if at all."""
    (id,) = await insert(connection)
    async with house("gone", configured=configured) as made:
        await made.leases._take()
        await claimed(made)
    await connection.execute(EXPIRE.format("20 s"))
    return id


async def test_whoever_may_have_sent_it_is_asked(house: House, connection: Connection) -> None:
    id = await lost(house, connection)
    async with house() as made, provider(listing("hello")) as (url, asked):
        made.gates["sim"].dialect = dialect(base_url=url)
        await made.leases._take()
        await connection.execute("UPDATE outrider.outbox SET recipient = '+12025550101'")
        await connection.execute("UPDATE outrider.queue SET due_at = now()")
        await made.janitor._doubts()
        assert len(asked) == 2  # both senders of its pool
        row = await connection.fetchrow("SELECT status, provider, sender FROM outrider.outcome WHERE id = $1", id)
        assert row is not None
        assert tuple(row) == ("sent", "sim", US)


@pytest.mark.parametrize("more", [0, 1])
async def test_unsent_is_only_what_all_who_could_have_sent_it_never_had(
    house: House, connection: Connection, more: int
) -> None:
    configured = settings({"default": [f"+1555010{number:04}" for number in range(1, WHO_MAX + 1 + more)]})
    id = await lost(house, connection, configured)
    async with house(configured=configured) as made, provider(listing()) as (url, asked):
        made.gates["sim"].dialect = dialect(base_url=url)
        await made.leases._take()
        await connection.execute("UPDATE outrider.queue SET due_at = now()")
        await made.janitor._doubts()
        assert len(asked) == (0 if more else WHO_MAX)
        assert (id in made.janitor._absent) is not bool(more)


# Poison.


@pytest.mark.parametrize("where", ["on the wire", "in the works", "nobody knows"])
async def test_what_was_open_in_three_crashes_is_tried_no_more(
    house: House, connection: Connection, where: str, tmp_path: Path
) -> None:
    poison, bystander = await insert(connection, 2)
    owner = uuid4()
    for number in range(3):
        await connection.execute("UPDATE outrider.queue SET state = 'ready', due_at = now() - interval '1 s'")
        async with house(owner=owner) as made:
            await made.leases._take()
            assert await states(connection) == {"queued": 2}
            one = next(one for one in await claimed(made) if one.id == poison)
            assert one.attempt == number + 1
            if where == "on the wire":
                sent(made, one)
            elif where == "in the works":
                made.journal.in_the_works(one.id, one.attempt)
        if where == "nobody knows":
            await connection.execute("UPDATE outrider.claim SET ids = ids[:1], attempts = attempts[:1]")
            for path in (tmp_path / "one" / "state").glob("*.log"):
                path.unlink()
        async with house(owner=owner) as again:
            await again.leases._take()
    reason = await connection.fetchval("SELECT reason FROM outrider.outcome WHERE id = $1 AND status = 'dead'", poison)
    assert reason.startswith("poison: it was open in 3 crashes of the daemon")
    assert ("it was not sent" in reason) == (where == "in the works")
    assert await connection.fetchval("SELECT state FROM outrider.queue WHERE id = $1", bystander) == "ready"


async def test_a_doubt_that_is_no_crash_is_not_held_against_a_message(house: House, connection: Connection) -> None:
    (id,) = await insert(connection)
    owner = uuid4()
    async with house(owner=owner) as made:
        await made.leases._take()
        for _ in range(3):
            (one,) = await claimed(made)
            exchange = sent(made, one, Uncertain("no answer"))
            await made.ledger.write([word(one, US, Doubt("no answer"), now=made.desk.now(), exchange=exchange)])
            await connection.execute("UPDATE outrider.queue SET state = 'ready', due_at = now() - interval '1 s'")
            made.outbox._marks.clear()
        sent(made, (await claimed(made))[0])
    async with house(owner=owner) as again:
        await again.leases._take()
    assert await connection.fetchval("SELECT state FROM outrider.queue WHERE id = $1", id) == "unknown"


async def test_two_that_take_at_once_see_each_other(house: House, connection: Connection) -> None:
    async with house("one") as first, house("two", configured=settings({"default": [OTHER]})) as second:
        async with connection.transaction():
            await connection.fetch(
                "SELECT * FROM outrider.take_lease($1, $2, 25, 8, $3, '{}', 'hash', 15)", US, first.owner, [US, OTHER]
            )
            taking = asyncio.create_task(second.leases._take())
            done, _ = await asyncio.wait([taking], timeout=0.3)
            assert not done
        await taking
        assert not second.leases.held


async def test_a_cancellation_outlives_the_daemon_that_was_told(house: House, connection: Connection) -> None:
    (id,) = await insert(connection)
    async with house("one") as first:
        await first.signals.begin()
        await first.leases._take()
        (one,) = await claimed(first)
        assert await connection.fetchval("SELECT outrider.cancel($1)", id) == "requested"
        await first.signals.look()
        await written(first, (one, Again(0.0, "given back: its daemon or sender was stopping", spent=False)))
        await first.leases.drop()
    async with house("two") as second:
        await second.signals.begin()
        await second.leases._take()
        (again,) = await claimed(second)
        assert second.desk.ask(again, US) == Refuse(Status.CANCELED, "canceled by the application")


async def test_a_replay_is_a_later_word_than_a_cancellation(house: House, connection: Connection) -> None:
    (id,) = await insert(connection)
    async with house("one") as first, house("two") as second:  # one that held it, and one that has only heard
        for one in (first, second):
            await one.signals.begin()
        await first.leases._take()
        (taken,) = await claimed(first)
        assert await connection.fetchval("SELECT outrider.cancel($1)", id) == "requested"
        await first.signals.look()
        await second.signals.look()
        await written(first, (taken, Ended(Status.FAILED, "refused by its provider")))
        assert await connection.fetchval("SELECT outrider.replay($1)", id)
        wait_s = await connection.fetchval(
            "SELECT extract(epoch FROM due_at - clock_timestamp())::float8 FROM outrider.queue"
        )
        assert 0.5 < wait_s <= 1.0, "every daemon has heard of the replay before it is due"
        async with house("three") as newcomer:
            await newcomer.signals.begin()
            for one in (first, second, newcomer):
                await one.signals.look()
                assert one.desk.canceled == set()
        assert await connection.fetchval("SELECT outrider.cancel($1)", id) == "canceled", "which is the last word then"


async def test_replays_of_many_name_those_that_were_canceled(house: House, connection: Connection) -> None:
    ids = await insert(connection, 4)
    async with house("one") as made:
        await made.signals.begin()
        await made.leases._take()
        taken = await claimed(made)
        for id in ids[:2]:
            assert await connection.fetchval("SELECT outrider.cancel($1)", id) == "requested"
        await made.signals.look()
        await written(made, *((one, Ended(Status.FAILED, "refused by its provider")) for one in taken))
        await connection.execute("SELECT * FROM outrider.replay($1::uuid[], 1000)", [ids[0], *ids[2:]])
        await made.signals.look()
        assert made.desk.canceled == {ids[1]}
        told = await connection.fetch("SELECT kind, id, what FROM outrider.signal ORDER BY kind, what NULLS FIRST")
        assert [tuple(row) for row in told] == [
            ("cancel", ids[1], None), ("replay", ids[0], None), ("replay", None, "2 messages"),
        ]  # fmt: skip


async def test_the_overview_tells_who_holds_what(house: House, connection: Connection) -> None:
    async with house("one", configured=FOUR) as first, house("two", configured=FOUR) as second:
        await first.announce()
        await second.announce()
        await first.leases._take()
        await second.leases._take()
        await second.withdraw()
        await second.leases._leave()
        groups = {row["grp"]: row for row in await connection.fetch(queries.GROUPS)}
        assert {grp: row["owner"] for grp, row in groups.items()} == {
            grp: first.owner if grp in first.leases.held else None for grp in ADDRESSES
        }
        assert all(row["epoch"] == 1 and row["senders"] == [grp] for grp, row in groups.items())
        assert {row["left_s"] > 20 for row in groups.values()} == {True, False}
        daemons = {row["id"]: row["serving"] for row in await connection.fetch(queries.INSTANCES)}
        assert daemons == {first.owner: True, second.owner: False}
        seen = Overview(
            queue=[], in_flight=0, oldest_due=None, last_hour=[], pauses=[], vacuum_held=None, books=[],
            anomalies=[], parked=0,
            instances=[dict(row) for row in await connection.fetch(queries.INSTANCES)],
            groups=[dict(row) for row in groups.values()],
        )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        told = io.StringIO()
        patch.setattr("daemon.cli.overview.console", lambda: Console(file=told, width=200))
        show(seen)
    text = told.getvalue()
    assert "(not serving)" in text
    assert text.count(f"{socket.gethostname()}/{os.getpid()}") == 2
    assert text.count("nobody") == text.count("free") == 2
