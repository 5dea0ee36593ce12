"""A request as the very bytes that leave, and where they go."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from yarl import URL

if TYPE_CHECKING:
    from daemon.provider import Request

# Said by us alone: said twice, two readers may find two different requests in the same bytes.
_OURS = frozenset({"host", "content-length", "transfer-encoding", "connection", "expect", "upgrade"})


class Origin(NamedTuple):
    """Whom a connection leads to."""

    scheme: str
    host: str
    port: int


class _Place(NamedTuple):
    origin: Origin | None  # None: nothing that speaks HTTP
    target: str
    host: str  # as the Host header says it


def written(request: Request) -> tuple[Origin | None, bytes]:
    """
    Where *request* goes, and head and body in one. No origin when its URL is none of HTTP's.

    What a dialect must never write raises ValueError: line breaks smuggled into any part of the head, methods and
    headers that would change how the rest is read.
    """
    origin, head = _head(request.method, request.url, tuple(request.headers.items()))
    body = request.body
    if body or request.method != "GET":
        return origin, b"%bContent-Length: %d\r\n\r\n%b" % (head, len(body), body)
    return origin, head + b"\r\n"


@lru_cache(maxsize=256)
def _head(method: str, url: str, headers: tuple[tuple[str, str], ...]) -> tuple[Origin | None, bytes]:
    """All of the head that does not depend on the body. A dialect's is the same for every message."""
    if not method.isalpha() or method == "HEAD":  # the answer to HEAD announces a body that never comes
        raise ValueError(f"the wire cannot ask with method {method!r}")
    place = _place(url)
    lines = [f"{method} {place.target} HTTP/1.1\r\nHost: {place.host}\r\n"]
    for name, value in headers:
        if name.lower() in _OURS:
            raise ValueError(f"the header {name} is the wire's to write")
        lines.append(f"{name}: {value}\r\n")
    head = "".join(lines)
    breaks = len(lines) + 1  # the first item has two
    if head.count("\n") != breaks or head.count("\r") != breaks or "\0" in head:
        raise ValueError("a line break or NUL within the head of a request")
    return place.origin, head.encode()


def _place(text: str) -> _Place:
    # The dialect encoded it, to the byte: yarl must not improve it.
    if not text.isascii() or not text.isprintable() or " " in text:
        raise ValueError("a URL must be encoded before it comes here")
    url = URL(text, encoded=True)
    if url.scheme not in {"http", "https"} or not url.raw_host or not url.port:
        return _Place(None, "/", "")
    if url.raw_user or url.raw_password:
        raise ValueError("credentials belong in a header, not in a URL")
    return _Place(Origin(url.scheme, url.raw_host, url.port), url.raw_path_qs, url.host_port_subcomponent or "")
