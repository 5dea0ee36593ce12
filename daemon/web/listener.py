"""One listening socket as a service: bounded, silent, and polite when it stops."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, cast

from aiohttp import web

if TYPE_CHECKING:
    from collections.abc import Callable

CONNECTIONS_MAX = 1_000  # open at once; what comes beyond is hung up on, so that senders keep their file descriptors
BACKLOG = 1_024  # not yet accepted; Linux caps it at net.core.somaxconn, 4,096
IDLE_S = 15.0  # between requests, and for the whole header: longer than the second a proxy or a provider needs
LINGER_S = 1.0  # for what a client still says after it was turned away; without it a reset overtakes our answer
FINISH_S = 5.0  # for answers under way when the daemon stops


class Listener:
    """
    Serves *app* on *host* and *port* (0: any) until told to stop; then lets the answers under way be finished.

    Counting sockets per address is left to the proxy in front: behind one, all of them are the proxy's.
    """

    def __init__(
        self, name: str, app: web.Application, *, host: str, port: int, connections_max: int = CONNECTIONS_MAX
    ) -> None:
        self.name = name
        self.host = host
        self.port = port  # the true one, once listening
        self.listening = asyncio.Event()
        self._app = app
        self._connections_max = connections_max

    async def run(self, stop: asyncio.Event) -> None:
        """Serve until *stop*. Raises OSError when the address is taken or not ours."""
        runner = web.AppRunner(
            self._app,
            access_log=None,
            auto_decompress=False,  # signatures are over the bytes as they came, and nobody sends us a bomb
            keepalive_timeout=IDLE_S,
            lingering_time=LINGER_S,
            shutdown_timeout=FINISH_S,
        )
        await runner.setup()
        try:
            loop = asyncio.get_running_loop()
            server = await loop.create_server(self._admit(runner), self.host, self.port, backlog=BACKLOG)
            self.port = server.sockets[0].getsockname()[1]
            self.listening.set()
            try:
                await stop.wait()
            finally:
                self.listening.clear()
                server.close()
        finally:
            await runner.cleanup()

    def _admit(self, runner: web.AppRunner) -> Callable[[], asyncio.Protocol]:
        def admit() -> asyncio.Protocol:
            server = runner.server
            return _Full() if server is None or len(server.connections) >= self._connections_max else server()

        return admit


class _Full(asyncio.Protocol):
    """Hangs up at once."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        cast("asyncio.Transport", transport).abort()
