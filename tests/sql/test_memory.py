"""
One suite for two stores: the statements of ``daemon/sql`` on Postgres, and the memory that the simulation runs on
(``tests/simulation/store.py``). What holds of one and not of the other would make the simulation a story about itself.
"""

from __future__ import annotations

from itertools import permutations
from typing import TYPE_CHECKING, Protocol

import pytest
import pytest_asyncio

from daemon.core.lifecycle import RANKS, Status
from tests.simulation.store import Claim, Row, Store
from tests.sql.actor import Actor, insert, where

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

    import asyncpg

    from tests.sql.actor import Try

    Enter = Callable[..., Awaitable[Actor]]

pytestmark = pytest.mark.every_postgres

S = Status
SECOND = "UPDATE outrider.lease SET until = now() - interval '1 second'"


class Held(Protocol):
    """One message in hand, whatever the store names it by."""

    @property
    def attempt(self) -> int: ...


class Daemon(Protocol):
    """A daemon at its store."""

    async def lease(self) -> bool: ...
    async def claim(self, room: int = 100, *, held: Sequence[Held] = ()) -> list[Held]: ...
    async def settle(self, one: Held, status: Status = S.ACCEPTED) -> bool: ...
    async def back(self, one: Held, state: str = "ready") -> bool: ...
    async def late(self, one: Held) -> None: ...
    async def hear(self, one: Held, word: Status, *, attempt: int | None = None, code: str = "") -> None: ...
    async def decide(self, one: Held, status: str) -> bool: ...
    async def refuse(self, one: Held, attempts: int) -> bool: ...
    async def cancel(self, one: Held) -> str: ...
    async def replay(self, one: Held) -> bool: ...
    async def open(self) -> list[int]: ...
    async def disown(self) -> None: ...
    async def release(self) -> None: ...
    async def where(self, one: Held) -> Status: ...


class House(Protocol):
    """A store: messages come in, daemons come and go, leases run out."""

    async def insert(self, many: int = 1, *, key: str | None = None) -> None: ...
    async def enter(self) -> Daemon: ...
    async def expire(self) -> None: ...


class InMemory:
    """A row of the memory, in hand."""

    def __init__(self, row: Row, attempt: int, claim: Claim) -> None:
        self.row, self.attempt, self.claim = row, attempt, claim


class MemoryDaemon:
    def __init__(self, house: Memory, owner: int) -> None:
        self.house, self.store, self.owner, self.epoch = house, house.store, owner, 0

    async def lease(self) -> bool:
        epoch = self.store.lease_take("group", self.owner, 3600.0, self.house.tick())
        self.epoch = epoch or self.epoch
        return epoch is not None

    async def claim(self, room: int = 100, *, held: Sequence[Held] = ()) -> list[Held]:
        ids = {one.row.id for one in held if isinstance(one, InMemory)}
        claim = self.store.claim(self.owner, "group", self.epoch, [("service", 3, room)], self.house.tick(), ids)
        return [InMemory(row, attempt, claim) for row, attempt in claim.rows] if claim else []

    async def settle(self, one: Held, status: Status = S.ACCEPTED) -> bool:
        assert isinstance(one, InMemory)
        done = self.store.settle(self.owner, "group", self.epoch, one.row, one.attempt, status, "", "so it ended")
        if self.store.fence(self.owner, "group", self.epoch) and one.claim.owner == self.owner:
            self.store.close(one.claim)
        return done

    async def back(self, one: Held, state: str = "ready") -> bool:
        assert isinstance(one, InMemory)
        done = self.store.give_back(
            self.owner, "group", self.epoch, one.row, one.attempt, state, self.house.now, 1, "came back"
        )
        if self.store.fence(self.owner, "group", self.epoch) and one.claim.owner == self.owner:
            self.store.close(one.claim)
        return done

    async def late(self, one: Held) -> None:
        assert isinstance(one, InMemory)
        self.store.late(one.row, one.attempt, S.ACCEPTED)

    async def hear(self, one: Held, word: Status, *, attempt: int | None = None, code: str = "") -> None:
        assert isinstance(one, InMemory)
        self.store.receive(one.row, attempt or one.attempt, word, code, final=RANKS[word] >= 40)

    async def decide(self, one: Held, status: str) -> bool:
        assert isinstance(one, InMemory)
        return self.store.decide(one.row, one.attempt, status, "decided", self.house.tick())

    async def refuse(self, one: Held, attempts: int) -> bool:
        assert isinstance(one, InMemory)
        return self.store.refuse(one.row, attempts, S.FAILED, "refused")

    async def cancel(self, one: Held) -> str:
        assert isinstance(one, InMemory)
        return self.store.cancel(one.row)

    async def replay(self, one: Held) -> bool:
        assert isinstance(one, InMemory)
        return self.store.replay(one.row, self.house.tick())

    async def open(self) -> list[int]:
        rows = [pair for claim in self.store.open_claims("group", self.epoch) for pair in claim.rows]
        return [attempt for row, attempt in rows if row.state == "ready" and row.attempts == attempt - 1]

    async def disown(self) -> None:
        for claim in [one for one in self.store.claims.values() if one.epoch == self.epoch]:
            self.store.close(claim)

    async def release(self) -> None:
        for claim in self.store.open_claims("group", self.epoch):
            self.store.close(claim)

    async def where(self, one: Held) -> Status:
        assert isinstance(one, InMemory)
        return one.row.where()


