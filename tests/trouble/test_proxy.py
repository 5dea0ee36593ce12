"""The bad road does what it says: else what is shown with it would be shown on a good one."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from tests.trouble.proxy import Proxy, bandwidth, blackhole, latency, limit_data, reset_after, slicer, swallow

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

TEXT = b"0123456789" * 20


@asynccontextmanager
async def echo() -> AsyncIterator[tuple[Proxy, list[int]]]:
    """A server that says what it hears, behind a road; and how many connections it has seen."""
    seen: list[int] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(1)
        try:
            while heard := await reader.read(65_536):
                writer.write(heard)
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with Proxy(server.sockets[0].getsockname()) as road:
        yield road, seen
    server.close()


async def said(road: Proxy, text: bytes = TEXT, *, within_s: float = 5.0) -> bytes:
    """What comes back of *text*, until all of it is there or the connection ends. Raises TimeoutError."""
    reader, writer = await asyncio.open_connection("127.0.0.1", road.port)
    back = b""
    try:
        writer.write(text)
        async with asyncio.timeout(within_s):
            while len(back) < len(text) and (heard := await reader.read(65_536)):
                back += heard
    finally:
        writer.close()
    return back


async def test_a_healthy_road_changes_nothing() -> None:
    async with echo() as (road, _):
        assert await said(road) == TEXT
        assert await said(road, b"x" * 1_000_000) == b"x" * 1_000_000


async def test_late_is_late_and_thin_is_slow_and_nothing_is_lost() -> None:
    async with echo() as (road, _):
        for toxic in (latency(0.2, jitter_s=0.05), bandwidth(1_000), slicer(1)):
            road.down = toxic
            began = time.monotonic()
            assert await said(road) == TEXT
            assert time.monotonic() - began >= 0.14


async def test_a_blackhole_swallows_and_tells_nobody() -> None:
    async with echo() as (road, _):
        road.up = blackhole
        with pytest.raises(TimeoutError):
            await said(road, within_s=0.2)
        road.heal()
        assert await said(road) == TEXT


async def test_a_limit_closes_and_a_reset_resets_after_so_many_bytes() -> None:
    async with echo() as (road, _):
        road.down = limit_data(50)
        assert await said(road) == TEXT[:50]
        road.down = reset_after(50)
        with pytest.raises(ConnectionResetError):
            await said(road)
        road.down, road.up = road.up, reset_after(0)
        with pytest.raises(ConnectionResetError):
            await said(road)


async def test_one_answer_is_swallowed_after_the_server_has_heard_the_question() -> None:
    async with echo() as (road, seen):
        road.down = swallow(lambda chunk: b"9" in chunk)
        assert await said(road, b"12") == b"12"
        with pytest.raises(ConnectionResetError):
            await said(road)
        assert len(seen) == 2


async def test_a_cut_road_refuses_resets_and_comes_back_on_the_same_port() -> None:
    async with echo() as (road, _):
        reader, writer = await asyncio.open_connection("127.0.0.1", road.port)
        writer.write(b"1")
        assert await reader.read(1) == b"1"
        await road.cut()
        with pytest.raises(ConnectionResetError):
            await reader.read(1)
        with pytest.raises(ConnectionRefusedError):
            await said(road)
        await road.mend()
        assert await said(road) == TEXT


async def test_a_half_open_connection_has_nobody_behind_it_and_a_double_one_is_seen_twice() -> None:
    async with echo() as (road, seen):
        road.half_open = True
        with pytest.raises(TimeoutError):
            await said(road, within_s=0.2)
        assert seen == []
        road.heal()
        road.doubled = True
        assert await said(road) == TEXT
        assert len(seen) == 2


async def test_a_slow_close_keeps_the_other_end_waiting() -> None:
    async with echo() as (road, _):
        road.linger_s = 0.2
        reader, writer = await asyncio.open_connection("127.0.0.1", road.port)
        began = time.monotonic()
        writer.write_eof()
        assert await reader.read() == b""
        assert time.monotonic() - began >= 0.19
        writer.close()
