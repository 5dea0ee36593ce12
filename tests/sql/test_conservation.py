"""
Nothing is lost, and nothing is in two places: after any sequence of statements, crashes between them included, every
message stands in the queue or in outcome; in both only while it is in flight and evidence was quicker than its verdict.
"""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from daemon.core.lifecycle import RANKS, Status
from tests.sql.actor import LONG_AGO, Actor, Try, insert

if TYPE_CHECKING:
    from uuid import UUID

    import asyncpg

    Connection = asyncpg.Connection[asyncpg.Record]

pytestmark = pytest.mark.every_postgres

STEPS = 400
ENDINGS = [Status.ACCEPTED, Status.ACCEPTED, Status.ACCEPTED, Status.FAILED, Status.DEAD, Status.EXPIRED]
RECEIPTS = [Status.ACCEPTED, Status.SENT, Status.DELIVERED, Status.UNDELIVERED, Status.FAILED, Status.READ]

LOST = "SELECT count(*) FROM outrider.outbox o WHERE NOT EXISTS (SELECT FROM outrider.queue q WHERE q.id = o.id) AND NOT EXISTS (SELECT FROM outrider.outcome u WHERE u.id = o.id)"
STRAYS = "SELECT count(*) FROM (SELECT id FROM outrider.queue UNION SELECT id FROM outrider.outcome) AS x WHERE NOT EXISTS (SELECT FROM outrider.outbox o WHERE o.id = x.id)"
TWICE = """
SELECT count(*) FROM outrider.queue q JOIN outrider.outcome u ON u.id = q.id
 WHERE NOT EXISTS (SELECT FROM outrider.in_flight f WHERE f.id = q.id AND f.attempt = q.attempts + 1 AND q.state = 'ready')
"""
SHOWN = "SELECT (SELECT count(*) FROM outrider.message) - (SELECT count(*) FROM outrider.outbox)"
# Of a key only one is claimable, unless it was freed from behind one in trouble; nobody waits behind nobody.
FORGOTTEN = """
SELECT count(*) FROM outrider.queue q
 WHERE q.state = 'behind'
   AND NOT EXISTS (SELECT FROM outrider.queue e WHERE e.lane = q.lane AND e.order_key = q.order_key AND e.seq < q.seq)
"""


