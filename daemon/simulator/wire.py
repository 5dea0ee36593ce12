"""
HTTP/1.1 as the simulator speaks it: small, quick, and able to break on purpose.

Its own, because aiohttp's server costs three times as much a request, and shares two cores with what is being
measured. It understands what clients of the Messages API say: bodies with a Content-Length, keep-alive, pipelining.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from dataclasses import dataclass
from functools import lru_cache
from http import HTTPStatus
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple, cast

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

HEAD_MAX = 16 * 1024
BODY_MAX = 256 * 1024

LINGER_S = 15.0  # how long an ended conversation is still remembered

_RESET = struct.pack("ii", 1, 0)  # SO_LINGER on, for no time: close with RST
_REASONS = {status.value: status.phrase for status in HTTPStatus}


class Request(NamedTuple):
    """One whole HTTP request. Header names are lower case."""

    method: str
    target: str
    headers: Mapping[bytes, bytes]
    body: bytes


class Answer(NamedTuple):
    """One HTTP answer, not yet written."""

    status: int
    body: bytes
    headers: bytes = b"Content-Type: application/json\r\n"  # each line with its end

    def raw(self) -> bytes:
        """The answer as it stands on the wire."""
        return b"HTTP/1.1 %d %s\r\n%bContent-Length: %d\r\n\r\n%b" % (
            self.status,
            _REASONS.get(self.status, "Unknown").encode(),
            self.headers,
            len(self.body),
            self.body,
        )


class BadRequestError(Exception):
    """Not a request we can read; carries the HTTP status that says why."""

    def __init__(self, status: int) -> None:
        super().__init__(_REASONS[status])
        self.status = status


def take_request(inbox: bytes) -> tuple[Request, int] | None:
    """The first request of *inbox* and its length in bytes; None while it is not whole. Raises BadRequestError."""
    end = inbox.find(b"\r\n\r\n")
    if end < 0:
        if len(inbox) > HEAD_MAX:
            raise BadRequestError(431)
        return None
    method, target, headers, length = read_head(inbox[:end])
    total = end + 4 + length
    return (Request(method, target, headers, inbox[end + 4 : total]), total) if len(inbox) >= total else None


@lru_cache(maxsize=512)
def read_head(head: bytes) -> tuple[str, str, Mapping[bytes, bytes], int]:
    """
    Method, target, headers and length of the body. Raises BadRequestError.

    Cached, because a client says the same things with every request: the heads of most differ in nothing.
    """
    first, *lines = head.split(b"\r\n")
    try:
        method, target, _ = first.decode("ascii").split(" ")
        headers = {name.lower(): value.strip() for name, value in (line.split(b":", 1) for line in lines)}
        length = int(headers.get(b"content-length", b"0"))
    except ValueError:
        raise BadRequestError(400) from None
    if b"transfer-encoding" in headers:
        raise BadRequestError(411)
    if not 0 <= length <= BODY_MAX:
        raise BadRequestError(413 if length > 0 else 400)
    return method, target, MappingProxyType(headers), length


@dataclass(slots=True)
class Asked:
    """One request, and when it was answered or nobody waited any more."""

    token: str = ""  # of a create; other requests have none
    answered_at: float | None = None  # on the loop's clock
    number: int = 0  # of the answer, in their order; from 1
    read: int = 0  # how many had certainly been read when it was given


class Party(set["Conversation"]):
    """
    All conversations that are open, or were a moment ago, and what of our answers their client has shown to know.

    It is one process that reads whatever lies there, then takes note of all of it, and may ask again meanwhile. So a
    request shows that all was read that we had answered before the last answer on its connection. If that one was given
    after such a sign, the turn in which the sign was given is over, and all that had been read by then is noted.
    """

    def __init__(self) -> None:
        super().__init__()
        self.answers = 0  # given
        self.read = 0  # so many of them were certainly read
        self.noted = 0  # and noted


class Conversation(asyncio.Protocol):
    """One client's connection: answers one request at a time, in order, whenever the answer comes."""

    def __init__(self, serve: Callable[[Request, Conversation], None], party: Party) -> None:
        self.asked = Asked()
        self.before = Asked()
        self.ended_at: float | None = None
        self.unread = False  # it ended with bytes of ours that nobody had read
        self._serve = serve
        self._party = party  # we enter and leave it ourselves
        self._inbox = b""
        self._busy = False  # a request is being answered
        self._reading = False  # _read is on the stack
        self._last = False  # close after this answer
        self._room = asyncio.Event()  # the client reads as fast as we write

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._party.add(self)
        self._room.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self.ended_at = asyncio.get_running_loop().time()
        self.unread = isinstance(exc, ConnectionResetError)  # so the kernel says it, when a process dies or closes
        self._answered()
        asyncio.get_running_loop().call_later(LINGER_S, self._party.discard, self)
        self._room.set()

    def pause_writing(self) -> None:
        self._room.clear()

    def resume_writing(self) -> None:
        self._room.set()

    def data_received(self, data: bytes) -> None:
        self._inbox += data
        if len(self._inbox) > HEAD_MAX + BODY_MAX and self._busy:
            self.reset()  # pipelines without listening
        self._read()

    def answer(self, raw: bytes) -> None:
        """Write the answer to the request in hand, then attend to the next one."""
        if self._transport.is_closing():
            return
        self._transport.write(raw)
        self._answered()
        self._busy = False
        if self._last:
            self._transport.close()
        elif self._inbox:
            self._read()

    async def stream(self, part: bytes) -> bool:
        """Write a part of an answer that has no length; False when the client is gone."""
        self._transport.write(part)
        await self._room.wait()
        return not self._transport.is_closing()

    def hang_up(self, raw: bytes = b"") -> None:
        """Write *raw* and close, as if the answer ended there."""
        self._transport.write(raw)
        self._answered()
        self._transport.close()

    def reset(self) -> None:
        """Drop the connection with a TCP reset."""
        handle: socket.socket | None = self._transport.get_extra_info("socket")
        if handle is not None and not self._transport.is_closing():
            handle.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self._transport.abort()

    def take(self, token: str) -> None:
        """The request in hand is the create *token*, or none."""
        self._party.noted = max(self._party.noted, self.asked.read)
        self._party.read = max(self._party.read, self.asked.number)
        self.before, self.asked = self.asked, Asked(token)

    def _answered(self) -> None:
        if self.asked.answered_at is None:
            self._party.answers += 1
            self.asked.answered_at = asyncio.get_running_loop().time()
            self.asked.number, self.asked.read = self._party.answers, self._party.read

    def _read(self) -> None:
        if self._reading:
            return  # an answer given at once: the loop below goes on by itself
        self._reading = True
        try:
            while self._inbox and not (self._busy or self._last) and (taken := take_request(self._inbox)):
                request, length = taken
                self._inbox = self._inbox[length:]
                self._busy = True
                self._last = request.headers.get(b"connection", b"").lower() == b"close"
                self._serve(request, self)
        except BadRequestError as bad:
            self.hang_up(Answer(bad.status, b"", b"Connection: close\r\n").raw())
        finally:
            self._reading = False
