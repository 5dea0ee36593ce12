"""One listening socket as a service: bounded, silent, and polite when it stops."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, cast

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from daemon.database import first_of
from daemon.pooler import TransactionPooler
from daemon.web.porter import Porter

if TYPE_CHECKING:
    from collections.abc import Callable

    from aiohttp.typedefs import Handler

    from daemon.callbacks import Door

CONNECTIONS_MAX = 1_000  # open at once, so that senders keep their file descriptors
BACKLOG = 1_024  # not yet accepted; Linux caps it at net.core.somaxconn, 4,096
IDLE_S = 8.0  # between requests, and for the whole header: longer than the second a proxy or a provider needs
UNREAD_S = 5.0  # how long an answer may lie unread; aiohttp waits for ever for a client that does not read
SWEEP_S = 0.5
LINGER_S = 1.0  # for what a client still says after it was turned away; without it a reset overtakes our answer
FINISH_S = 5.0  # for answers under way when the daemon stops
ALWAYS: Final = web.AppKey("always", Mapping[str, str])  # headers of an app's answers, where aiohttp answers for it


def _of_interest(record: logging.LogRecord) -> bool:
    """Not what a stranger says that is no HTTP: that is answered 400, and a trace of each would fill a disk."""
    return not (record.exc_info and isinstance(record.exc_info[1], HttpProcessingError))


_log = logging.getLogger(__name__)  # what aiohttp has to say of requests
_log.addFilter(_of_interest)


class Listener:
    """
    Serves *app* on *host* and *port* (0: any) until told to stop; then lets the answers under way be finished. What is
    plain is answered by *door*, if there is one (:mod:`daemon.web.porter`).

    Whoever comes when it is full takes the place of the caller who has kept us waiting longest: so a thousand who say
    nothing keep nobody out. Counting sockets per address is left to the proxy in front: behind one, all are its own.
    """

    def __init__(
        self,
        name: str,
        app: web.Application,
        *,
        host: str,
        port: int,
        door: Door | None = None,
        connections_max: int = CONNECTIONS_MAX,
    ) -> None:
        self.name = name
        self.host = host
        self.port = port  # the true one, once listening
        self.listening = asyncio.Event()
        self._app = app
        self._door = door
        self._connections_max = connections_max
        self._callers: dict[Porter, None] = {}  # in the order in which they came
        self._asked: dict[asyncio.Protocol, web.Request] = {}  # by connection: what is being answered there
        self._misled: TransactionPooler | None = None
        self._over = asyncio.Event()  # that is known
        app.middlewares.insert(0, self._note)

    async def run(self, stop: asyncio.Event) -> None:
        """Serve until *stop*. Raises OSError when the address is taken or not ours, and TransactionPooler."""
        runner = web.AppRunner(self._app, shutdown_timeout=FINISH_S)
        await runner.setup()
        try:
            loop = asyncio.get_running_loop()
            server = await loop.create_server(self._admit(runner), self.host, self.port, backlog=BACKLOG)
            self.port = server.sockets[0].getsockname()[1]
            self.listening.set()
            sweeping = asyncio.create_task(self._sweep(), name=f"{self.name} sweep")
            try:
                await first_of(stop, self._over)
            finally:
                sweeping.cancel()
                self.listening.clear()
                server.close()
        finally:
            await asyncio.gather(self._finish(), runner.cleanup())
        if self._misled is not None:
            raise self._misled

    def _admit(self, runner: web.AppRunner) -> Callable[[], asyncio.Protocol]:
        def admit() -> asyncio.Protocol:
            server = runner.server
            if server is None or (len(self._callers) >= self._connections_max and not self._make_room()):
                return _Full()
            return Porter(self._callers, self._door, lambda: _Handler(server, self._app.get(ALWAYS, {})), self._failed)

        return admit

    def _failed(self, error: BaseException) -> None:
        """Most faults cost one answer. This one lasts until somebody changes the configuration: it ends the daemon."""
        if isinstance(error, TransactionPooler):
            self._misled = error
            self._over.set()

    def _make_room(self) -> bool:
        """Hang up on the oldest connection from which something is still to come; whether there is one."""
        for caller in self._callers:
            asked = self._asked.get(caller.handler) if caller.handler is not None else None
            waits = caller.answering is None and (asked is None or not asked.content.is_eof())
            if waits and not caller.transport.is_closing():
                caller.transport.abort()
                return True
        return False

    async def _finish(self) -> None:
        """Let the answers be finished that are under way at the door."""
        answers = [caller.answering for caller in self._callers if caller.answering is not None]
        if answers:
            await asyncio.wait(answers, timeout=FINISH_S)
        for caller in self._callers:
            if caller.handler is None:
                caller.transport.close()

    async def _sweep(self) -> None:
        """Hang up on whoever says nothing, or has left something unread at every look for too long."""
        unread: dict[Porter, int] = {}  # and at how many looks in a row
        while True:
            await asyncio.sleep(SWEEP_S)
            now = time.monotonic()
            unread = {
                caller: unread.get(caller, 0) + 1
                for caller in self._callers
                if caller.transport.get_write_buffer_size()
            }
            for caller in self._callers:
                caller.look(now, IDLE_S)
                if unread.get(caller, 0) * SWEEP_S >= UNREAD_S:
                    caller.transport.abort()

    @web.middleware
    async def _note(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        self._asked[request.protocol] = request
        try:
            return await handler(request)
        except TransactionPooler as misled:
            self._failed(misled)
            raise
        finally:
            del self._asked[request.protocol]


class _Handler(web.RequestHandler):
    """aiohttp's half of a connection. What is no HTTP reaches no app; its answer has the headers *always* too."""

    __slots__ = ("_always",)

    def __init__(self, server: web.Server, always: Mapping[str, str]) -> None:
        super().__init__(
            server,
            loop=asyncio.get_running_loop(),
            access_log=None,  # type: ignore[arg-type]  # their way to say none
            logger=_log,
            auto_decompress=False,  # signatures are over the bytes as they came, and nobody sends us a bomb
            keepalive_timeout=IDLE_S,
            lingering_time=LINGER_S,
        )
        self._always = always

    def handle_error(self, *told: Any, **more: Any) -> web.StreamResponse:
        """Aiohttp's own answer, and its line in the log."""
        answer = super().handle_error(*told, **more)
        answer.headers.update(self._always)
        return answer


class _Full(asyncio.Protocol):
    """Hangs up at once."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        cast("asyncio.Transport", transport).abort()
