"""
A provider for load: says yes to everything, as fast as one Python process can, and remembers what it was sent.

It speaks as much of Twilio as a create needs (``POST`` anything, 201, the JSON of a message, a fresh sid each time)
and sends no receipts itself (:mod:`bench.receipts` does). What came is kept as it came and read only when asked: ``GET
/`` tells how many and when, ``GET /arrivals/FIELD`` when each and what its FIELD said, ``GET /callbacks/N`` where
receipts are wanted for all from the Nth on, ``DELETE /`` forgets. Times are of the monotonic clock, which all processes
share.

Run as ``python -m bench.sink [FROM_MS TO_MS] [IDENTITY.pem]``: it prints its address and serves until its stdin ends,
so it never outlives its parent. With two figures an answer takes any time between them; what it answers is accepted at
once. With a certificate and its key it speaks TLS.
"""

from __future__ import annotations

import asyncio
import random
import ssl
import sys
import time
from typing import TYPE_CHECKING, cast
from urllib.parse import parse_qs

import httptools
import orjson
import uvloop

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

# 640 bytes of JSON, as long as Twilio's; only the sid changes from answer to answer.
_MESSAGE = (
    b'{"account_sid": "AC00000000000000000000000000000000", "api_version": "2010-04-01", "body": "Your parcel is on '
    b'its way and will be with you today.", "date_created": "Thu, 24 Aug 2023 05:01:45 +0000", "date_sent": null, '
    b'"date_updated": "Thu, 24 Aug 2023 05:01:45 +0000", "direction": "outbound-api", "error_code": null, '
    b'"error_message": null, "from": null, "num_media": "0", "num_segments": "1", "price": null, '
    b'"price_unit": null, "messaging_service_sid": null, "sid": "SM%032x", "status": "queued", "subresource_uris": '
    b'{"media": '
    b'"/2010-04-01/Accounts/AC00000000000000000000000000000000/Messages/Media.json"}, "tags": null, "to": null, '
    b'"uri": "/2010-04-01/Messages.json"}'
)
_HEAD = "HTTP/1.1 {} OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n"
_CREATED = _HEAD.format(201, len(_MESSAGE % 0)).encode() + _MESSAGE


class Book:
    """What came, and when."""

    def __init__(self) -> None:
        self.arrivals: list[tuple[float, bytes]] = []
        self.connections = 0

    def summary(self) -> bytes:
        """How many were accepted, and when the first and the last."""
        first, last = (self.arrivals[0][0], self.arrivals[-1][0]) if self.arrivals else (None, None)
        return orjson.dumps(
            {"accepted": len(self.arrivals), "first": first, "last": last, "connections": self.connections}
        )

    def told(self, field: str) -> bytes:
        """Every acceptance: its moment, and what its *field* said."""
        return orjson.dumps([(at, parse_qs(body.decode())[field][0]) for at, body in self.arrivals])

    def callbacks(self, first: int) -> bytes:
        """Where receipts are wanted, for every acceptance from the *first* on."""
        return orjson.dumps([parse_qs(body.decode())["StatusCallback"][0] for _, body in self.arrivals[first:]])


class Connection(asyncio.Protocol):
    """One connection of a client."""

    __slots__ = ("_body", "_book", "_delay_s", "_parser", "_transport", "_url", "_write")
    _write: Callable[[bytes], None]
    _transport: asyncio.Transport

    def __init__(self, book: Book, delay_s: tuple[float, float] | None) -> None:
        self._book = book
        self._delay_s = delay_s
        self._body = b""
        self._url = b""
        self._parser = httptools.HttpRequestParser(self)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._write = self._transport.write
        self._book.connections += 1

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._transport.close()

    def on_url(self, url: bytes) -> None:
        self._url = url

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        method = self._parser.get_method()
        if method == b"POST":
            arrivals = self._book.arrivals
            answer = _CREATED % len(arrivals)
            if self._delay_s is None:
                self._write(answer)
            else:
                asyncio.get_running_loop().call_later(random.uniform(*self._delay_s), self._write, answer)
            arrivals.append((time.monotonic(), self._body))
            self._body = b""
            return
        if method == b"DELETE":
            self._book.arrivals.clear()
            self._book.connections = 0
        said = self._told()
        self._write(_HEAD.format(200, len(said)).encode() + said)

    def _told(self) -> bytes:
        *_, what, which = self._url.decode().rsplit("/", 2)
        if what == "arrivals":
            return self._book.told(which)
        if what == "callbacks":
            return self._book.callbacks(int(which))
        return self._book.summary()


async def serve(delay_ms: Sequence[float], identity: str | None) -> None:
    """Serve on any free port until stdin ends."""
    tls = None
    if identity:
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(identity)
    delay_s = (delay_ms[0] / 1000, delay_ms[1] / 1000) if any(delay_ms) else None
    loop = asyncio.get_running_loop()
    book, stop = Book(), asyncio.Event()
    server = await loop.create_server(lambda: Connection(book, delay_s), "127.0.0.1", 0, backlog=4096, ssl=tls)
    loop.add_reader(sys.stdin.fileno(), stop.set)
    print(f"{'https' if tls else 'http'}://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    await stop.wait()
    server.close()


if __name__ == "__main__":
    words = sys.argv[1:]
    pem = words.pop() if len(words) % 2 else None
    uvloop.run(serve([float(word) for word in words], pem))
