"""
Who may reach the operator's listener.

Without a token it listens on the loopback only (settings see to that) and answers only to loopback names: a web page
that points its own name at 127.0.0.1 (DNS rebinding) is turned away. With a token, a request shows it as a bearer, and
a browser shows a cookie it was given for the token once.
"""

from __future__ import annotations

import hmac
import re
import time
from hashlib import sha256
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    from aiohttp import web

COOKIE: Final = "outrider"
SESSION_S: Final = 12 * 3600  # a day's work

_LOOPBACK_HOST = re.compile(r"(localhost|127\.0\.0\.1|\[::1\])(:[0-9]{1,5})?", re.IGNORECASE)


class Guard:
    """Checks requests against *token*; None means that the loopback is guard enough. *now* is the wall clock."""

    def __init__(self, token: str | None, *, now: Callable[[], float] = time.time) -> None:
        self._digest = sha256((token or "").encode()).digest()
        self.wants_token = token is not None
        self._now = now

    def is_addressed(self, request: web.Request) -> bool:
        """Whether the Host header names this machine; any name will do where a token is asked for."""
        return self.wants_token or _LOOPBACK_HOST.fullmatch(request.headers.get("Host", "")) is not None

    def admits(self, request: web.Request) -> bool:
        """Whether the request shows the token, or the cookie that stands for it."""
        if not self.wants_token:
            return True
        scheme, _, shown = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            return self.knows(shown.strip())
        return self._is_session(request.cookies.get(COOKIE, ""))

    def knows(self, token: str) -> bool:
        """Whether *token* is the one. Takes as long whatever is wrong with it."""
        shown = sha256(token.encode("utf-8", "surrogateescape")).digest()
        return self.wants_token and hmac.compare_digest(shown, self._digest)

    def open_session(self, response: web.Response) -> None:
        """Hand out the cookie: it ends by itself, and with the token it was made from."""
        until = str(int(self._now()) + SESSION_S)
        response.set_cookie(
            COOKIE, f"{until}.{self._seal(until)}", max_age=SESSION_S, httponly=True, samesite="Strict", path="/"
        )  # fmt: skip

    def _is_session(self, cookie: str) -> bool:
        until, _, seal = cookie.partition(".")
        if not (until.isascii() and until.isdecimal() and seal.isascii()):
            return False
        return hmac.compare_digest(seal, self._seal(until)) and int(until) > self._now()

    def _seal(self, until: str) -> str:
        return hmac.new(self._digest, f"session until {until}".encode(), sha256).hexdigest()
