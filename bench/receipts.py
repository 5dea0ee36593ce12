"""
The provider's other half: two signed receipts for everything the sink has accepted, as fast as they are answered.

A bare protocol like :mod:`bench.lean`, so that what it costs is small beside what it measures. Given where receipts are
wanted, as a JSON list on stdin, it has all of them ready before the first leaves; given nothing it follows the sink
while that accepts, so that messages live their whole lives, from the claim to the last receipt committed.

Run as ``python -m bench.receipts SINK MESSAGES CONNECTIONS [PER_SECOND]``; prints one JSON object, times on the
monotonic clock.
"""

from __future__ import annotations

import asyncio
import gc
import math
import sys
import time
from collections import deque
from typing import cast
from urllib.parse import quote_plus, urlsplit

import aiohttp
import httptools
import orjson
import uvloop

from bench.load import percentiles
from bench.messages import TOKEN
from daemon.simulator.twilio import sign

LOOK_S = 0.02  # between two looks at the sink
STATUSES = ("sent", "delivered")
AGAIN_S = 0.5  # after a 503: the daemon asks to be spared for a while


class Teller(asyncio.Protocol):
    """One connection: says what waits, one after the other, and notes how long each answer took."""

    __slots__ = ("_began", "_parser", "_said", "_tale", "_transport")
    _transport: asyncio.Transport

    def __init__(self, tale: Tale) -> None:
        self._tale = tale
        self._said = b""
        self._began = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def connection_lost(self, error: Exception | None) -> None:
        if not self._tale.over:
            raise SystemExit(f"the daemon hung up: {error}")

    def on_message_complete(self) -> None:
        tale, now = self._tale, time.monotonic()
        if self._parser.get_status_code() == 503:
            tale.again += 1
            asyncio.get_running_loop().call_later(AGAIN_S, tale.put, self._said)
        elif self._parser.get_status_code() == 204:
            tale.answered(now, now - self._began)
        else:
            raise SystemExit(f"the daemon answered {self._parser.get_status_code()}")
        self.go_on()

    def go_on(self) -> None:
        """Say the next, or rest until there is one."""
        if not self._tale.waiting:
            self._tale.resting.append(self)
            return
        self._said, self._began = self._tale.waiting.popleft(), time.monotonic()
        self._parser = httptools.HttpResponseParser(self)
        self._transport.write(self._said)


class Tale:
    """All that is to be told, and what came of it."""

    def __init__(self, count: int) -> None:
        self._count = count
        self.waiting: deque[bytes] = deque()
        self.resting: list[Teller] = []
        self.took: list[float] = []
        self.again = 0  # answers that asked to come again
        self.last = 0.0
        self.done = asyncio.Event()

    @property
    def over(self) -> bool:
        """Whether everything was told and answered."""
        return len(self.took) == self._count

    def put(self, said: bytes) -> None:
        """One more to tell."""
        self.waiting.append(said)
        if self.resting:
            self.resting.pop().go_on()

    def answered(self, now: float, took: float) -> None:
        """One was committed."""
        self.last = now
        self.took.append(took)
        if self.over:
            self.done.set()


def request(callback: str, number: int, status: str) -> bytes:
    """The receipt *status* of message *number* of the sink, signed, as the bytes that leave."""
    form = {
        "ApiVersion": "2010-04-01", "AccountSid": "AC" + "0" * 32, "MessageSid": f"SM{number:032x}",
        "SmsSid": f"SM{number:032x}", "MessageStatus": status, "SmsStatus": status, "To": "+12025550100",
        "From": "+18005550100",
    }  # fmt: skip
    where = urlsplit(callback)
    body = "&".join(f"{name}={quote_plus(value)}" for name, value in form.items())
    head = (
        f"POST {where.path} HTTP/1.1", f"Host: {where.netloc}", f"Content-Length: {len(body)}", "Accept: */*",
        f"X-Twilio-Signature: {sign(TOKEN, callback, form.items())}", "User-Agent: TwilioProxy/1.1",
        "Content-Type: application/x-www-form-urlencoded; charset=UTF-8", "", body,
    )  # fmt: skip
    return "\r\n".join(head).encode()


async def run(sink: str, messages: int, connections: int, per_second: float, wanted: list[str]) -> None:
    """Tell two receipts for each of *messages*, no more than *per_second*."""
    tale, seen, first = Tale(len(STATUSES) * messages), 0, 0.0
    async with aiohttp.ClientSession() as web:
        while seen < messages:
            callbacks = wanted or await _fresh(web, sink, seen)
            said = [
                request(callback, number, status)
                for number, callback in enumerate(callbacks, seen)
                for status in STATUSES
            ]
            if callbacks and not seen:
                tale.resting += await _tellers(tale, callbacks[0], connections)
                first = time.monotonic()
            for number, one in enumerate(said):
                if (ahead_s := first + number / per_second - time.monotonic()) > 0:
                    await asyncio.sleep(ahead_s)
                tale.put(one)
            seen += len(callbacks)
            await asyncio.sleep(LOOK_S)
    await tale.done.wait()
    told = {
        "receipts": len(tale.took), "again": tale.again, "first": first, "last": tale.last,
        "latency_ms": percentiles(tale.took),
    }  # fmt: skip
    print(orjson.dumps(told).decode())


async def _fresh(web: aiohttp.ClientSession, sink: str, seen: int) -> list[str]:
    async with web.get(f"{sink}/callbacks/{seen}") as reply:
        callbacks: list[str] = orjson.loads(await reply.read())
        return callbacks


async def _tellers(tale: Tale, callback: str, connections: int) -> list[Teller]:
    gc.collect()
    gc.freeze()
    where, loop = urlsplit(callback), asyncio.get_running_loop()
    pairs = [await loop.create_connection(lambda: Teller(tale), where.hostname, where.port) for _ in range(connections)]
    return [teller for _, teller in pairs]


if __name__ == "__main__":
    per_second = float(sys.argv[4]) if len(sys.argv) > 4 else math.inf
    given = orjson.loads(sys.stdin.buffer.read() or b"[]")
    uvloop.run(run(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), per_second, given))
