"""
The storm: messages come in portions, and the daemon dies after each, at a moment that dice choose.

Most deaths come while requests are on the wire; one in twenty comes during the start, while the daemon still judges
what the death before left open.
"""

from __future__ import annotations

import asyncio
import math
import time
from typing import TYPE_CHECKING

from daemon.core.token import seal
from daemon.selftest.stage import SERVICES

if TYPE_CHECKING:
    from collections.abc import Callable
    from random import Random

    from daemon.selftest.paint import Progress
    from daemon.selftest.stage import Kill, Stage

STARTING_EVERY, STARTING_AT = 20, 10  # the 10th kill of each 20 comes during the start
START_S = 1.2  # within which that one comes
AFTER_S = 0.1  # up to so long after the request that was waited for
LOOK_S = 0.002
UNSENT_S = 10.0  # a portion that is not sent for so long is not waited for
PATIENCE_S = 120.0  # so long after the last kill nothing need change, while doubts wait for their evidence

INSERT = """
INSERT INTO outrider.outbox (recipient, service, intent, body)
SELECT '+1202' || 5550000 + n * 7919 % 10000, ($3::text[])[1 + n % 3], ($4::text[])[1 + n % 3], 'storm message ' || n
  FROM generate_series($1::integer, $2::integer) AS n
"""
DOUBTS = """
SELECT id, attempt FROM outrider.attempt
 WHERE kind = 'exchange' AND reason LIKE 'the daemon died%' AND at > to_timestamp($1) AND at <= to_timestamp($2)
"""
KEY = "SELECT token_key FROM outrider.home"
WAITING = "SELECT count(*) FROM outrider.queue"


class Storm:
    """One storm over one stage."""

    def __init__(self, stage: Stage, *, kills: int, messages: int, dice: Random, progress: Progress) -> None:
        self.back_s: list[float] = []  # from each start to the first request
        self._stage = stage
        self._kills = kills
        self._messages = messages
        self._dice = dice
        self._progress = progress
        self._inserted = 0
        self._deaths: list[Kill] = []
        self._told = 0  # of those whose doubts have been told
        self._arrived: set[str] = set()  # tokens the provider has accepted

    async def rage(self) -> list[Kill]:
        """Insert, start and kill, as often as asked for; the deaths."""
        for number in range(1, self._kills + 1):
            fresh = await self._insert(self._messages * number // self._kills)
            began = time.monotonic()
            await self._stage.start_daemon()
            sending = number % STARTING_EVERY != STARTING_AT
            if sending:
                await self._stage.until_ready()
                await self._sending(began, self._dice.randint(1, max(1, fresh * 9 // 10)))
                await self._tell()
            await asyncio.sleep(self._dice.uniform(0.0, AFTER_S if sending else START_S))
            self._deaths.append(await self._stage.kill_daemon(sending=sending))
        await self._insert(self._messages)
        await self._stage.start_daemon()
        await self._stage.until_ready()
        return self._deaths

    async def settle(self) -> None:
        """Wait until every message has ended or been accepted, or until nothing moves any more."""
        least, moved = self._messages + 1, time.monotonic()
        while waiting := await self._stage.connection.fetchval(WAITING):
            self._stage.check_alive()
            if waiting < least:
                least, moved = waiting, time.monotonic()
            elif time.monotonic() > moved + PATIENCE_S:
                break
            self._progress.settling(self._stage.simulator.ledger.accepted, waiting)
            await asyncio.sleep(0.2)
        await self._tell()

    async def _insert(self, upto: int) -> int:
        """Rows so that *upto* are there in all; how many were new."""
        first, self._inserted = self._inserted + 1, upto
        if upto >= first:
            intents = [intent for intent, _ in SERVICES.values()]
            await self._stage.connection.execute(INSERT, first, upto, list(SERVICES), intents)
        return upto - first + 1

    async def _sending(self, began: float, requests: int) -> None:
        """Wait until the provider has seen so many more *requests* and is answering at least one."""
        simulator, deadline = self._stage.simulator, time.monotonic() + UNSENT_S
        before = simulator.ledger.accepted
        await self._until(lambda: simulator.ledger.accepted > before, deadline)
        self.back_s.append(time.monotonic() - began)
        await self._until(lambda: simulator.ledger.accepted >= before + requests, deadline)
        await self._until(lambda: bool(simulator.on_the_wire(math.inf)), deadline)

    async def _until(self, reached: Callable[[], bool], deadline: float) -> None:
        while not reached() and time.monotonic() < deadline:
            self._progress.sent(self._stage.simulator.ledger.accepted)
            await asyncio.sleep(LOOK_S)

    async def _tell(self) -> None:
        """A line for each kill whose doubts are written by now."""
        connection, ledger = self._stage.connection, self._stage.simulator.ledger
        key = await connection.fetchval(KEY)
        self._arrived.update(entry.token for entry in ledger.since(len(self._arrived)))
        for number in range(self._told, len(self._deaths)):
            kill, since = self._deaths[number], self._deaths[number - 1].at if number else 0.0
            doubts = {seal(key, row["id"], row["attempt"]) for row in await connection.fetch(DOUBTS, since, kill.at)}
            # What the provider saw, and what had a connection in hand and never reached it.
            on_the_wire = kill.on_the_wire | (doubts & kill.unheard) | (doubts - self._arrived)
            self._progress.killed(number + 1, len(on_the_wire), len(doubts), sending=kill.sending)
        self._told = len(self._deaths)
