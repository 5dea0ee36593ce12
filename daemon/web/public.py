"""What the world may reach: callbacks of providers, and a sign of life for the proxy in front."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aiohttp import web

from daemon.callbacks import BODY_MAX
from daemon.web.listener import ALWAYS, CONNECTIONS_MAX, Listener
from daemon.web.porter import HEADERS

if TYPE_CHECKING:
    from daemon.callbacks import Callbacks


def public_listener(callbacks: Callbacks, *, host: str, port: int, connections_max: int = CONNECTIONS_MAX) -> Listener:
    """Where the world reaches *callbacks*; plain receipts are answered at the door."""
    app, door = public_app(callbacks), callbacks.at_the_door
    return Listener("public", app, host=host, port=port, door=door, connections_max=connections_max)


def public_app(callbacks: Callbacks) -> web.Application:
    """The routes of the public listener. It tells nothing about the daemon, not even its name's version."""
    app = web.Application(client_max_size=BODY_MAX)
    app[ALWAYS] = HEADERS
    app.on_response_prepare.append(_plain)
    for method in ("GET", "POST"):
        app.router.add_route(method, "/callbacks/{provider}/{token}", callbacks.receipt)
        app.router.add_route(method, "/inbound/{provider}", callbacks.inbound)
    app.router.add_get("/ping", _ping)
    return app


async def _ping(_request: web.Request) -> web.Response:
    return web.Response(text="pong\n")


async def _plain(_request: web.Request, response: web.StreamResponse) -> None:
    response.headers.update(HEADERS)