class Memory:
    def __init__(self) -> None:
        self.store, self.now, self.daemons = Store(), 0.0, 0

    def tick(self) -> float:
        self.now += 1.0
        return self.now

    async def insert(self, many: int = 1, *, key: str | None = None) -> None:
        for _ in range(many):
            row = Row(len(self.store.rows) + 1, "service", 3, key=key, expires_at=None)
            self.store.insert(row, self.tick())

    async def enter(self) -> Daemon:
        self.daemons += 1
        return MemoryDaemon(self, self.daemons)

    async def expire(self) -> None:
        for lease in self.store.leases.values():
            lease.until = self.now - 1.0


class PostgresDaemon:
    def __init__(self, actor: Actor, connection: asyncpg.Connection[asyncpg.Record]) -> None:
        self.actor, self.connection = actor, connection

    async def lease(self) -> bool:
        return await self.actor.lease()

    async def claim(self, room: int = 100, *, held: Sequence[Held] = ()) -> list[Held]:
        return list(await self.actor.claim(room, held=[_try(one).id for one in held]))

    async def settle(self, one: Held, status: Status = S.ACCEPTED) -> bool:
        taken = _try(one)
        told, *_ = await self.actor.settle([taken], status, closed=[taken.claim], reason="so it ended")
        return bool(told["settled"])

    async def back(self, one: Held, state: str = "ready") -> bool:
        taken = _try(one)
        return bool(await self.actor.give_back([taken], state, closed=[taken.claim]))

    async def late(self, one: Held) -> None:
        await self.actor.late(_try(one).id, one.attempt)

    async def hear(self, one: Held, word: Status, *, attempt: int | None = None, code: str = "") -> None:
        await self.actor.hear(_try(one).id, attempt or one.attempt, word, code=code)

    async def decide(self, one: Held, status: str) -> bool:
        return await self.actor.decide(_try(one).id, one.attempt, status)

    async def refuse(self, one: Held, attempts: int) -> bool:
        return await self.actor.refuse(_try(one).id, attempts)

    async def cancel(self, one: Held) -> str:
        return str(await self.connection.fetchval("SELECT outrider.cancel($1)", _try(one).id))

    async def replay(self, one: Held) -> bool:
        return bool(await self.connection.fetchval("SELECT outrider.replay($1)", _try(one).id))

    async def open(self) -> list[int]:
        rows = await self.actor.run("open_claims", self.actor.group, self.actor.epoch)
        return [row["attempt"] for row in rows if row["in_flight"]]

    async def disown(self) -> None:
        await self.actor.run("disown", *self.actor.fence, [])

    async def release(self) -> None:
        await self.actor.run("release", self.actor.group, self.actor.epoch)

    async def where(self, one: Held) -> Status:
        return Status(await where(self.connection, _try(one).id))


class Postgres:
    def __init__(self, connection: asyncpg.Connection[asyncpg.Record], enter: Enter) -> None:
        self.connection, self._enter = connection, enter

    async def insert(self, many: int = 1, *, key: str | None = None) -> None:
        await insert(self.connection, many, order_key=key)

    async def enter(self) -> Daemon:
        return PostgresDaemon(await self._enter(leased=False), self.connection)

    async def expire(self) -> None:
        await self.connection.execute(SECOND)


def _try(one: Held) -> Try:
    from tests.sql.actor import Try

    assert isinstance(one, Try)
    return one


@pytest_asyncio.fixture(params=["memory", "postgres"])
async def house(
    request: pytest.FixtureRequest, connection: asyncpg.Connection[asyncpg.Record], enter: Enter
) -> AsyncIterator[House]:
    yield Memory() if request.param == "memory" else Postgres(connection, enter)


