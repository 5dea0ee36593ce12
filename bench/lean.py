"""
The ceiling: how fast the sink can be asked at all.

A connection of our own for each request in flight, requests written as bytes made beforehand, answers read by
httptools, callbacks and no tasks. No deadline, no judgement, nothing recorded: nobody could ship it. It loads the
sink as hard as one process can, so what it reaches is the sink's ceiling as well as its own.

Run as ``python -m bench.lean URL MESSAGES IN_FLIGHT``; prints one JSON object.
"""

from __future__ import annotations

import asyncio
import gc
import sys
from typing import TYPE_CHECKING, cast
from urllib.parse import urlsplit

import httptools
import orjson
import uvloop

from bench.load import spent
from bench.messages import requests

if TYPE_CHECKING:
    from collections.abc import Iterator


class Connection(asyncio.Protocol):
    """One request at a time, as long as there are any."""

    __slots__ = ("_done", "_parser", "_requests", "_said", "_transport")
    _transport: asyncio.Transport

    def __init__(self, requests: Iterator[bytes], done: asyncio.Semaphore) -> None:
        self._requests = requests
        self._done = done
        self._said = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._next()

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_body(self, body: bytes) -> None:
        self._said += body

    def on_message_complete(self) -> None:
        if self._parser.get_status_code() != 201:
            raise SystemExit("the sink said no")
        orjson.loads(self._said)
        self._said = b""
        self._next()

    def _next(self) -> None:
        request = next(self._requests, None)
        if request is None:
            self._done.release()
            self._transport.close()
            return
        self._parser = httptools.HttpResponseParser(self)
        self._transport.write(request)


async def run(url: str, messages: int, in_flight: int) -> None:
    """Ask *messages* times, *in_flight* at a time."""
    where = urlsplit(url)
    ready = []
    for request in requests(url, messages):
        headers = {**request.headers, "Host": where.netloc, "Content-Length": str(len(request.body))}
        head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        ready.append(f"POST {urlsplit(request.url).path} HTTP/1.1\r\n{head}\r\n".encode() + request.body)
    gc.collect()
    gc.freeze()
    waiting, done = iter(ready), asyncio.Semaphore(0)
    loop = asyncio.get_running_loop()
    with spent(messages):
        for _ in range(in_flight):
            await loop.create_connection(lambda: Connection(waiting, done), where.hostname or "", where.port or 80)
        for _ in range(in_flight):
            await done.acquire()


if __name__ == "__main__":
    uvloop.run(run(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
