"""One connection to a provider: it carries one exchange, or none."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Protocol

from daemon.core.outcome import Uncertain
from daemon.wire.answer import CLOSED

if TYPE_CHECKING:
    from daemon.wire.answer import Answer, Verdict
    from daemon.wire.request import Origin


class Pool(Protocol):
    """Who owns a connection, and hears of its two turns of fate."""

    def landed(self, connection: Connection) -> None:
        """An exchange is over; the connection can carry another."""
        ...

    def lost(self, connection: Connection) -> None:
        """The connection can carry nothing any more."""
        ...

    def lend(self) -> Answer:
        """What reads an answer, at its beginning."""
        ...

    def give_back(self, answer: Answer) -> None:
        """*answer* is read to its end, and another may follow."""
        ...


class Connection(asyncio.Protocol):
    """
    A connection whose transport has just been handed over: ``connection_made`` was called on whoever dialled it.

    Nothing may come on it while no exchange is under way: whatever does, it would be taken for the next answer.
    """

    __slots__ = ("_answer", "_loop", "_pool", "_transport", "alive", "deadline", "future", "idle_since", "origin")

    def __init__(
        self, pool: Pool, origin: Origin, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop
    ) -> None:
        self._pool = pool
        self._transport = transport
        self._loop = loop
        self._answer: Answer | None = None  # lent, from its first byte on
        self.origin = origin
        self.alive = True
        self.deadline = 0.0  # of the exchange under way, on the loop's clock
        self.idle_since = 0.0
        self.future: asyncio.Future[Verdict] | None = None  # of the exchange under way

    def usable(self) -> bool:
        """Whether bytes written now would leave, as far as anybody on this side can know."""
        return self.alive and not self._transport.is_closing()

    def send(self, raw: bytes, deadline: float) -> asyncio.Future[Verdict]:
        """Write *raw*, once and whole. From here on nobody can know, until the future knows."""
        self.deadline = deadline
        self.future = future = self._loop.create_future()
        self._transport.write(raw)
        return future

    def abandon(self, reason: str) -> None:
        """Wait no longer: the verdict is what has come so far, and the connection goes with it."""
        if self.future is not None:
            self._settle(self.future, self._answer.fail(reason) if self._answer else Uncertain(reason))
        self.drop()

    def drop(self) -> None:
        """Close at once: no farewell, nothing buffered, nothing lingers."""
        if self.alive:
            self.alive = False
            self._transport.abort()
            self._pool.lost(self)

    def _settle(self, future: asyncio.Future[Verdict], verdict: Verdict) -> None:
        self.future = None
        if not future.done():  # done: its task was cancelled in this very turn
            future.set_result(verdict)

    # The event loop calls these.

    def data_received(self, data: bytes) -> None:
        future, answer = self.future, self._answer
        if future is None:
            self.drop()
            return
        if answer is None:
            answer = self._answer = self._pool.lend()
        verdict = answer.feed(data)
        if verdict is not None:
            self._settle(future, verdict)
            if answer.keep and self.usable():
                self._answer = None
                self._pool.give_back(answer)
                self._pool.landed(self)
            else:
                self.drop()

    def eof_received(self) -> None:
        if self.future is not None:
            self._settle(self.future, self._answer.end() if self._answer else Uncertain(CLOSED))
        self.drop()

    def connection_lost(self, error: Exception | None) -> None:
        self.abandon(type(error).__name__ if error else CLOSED)
