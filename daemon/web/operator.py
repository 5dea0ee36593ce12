"""What operators may reach: is it well, how much, where, and the page that says so."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from hashlib import sha256
from importlib import resources
from typing import TYPE_CHECKING
from urllib.parse import parse_qs

import orjson
from aiohttp import web
from jinja2 import Environment, PackageLoader, StrictUndefined

from daemon.web.listener import ALWAYS
from daemon.web.page import page

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from daemon.watch import Watch
    from daemon.web.guard import Guard

FORM_MAX = 4 * 1024  # bytes of the login form
FORM_TIMEOUT_S = 5.0  # for the whole of it

HEADERS: Mapping[str, str] = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Server": "outrider",
}
_STATIC: Mapping[str, str] = {
    "page.css": "text/css; charset=utf-8",
    "page.js": "text/javascript; charset=utf-8",
    "icon.svg": "image/svg+xml",
}
_OPEN_TO_ALL = ("/login", "/static/")  # what a browser needs before it can show a token


@dataclass(frozen=True, slots=True)
class _File:
    body: bytes
    content_type: str
    etag: str


class _Operator:
    """Answers operators. Everything it needs from disk is read once, here."""

    def __init__(self, watch: Watch, guard: Guard) -> None:
        self._watch = watch
        self._guard = guard
        folder = resources.files("daemon") / "pages"
        self._files = {name: _file((folder / name).read_bytes(), kind) for name, kind in _STATIC.items()}
        html = Environment(
            loader=PackageLoader("daemon", "pages"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
            lstrip_blocks=True,
        )  # fmt: skip
        self._page = html.get_template("page.html")
        self._login = html.get_template("login.html")

    async def healthz(self, _request: web.Request) -> web.Response:
        """Alive and progressing: what a supervisor asks."""
        health = self._watch.health()
        return _json(health, status=200 if health.alive and health.progressing else 503)

    async def readyz(self, _request: web.Request) -> web.Response:
        """Doing its work: what a deployment waits for."""
        ready, reason = self._watch.ready()
        return _json({"ready": ready, "reason": reason}, status=200 if ready else 503)

    async def metrics(self, _request: web.Request) -> web.Response:
        """What Prometheus scrapes."""
        body, content_type = self._watch.metrics()
        return web.Response(body=body, headers={"Content-Type": content_type})

    async def status(self, _request: web.Request) -> web.Response:
        """The numbers."""
        return _json(self._watch.status())

    async def words(self, _request: web.Request) -> web.Response:
        """The numbers as the page words them."""
        return _json(page(self._watch.status()))

    async def home(self, _request: web.Request) -> web.Response:
        """The page, whole: it reads well without a line of JavaScript."""
        return _html(self._page.render(page=page(self._watch.status())))

    async def static(self, request: web.Request) -> web.Response:
        """One of the few files beside the page."""
        file = self._files.get(request.match_info["name"])
        if file is None:
            raise web.HTTPNotFound
        headers = {"Content-Type": file.content_type, "ETag": file.etag, "Cache-Control": "no-cache"}
        if request.headers.get("If-None-Match") == file.etag:
            return web.Response(status=304, headers=headers)
        return web.Response(body=file.body, headers=headers)

    async def ask_token(self, _request: web.Request) -> web.Response:
        """The login form."""
        return _html(self._login.render(wrong=False))

    async def take_token(self, request: web.Request) -> web.Response:
        """The login form, filled in. No brake on guessing: settings ask for a token too long to guess."""
        try:
            async with asyncio.timeout(FORM_TIMEOUT_S):
                form = parse_qs((await request.read()).decode("latin-1"))
        except TimeoutError:
            raise web.HTTPRequestTimeout from None
        except ValueError:  # more fields than anybody's form has
            raise web.HTTPBadRequest from None
        except (web.RequestPayloadError, ConnectionError):  # it broke off, or was not what its headers claimed
            refused = web.HTTPBadRequest()
            refused.force_close()
            raise refused from None
        if not self._guard.knows(form.get("token", [""])[0].strip()):
            return _html(self._login.render(wrong=True), status=403)
        response = web.Response(status=303, headers={"Location": "/"})
        self._guard.open_session(response)
        return response

    @web.middleware
    async def check(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        """Let in whom the guard admits; ask people who came with a browser for the token."""
        if not self._guard.is_addressed(request):
            return web.Response(status=421, text="This listener answers to localhost only; give it a token_file.\n")
        if self._guard.admits(request) or request.path.startswith(_OPEN_TO_ALL):
            return await handler(request)
        refused = await self.ask_token(request) if request.path == "/" else web.Response(text="A token, please.\n")
        refused.set_status(401)
        refused.headers["WWW-Authenticate"] = 'Bearer realm="outrider"'
        return refused


def operator_app(watch: Watch, guard: Guard) -> web.Application:
    """The routes of the operator's listener. Nothing here changes anything: GET only, but for the login form."""
    operator = _Operator(watch, guard)
    app = web.Application(client_max_size=FORM_MAX, middlewares=[operator.check])
    app[ALWAYS] = {**HEADERS, "Cache-Control": "no-store"}
    app.on_response_prepare.append(_guarded)
    app.router.add_get("/", operator.home)
    app.router.add_get("/healthz", operator.healthz)
    app.router.add_get("/readyz", operator.readyz)
    app.router.add_get("/metrics", operator.metrics)
    app.router.add_get("/api/status", operator.status)
    app.router.add_get("/api/page", operator.words)
    app.router.add_get("/static/{name}", operator.static)
    if guard.wants_token:
        app.router.add_get("/login", operator.ask_token)
        app.router.add_post("/login", operator.take_token)
    return app


async def _guarded(_request: web.Request, response: web.StreamResponse) -> None:
    response.headers.update(HEADERS)
    response.headers.setdefault("Cache-Control", "no-store")


def _file(body: bytes, content_type: str) -> _File:
    return _File(body, content_type, f'"{sha256(body).hexdigest()[:20]}"')


def _json(value: object, status: int = 200) -> web.Response:
    return web.Response(body=orjson.dumps(value), status=status, content_type="application/json")


def _html(text: str, status: int = 200) -> web.Response:
    return web.Response(text=text, status=status, content_type="text/html")
