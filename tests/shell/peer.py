"""A provider's end of the socket, scripted to the byte: what the tests of both transports talk to."""

from __future__ import annotations

import asyncio
import socket
import struct
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

from daemon.provider import Request

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator, Awaitable, Callable

BODY = b"To=%2B15005550001&Body=hello"
YES = b"HTTP/1.1 201 Created\r\nContent-Length: 7\r\nX-Name: Value\r\n\r\n" + b'{"a":1}'
SOON = 0.3  # seconds: a deadline that is meant to pass
LATE = 10.0  # one that is not


@dataclass
class Caller:
    """One connection, as the server sees it."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    heard: bytearray  # shared by all connections of the server

    async def request(self) -> bytes:
        head = await self.reader.readuntil(b"\r\n\r\n")
        self.heard += head
        length = next(
            (int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")), 0
        )
        body = await self.reader.readexactly(length)
        self.heard += body
        return head + body

    def say(self, raw: bytes) -> None:
        self.writer.write(raw)

    def reset(self) -> None:
        """Hang up with RST."""
        raw: socket.socket = self.writer.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


@dataclass
class Server:
    url: str
    heard: bytearray = field(default_factory=bytearray)
    connections: int = 0


Script: TypeAlias = "Callable[[Caller], Awaitable[None]]"


@asynccontextmanager
async def serving(script: Script, tls: ssl.SSLContext | None = None) -> AsyncIterator[Server]:
    server = Server("")

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server.connections += 1
        try:
            await script(Caller(reader, writer, server.heard))
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            # What a client sends after its own deadline must be seen too.
            if not writer.is_closing():
                writer.close()

    listening = await asyncio.start_server(talk, "127.0.0.1", 0, ssl=tls)
    server.url = (
        f"http{'s' if tls else ''}://127.0.0.1:{listening.sockets[0].getsockname()[1]}/2010-04-01/Messages.json"
    )
    try:
        yield server
    finally:
        listening.close()


def post(url: str, body: bytes = BODY) -> Request:
    return Request(
        "POST", url, {"Content-Type": "application/x-www-form-urlencoded", "Authorization": "Basic eA=="}, body
    )


def answering(raw: bytes) -> Script:
    async def script(caller: Caller) -> None:
        await caller.request()
        caller.say(raw)

    return script


async def hang(caller: Caller) -> None:
    await caller.reader.read()  # until the client hangs up
