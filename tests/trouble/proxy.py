"""
A bad road: a TCP proxy in this process that can do to bytes what networks do, for tests to stand between two real ends.

A *toxic* is an async function of a chunk and the pipe it came through: it says the chunk on, in whole or in part, late or
never, or ends the connection. Each direction has one; both may be changed at any moment and apply to the next chunk::

    async with Proxy(("127.0.0.1", port)) as road:
        road.down = latency(0.2, jitter_s=0.1)   # answers come late
        road.up = reset_after(100)               # requests break off
        road.heal()
        await road.cut()                         # nobody listens, and whoever was connected is reset
        await road.mend()
"""

from __future__ import annotations

import asyncio
import random
import socket
import struct
from contextlib import suppress
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path
    from types import TracebackType
    from typing import Self

Toxic: TypeAlias = "Callable[[bytes, Pipe], Awaitable[None]]"
Upstream: TypeAlias = "tuple[str, int] | Path"

CHUNK = 65_536
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER on, for no time: close with RST


class Pipe:
    """One direction of one connection, as a toxic sees it."""

    def __init__(self, source: asyncio.StreamWriter, target: asyncio.StreamWriter) -> None:
        self.passed = 0  # bytes said so far
        self.lost = False  # nothing goes on any more: a stream never resumes after a gap
        self._source = source
        self._target = target

    async def say(self, data: bytes) -> None:
        """Hand *data* on."""
        self.passed += len(data)
        self._target.write(data)
        await self._target.drain()

    def close(self) -> None:
        """FIN to both ends."""
        for end in (self._source, self._target):
            end.close()

    def reset(self) -> None:
        """RST to both ends."""
        for end in (self._source, self._target):
            reset(end)


async def healthy(chunk: bytes, pipe: Pipe) -> None:
    """What came goes on."""
    await pipe.say(chunk)


async def blackhole(chunk: bytes, pipe: Pipe) -> None:
    """It never arrives, nor does anything after it, and nobody is told."""
    pipe.lost = True


def latency(seconds: float, *, jitter_s: float = 0.0, seed: int = 1) -> Toxic:
    """Each chunk comes late, by up to *jitter_s* more or less."""
    dice = random.Random(seed)

    async def toxic(chunk: bytes, pipe: Pipe) -> None:
        await asyncio.sleep(seconds + jitter_s * (2 * dice.random() - 1))
        await pipe.say(chunk)

    return toxic


def bandwidth(bytes_per_s: float) -> Toxic:
    """A thin line."""

    async def toxic(chunk: bytes, pipe: Pipe) -> None:
        for at in range(0, len(chunk), 64):
            part = chunk[at : at + 64]
            await asyncio.sleep(len(part) / bytes_per_s)
            await pipe.say(part)

    return toxic


def slicer(size: int, *, pause_s: float = 0.001) -> Toxic:
    """Everything comes in pieces of *size* bytes."""

    async def toxic(chunk: bytes, pipe: Pipe) -> None:
        for at in range(0, len(chunk), size):
            await pipe.say(chunk[at : at + size])
            await asyncio.sleep(pause_s)

    return toxic


def limit_data(most: int) -> Toxic:
    """After *most* bytes the connection is closed, politely."""

    async def toxic(chunk: bytes, pipe: Pipe) -> None:
        room = most - pipe.passed
        await pipe.say(chunk[:room])
        if len(chunk) >= room:
            pipe.close()

    return toxic


def reset_after(most: int) -> Toxic:
    """After *most* bytes the connection is reset."""

    async def toxic(chunk: bytes, pipe: Pipe) -> None:
        room = most - pipe.passed
        if room > 0:
            await pipe.say(chunk[:room])
        if len(chunk) >= room:
            await asyncio.sleep(0.01)  # RST takes back what is not read yet
            pipe.reset()

    return toxic


def swallow(when: Callable[[bytes], bool]) -> Toxic:
    """Chunks of which *when* is true vanish, and the connection with them: an answer that was on its way."""

    async def toxic(chunk: bytes, pipe: Pipe) -> None:
        if when(chunk):
            pipe.reset()
        else:
            await pipe.say(chunk)

    return toxic


def reset(end: asyncio.StreamWriter) -> None:
    """Hang up with RST."""
    handle: socket.socket | None = end.get_extra_info("socket")
    if handle is not None and not end.transport.is_closing() and handle.family != socket.AF_UNIX:
        handle.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    end.transport.abort()


class Proxy:
    """Listens on a port of its own and leads to *upstream*. Healthy, until it is told otherwise."""

    def __init__(self, upstream: Upstream) -> None:
        self.upstream = upstream
        self.port = 0
        self.up: Toxic = healthy  # from the client to the server
        self.down: Toxic = healthy  # from the server to the client
        self.linger_s = 0.0  # how much later one end hears that the other has closed
        self.half_open = False  # whoever connects from now on finds nobody behind the door
        self.doubled = False  # a second connection is opened beside each one, and says nothing
        self.connections = 0  # since the beginning
        self._listener: asyncio.Server | None = None
        self._ends: set[asyncio.StreamWriter] = set()
        self._talks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        await self.mend()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.cut()

    def heal(self) -> None:
        """Do no harm any more. What has been broken stays broken."""
        self.up = self.down = healthy
        self.linger_s, self.half_open, self.doubled = 0.0, False, False

    async def cut(self) -> None:
        """Nobody listens any more, and whoever was connected is reset."""
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        self.hang_up()
        for talk in list(self._talks):
            talk.cancel()
        await asyncio.gather(*self._talks, return_exceptions=True)

    async def mend(self) -> None:
        """Listen again, on the same port."""
        if self._listener is None:
            self._listener = await asyncio.start_server(self._enter, "127.0.0.1", self.port)
            self.port = self._listener.sockets[0].getsockname()[1]

    def hang_up(self) -> None:
        """Reset whoever is connected."""
        for end in list(self._ends):
            reset(end)

    async def _enter(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        talk = asyncio.current_task()
        assert talk is not None
        self._talks.add(talk)
        self._ends.add(writer)
        self.connections += 1
        try:
            if self.half_open:
                await reader.read()
            else:
                await self._lead(reader, writer)
        except (OSError, asyncio.CancelledError):
            reset(writer)
        finally:
            self._talks.discard(talk)
            self._ends.discard(writer)
            writer.close()

    async def _lead(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, thither = await self._dial()
        self._ends.add(thither)
        beside = (await self._dial())[1] if self.doubled else None
        try:
            async with asyncio.TaskGroup() as both:
                both.create_task(self._carry(reader, Pipe(writer, thither), lambda: self.up))
                both.create_task(self._carry(there, Pipe(thither, writer), lambda: self.down))
        finally:
            self._ends.discard(thither)
            thither.close()
            if beside is not None:
                beside.close()

    async def _carry(self, reader: asyncio.StreamReader, pipe: Pipe, toxic: Callable[[], Toxic]) -> None:
        with suppress(OSError):
            while chunk := await reader.read(CHUNK):
                if not pipe.lost:
                    await toxic()(chunk, pipe)
        if self.linger_s:
            await asyncio.sleep(self.linger_s)
        pipe.close()

    async def _dial(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if isinstance(self.upstream, tuple):
            return await asyncio.open_connection(*self.upstream)
        return await asyncio.open_unix_connection(self.upstream)