@pytest_asyncio.fixture
async def us(house: House) -> Daemon:
    daemon = await house.enter()
    assert await daemon.lease()
    return daemon


async def taken(house: House, us: Daemon) -> Held:
    await house.insert()
    (one,) = await us.claim()
    return one


async def test_a_claim_takes_once_what_is_held_and_again_what_is_not(house: House, us: Daemon) -> None:
    await house.insert(5)
    first = await us.claim(3)
    rest = await us.claim(held=first)
    assert (len(first), len(rest)) == (3, 2)
    assert await us.claim(held=first + rest) == []
    again = await us.claim(held=first)  # as after a COMMIT that nobody heard of
    assert [one.attempt for one in again] == [1, 1]


async def test_a_stale_epoch_takes_and_writes_nothing(house: House, us: Daemon) -> None:
    one = await taken(house, us)
    other = await house.enter()
    assert not await other.lease()
    await house.expire()
    assert await other.lease()
    await house.insert()
    assert await us.claim() == []
    assert not await us.settle(one)
    assert not await us.back(one)
    assert await us.where(one) is S.SENDING
    assert await other.open() == [1]
    assert await other.back(one, "unknown")
    assert await us.where(one) is S.UNKNOWN


async def test_a_verdict_is_written_once(house: House, us: Daemon) -> None:
    one = await taken(house, us)
    assert await us.settle(one)
    assert not await us.settle(one, S.FAILED)
    assert await us.where(one) is S.ACCEPTED
    assert await us.claim() == []


async def test_what_comes_back_is_taken_again_under_the_next_number(house: House, us: Daemon) -> None:
    one = await taken(house, us)
    assert await us.back(one)
    assert not await us.back(one)
    (next_,) = await us.claim()
    assert next_.attempt == 2
    assert not await us.settle(one, S.FAILED), "an old attempt has no say"
    assert await us.settle(next_)


@pytest.mark.parametrize("status", [S.DEAD, S.EXPIRED, S.FAILED])
async def test_a_late_acceptance_is_merged(house: House, us: Daemon, status: Status) -> None:
    one = await taken(house, us)
    assert await us.settle(one, status)
    await us.late(one)
    assert await us.where(one) is (S.FAILED if status is S.FAILED else S.ACCEPTED)


async def test_a_late_acceptance_takes_out_what_waits_and_not_what_is_in_flight(house: House, us: Daemon) -> None:
    one = await taken(house, us)
    await us.back(one)
    (again,) = await us.claim()
    await us.late(one)
    assert await us.where(one) is S.ACCEPTED
    assert await us.back(again), "heard of: it does not come back"
    assert await us.claim() == []


async def test_a_late_acceptance_ends_doubt(house: House, us: Daemon) -> None:
    one = await taken(house, us)
    await us.back(one, "unknown")
    await us.late(one)
    assert await us.where(one) is S.ACCEPTED
    assert not await us.decide(one, "ready")


async def test_a_receipt_before_the_answer_stays(house: House, us: Daemon) -> None:
    one = await taken(house, us)
    await us.hear(one, S.DELIVERED)
    assert await us.where(one) is S.DELIVERED
    assert await us.settle(one)
    assert await us.where(one) is S.DELIVERED
    assert await us.claim() == []


@pytest.mark.parametrize("word", [S.ACCEPTED, S.SENT, S.UNDELIVERED, S.DELIVERED, S.READ])
async def test_any_receipt_ends_doubt(house: House, us: Daemon, word: Status) -> None:
    one = await taken(house, us)
    await us.back(one, "unknown")
    await us.hear(one, word)
    assert await us.where(one) is word


async def test_a_receipt_of_an_older_attempt_ends_nothing_unless_it_arrived(house: House, us: Daemon) -> None:
    one = await taken(house, us)
    await us.back(one)
    await us.hear(one, S.UNDELIVERED)
    assert await us.where(one) is S.QUEUED
    (again,) = await us.claim()
    await us.back(again, "unknown")
    await us.hear(again, S.SENT, attempt=1)
    assert await us.where(one) is S.UNKNOWN
    await us.hear(one, S.DELIVERED)
    assert await us.where(one) is S.DELIVERED


async def test_our_own_ending_leaves_the_word_to_the_attempt_that_was_accepted(house: House, us: Daemon) -> None:
    one = await taken(house, us)
    await us.back(one)
    (again,) = await us.claim()
    await us.late(one)
    await us.hear(one, S.SENT)
    assert await us.settle(again, S.EXPIRED)
    assert await us.where(one) is S.SENT
    await us.hear(one, S.UNDELIVERED, attempt=1)
    assert await us.where(one) is S.UNDELIVERED


