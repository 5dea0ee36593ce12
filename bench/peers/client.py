"""The client that the yardstick and all peers share: aiohttp's, tuned as far as it goes."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING, Self

import aiohttp
import orjson
from yarl import URL

from bench.messages import requests

if TYPE_CHECKING:
    from daemon.provider import Request


class Poster:
    """
    Posts bodies to the sink: bytes as body, URL and headers made beforehand, no cookies, no decompression, no deadline,
    answers parsed by orjson. Used as ``async with``.
    """

    def __init__(self, url: str, messages: int, in_flight: int) -> None:
        self._ready: list[Request] = requests(url, messages)
        self._target, self._headers = URL(self._ready[0].url, encoded=True), self._ready[0].headers
        self._in_flight = in_flight

    @property
    def bodies(self) -> list[bytes]:
        """What is posted, one for each message."""
        return [request.body for request in self._ready]

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=self._in_flight),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=None),
            auto_decompress=False,
        )
        return self

    async def __aexit__(self, *trouble: object) -> None:
        await self._session.close()

    async def post(self, body: bytes) -> None:
        """One exchange."""
        async with self._session.post(self._target, data=body, headers=self._headers, allow_redirects=False) as reply:
            if reply.status != 201:
                raise SystemExit("the sink said no")
            orjson.loads(await reply.read())


def calm() -> None:
    """Calm the collector as the daemon calms its own."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 50, 100)