class World:
    """One daemon after another, one application, one provider, and dice."""

    def __init__(self, connection: Connection, actor: Actor, seed: int) -> None:
        self.connection = connection
        self.actor = actor
        self.dice = random.Random(seed)
        self.ids: list[UUID] = []
        self.held: list[Try] = []
        self.settled: list[Try] = []
        self.arrived: set[UUID] = set()
        self.sent: dict[UUID, int] = {}  # the last attempt that left for the provider

    async def step(self) -> str:
        steps = [self.insert, self.claim, self.claim, self.settle, self.settle, self.give_back, self.receive, self.receive,
                 self.cancel, self.refuse, self.decide, self.replay, self.late, self.crash, self.free]  # fmt: skip
        does = self.dice.choice(steps)
        await does()
        return does.__name__

    def some(self, tries: list[Try]) -> list[Try]:
        return self.dice.sample(tries, self.dice.randint(0, min(len(tries), 4)))

    async def insert(self) -> None:
        columns: dict[str, Any] = {}
        if self.dice.random() < 0.4:
            columns["order_key"] = f"key {self.dice.randint(1, 3)}"
        if self.dice.random() < 0.3:
            columns["idempotency_key"] = f"key {self.dice.randint(1, 30)}"
        if self.dice.random() < 0.2:
            columns["recipient"] = "0171 234"
        if self.dice.random() < 0.3:
            columns["intent"] = "otp"
        self.ids += await insert(self.connection, self.dice.randint(1, 4), **columns)

    async def claim(self) -> None:
        taken = await self.actor.claim(self.dice.randint(1, 5), held=[one.id for one in self.held])
        assert not self.arrived & {one.id for one in taken}, "what arrived is never sent again"
        if self.dice.random() < 0.1:
            return  # the COMMIT was answered into the void: the rows are in no hand, and will be taken again
        self.held += taken
        self.sent |= {one.id: one.attempt for one in taken}

    def _closing(self, gone: list[Try]) -> list[UUID]:
        left = {one.claim for one in self.held if one not in gone}
        return [claim for claim in {one.claim for one in gone} if claim not in left]

    async def settle(self) -> None:
        done = self.some(self.held)
        status = self.dice.choice(ENDINGS)
        await self.actor.settle(done, status, closed=self._closing(done))
        if self.dice.random() < 0.3:
            await self.actor.settle(done, status, closed=self._closing(done))
        self.held = [one for one in self.held if one not in done]
        self.settled += done

    async def give_back(self) -> None:
        back = self.some(self.held)
        due = datetime.now(UTC) + timedelta(hours=self.dice.choice([-1, -1, 1]))
        for _ in range(self.dice.choice([1, 2])):
            await self.actor.give_back(
                back, self.dice.choice(["ready", "unknown"]), due_at=due, closed=self._closing(back)
            )
        self.held = [one for one in self.held if one not in back]

    async def receive(self) -> None:
        for id in self.dice.sample(list(self.sent), min(3, len(self.sent))):
            news = self.dice.choice(RECEIPTS)
            await self.actor.hear(id, self.dice.randint(1, self.sent[id]), news)
            if RANKS[news] >= RANKS[Status.DELIVERED]:
                self.arrived.add(id)

    async def cancel(self) -> None:
        if self.ids:
            await self.connection.execute("SELECT outrider.cancel($1)", self.dice.choice(self.ids))

    async def refuse(self) -> None:
        rows = await self.connection.fetch("SELECT id, attempts, state FROM outrider.queue ORDER BY seq LIMIT 20")
        held = {one.id for one in self.held}
        for row in rows:
            if row["id"] not in held and self.dice.random() < 0.2:
                await self.actor.refuse(row["id"], row["attempts"], self.dice.choice(["failed", "ready"]))

    async def decide(self) -> None:
        for row in await self.connection.fetch(
            "SELECT id, attempts FROM outrider.queue WHERE state = 'unknown' ORDER BY seq LIMIT 2"
        ):
            await self.actor.decide(row["id"], row["attempts"], self.dice.choice(["ready", "dead", "canceled"]))

    async def replay(self) -> None:
        for id in self.dice.sample(self.ids, min(4, len(self.ids))):
            await self.connection.execute("SELECT outrider.replay($1)", id)

    async def late(self) -> None:
        for one in self.some(self.settled):
            await self.actor.late(one.id, one.attempt)

    async def crash(self) -> None:
        """Another daemon takes over: what was in flight is in doubt, or free where its log says it never left."""
        if self.dice.random() < 0.7:
            return
        await self.connection.execute("UPDATE outrider.lease SET until = $1", LONG_AGO)
        assert await self.actor.lease()
        rows = await self.actor.run("open_claims", self.actor.group, self.actor.epoch)
        rows.sort(key=lambda row: self.ids.index(row["id"]))
        doubtful = [
            Try(row["id"], row["attempt"], row["claim"], LONG_AGO)
            for row in rows
            if row["in_flight"] and self.dice.random() < 0.7
        ]
        await self.actor.give_back(doubtful, "unknown")
        # What was free all along may have been heard of: then it is not free.
        free = [
            Try(row["id"], row["attempt"], row["claim"], LONG_AGO)
            for row in rows
            if row["in_flight"] and row["id"] not in {one.id for one in doubtful}
        ]
        heard = {row["id"] for row in await self.connection.fetch("SELECT id FROM outrider.receipt")}
        await self.actor.give_back([one for one in free if one.id in heard], "unknown")
        await self.connection.execute("DELETE FROM outrider.claim WHERE epoch < $1", self.actor.epoch)
        self.held = []

    async def free(self) -> None:
        await self.actor.run("free_order", 500, 60.0)


@pytest.mark.parametrize("seed", range(3))
async def test_nothing_is_lost_and_nothing_is_in_two_places(connection: Connection, actor: Actor, seed: int) -> None:
    world = World(connection, actor, seed)
    for number in range(STEPS):
        did = await world.step()
        for law, query in [
            ("lost", LOST),
            ("stray", STRAYS),
            ("twice", TWICE),
            ("shown", SHOWN),
            ("forgotten", FORGOTTEN),
        ]:
            assert await connection.fetchval(query) == 0, f"{law} after step {number}: {did}"
    # And the books say so, as an operator reads them.
    assert await connection.fetchval("SELECT outrider.balance()") == 0
    assert await connection.fetchval("SELECT sum(inserted) FROM outrider.conservation") == len(world.ids)
    assert await connection.fetchval("SELECT sum(open) FROM outrider.conservation") == await connection.fetchval(
        "SELECT count(*) FROM outrider.queue q WHERE NOT EXISTS (SELECT FROM outrider.outcome u WHERE u.id = q.id)"
    )
    assert len(world.ids) == await connection.fetchval("SELECT count(*) FROM outrider.outbox")
    assert len(world.settled) > 20, "a world in which nothing happens proves nothing"
