"""
Callbacks: signed, sent by a fixed number of workers, tried again as the URL's fragment asks.

A target that is down costs counted failures, never memory without bound: waiting callbacks are limited, and a callback
that waits for its next try occupies no worker.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Self
from urllib.parse import parse_qs, urlencode
from uuid import uuid4

import aiohttp
from yarl import URL

from daemon.simulator import twilio

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from daemon.simulator.agenda import Agenda

RETRY_PAUSE_S = 0.25  # before the first retry; twice as long before each further one
ANSWER_MAX = 64 * 1024  # bytes read of an answer


@dataclass(slots=True, kw_only=True)
class Letter:
    """One callback to be made. Its form is asked for when it leaves: None means it is no longer to be sent."""

    url: str
    form: Callable[[], dict[str, str] | None]
    name: str  # I-Twilio-Idempotency-Token: the same for all tries
    tries: int = 0


@dataclass(frozen=True, slots=True)
class Manners:
    """How a target wants to be called: the connection overrides in its URL's fragment, in seconds."""

    connect_s: float
    read_s: float
    total_s: float
    retries: int
    retry_on: frozenset[str]  # of 4xx, 5xx, ct (could not connect), rt (no answer), all


class Postman:
    """Carries callbacks to their targets, and counts what became of them."""

    def __init__(self, agenda: Agenda, auth_token: str, *, connections: int, waiting: int) -> None:
        self.counts: Counter[str] = Counter(sent=0, failed=0, retried=0, dropped=0)
        self._agenda = agenda
        self._auth_token = auth_token
        self._connections = connections
        self._waiting = waiting
        self._pending = 0
        self._due: asyncio.Queue[Letter] = asyncio.Queue()  # bounded by _waiting
        self._workers: list[asyncio.Task[None]] = []

    @property
    def pending(self) -> int:
        """Callbacks that wait for their time, for a worker, for an answer or for another try."""
        return self._pending

    async def __aenter__(self) -> Self:
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=20)  # the workers are the limit
        self._session = aiohttp.ClientSession(
            connector=connector, cookie_jar=aiohttp.DummyCookieJar(), headers={"User-Agent": "TwilioProxy/1.1"}
        )
        self._workers = [asyncio.create_task(self._work()) for _ in range(self._connections)]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for worker in self._workers:
            worker.cancel()
        await asyncio.gather(*self._workers, return_exceptions=True)
        await self._session.close()

    def post(self, delay_s: float, url: str, form: Callable[[], dict[str, str] | None]) -> None:
        """Call *url* in *delay_s* seconds with what *form* then returns."""
        if self._pending >= self._waiting:
            self.counts["dropped"] += 1
            return
        self._pending += 1
        letter = Letter(url=url, form=form, name=uuid4().hex)
        self._agenda.after(delay_s, partial(self._due.put_nowait, letter))

    async def deliver(self, url: str, form: dict[str, str], name: str) -> tuple[str, bytes]:
        """Make one call: the status answered, or ``ct`` (could not connect), or ``rt`` (no answer); and the body."""
        manners = read_manners(url.partition("#")[2])
        headers = {
            "Content-Type": "application/x-www-form-urlencoded",
            "I-Twilio-Idempotency-Token": name,
            "X-Twilio-Signature": twilio.sign(self._auth_token, url, form.items()),
        }
        limit = aiohttp.ClientTimeout(
            total=manners.total_s, sock_connect=manners.connect_s, sock_read=manners.read_s, connect=None
        )
        # encoded=True: the target sees, and verifies, exactly the URL it gave.
        target = URL(url.partition("#")[0], encoded=True)
        try:
            async with self._session.post(
                target, data=urlencode(form).encode(), headers=headers, timeout=limit, allow_redirects=False
            ) as answer:
                return str(answer.status), await answer.content.read(ANSWER_MAX)
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError):
            return "ct", b""
        except (aiohttp.ClientError, TimeoutError, OSError):
            return "rt", b""

    async def _work(self) -> None:
        while True:
            letter = await self._due.get()
            form = letter.form()
            if form is None:
                self._pending -= 1
                continue
            result, _ = await self.deliver(letter.url, form, letter.name)
            self._settle(letter, result)

    def _settle(self, letter: Letter, result: str) -> None:
        manners = read_manners(letter.url.partition("#")[2])
        kind = f"{result[0]}xx" if result.isdigit() else result
        if kind == "2xx":
            self.counts["sent"] += 1
        elif letter.tries < manners.retries and manners.retry_on & {kind, "all"}:
            self.counts["retried"] += 1
            self._agenda.after(RETRY_PAUSE_S * 2**letter.tries, partial(self._due.put_nowait, letter))
            letter.tries += 1
            return
        else:
            self.counts["failed"] += 1
        self._pending -= 1


@lru_cache(maxsize=64)
def read_manners(fragment: str) -> Manners:
    """The connection overrides of a URL fragment; what is missing or out of range has Twilio's default."""
    told = {name: values[-1] for name, values in parse_qs(fragment).items()}
    return Manners(
        connect_s=_number(told, "ct", range(100, 10_001), 5_000) / 1000,
        read_s=_number(told, "rt", range(100, 15_001), 15_000) / 1000,
        total_s=_number(told, "tt", range(100, 15_001), 15_000) / 1000,
        retries=_number(told, "rc", range(6), 1),
        retry_on=frozenset(told.get("rp", "ct").split(",")),
    )


def _number(told: dict[str, str], name: str, legal: range, default: int) -> int:
    text = told.get(name, "")
    return int(text) if text.isascii() and text.isdigit() and int(text) in legal else default
