"""
The porter: answers the plainest callers at the door, and shows everybody else in.

Nearly every receipt comes as one POST, whole within its first bytes, with a length and nothing else to it. Those are
read here by httptools and answered without aiohttp, which takes half of what a receipt costs. Whatever is more than
that (another method, a body in chunks, a second request behind the first, what is no HTTP, who takes his time) is
shown in to aiohttp with all that it has said, for good: so there is one set of limits, of deadlines and of errors.
"""

from __future__ import annotations

import asyncio
import logging
import time
from email.utils import formatdate
from functools import lru_cache
from http import HTTPStatus
from typing import TYPE_CHECKING, Final, Literal, cast

import httptools

from daemon.provider import Callback

if TYPE_CHECKING:
    from collections.abc import Callable

    from aiohttp.web_protocol import RequestHandler

    from daemon.callbacks import Door, Reply

PLAIN_MAX = 16 * 1024  # bytes of a request that is read here; a receipt has 1,200
HURRY_S = 0.5  # how long its rest may take to come: long enough for a proxy that sends the body on its own

# What every answer to the world says of us.
HEADERS: Final = {"Server": "outrider", "X-Content-Type-Options": "nosniff", "Cache-Control": "no-store"}

_log = logging.getLogger(__name__)


class Porter(asyncio.Protocol):
    """
    One connection, from its first byte to its last. *door* answers what is plain; None: there is no door, and everybody
    is shown in. *makes* aiohttp's half of a connection. *callers*: all that are open, in the order in which they came.
    *failed* is told why an answer was not to be had.
    """

    __slots__ = ("_callers", "_door", "_failed", "_makes", "_paused", "_plain", "_said", "answering", "handler",
                 "since", "transport")  # fmt: skip
    transport: asyncio.Transport

    def __init__(
        self,
        callers: dict[Porter, None],
        door: Door | None,
        makes: Callable[[], RequestHandler],
        failed: Callable[[BaseException], None],
    ) -> None:
        self._callers = callers
        self._door = door
        self._makes = makes
        self._failed = failed
        self._paused = False  # what was answered at the door lies unread, and more would pile up
        self._plain = _Plain()
        self._said = b""  # what has come of the next request
        self.answering: asyncio.Task[Reply] | None = None  # the one before it
        self.handler: RequestHandler | None = None  # aiohttp's half, of who was shown in
        self.since = time.monotonic()  # when that came, or the last answer left

    @property
    def idle(self) -> bool:
        """Whether it stands at the door and is owed no answer."""
        return self.handler is None and self.answering is None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self._callers[self] = None
        if self._door is None:
            self._show_in()

    def connection_lost(self, error: Exception | None) -> None:
        del self._callers[self]
        if self.handler is not None:
            self.handler.connection_lost(error)

    def look(self, now: float, idle_s: float) -> None:
        """From time to time: hang up on who says nothing, show in who hesitates."""
        if self.idle and self._said and now > self.since + HURRY_S:
            self._show_in()
        elif self.idle and now > self.since + idle_s:
            self.transport.close()

    def data_received(self, data: bytes) -> None:
        if self.handler is not None:
            self.handler.data_received(data)
        elif self.answering is not None:
            self._said += data
            self.transport.pause_reading()
        else:
            self._hear(data)

    def eof_received(self) -> None:
        if self.handler is not None:
            self.handler.eof_received()
        # Else there is nobody left to answer: half a request goes with him who said it.

    def pause_writing(self) -> None:
        self._paused = True
        if self.handler is not None:
            self.handler.pause_writing()

    def resume_writing(self) -> None:
        self._paused = False
        if self.handler is not None:
            self.handler.resume_writing()

    def _show_in(self) -> None:
        """From here on it is aiohttp's, and so is what it has said."""
        self.handler = handler = self._makes()
        handler.connection_made(self.transport)
        if self._paused:
            handler.pause_writing()  # the loop says it once: whoever hears the end of it must know of the beginning
        said, self._said = self._said, b""
        if said:
            handler.data_received(said)

    def _hear(self, data: bytes) -> None:
        if not self._said:
            self.since = time.monotonic()
        self._said += data
        whole = self._plain.feed(data)
        plain = len(self._said) <= PLAIN_MAX
        if plain and whole is None:
            return
        answer = self._door(whole) if plain and whole and self._door is not None else None
        if answer is None:
            self._show_in()
            return
        self._said = b""
        self.answering = asyncio.create_task(answer)
        self.answering.add_done_callback(self._answer)

    def _answer(self, answering: asyncio.Task[Reply]) -> None:
        self.answering, self.since = None, time.monotonic()
        error = None if answering.cancelled() else answering.exception()
        if error:
            _log.error("a callback could not be answered", exc_info=error)
            self._failed(error)
        if self.transport.is_closing():
            return
        if answering.cancelled():
            self.transport.close()  # as aiohttp does: nobody can know, and he comes again
            return
        self.transport.write(_written(*(answering.result() if error is None else (500, ())), int(time.time())))
        if said := self._said:  # it did not wait for its answer
            self._said = b""
            self.transport.resume_reading()
            self._hear(said)


class _Plain:
    """Reads one plain request after the other."""

    __slots__ = ("_body", "_count", "_headers", "_parser", "_target", "_whole")

    def __init__(self) -> None:
        self._parser = httptools.HttpRequestParser(self)
        self._begin()

    def feed(self, data: bytes) -> Callback | Literal[False] | None:
        """The next bytes: the callback they complete; None when more must come; False when it is nothing plain."""
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            return False
        if not self._whole:
            return None
        headers, parser = dict(self._headers), self._parser
        if (
            self._count != 1
            or len(headers) != len(self._headers)  # what one given twice means is for aiohttp to say
            or parser.get_method() != b"POST"
            or parser.get_http_version() != "1.1"
            or headers.get("connection", "keep-alive").lower() != "keep-alive"
            or not headers.keys() >= {"host", "content-length"}
            or not headers.keys().isdisjoint(("transfer-encoding", "expect"))
        ):
            return False
        found = Callback(
            method="POST", target=self._target.decode("utf-8", "surrogateescape"), headers=headers, body=self._body
        )
        self._begin()
        return found

    def _begin(self) -> None:
        self._target = self._body = b""
        self._headers: list[tuple[str, str]] = []
        self._count = 0  # requests begun
        self._whole = False

    # What httptools calls.

    def on_message_begin(self) -> None:
        self._count += 1

    def on_url(self, url: bytes) -> None:
        self._target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers.append((name.decode("ascii").lower(), value.strip(b" \t").decode("utf-8", "surrogateescape")))

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        self._whole = True


@lru_cache(maxsize=8)  # most are the same answer in the same second
def _written(status: int, headers: tuple[tuple[str, str], ...], second: int) -> bytes:
    """An answer as bytes; RFC 9110 wants a date (6.6.1), and no length with a 204 (8.6)."""
    said = {**HEADERS, "Date": formatdate(second, usegmt=True), **dict(headers)}
    if status != HTTPStatus.NO_CONTENT:
        said["Content-Length"] = "0"
    lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}", *(f"{name}: {value}" for name, value in said.items())]
    return "\r\n".join([*lines, "", ""]).encode("ascii")
