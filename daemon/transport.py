"""
One HTTP exchange: a request goes out at most once, and an answer, or the reason why there is none, comes back.

What decides between "safe to send again" and "nobody can know" is one fact: were the bytes handed to the kernel? It is
taken where aiohttp asks for the body, which is the last thing it does before the one write that carries headers and
body together (aiohttp 3.14: headers are held back until the body comes). A connection stands by then; nothing has
left. The tracing signals would tell the same, an event-loop turn earlier and for twice the price.

Deadlines are swept instead of armed: a timer for each request costs more than everything else in this file.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from functools import lru_cache
from typing import TYPE_CHECKING, Protocol, cast

import aiohttp
from aiohttp.payload import Payload
from multidict import CIMultiDict
from yarl import URL

from daemon.core.outcome import Uncertain, Unreachable
from daemon.provider import Response

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from aiohttp.abc import AbstractStreamWriter

    from daemon.provider import Request

BODY_LIMIT = 65_536  # bytes of an answer we read; no provider's answer to one message comes near
IDLE_S = 15.0  # below any provider's own limit, so that we rarely write into a connection it is closing
DNS_S = 30  # how long a name is remembered
SWEEP_S = 0.1  # how much later than its deadline an exchange may end


class Withdrawn(Exception):
    """Raised by ``on_write`` when the message must not go after all. Nothing has left."""


class Link(Protocol):
    """What courier and janitor ask of a transport: :class:`Transport`, or the lean :class:`daemon.wire.Wire`."""

    async def exchange(
        self, request: Request, *, deadline_s: float, on_write: Callable[[], None] | None = None
    ) -> Response | Unreachable | Uncertain: ...


class Transport:
    """The connections to one provider. Made by :meth:`open`; closed on leaving its block."""

    __slots__ = ("_flights", "_loop", "_session", "_sweeping")

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session
        self._loop = asyncio.get_running_loop()
        self._flights: set[_Flight] = set()
        self._sweeping = False

    @classmethod
    @asynccontextmanager
    async def open(cls, *, connections: int, idle_s: float = IDLE_S) -> AsyncIterator[Transport]:
        """At most *connections* at a time, each kept *idle_s* seconds between two exchanges."""
        if connections < 1:  # to aiohttp, 0 means "no limit"
            raise ValueError(f"a transport needs at least one connection, not {connections}")
        async with aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=connections, keepalive_timeout=idle_s, ttl_dns_cache=DNS_S),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=None),
            auto_decompress=False,
        ) as session:
            yield cls(session)

    async def exchange(
        self, request: Request, *, deadline_s: float, on_write: Callable[[], None] | None = None
    ) -> Response | Unreachable | Uncertain:
        """
        Send *request* once and read the whole answer, within *deadline_s* seconds in all (and one sweep).

        *on_write* is called just before the bytes leave, at most once, with a connection in hand. What it raises comes
        out of here unchanged, and nothing has left. A 2xx whose body was cut, too long or too slow is still an answer:
        it comes back with the bytes that were read.
        """
        flight = _Flight(request.body, on_write, self._loop.time() + deadline_s)
        self._watch(flight)
        try:
            return await self._fly(request, flight)
        except (aiohttp.ClientError, OSError) as error:
            if flight.refused:
                # aiohttp wraps what a body raises; the caller wants to see its own.
                raise (error.__cause__ or error) from None
            return flight.failed(named(error))
        except asyncio.CancelledError:
            if not flight.timed_out():
                raise
            return flight.failed("no whole answer in time" if flight.written else "no connection in time")
        finally:
            flight.over = True
            self._flights.discard(flight)

    async def _fly(self, request: Request, flight: _Flight) -> Response | Unreachable | Uncertain:
        flight.reply = reply = await self._session.request(
            request.method, _url(request.url), headers=request.headers, data=flight, allow_redirects=False
        )
        if not flight.written:
            reply.close()
            return flight.failed("it answered before it was asked")
        content, room = reply.content, BODY_LIMIT
        while not content.at_eof():
            if room <= 0:
                return flight.failed(f"the answer is longer than {BODY_LIMIT} bytes")
            chunk = await content.read(room)
            room -= len(chunk)
            flight.body += chunk
        return flight.answer(reply)

    def _watch(self, flight: _Flight) -> None:
        self._flights.add(flight)
        if not self._sweeping:
            self._sweeping = True
            self._loop.call_later(SWEEP_S, self._sweep)

    def _sweep(self) -> None:
        now = self._loop.time()
        for flight in self._flights:
            if flight.deadline <= now:
                flight.cancel()
        self._sweeping = bool(self._flights)
        if self._sweeping:
            self._loop.call_later(SWEEP_S, self._sweep)


class _Flight(Payload):
    """
    One exchange under way, and the body of its request in one: aiohttp asks a body to write itself.

    The constructor of ``Payload`` is left out on purpose (it builds a header map for each body): every property it
    serves is given here.
    """

    _autoclose = True  # bytes in memory: nothing to close

    def __init__(self, body: bytes, on_write: Callable[[], None] | None, deadline: float) -> None:
        self.bytes = body
        self.on_write = on_write
        self.deadline = deadline  # on the loop's clock
        self.written = False  # from here on nobody can know
        self.refused = False  # on_write raised
        self.over = False  # exchange has given its verdict: nothing may leave any more
        self.overdue = False  # cancelled by the sweep
        self.reply: aiohttp.ClientResponse | None = None
        self.body = bytearray()  # of the answer
        self.task = cast("asyncio.Task[object]", asyncio.current_task())  # a coroutine is always run by one
        self.cancelling = self.task.cancelling()

    @property
    def size(self) -> int:
        return len(self.bytes)

    @property
    def headers(self) -> CIMultiDict[str]:
        return _BODY_HEADERS

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        return self.bytes.decode(encoding, errors)

    async def write(self, writer: AbstractStreamWriter) -> None:
        """Headers and body leave with this one call, or nothing does. Once: aiohttp repeats some methods by itself."""
        transport = writer.transport
        if self.over or self.written or transport is None or transport.is_closing():
            raise aiohttp.ClientConnectionResetError("the connection was closed before the request was written")
        if self.on_write is not None:
            self.refused = True
            self.on_write()
            self.refused = False
        self.written = True
        await writer.write(self.bytes)

    async def write_with_length(self, writer: AbstractStreamWriter, content_length: int | None) -> None:
        await self.write(writer)

    def cancel(self) -> None:
        """The deadline has passed: end the wait, whatever it is for."""
        if not self.overdue:
            self.overdue = True
            self.task.cancel()

    def timed_out(self) -> bool:
        """Whether a cancellation was the sweep's alone (and undo it), as ``asyncio.timeout`` tells it apart."""
        return self.overdue and self.task.uncancel() <= self.cancelling

    def answer(self, reply: aiohttp.ClientResponse) -> Response:
        headers = {name.lower(): value for name, value in reply.headers.items()}
        return Response(reply.status, headers, bytes(self.body))

    def failed(self, reason: str) -> Response | Unreachable | Uncertain:
        """What it means that no whole answer came (facts: reliability 2.4)."""
        if not self.written:
            return Unreachable(reason)
        if self.reply is None:
            return Uncertain(reason)
        self.reply.close()
        if 200 <= self.reply.status < 300:
            return self.answer(self.reply)  # it said yes; a query will tell the id
        return Uncertain(f"{reason} (status {self.reply.status})")


# What aiohttp adds when the request names no type itself; it insists on something here.
_BODY_HEADERS = CIMultiDict({"Content-Type": "application/octet-stream"})


@lru_cache(maxsize=256)
def _url(text: str) -> URL:
    # Encoded by the dialect, to the byte: yarl must not improve it. Sending always goes to the same few.
    return URL(text, encoded=True)


def named(error: Exception) -> str:
    """What went wrong, in words that hold no number: other errors spell out the URL, and so a query's (DESIGN 5.18)."""
    words = f": {error}" if isinstance(error, aiohttp.ClientConnectorError) else ""
    return type(error).__name__ + words
