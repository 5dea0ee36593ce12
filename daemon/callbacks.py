"""
What providers tell us: receipts about our messages, and what people write back.

The order is the promise: read a bounded body, verify the signature over the raw bytes, only then look inside, commit,
and only then answer 2xx. Whoever is told 503 comes again (facts: reliability, 2.7), so nothing is ever half kept.
"""

from __future__ import annotations

import asyncio
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Literal, NoReturn, Protocol, TypeAlias

from aiohttp import web

from daemon.core.token import unseal
from daemon.database import DatabaseDown
from daemon.provider import Callback, Forged, Inbound
from daemon.receipts import News, Overrun

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from daemon.core.receipt import Receipt
    from daemon.provider import Dialect

BODY_MAX = 64 * 1024  # bytes; a receipt has 600, an inbound message with ten media 8,000
BODY_TIMEOUT_S = 5.0  # for the whole body: aiohttp bounds only the header phase
RETRY_AFTER_S = 2  # the trouble is ours and short: a connection that comes back, a burst that passes
WORD_MAX = 512  # characters of what a provider says in one field
TEXT_MAX = 10_000  # characters of what a person wrote; 1,600 is the longest there is

Kind: TypeAlias = Literal["receipt", "inbound"]
Result: TypeAlias = Literal["kept", "stray", "empty", "forged", "too_big", "too_slow", "broken_off", "refused"]

_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")  # what Postgres refuses in a text; one such would spoil a whole commit


class Book(Protocol):
    """Where it is written down (daemon.receipts.ReceiptBook). Raises DatabaseDown or Overrun: nothing was kept then."""

    async def hear(self, news: Sequence[News]) -> None:
        """Write *news* down; returns once it is durable."""
        ...

    async def heard_from(self, provider: str, message: Inbound) -> None:
        """Keep what a person wrote; a repeat changes nothing."""
        ...


class Tally(Protocol):
    """Counts callbacks for the metrics."""

    def callback(self, provider: str, kind: Kind, result: Result) -> None:
        """One callback of *kind* ended as *result*. *provider* is one of ours, never a word from outside."""
        ...


class Callbacks:
    """Answers providers. *opt_out* makes a STOP effective everywhere before it returns; it may raise DatabaseDown."""

    def __init__(
        self,
        dialects: Mapping[str, Dialect],
        *,
        key: bytes,
        book: Book,
        metrics: Tally,
        opt_out: Callable[[str], Awaitable[None]],
        body_timeout_s: float = BODY_TIMEOUT_S,
    ) -> None:
        self._dialects = dialects
        self._key = key
        self._book = book
        self._metrics = metrics
        self._opt_out = opt_out
        self._body_timeout_s = body_timeout_s

    async def receipt(self, request: web.Request) -> web.Response:
        """``/callbacks/{provider}/{token}``: 204 once committed."""
        dialect = self._dialect(request)
        callback = await self._read(request, dialect.name, "receipt")
        receipts = dialect.receipts(callback)
        if isinstance(receipts, Forged):
            return self._forged(dialect.name, "receipt", receipts)
        # A good signature with a token that is not ours is still the provider's word: parked until its message is known.
        owner = unseal(self._key, request.match_info["token"])
        id_, attempt = owner or (None, None)
        news = [News(id_, attempt, dialect.name, _storable(receipt)) for receipt in receipts]
        try:
            await self._book.hear(news)
        except (DatabaseDown, Overrun):
            return self._come_again(dialect.name, "receipt")
        self._metrics.callback(dialect.name, "receipt", ("kept" if owner else "stray") if news else "empty")
        return web.Response(status=204)

    async def inbound(self, request: web.Request) -> web.Response:
        """``/inbound/{provider}``: the provider's empty reply, once kept and once a STOP is in force."""
        dialect = self._dialect(request)
        callback = await self._read(request, dialect.name, "inbound")
        message = dialect.inbound(callback)
        if isinstance(message, Forged):
            return self._forged(dialect.name, "inbound", message)
        if message is not None:
            try:
                await self._keep(dialect.name, _storable_message(message))
            except (DatabaseDown, Overrun):
                return self._come_again(dialect.name, "inbound")
        self._metrics.callback(dialect.name, "inbound", "empty" if message is None else "kept")
        content_type, body = dialect.reply()
        return web.Response(body=body, headers={"Content-Type": content_type})

    async def _keep(self, provider: str, message: Inbound) -> None:
        # The STOP first: should the second write fail, the provider repeats both, and both bear repetition.
        if message.opt_out == "STOP":
            await self._opt_out(message.recipient)
        await self._book.heard_from(provider, message)

    def _dialect(self, request: web.Request) -> Dialect:
        dialect = self._dialects.get(request.match_info["provider"])
        if dialect is None:
            raise web.HTTPNotFound
        return dialect

    async def _read(self, request: web.Request, provider: str, kind: Kind) -> Callback:
        # Whatever is still on its way when we give up, we do not want to hear: hence force_close.
        try:
            if request.content.is_eof():
                body = await request.read()  # came in one piece with its headers, as nearly all do: no timer needed
            else:
                async with asyncio.timeout(self._body_timeout_s):
                    body = await request.read()
        except web.HTTPRequestEntityTooLarge:
            self._give_up(provider, kind, "too_big", web.HTTPRequestEntityTooLarge(max_size=BODY_MAX))
        except TimeoutError:
            self._give_up(provider, kind, "too_slow", web.HTTPRequestTimeout())
        except (web.RequestPayloadError, ConnectionError):  # a body that broke off, or was not chunked as it claimed
            self._give_up(provider, kind, "broken_off", web.HTTPBadRequest())
        headers: dict[str, str] = {}
        for name, value in request.headers.items():
            name = name.lower()
            headers[name] = f"{headers[name]}, {value}" if name in headers else value
        return Callback(method=request.method, target=request.raw_path, headers=headers, body=body)

    def _give_up(self, provider: str, kind: Kind, result: Result, answer: web.HTTPException) -> NoReturn:
        self._metrics.callback(provider, kind, result)
        answer.force_close()
        raise answer from None

    def _forged(self, provider: str, kind: Kind, forged: Forged) -> web.Response:
        self._metrics.callback(provider, kind, "forged")
        return web.Response(status=forged.status)

    def _come_again(self, provider: str, kind: Kind) -> web.Response:
        self._metrics.callback(provider, kind, "refused")
        return web.Response(status=503, headers={"Retry-After": str(RETRY_AFTER_S)})


def _storable(receipt: Receipt) -> Receipt:
    return replace(
        receipt, reference=_text(receipt.reference), code=_text(receipt.code), reason=_text(receipt.reason)
    )  # fmt: skip


def _storable_message(message: Inbound) -> Inbound:
    return replace(
        message,
        reference=_text(message.reference),
        sender=_text(message.sender),
        recipient=_text(message.recipient),
        body=_text(message.body, TEXT_MAX),
        details={_text(name): _text(value, TEXT_MAX) for name, value in message.details.items()},
    )


def _text(text: str, most: int = WORD_MAX) -> str:
    return _UNSTORABLE.sub("\N{REPLACEMENT CHARACTER}", text[:most])
