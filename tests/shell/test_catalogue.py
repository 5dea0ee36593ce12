"""
The catalogue: what a provider can do to one request, and the one word each permits (facts: reliability 2.4 and T6).

One table, read through both transports and the dialect, as the courier does. After each behaviour the transport must be
as it was: every connection free again, no file descriptor left. The byte-by-byte cases are in test_transport.py.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import socket
import ssl
import subprocess
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import aiohttp
import pytest

from daemon.core.outcome import Accepted, Fault, Rejected, Throttled, Uncertain, Unreachable
from daemon.provider import Response
from daemon.transport import Transport
from daemon.wire import Wire
from tests.shell.parts import dialect
from tests.shell.peer import LATE, SOON, Caller, Script, answering, hang, post, serving

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from daemon.core.outcome import Outcome

Kind: TypeAlias = type[Transport] | type[Wire]
Expected: TypeAlias = "Callable[[Outcome], bool]"

SID = "SM" + "0" * 32
PLACES = 4  # connections of each transport
SEGMENT = 4096


# --- what may be expected


def accepted(reference: str | None) -> Expected:
    return lambda outcome: isinstance(outcome, Accepted) and outcome.reference == reference


def rejected(fault: Fault) -> Expected:
    return lambda outcome: isinstance(outcome, Rejected) and outcome.fault is fault


def throttled(wait_s: float | None) -> Expected:
    return lambda outcome: isinstance(outcome, Throttled) and outcome.wait_s == wait_s


def uncertain(outcome: Outcome) -> bool:
    return isinstance(outcome, Uncertain)


def unreachable(outcome: Outcome) -> bool:
    return isinstance(outcome, Unreachable)


# --- what a provider says


def said(status: int, body: object = b"", *lines: str) -> bytes:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = "".join(f"{line}\r\n" for line in (f"HTTP/1.1 {status} X", *lines, f"Content-Length: {len(raw)}", ""))
    return head.encode() + raw


def resource(**changes: object) -> dict[str, object]:
    return {"sid": SID, "status": "queued", "num_segments": "1", "from": "+15550100001", "error_code": None} | changes


def refusal(code: int) -> dict[str, object]:
    return {"code": code, "message": "no", "status": 400}


YES = said(201, resource())
HEAD = YES.index(b"{")
PAGE = b"<html><body>nginx</body></html>"
HALF = YES[: len(YES) - 40]
NOW = "Date: Fri, 25 Aug 2023 21:46:40 GMT"


def after(read: str, *, say: bytes = b"", reset: bool = False) -> Script:
    """Read *read* of the request, say *say*, and hang up: with FIN, or with RST."""

    async def script(caller: Caller) -> None:
        if read == "head":
            await caller.reader.readuntil(b"\r\n\r\n")
        elif read == "request":
            await caller.request()
        if say:
            caller.say(say)
            await caller.writer.drain()
            if reset:
                await asyncio.sleep(0.02)  # RST takes back what is not read yet
        if reset:
            caller.reset()

    return script


def stuck(say: bytes) -> Script:
    """Say *say* and nothing more, for ever."""

    async def script(caller: Caller) -> None:
        await caller.request()
        caller.say(say)
        await hang(caller)

    return script


def dripping(head: bytes, rest: bytes) -> Script:
    """*rest* a byte at a time: each read succeeds, the whole never comes."""

    async def script(caller: Caller) -> None:
        await caller.request()
        caller.say(head)
        for byte in rest:
            caller.say(bytes([byte]))
            await caller.writer.drain()
            await asyncio.sleep(0.02)

    return script


def late(seconds: float) -> Script:
    """A yes after so long, or once nobody waits for it any more."""

    async def script(caller: Caller) -> None:
        await caller.request()
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await caller.reader.read()
        caller.say(YES)

    return script


def flood(head: bytes, part: bytes, times: int, *, pause_s: float = 0.0) -> Script:
    """Far more than anybody needs."""

    async def script(caller: Caller) -> None:
        await caller.request()
        caller.say(head)
        for _ in range(times):
            caller.say(part)
            await caller.writer.drain()
            await asyncio.sleep(pause_s)

    return script


# --- the catalogue: what it does, and what that permits

RST_AND_FIN = {
    f"{how} {where}": (after(read, say=say, reset=how == "reset"), expected)
    for how in ("fin", "reset")
    for where, read, say, expected in (
        ("after the head of the request", "head", b"", uncertain),
        ("after the request", "request", b"", uncertain),
        ("within the status line", "request", b"HTTP/1.1 20", uncertain),
        ("within the headers", "request", b"HTTP/1.1 201 Created\r\nContent-Le", uncertain),
        ("within the body of a yes", "request", HALF, accepted(None)),
        ("within the body of a no", "request", said(400, refusal(21211))[:-5], uncertain),
    )
}
SILENCE = {
    "hangs before reading": (hang, uncertain),
    "hangs before the answer": (stuck(b""), uncertain),
    "hangs within the headers": (stuck(b"HTTP/1.1 201 Created\r\nContent-Le"), uncertain),
    "hangs within the body of a yes": (stuck(HALF), accepted(None)),
    "drips a yes": (dripping(YES[:HEAD], YES[HEAD:]), accepted(None)),
    "drips the headers": (dripping(b"HTTP/1.1 201 Created\r\nX: ", b"y" * 200), uncertain),
    "accepts too late": (late(10 * SOON), uncertain),
    "accepts late, but in time": (late(SOON / 3), accepted(SID)),
}
ANSWERS = {
    "201": (YES, accepted(SID)),
    "100, then 201": (b"HTTP/1.1 100 Continue\r\n\r\n" + YES, accepted(SID)),
    "103, then 201": (b"HTTP/1.1 103 Early Hints\r\nLink: </>\r\n\r\n" + YES, accepted(SID)),
    "204": (b"HTTP/1.1 204 No Content\r\n\r\n", accepted(None)),
    "301": (said(301, b"", "Location: /elsewhere"), uncertain),
    "302": (said(302, b"", "Location: /elsewhere"), uncertain),
    "307": (said(307, b"", "Location: /elsewhere"), uncertain),
    "308": (said(308, b"", "Location: /elsewhere"), uncertain),
    "400 in its words": (said(400, refusal(21211)), rejected(Fault.RECIPIENT)),
    "400 of a proxy": (said(400, PAGE), uncertain),
    "401 in its words": (said(401, refusal(20003)), rejected(Fault.ACCOUNT)),
    "401 of a proxy": (said(401, PAGE), uncertain),
    "403 in its words": (said(403, refusal(20403)), rejected(Fault.ACCOUNT)),
    "403 of a firewall": (said(403, PAGE), uncertain),
    "404 in its words": (said(404, refusal(20404)), rejected(Fault.ACCOUNT)),
    "404 of a proxy": (said(404, PAGE), uncertain),
    "408": (said(408, refusal(21211)), uncertain),
    "409": (said(409, refusal(20409)), uncertain),
    "413 in its words": (said(413, refusal(20413)), rejected(Fault.CONTENT)),
    "413 of a proxy": (said(413, PAGE), uncertain),
    "422 in its words": (said(422, refusal(20422)), rejected(Fault.ACCOUNT)),
    "425": (said(425), uncertain),
    "429": (said(429, refusal(20429)), throttled(None)),
    "429 of a proxy": (said(429, PAGE), throttled(None)),
    "429, come back in 7 s": (said(429, refusal(20429), "Retry-After: 7"), throttled(7.0)),
    "429, come back some day": (said(429, PAGE, "Retry-After: soon"), throttled(None)),
    "429, come back in 30 years": (said(429, PAGE, "Retry-After: 999999999"), throttled(300.0)),
    "429, come back long ago": (
        said(429, PAGE, NOW, "Retry-After: Fri, 25 Aug 2000 00:00:00 GMT"),
        throttled(0.0),
    ),
    "500 in its words": (said(500, refusal(20500)), uncertain),
    "502 of a proxy": (said(502, PAGE), uncertain),
    "503": (said(503, refusal(20503), "Retry-After: 1"), uncertain),
    "504 of a proxy": (said(504, PAGE), uncertain),
    "200 that says it failed": (said(200, resource(status="failed", error_code=30001)), throttled(120.0)),
    "200 with a page": (said(200, PAGE), uncertain),
    "200 with an error": (said(200, refusal(21211)), uncertain),
    "201 cut short": (HALF, accepted(None)),
    "a yes without an id": (said(201, resource(sid=None)), uncertain),
    "garbage": (b"\x00\xff\xfe garbage\r\n\r\n", uncertain),
    "another protocol": (b"220 mail.example.com ESMTP\r\n", uncertain),
    "a bomb": (
        said(201, gzip.compress(bytes(10_000_000)), "Content-Encoding: gzip"),
        uncertain,
    ),
    "100,000 headers": (b"HTTP/1.1 201 Created\r\n" + b"X: y\r\n" * 100_000 + b"\r\n", uncertain),
}
FLOODS = {
    "a yes of 100 MB": (
        flood(b"HTTP/1.1 201 Created\r\nContent-Length: 104857600\r\n\r\n", b"{" * SEGMENT, 25_600),
        accepted(None),
    ),
    "a no of 100 MB": (
        flood(b"HTTP/1.1 400 Bad\r\nContent-Length: 104857600\r\n\r\n", b"{" * SEGMENT, 25_600),
        uncertain,
    ),
    "endless early hints": (flood(b"", b"HTTP/1.1 103 Early Hints\r\n\r\n" * 100, 10_000, pause_s=0.01), uncertain),
}
CATALOGUE: dict[str, tuple[Script, Expected]] = {
    **RST_AND_FIN,
    **SILENCE,
    **{name: (answering(raw), expected) for name, (raw, expected) in ANSWERS.items()},
    **FLOODS,
}


@pytest.fixture(params=[Transport, Wire], ids=["aiohttp", "wire"])
def kind(request: pytest.FixtureRequest) -> Kind:
    return request.param  # type: ignore[no-any-return]


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208


@asynccontextmanager
async def nothing_left() -> AsyncIterator[None]:
    """No file descriptor more than before, as soon as both ends have closed."""
    async with serving(hang):
        pass  # the loop keeps a spare descriptor from its first listener on
    before = descriptors()
    yield
    for _ in range(200):
        if descriptors() <= before:
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"{descriptors() - before} file descriptors are left")


async def ask(transport: Transport | Wire, url: str, *, deadline_s: float = SOON) -> Outcome:
    """One exchange and its word, as the courier has it."""
    answer = await transport.exchange(post(url), deadline_s=deadline_s)
    return dialect().hear(answer) if isinstance(answer, Response) else answer


async def all_places_are_free(transport: Transport | Wire, places: int = PLACES) -> None:
    """As many exchanges as there are places stand on the wire at once: none is answered before all have come."""
    meeting = asyncio.Barrier(places)

    async def script(caller: Caller) -> None:
        await caller.request()
        await meeting.wait()
        caller.say(YES)

    async with serving(script) as well:
        outcomes = await asyncio.gather(*(ask(transport, well.url, deadline_s=LATE) for _ in range(places)))
    assert all(isinstance(outcome, Accepted) for outcome in outcomes)


async def suffered(kind: Kind, url: str, expected: Expected, *, times: int) -> None:
    async with kind.open(connections=PLACES) as transport:
        for outcome in await asyncio.gather(*(ask(transport, url) for _ in range(times))):
            # Whoever only waited for a place never left; that is for those beyond the first few to say.
            assert expected(outcome) or (times > PLACES and outcome == Unreachable("no connection in time")), outcome
        await all_places_are_free(transport)


@pytest.mark.parametrize("behaviour", CATALOGUE)
async def test_each_behaviour_permits_what_the_table_says(kind: Kind, behaviour: str) -> None:
    script, expected = CATALOGUE[behaviour]
    async with nothing_left(), serving(script) as server:
        await suffered(kind, server.url, expected, times=PLACES)


async def test_one_id_for_two_messages_is_two_acceptances(kind: Kind) -> None:
    """What the provider confuses, its receipts will tell apart by our token: nothing is sent again."""

    async def script(caller: Caller) -> None:
        while await caller.request():
            caller.say(YES)

    async with serving(script) as server, kind.open(connections=1) as transport:
        first, second = [await ask(transport, server.url) for _ in range(2)]
    assert accepted(SID)(first)
    assert accepted(SID)(second)


# --- it never left


@asynccontextmanager
async def full() -> AsyncIterator[str]:
    """A listener whose backlog is full: its connections do not come about."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        fillers = [socket.socket() for _ in range(4)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/"
        for filler in fillers:
            filler.close()


