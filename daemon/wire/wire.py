"""
One HTTP exchange over connections of our own: at most once, and with a reason when there is no answer.

The one fact that decides between "safe to send again" and "nobody can know" is where ``on_write`` is called: a
connection stands, and the next statement hands head and body to the kernel in one piece. What was written is never
written again.

A price list decides the shape: no task and no timer for an exchange, only one future; deadlines are swept.
"""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, NamedTuple

import aiohttp
from yarl import URL

from daemon.core.outcome import Uncertain, Unreachable
from daemon.transport import DNS_S, IDLE_S, SWEEP_S, named
from daemon.wire.answer import Answer
from daemon.wire.connection import Connection
from daemon.wire.request import written

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from daemon.provider import Request, Response
    from daemon.wire.request import Origin

_CLOSED = "the connection was closed before the request was written"
_LATE = "no connection in time"
_NO_LIMIT = aiohttp.ClientTimeout(total=None, sock_connect=None)  # ours holds


class _Room:
    """What a waiter gets when no connection is free, but one more may be dialled."""


class _Waiter(NamedTuple):
    origin: Origin
    deadline: float
    future: asyncio.Future[Connection | _Room | Unreachable]


class Wire:
    """The connections to one provider. Made by :meth:`open`; closed on leaving its block."""

    __slots__ = ("_answers", "_connections", "_connector", "_idle", "_idle_s", "_loop", "_reaper", "_rooms",
                 "_sweeping", "_waiters")  # fmt: skip

    def __init__(self, connector: aiohttp.TCPConnector, connections: int, idle_s: float) -> None:
        self._connector = connector  # it only dials
        self._idle_s = idle_s
        self._loop = asyncio.get_running_loop()
        self._rooms = connections  # how many more may be opened; one being dialled has its room already
        self._connections: set[Connection] = set()  # all that are open
        self._idle: dict[Origin, list[Connection]] = {}  # the one used last is last, and next
        self._waiters: deque[_Waiter] = deque()  # for a connection; while there are any, none is idle
        self._answers: list[Answer] = []  # to be lent: see lend()
        self._sweeping = False
        self._reaper: asyncio.TimerHandle | None = None

    @classmethod
    @asynccontextmanager
    async def open(cls, *, connections: int, idle_s: float = IDLE_S) -> AsyncIterator[Wire]:
        """At most *connections* at a time, each kept *idle_s* seconds between two exchanges."""
        if connections < 1:
            raise ValueError(f"a transport needs at least one connection, not {connections}")
        connector = aiohttp.TCPConnector(limit=0, ttl_dns_cache=DNS_S, force_close=True)
        wire = cls(connector, connections, idle_s)
        try:
            yield wire
        finally:
            wire._close()
            await connector.close()
            await asyncio.sleep(0)  # the sockets close in the loop's next turn

    async def exchange(
        self, request: Request, *, deadline_s: float, on_write: Callable[[], None] | None = None
    ) -> Response | Unreachable | Uncertain:
        """
        Send *request* once and read the whole answer, within *deadline_s* seconds in all (and one sweep).

        *on_write* is called just before the bytes leave, at most once, with a connection in hand. What it raises comes
        out of here unchanged, and nothing has left. A 2xx whose body was cut, too long or too slow is still an answer:
        it comes back with the bytes that were read. A request no dialect may write raises ValueError.
        """
        origin, raw = written(request)
        if origin is None:
            return Unreachable("the URL is none of HTTP's")
        deadline = self._loop.time() + deadline_s
        connection = self._kept(origin) or await self._obtain(origin, deadline)
        if isinstance(connection, Unreachable):
            return connection
        if on_write is not None:
            released = False
            try:
                on_write()
                released = True
            finally:
                if not released:
                    self.landed(connection)
        future = connection.send(raw, deadline)
        del request, raw, on_write  # needed no more, and 12 MB with 10,000 in flight
        if not self._sweeping:
            self._watch()
        try:
            return await future
        finally:
            if connection.future is future:  # cancelled: we shall never know
                connection.abandon("cancelled")

    # --- connections come

    def _kept(self, origin: Origin) -> Connection | None:
        """The idle connection used last, if there is one whose other end has not hung up."""
        idle = self._idle.get(origin)
        while idle:
            connection = idle.pop()
            if connection.usable() and connection.idle_since + self._idle_s > self._loop.time():
                return connection
            connection.drop()
        return None

    async def _obtain(self, origin: Origin, deadline: float) -> Connection | Unreachable:
        """A connection that can be written to at once: kept, handed on by another exchange, or dialled."""
        while (connection := self._kept(origin)) is None:
            if not self._rooms:
                self._evict()
            if self._rooms:
                self._rooms -= 1
                return await self._dial(origin, deadline)
            given = await self._turn(_Waiter(origin, deadline, self._loop.create_future()))
            if isinstance(given, _Room):
                return await self._dial(origin, deadline)
            if isinstance(given, Unreachable) or given.usable():
                return given
        return connection

    async def _turn(self, waiter: _Waiter) -> Connection | _Room | Unreachable:
        self._waiters.append(waiter)
        self._watch()
        try:
            return await waiter.future
        except asyncio.CancelledError:
            # Given in the same turn: pass it on.
            given = None if waiter.future.cancelled() else waiter.future.result()
            if isinstance(given, Connection) and given.alive:
                self.landed(given)
            elif isinstance(given, _Room):
                self._vacated()
            raise

    async def _dial(self, origin: Origin, deadline: float) -> Connection | Unreachable:
        """A new connection, in a room already taken."""
        connection = None
        try:
            async with asyncio.timeout_at(deadline):
                held = await self._connector.connect(self._call(origin), [], _NO_LIMIT)
            connection = self._take_over(held, origin)
            return connection or Unreachable(_CLOSED)
        except TimeoutError:
            return Unreachable(_LATE)
        except (aiohttp.ClientError, OSError) as error:
            return Unreachable(named(error))
        finally:
            if connection is None:
                self._vacated()

    def _call(self, origin: Origin) -> aiohttp.ClientRequest:
        return aiohttp.ClientRequest(
            "GET", URL.build(scheme=origin.scheme, host=origin.host, port=origin.port), loop=self._loop
        )

    def _take_over(self, held: aiohttp.connector.Connection, origin: Origin) -> Connection | None:
        """It was aiohttp that dialled; from here on the connection is ours, and aiohttp forgets it."""
        theirs, transport = held.protocol, held.transport
        if theirs is None or transport is None or transport.is_closing() or theirs.should_close:
            held.close()  # hung up already, or spoke before it was asked
            return None
        connection = Connection(self, origin, transport, self._loop)
        transport.set_protocol(connection)
        theirs.connection_lost(None)
        held.close()
        self._connections.add(connection)
        return connection

    # --- answers are read

    def lend(self) -> Answer:
        """
        What reads an answer: with its parser 18 objects, and 10,000 connections may wait for their first byte. Nearly
        all answers come in one piece, so one reads for them all.
        """
        return self._answers.pop() if self._answers else Answer()

    def give_back(self, answer: Answer) -> None:
        """*answer* is read to its end: the next begins with the next connection that hears something."""
        answer.begin()
        self._answers.append(answer)

    # --- connections go

    def landed(self, connection: Connection) -> None:
        """*connection* is free: the next waiter has it, or it rests."""
        waiter = self._next_waiter() if self._waiters else None
        if waiter is None:
            connection.idle_since = self._loop.time()
            self._idle.setdefault(connection.origin, []).append(connection)
            if self._reaper is None:
                self._reaper = self._loop.call_later(self._idle_s, self._reap)
        elif waiter.origin == connection.origin:
            self._waiters.popleft()
            waiter.future.set_result(connection)
        else:
            connection.drop()  # whoever is next wants to go elsewhere: the room is what helps

    def lost(self, connection: Connection) -> None:
        """*connection* is no more, whatever it was doing."""
        self._connections.discard(connection)
        idle = self._idle.get(connection.origin, [])
        if connection in idle:
            idle.remove(connection)
        self._vacated()

    def _vacated(self) -> None:
        """There is room for one more connection."""
        waiter = self._next_waiter()
        if waiter is None:
            self._rooms += 1
        else:
            self._waiters.popleft()
            waiter.future.set_result(_Room())

    def _next_waiter(self) -> _Waiter | None:
        while self._waiters and self._waiters[0].future.done():
            self._waiters.popleft()
        return self._waiters[0] if self._waiters else None

    def _evict(self) -> None:
        """One resting connection to somebody else makes room."""
        for idle in self._idle.values():
            if idle:
                idle[0].drop()
                return

    def _reap(self) -> None:
        """Drop what has rested too long, and come back when the next one will have."""
        self._reaper = None
        for idle in self._idle.values():
            while idle and idle[0].idle_since + self._idle_s <= self._loop.time():
                idle[0].drop()
        first = min((idle[0].idle_since for idle in self._idle.values() if idle), default=None)
        if first is not None:
            self._reaper = self._loop.call_at(first + self._idle_s, self._reap)

    # --- deadlines

    def _watch(self) -> None:
        if not self._sweeping:
            self._sweeping = True
            self._loop.call_later(SWEEP_S, self._sweep)

    def _sweep(self) -> None:
        now = self._loop.time()
        for waiter in self._waiters:
            if waiter.deadline <= now and not waiter.future.done():
                waiter.future.set_result(Unreachable(_LATE))
        flying = [connection for connection in self._connections if connection.future is not None]
        for connection in flying:
            if connection.deadline <= now:
                connection.abandon("no whole answer in time")
        self._waiters = deque(waiter for waiter in self._waiters if not waiter.future.done())
        self._sweeping = bool(flying or self._waiters)
        if self._sweeping:
            self._loop.call_later(SWEEP_S, self._sweep)

    def _close(self) -> None:
        for waiter in self._waiters:
            if not waiter.future.done():
                waiter.future.set_result(Unreachable("the transport was closed"))
        for connection in list(self._connections):
            connection.abandon("the transport was closed")
        if self._reaper is not None:
            self._reaper.cancel()
            self._reaper = None
