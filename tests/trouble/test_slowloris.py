"""
Callers who waste our time: six ways to hold a connection of the public listener without ever finishing a request.

Each is hung up on within ten seconds, honest callers are answered meanwhile, and no descriptor stays. What aiohttp does
by itself: the head of a request is bounded by its keep-alive time, a body never is, nor an answer nobody reads.
"""

from __future__ import annotations

import asyncio
import os
import resource
import time
from contextlib import asynccontextmanager
from statistics import quantiles
from typing import TYPE_CHECKING

import aiohttp
import pytest

from daemon.callbacks import Callbacks
from daemon.web import Listener, public_listener
from tests.shell.parts import dialect

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence

    from daemon.callbacks import Kind, Result
    from daemon.provider import Inbound
    from daemon.receipts import News

    Style = Callable[[asyncio.StreamWriter], Coroutine[None, None, None]]

PATIENCE_S = 10.0
HONEST_P99_S = 0.2
PING = b"GET /ping HTTP/1.1\r\nHost: x\r\n\r\n"
HEAD = b"POST /callbacks/sim/x HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n"


class Nobody:
    """No receipt comes through in these tests, and nothing is counted."""

    async def hear(self, news: Sequence[News]) -> None:
        raise AssertionError(news)

    async def heard_from(self, provider: str, message: Inbound) -> None:
        raise AssertionError(message)

    def callback(self, provider: str, kind: Kind, result: Result) -> None:
        pass

    async def opt_out(self, recipient: str) -> None:
        raise AssertionError(recipient)


@asynccontextmanager
async def public() -> AsyncIterator[Listener]:
    nobody = Nobody()
    callbacks = Callbacks({"sim": dialect()}, key=b"key", book=nobody, metrics=nobody, opt_out=nobody.opt_out)
    listener, stop = public_listener(callbacks, host="127.0.0.1", port=0), asyncio.Event()
    async with asyncio.TaskGroup() as group:
        group.create_task(listener.run(stop))
        await listener.listening.wait()
        yield listener
        stop.set()


async def nothing(_: asyncio.StreamWriter) -> None:
    """Connects, and says nothing."""


async def half_a_line(writer: asyncio.StreamWriter) -> None:
    writer.write(b"POST /callb")


async def dripping_head(writer: asyncio.StreamWriter) -> None:
    writer.write(b"POST /callbacks/sim/x HTTP/1.1\r\nHost: x\r\nX: ")
    await drip(writer)


async def half_a_body(writer: asyncio.StreamWriter) -> None:
    writer.write(HEAD + b"half")


async def dripping_body(writer: asyncio.StreamWriter) -> None:
    writer.write(HEAD)
    await drip(writer)


async def never_reading(writer: asyncio.StreamWriter) -> None:
    """Asks a hundred thousand times and never reads one answer."""
    asked = PING * 1_000
    for _ in range(100):
        writer.write(asked)
        await writer.drain()


async def drip(writer: asyncio.StreamWriter) -> None:
    while not writer.is_closing():
        writer.write(b"y")
        await writer.drain()
        await asyncio.sleep(0.2)


STYLES: tuple[Style, ...] = (nothing, half_a_line, dripping_head, half_a_body, dripping_body, never_reading)


async def held(port: int, style: Style, *, after_s: float) -> float:
    """Seconds until the listener hangs up."""
    await asyncio.sleep(after_s)
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1)
    if style is never_reading:
        writer.transport.pause_reading()  # type: ignore[attr-defined]
    began = time.monotonic()
    wasting = asyncio.create_task(style(writer))
    try:
        async with asyncio.timeout(4 * PATIENCE_S):
            if style is never_reading:
                await gone(writer)
            else:
                while await reader.read(1_000):
                    pass
    except (ConnectionError, TimeoutError):
        pass
    finally:
        wasting.cancel()
        await asyncio.gather(wasting, return_exceptions=True)
        writer.transport.abort()
    return time.monotonic() - began


async def gone(writer: asyncio.StreamWriter) -> None:
    """Until a write fails: who does not read does not see an end."""
    while not writer.transport.is_closing():
        writer.write(PING)
        await asyncio.sleep(0.05)


async def honest(port: int, until: asyncio.Task[list[float]], *, anew: bool) -> list[float]:
    """How long an honest caller waits, on a connection he keeps or, *anew*, on one for each question."""
    took = []
    connector = aiohttp.TCPConnector(force_close=anew)
    async with aiohttp.ClientSession(connector=connector) as session:
        while not until.done():
            began = time.monotonic()
            async with session.get(f"http://127.0.0.1:{port}/ping") as answer:
                assert answer.status == 200
            took.append(time.monotonic() - began)
            await asyncio.sleep(0.05)
    return took


async def wasted(port: int, styles: Sequence[Style]) -> list[float]:
    """All of them within a second: they share our loop with the listener, which must not pay for their dialling."""
    after = [number / len(styles) for number in range(len(styles))]
    return await asyncio.gather(*(held(port, style, after_s=at) for style, at in zip(styles, after, strict=True)))


async def besieged(styles: Sequence[Style], *, within_s: float = PATIENCE_S) -> float:
    """*styles* at once, each hung up on in time, and no honest caller turned away: their p99, in seconds."""
    async with public() as listener:
        async with aiohttp.ClientSession() as first:
            await (await first.get(f"http://127.0.0.1:{listener.port}/ping")).read()
        await asyncio.sleep(0.1)
        before = descriptors()
        wasting = asyncio.create_task(wasted(listener.port, styles))
        kept, new = await asyncio.gather(*(honest(listener.port, wasting, anew=anew) for anew in (False, True)))
        await asyncio.sleep(0.5)
        assert descriptors() <= before
        took = list(zip([style.__name__ for style in styles], wasting.result(), strict=True))
    assert [(name, seconds) for name, seconds in took if seconds > within_s] == []
    assert min(len(kept), len(new)) > 20
    p99 = quantiles([*kept, *new], n=100)[-1]
    longest = {style.__name__: max(seconds for name, seconds in took if name == style.__name__) for style in styles}
    print(
        f"{len(styles)} slow callers: honest p99 {p99 * 1e3:.0f} ms of {len(kept) + len(new)}, longest held {longest}"
    )
    return p99


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208


async def test_whoever_wastes_our_time_is_hung_up_on() -> None:
    await besieged(STYLES * 3, within_s=2 * PATIENCE_S)  # whatever else the machine does: those for ever take four


@pytest.fixture
def many_descriptors() -> Iterator[None]:
    """Room for both ends of every connection in this one process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 8_192)), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.long
@pytest.mark.timeout(120)
async def test_two_thousand_of_them(many_descriptors: None) -> None:
    # Few of the last: each keeps a core busy until its buffers are full, which is a flood and no slowloris.
    assert await besieged([*STYLES[:-1] * 400, *[never_reading] * 3]) < HONEST_P99_S