@asynccontextmanager
async def nobody() -> AsyncIterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))  # bound, not listening: nobody else can take it
        yield f"http://127.0.0.1:{free.getsockname()[1]}/"


@asynccontextmanager
async def no_such_name() -> AsyncIterator[str]:
    yield "http://provider.invalid/"


@asynccontextmanager
async def mute_tls() -> AsyncIterator[str]:
    async with serving(hang) as server:
        yield server.url.replace("http:", "https:")


@pytest.mark.parametrize("where", [nobody, no_such_name, full, mute_tls], ids=lambda where: where.__name__)
async def test_what_never_left_is_unreachable(kind: Kind, where: Callable[[], object]) -> None:
    async with nothing_left(), where() as url:  # type: ignore[attr-defined]
        await suffered(kind, url, unreachable, times=PLACES)


@dataclass(frozen=True)
class Certificate:
    """Trusted, and wrong in one thing."""

    days: int = 2
    name: str = "IP:127.0.0.1"


@pytest.fixture(params=[Certificate(days=-1), Certificate(name="DNS:elsewhere.example")], ids=["expired", "wrong host"])
def wrong_tls(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ssl.SSLContext:
    wrong: Certificate = request.param
    key, asked, given = tmp_path / "key", tmp_path / "asked", tmp_path / "given"
    making = "req -new -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN=it"
    for command in (
        f"{making} -addext subjectAltName={wrong.name} -keyout {key} -out {asked}",
        f"x509 -req -in {asked} -signkey {key} -days {wrong.days} -copy_extensions copy -out {given}",
    ):
        subprocess.run(["openssl", *command.split()], check=True, capture_output=True)
    monkeypatch.setattr(aiohttp.connector, "_SSL_CONTEXT_VERIFIED", ssl.create_default_context(cafile=given))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(given, key)
    return context


async def test_a_certificate_that_does_not_fit_is_unreachable(kind: Kind, wrong_tls: ssl.SSLContext) -> None:
    async with nothing_left(), serving(answering(YES), wrong_tls) as server, kind.open(connections=PLACES) as transport:
        for outcome in await asyncio.gather(*(ask(transport, server.url, deadline_s=LATE) for _ in range(PLACES))):
            assert isinstance(outcome, Unreachable)
            assert "Certificate" in outcome.reason
        assert server.heard == b""
        await all_places_are_free(transport)
