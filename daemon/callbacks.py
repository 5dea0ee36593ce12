"""
What providers tell us: receipts about our messages, and what people write back.

The order is the promise: read a bounded body, verify the signature over the raw bytes, only then look inside, commit,
and only then answer 2xx. Whoever is told 503 comes again (facts: reliability, 2.7), so nothing is ever half kept.
"""

from __future__ import annotations

import asyncio
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol, TypeAlias

from aiohttp import web

from daemon.core.token import unseal
from daemon.database import DatabaseDown
from daemon.provider import Callback, Forged, Inbound
from daemon.receipts import News, Overrun

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence

    from daemon.core.receipt import Receipt

BODY_MAX = 64 * 1024  # bytes; a receipt has 600, an inbound message with ten media 8,000
BODY_TIMEOUT_S = 5.0  # for the whole body: aiohttp bounds only the header phase
RETRY_AFTER_S = 2  # the trouble is ours and short: a connection that comes back, a burst that passes
WORD_MAX = 512  # characters of what a provider says in one field
TEXT_MAX = 10_000  # characters of what a person wrote; 1,600 is the longest there is

Kind: TypeAlias = Literal["receipt", "inbound"]
# kept, or with nothing in it we read (empty), or under a token that is not ours and kept all the same (stray);
# not believed (forged); not taken in: too_big, too_slow, broken_off, and refused because we could not write it down.
Result: TypeAlias = Literal["kept", "empty", "stray", "forged", "too_big", "too_slow", "broken_off", "refused"]

_TARGET = re.compile(r"/callbacks/(?P<provider>[^/?#%]+)/(?P<token>[^/?#%]+)(?:\?.*)?")
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")  # what Postgres refuses in a text; one such would spoil a whole commit


class Reader(Protocol):
    """The half of a dialect that is asked here (daemon.provider.Dialect)."""

    @property
    def name(self) -> str:
        """The provider's name."""
        ...

    def receipts(self, callback: Callback) -> Sequence[Receipt] | Forged:
        """The receipts in *callback*."""
        ...

    def inbound(self, callback: Callback) -> Inbound | Forged | None:
        """The person's message in *callback*."""
        ...

    def reply(self) -> tuple[str, bytes]:
        """Content type and body of the answer to that."""
        ...


class Book(Protocol):
    """Where it is written down (daemon.receipts.ReceiptBook). Raises DatabaseDown or Overrun: nothing was kept then."""

    async def hear(self, news: Sequence[News]) -> None:
        """Write *news* down; returns once it is durable."""
        ...

    async def heard_from(self, provider: str, message: Inbound) -> None:
        """Keep what a person wrote; a repeat changes nothing."""
        ...


class Tally(Protocol):
    """Counts callbacks."""

    def callback(self, provider: str, kind: Kind, result: Result) -> None:
        """One callback of *kind* ended as *result*. *provider* is one of ours, never a word from outside."""
        ...


class Reply(NamedTuple):
    """An answer without a body."""

    status: int
    headers: tuple[tuple[str, str], ...] = ()


# How a whole callback is answered; None: this is no place for it.
Door: TypeAlias = "Callable[[Callback], Coroutine[None, None, Reply] | None]"