async def test_what_was_heard_of_one_copy_stays_when_the_next_is_accepted(house: House, us: Daemon) -> None:
    one = await taken(house, us)
    await us.back(one, "unknown")
    await us.decide(one, "ready")
    (again,) = await us.claim()
    await us.late(one)
    await us.hear(one, S.SENT)
    assert await us.settle(again)
    assert await us.where(one) is S.SENT
    await us.hear(one, S.UNDELIVERED, attempt=1)
    assert await us.where(one) is S.SENT, "the newest speaks: it may yet arrive"
    await us.hear(again, S.DELIVERED)
    assert await us.where(one) is S.DELIVERED


async def test_receipts_leave_one_result_in_any_order(house: House, us: Daemon) -> None:
    words = [(S.SENT, ""), (S.UNDELIVERED, "30003"), (S.FAILED, "30005"), (S.DELIVERED, "")]
    for count in (3, 4):
        for order in permutations(words[:count]):
            one = await taken(house, us)
            assert await us.settle(one)
            for word, code in order:
                await us.hear(one, word, code=code)
            assert await us.where(one) is (S.FAILED if count == 3 else S.DELIVERED)


@pytest.mark.parametrize(("status", "stands"), [("ready", S.QUEUED), ("dead", S.DEAD), ("canceled", S.CANCELED)])
async def test_doubt_is_decided_once(house: House, us: Daemon, status: str, stands: Status) -> None:
    one = await taken(house, us)
    assert not await us.decide(one, status), "it is not in doubt"
    await us.back(one, "unknown")
    assert await us.decide(one, status)
    assert not await us.decide(one, status)
    assert await us.where(one) is stands


async def test_cancel_says_what_will_be(house: House, us: Daemon) -> None:
    one = await taken(house, us)
    assert await us.cancel(one) == "requested"
    await us.back(one)
    assert await us.cancel(one) == "canceled"
    assert await us.where(one) is S.CANCELED
    assert await us.cancel(one) == "too_late"
    assert await us.claim() == []


async def test_what_is_in_hand_or_in_doubt_is_not_refused(house: House, us: Daemon) -> None:
    one = await taken(house, us)
    assert not await us.refuse(one, 0)
    await us.back(one, "unknown")
    assert not await us.refuse(one, 1)
    await us.decide(one, "ready")
    assert not await us.refuse(one, 0), "not under an old number"
    assert await us.refuse(one, 1)
    assert await us.where(one) is S.FAILED


async def test_what_ended_badly_is_replayed_under_the_next_number(house: House, us: Daemon) -> None:
    one = await taken(house, us)
    assert not await us.replay(one)
    await us.settle(one, S.DEAD)
    assert await us.replay(one)
    assert not await us.replay(one)
    (again,) = await us.claim()
    assert again.attempt == 2
    await us.settle(again)
    assert not await us.replay(one)


async def test_of_an_order_key_the_next_goes_when_the_first_has_gone(house: House, us: Daemon) -> None:
    await house.insert(3, key="conversation")
    for _ in range(3):
        (one,) = await us.claim()
        assert await us.claim(held=[one]) == []
        await us.settle(one)
    assert await us.claim() == []


async def test_what_a_dead_daemon_held_is_listed_until_it_is_judged(house: House, us: Daemon) -> None:
    await house.insert(3)
    one, two, three = await us.claim()
    await us.hear(three, S.DELIVERED)
    assert await us.lease(), "a new epoch"
    assert await us.open() == [1, 1, 1]
    assert await us.back(one, "unknown")
    assert await us.settle(two, S.FAILED) is (await us.where(two) is S.FAILED)


@pytest.mark.parametrize("how", ["disowned", "released"])
async def test_what_has_arrived_is_not_free_when_its_claim_is_closed(house: House, us: Daemon, how: str) -> None:
    """In doubt, sent again by policy, claimed; then the first copy arrives, and the second never left."""
    await house.insert(2)
    one, other = await us.claim()
    for held in (one, other):
        assert await us.back(held, "unknown")
        assert await us.decide(held, "ready")
    assert len(await us.claim()) == 2
    await us.hear(one, S.DELIVERED)
    if how == "released":
        assert await us.lease()
        await us.release()
    else:
        await us.disown()
    assert [again.attempt for again in await us.claim()] == [2], "the other alone"
    assert await us.where(one) is S.DELIVERED
    assert await us.where(other) is S.SENDING
