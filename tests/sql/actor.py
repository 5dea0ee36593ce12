"""
A daemon as Postgres sees one: the statements of ``daemon/sql`` in its hands, and nothing of its Python.

Also what an application does (insert) and what a test asks (where is this message?).
"""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

from daemon.core.lifecycle import RANKS, Status
from daemon.core.receipt import Receipt
from daemon.database import HOT_SETTINGS, connect, statement

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import asyncpg

    Connection = asyncpg.Connection[asyncpg.Record]

LONG_AGO = datetime(1970, 1, 1, tzinfo=UTC)
GROUP = "group"


@dataclass(frozen=True, slots=True)
class Try:
    """One message in hand."""

    id: UUID
    attempt: int
    claim: UUID
    due_at: datetime


class Actor:
    """One daemon's connection. Takes and gives what the real one would, one statement at a time."""

    def __init__(self, connection: Connection, owner: UUID, group: str) -> None:
        self.connection = connection
        self.owner = owner
        self.group = group
        self.epoch = 0

    @classmethod
    async def enter(cls, dsn: str, *, owner: UUID | None = None, group: str = GROUP, leased: bool = True) -> Actor:
        actor = cls(await connect(dsn, HOT_SETTINGS), owner or uuid4(), group)
        if leased:
            assert await actor.lease()
        return actor

    async def leave(self) -> None:
        await self.connection.close()

    async def run(self, name: str, *arguments: object) -> list[asyncpg.Record]:
        return await self.connection.fetch(statement(name), *arguments)

    async def lease(self, seconds: float = 3600.0) -> bool:
        rows = await self.run("lease_take", self.group, self.owner, seconds, seconds, [], [], "", 15.0)
        if rows:
            self.epoch = rows[0]["epoch"]
        return bool(rows)

    @property
    def fence(self) -> tuple[UUID, list[str], list[int]]:
        return self.owner, [self.group], [self.epoch]

    async def claim(
        self,
        room: int = 100,
        *,
        lanes: Sequence[str] = ("service",),
        levels: Sequence[int] = (1, 2, 3),
        mark: datetime = LONG_AGO,
        held: Iterable[UUID] = (),
    ) -> list[Try]:
        rows = await self.claim_rows(room, lanes=lanes, levels=levels, mark=mark, held=held)
        return [Try(row["id"], row["attempt"], row["claim"], row["mark"]) for row in rows]

    async def claim_rows(
        self,
        room: int = 100,
        *,
        lanes: Sequence[str] = ("service",),
        levels: Sequence[int] = (1, 2, 3),
        mark: datetime = LONG_AGO,
        held: Iterable[UUID] = (),
    ) -> list[asyncpg.Record]:
        wishes = [(lane, level) for level in levels for lane in lanes]
        count = len(wishes)
        return await self.run(
            "claim", self.owner, [self.group] * count, [lane for lane, _ in wishes], [level for _, level in wishes],
            [room] * count, [mark] * count, list(held), [self.group], [self.epoch],
        )  # fmt: skip

    async def settle(
        self,
        tries: Sequence[Try],
        status: Status = Status.ACCEPTED,
        *,
        closed: Iterable[UUID] = (),
        reason: str | None = None,
    ) -> list[asyncpg.Record]:
        words = [
            {
                "grp": self.group, "id": str(one.id), "attempt": one.attempt, "status": status.value,
                "rank": RANKS[status], "segments": 1, "provider": "twilio", "sender": "+12025550100",
                "reference": reference(one.id), "reason": reason, "at": time.time(),
            }
            for one in tries
        ]  # fmt: skip
        return await self.run("settle", *self.fence, json.dumps(words), list(closed), len(words))

    async def settled(
        self, tries: Sequence[Try], status: Status = Status.ACCEPTED, *, closed: Iterable[UUID] = ()
    ) -> set[UUID]:
        told = (await self.settle(tries, status, closed=closed))[0]
        return {one.id for one in tries} if told["settled"] == len(tries) else set(told["ids"] or ())

    async def give_back(
        self,
        tries: Sequence[Try],
        state: str = "ready",
        *,
        due_at: datetime | None = None,
        charge: int = 1,
        closed: Iterable[UUID] = (),
    ) -> set[UUID]:
        many = len(tries)
        rows = await self.run(
            "giveback", *self.fence, [self.group] * many, [one.id for one in tries], [one.attempt for one in tries],
            [state] * many, [due_at or datetime.now(UTC)] * many, [charge] * many, [f"came back {state}"] * many, list(closed),
        )  # fmt: skip
        return {row["id"] for row in rows}

    async def late(self, id: UUID, attempt: int, status: Status = Status.ACCEPTED) -> None:
        await self.run(
            "late", [id], [attempt], [status.value], [RANKS[status]], [1], ["twilio"], ["+12025550100"],
            [reference(id)], [datetime.now(UTC)],
        )  # fmt: skip

    async def receive(self, news: Sequence[tuple[UUID | None, int | None, Receipt]]) -> set[UUID]:
        rows = await self.run(
            "receive", [id for id, _, _ in news], [attempt for _, attempt, _ in news], ["twilio"] * len(news),
            [said.reference for _, _, said in news], [said.status.value for _, _, said in news],
            [RANKS[said.status] for _, _, said in news], [said.code or None for _, _, said in news],
            [said.reason or None for _, _, said in news], [said.final for _, _, said in news],
        )  # fmt: skip
        return {row["id"] for row in rows if row["id"] is not None}

    async def hear(
        self, id: UUID, attempt: int, status: Status, *, code: str = "", final: bool | None = None
    ) -> set[UUID]:
        said = Receipt(reference(id), status, code, final=RANKS[status] >= 40 if final is None else final)
        return await self.receive([(id, attempt, said)])

    async def decide(self, id: UUID, attempt: int, status: str, reason: str = "decided") -> bool:
        rank = 0 if status == "ready" else RANKS[Status(status)]
        return bool(await self.run("decide", id, attempt, status, rank, reason))

    async def refuse(self, id: UUID, attempts: int = 0, status: str = "failed", reason: str = "refused") -> bool:
        rank = 0 if status == "ready" else RANKS[Status(status)]
        return bool(await self.run("refuse", [id], [attempts], [status], [rank], [reason]))

    async def doubts(self, *, lanes: Sequence[str] = ("service",), limit: int = 100) -> list[asyncpg.Record]:
        return await self.run("doubts", list(lanes), limit, 20.0)