class Callbacks:
    """Answers providers. *opt_out* makes a STOP effective everywhere before it returns; it may raise DatabaseDown."""

    def __init__(
        self,
        dialects: Mapping[str, Reader],
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
        return _response(await self._told(dialect, request.match_info["token"], callback))

    def at_the_door(self, callback: Callback) -> Coroutine[None, None, Reply] | None:
        """The same for a *callback* that is whole; None when its target is none of a receipt."""
        found = _TARGET.fullmatch(callback.target)
        dialect = self._dialects.get(found["provider"]) if found else None
        return self._told(dialect, found["token"], callback) if found and dialect else None

    async def _told(self, dialect: Reader, token: str, callback: Callback) -> Reply:
        receipts = dialect.receipts(callback)
        if isinstance(receipts, Forged):
            return self._forged(dialect.name, "receipt", receipts)
        # A good signature with a foreign token is still the provider's word: parked until its message is known.
        owner = unseal(self._key, token)
        message, attempt = owner or (None, None)
        news = [News(message, attempt, dialect.name, _storable(receipt)) for receipt in receipts]
        try:
            await self._book.hear(news)
        except (DatabaseDown, Overrun):
            return self._come_again(dialect.name, "receipt")
        self._metrics.callback(dialect.name, "receipt", ("kept" if owner else "stray") if news else "empty")
        return Reply(204)

    async def inbound(self, request: web.Request) -> web.Response:
        """``/inbound/{provider}``: the provider's empty reply, once kept and once a STOP is in force."""
        dialect = self._dialect(request)
        message = dialect.inbound(await self._read(request, dialect.name, "inbound"))
        if isinstance(message, Forged):
            return _response(self._forged(dialect.name, "inbound", message))
        if message is not None:
            try:
                await self._keep(dialect.name, _storable_message(message))
            except (DatabaseDown, Overrun):
                return _response(self._come_again(dialect.name, "inbound"))
        self._metrics.callback(dialect.name, "inbound", "empty" if message is None else "kept")
        content_type, body = dialect.reply()
        return web.Response(body=body, headers={"Content-Type": content_type})

    async def _keep(self, provider: str, message: Inbound) -> None:
        # The STOP first: should the second write fail, the provider repeats both, and both bear repetition.
        if message.opt_out == "STOP":
            await self._opt_out(message.recipient)
        await self._book.heard_from(provider, message)

    def _dialect(self, request: web.Request) -> Reader:
        dialect = self._dialects.get(request.match_info["provider"])
        if dialect is None:
            raise web.HTTPNotFound
        return dialect

    async def _read(self, request: web.Request, provider: str, kind: Kind) -> Callback:
        try:
            if request.content.is_eof():
                body = await request.read()  # came in one piece with its headers, as nearly all do: no timer needed
            else:
                async with asyncio.timeout(self._body_timeout_s):
                    body = await request.read()
        except web.HTTPRequestEntityTooLarge:
            raise self._give_up(provider, kind, "too_big", web.HTTPRequestEntityTooLarge(max_size=BODY_MAX)) from None
        except TimeoutError:
            raise self._give_up(provider, kind, "too_slow", web.HTTPRequestTimeout()) from None
        except (web.RequestPayloadError, ConnectionError):  # it broke off, or was not what its headers claimed
            raise self._give_up(provider, kind, "broken_off", web.HTTPBadRequest()) from None
        return Callback(method=request.method, target=request.raw_path, headers=_lower(request.headers), body=body)

    def _give_up(self, provider: str, kind: Kind, result: Result, answer: web.HTTPException) -> web.HTTPException:
        self._metrics.callback(provider, kind, result)
        answer.force_close()  # what is still on its way we do not want to hear
        return answer

    def _forged(self, provider: str, kind: Kind, forged: Forged) -> Reply:
        self._metrics.callback(provider, kind, "forged")
        return Reply(forged.status)

    def _come_again(self, provider: str, kind: Kind) -> Reply:
        self._metrics.callback(provider, kind, "refused")
        return Reply(503, (("Retry-After", str(RETRY_AFTER_S)),))


def _response(reply: Reply) -> web.Response:
    return web.Response(status=reply.status, headers=dict(reply.headers))


def _lower(headers: Mapping[str, str]) -> dict[str, str]:
    # A header that came twice counts as one with a comma (RFC 9110, 5.3): a second signature spoils the first.
    lowered: dict[str, str] = {}
    for name, value in headers.items():
        key = name.lower()
        lowered[key] = f"{lowered[key]}, {value}" if key in lowered else value
    return lowered


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
