"""Those outside: a client that speaks to a simulator as Twilio's users do, and a target that hears its callbacks."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

import aiohttp
from aiohttp import web

from daemon.simulator import ACCOUNT_SID, AUTH_TOKEN

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from daemon.simulator import Simulator

OURS = "+15005550006"
THEIRS = "+14155550123"


async def until(done: Callable[[], bool | Awaitable[bool]], *, patience_s: float = 10.0) -> None:
    """Wait for something that gives no sign of itself."""
    async with asyncio.timeout(patience_s):
        while True:
            answer = done()
            if answer if isinstance(answer, bool) else await answer:
                return
            await asyncio.sleep(0.005)


@dataclass(frozen=True, slots=True)
class Told:
    """An answer."""

    status: int
    body: dict[str, object]
    headers: dict[str, str]

    @property
    def code(self) -> object:
        return self.body.get("code")


class Client:
    """Speaks the Messages API with aiohttp, an HTTP client that is not ours."""

    def __init__(self, simulator: Simulator) -> None:
        self.simulator = simulator
        self.messages = f"/2010-04-01/Accounts/{ACCOUNT_SID}/Messages"

    async def __aenter__(self) -> Self:
        self.session = aiohttp.ClientSession(
            headers={"Authorization": aiohttp.encode_basic_auth(ACCOUNT_SID, AUTH_TOKEN)},
            timeout=aiohttp.ClientTimeout(total=1.0),
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.session.close()

    async def ask(self, method: str, path: str, data: object = None, **options: object) -> Told:
        async with self.session.request(
            method,
            self.simulator.url + path,
            data=data,
            **options,  # type: ignore[arg-type]
        ) as answer:
            raw = await answer.read()
            body = await answer.json() if answer.content_type == "application/json" and raw else {"raw": raw}
            return Told(answer.status, body, dict(answer.headers))

    async def create(self, body: str = "hello", **form: str) -> Told:
        """One message; parameters are named as Twilio names them, an empty one is left out."""
        everything = {"To": THEIRS, "From": OURS, "Body": body} | form
        return await self.ask("POST", f"{self.messages}.json", {k: v for k, v in everything.items() if v})

    async def becomes(self, sid: object, status: str) -> None:
        """Wait until the message with this SID has *status*."""

        async def there() -> bool:
            return (await self.fetch(sid)).body["status"] == status

        await until(there)

    async def recovers(self) -> None:
        """Wait until a create is accepted."""

        async def there() -> bool:
            return await self.fate() == "201"

        await until(there)

    async def fetch(self, sid: object) -> Told:
        return await self.ask("GET", f"{self.messages}/{sid}.json")

    async def fate(self, **form: str) -> str:
        """How a create ends: an HTTP status with its code, or what became of the connection."""
        try:
            told = await self.create(**form)
        except TimeoutError:
            return "timeout"
        except aiohttp.ClientResponseError:
            return "no http"
        except aiohttp.ClientPayloadError:
            return "cut"
        except aiohttp.ServerDisconnectedError:
            return "disconnected"
        except aiohttp.ClientConnectorError:
            return "refused"
        except aiohttp.ClientOSError:
            return "reset"
        return f"{told.status} {told.code}" if told.code else str(told.status)


@dataclass(slots=True)
class Heard:
    """One callback as it came in."""

    url: str
    form: dict[str, str]
    headers: dict[str, str]

    @property
    def news(self) -> str:
        return self.form.get("MessageStatus", self.form.get("SmsStatus", ""))


@dataclass(slots=True)
class Target:
    """Hears callbacks; answers with the next of *answers*, then always 204."""

    url: str = ""
    heard: list[Heard] = field(default_factory=list)
    answers: list[int] = field(default_factory=list)

    async def hear(self, request: web.BaseRequest) -> web.Response:
        form = {name: str(value) for name, value in (await request.post()).items()}
        # The target as it stood on the request line: what the signature is computed over.
        self.heard.append(Heard(self.url + request.raw_path, form, dict(request.headers)))
        return web.Response(status=self.answers.pop(0) if self.answers else 204)

    async def until(self, many: int, patience_s: float = 5.0) -> list[Heard]:
        await until(lambda: len(self.heard) >= many, patience_s=patience_s)
        return self.heard