def reference(id: UUID) -> str:
    return f"SM{id.hex}"


async def insert(connection: Connection, many: int = 1, /, **columns: Any) -> list[UUID]:
    """As an application would, all in one statement; the ids in their order."""
    asked = {"recipient": "+12025550100", "service": "service", "intent": "marketing", "body": "Hello", **columns}
    values = ", ".join(f"${number}" for number in range(2, 2 + len(asked)))
    rows = await connection.fetch(
        f"INSERT INTO outrider.outbox ({', '.join(asked)}) SELECT {values} FROM generate_series(1, $1::int) RETURNING id, seq",  # noqa: S608
        many, *asked.values(),
    )  # fmt: skip
    return [row["id"] for row in sorted(rows, key=lambda row: row["seq"])]


async def blocked(connection: Connection, other: Connection) -> None:
    """Return when *other* waits for a lock that somebody holds."""
    for _ in range(2000):
        if await connection.fetchval("SELECT cardinality(pg_blocking_pids($1)) > 0", other.get_server_pid()):
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it does not wait for anybody")


async def where(connection: Connection, id: UUID) -> str:
    """Its status, as applications read it."""
    status = await connection.fetchval("SELECT status FROM outrider.message WHERE id = $1", id)
    assert isinstance(status, str)
    return status


async def ended(connection: Connection, id: UUID) -> asyncpg.Record:
    """Its outcome."""
    row = await connection.fetchrow("SELECT * FROM outrider.outcome WHERE id = $1", id)
    assert row is not None
    return row


async def waiting(connection: Connection, id: UUID) -> asyncpg.Record | None:
    """Its row in the queue."""
    return await connection.fetchrow("SELECT * FROM outrider.queue WHERE id = $1", id)
