"""The porter: that he answers as aiohttp would, and whom he shows in."""

from __future__ import annotations

import asyncio
import random
import re
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest

from daemon.web import listener, porter, public_listener
from daemon.web.porter import PLAIN_MAX
from tests.shell import test_callbacks
from tests.shell.test_callbacks import WORD, Notes, by_aiohttp, office, sign, target

if TYPE_CHECKING:
    from collections.abc import Sequence

    from daemon.receipts import News

FORGED = b'{"reference": "SM1", "status": "read"}'


def request(*more: str, method: str = "POST", version: str = "1.1", body: bytes = WORD, length: bool = True) -> bytes:
    """A receipt as it comes over the wire; *more* headers."""
    lines = [f"{method} {target()} HTTP/{version}", "Host: x", f"X-Signature: {sign(target(), body)}", *more]
    if length:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + body


@pytest.fixture
def shown_in(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """What was said by each who was shown in, until then."""
    seen: list[bytes] = []
    show_in = porter.Porter._show_in

    def note(self: porter.Porter) -> None:
        seen.append(self._said)
        show_in(self)

    monkeypatch.setattr(porter.Porter, "_show_in", note)
    return seen


async def told(port: int, *pieces: bytes, pause_s: float = 0.01, quiet_s: float = 0.3) -> bytes:
    """All that is answered to *pieces*, sent one after the other."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    said = b""
    for number, piece in enumerate(pieces):
        await asyncio.sleep(pause_s if number else 0)
        writer.write(piece)
    with suppress(TimeoutError, ConnectionError):
        while heard := await asyncio.wait_for(reader.read(65_536), quiet_s):
            said += heard
    writer.close()
    with suppress(ConnectionError):
        await writer.wait_closed()
    return said


def statuses(said: bytes) -> list[int]:
    return [int(status) for status in re.findall(rb"HTTP/1\.[01] (\d+) ", said)]


async def test_a_plain_receipt_is_answered_at_the_door(shown_in: list[bytes]) -> None:
    notes = Notes()
    async with office(notes) as here:
        said = await told(here.port, request(), request())

    assert shown_in == []
    assert len(notes.news) == 2
    assert [result for *_, result in here.counted] == ["kept", "kept"]
    first, second, rest = said.split(b"\r\n\r\n")
    assert rest == b""
    date = r"Date: \w{3}, \d\d \w{3} \d{4} \d\d:\d\d:\d\d GMT"
    head = (
        "HTTP/1.1 204 No Content\r\nServer: outrider\r\nX-Content-Type-Options: nosniff\r\nCache-Control: no-store\r\n"
    )
    for one in (first, second):
        assert re.fullmatch(re.escape(head) + date, one.decode())


ODD = {
    "in chunks": request("Transfer-Encoding: chunked", length=False)[: -len(WORD)]
    + f"{len(WORD):x}\r\n{WORD.decode()}\r\n0\r\n\r\n".encode(),
    "the last on its connection": request("Connection: close"),
    "of an older kind": request("Connection: keep-alive", version="1.0"),
    "that asks whether it may": request("Expect: 100-continue"),
    "another method": request(method="GET"),
    "two at once": request() + request(),
    "too long": request("X-Long: " + "x" * 5_000, "X-Longer: " + "x" * 6_000, "X-Longest: " + "x" * 6_000),
}  # fmt: skip


@pytest.mark.parametrize("kind", ODD)
async def test_what_is_more_than_plain_is_shown_in_and_kept_all_the_same(kind: str, shown_in: list[bytes]) -> None:
    notes = Notes()
    async with office(notes) as here:
        said = await told(here.port, ODD[kind])

    assert len(shown_in) == 1
    many = 2 if kind == "two at once" else 1
    assert [status for status in statuses(said) if status != 100] == [204] * many
    assert len(notes.news) == many


async def test_however_it_is_cut_it_is_one_receipt(shown_in: list[bytes]) -> None:
    whole, notes = request(), Notes()
    cuts = range(1, len(whole))
    async with office(notes) as here:
        said = await asyncio.gather(*(told(here.port, whole[:cut], whole[cut:]) for cut in cuts[::4]))

    assert {tuple(statuses(one)) for one in said} == {(204,)}
    assert len(notes.news) == len(cuts[::4])
    assert shown_in == []


async def test_who_hesitates_is_shown_in(shown_in: list[bytes]) -> None:
    whole, notes = request(), Notes()
    async with office(notes) as here:
        said = await told(here.port, whole[:-5], whole[-5:], pause_s=2.5 * porter.HURRY_S)

    assert statuses(said) == [204]
    assert shown_in == [whole[:-5]]
    assert len(notes.news) == 1


async def test_what_comes_before_the_answer_is_heard_after_it(shown_in: list[bytes]) -> None:
    class Slow(Notes):
        async def hear(self, news: Sequence[News]) -> None:
            await asyncio.sleep(0.1)
            await super().hear(news)

    notes = Slow()
    async with office(notes) as here:
        said = await told(
            here.port, request(), request(), request(body=FORGED), b"GET /ping HTTP/1.1\r\nHost: x\r\n\r\n"
        )

    assert statuses(said) == [204, 204, 204, 200]
    assert len(notes.news) == 3
    assert len(shown_in) == 1


async def test_our_own_fault_is_a_500_and_a_line_in_the_log(
    shown_in: list[bytes], caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(Notes):
        async def hear(self, news: Sequence[News]) -> None:
            raise RuntimeError("a bug")

    async with office(Broken()) as here:
        said = await told(here.port, request())
        assert statuses(await told(here.port, b"GET /ping HTTP/1.1\r\nHost: x\r\n\r\n")) == [200]

    assert statuses(said) == [500]
    assert b"Content-Length: 0" in said
    assert [str(record.exc_info[1]) for record in caplog.records if record.exc_info] == ["a bug"]


async def test_who_waits_for_what_was_cancelled_is_not_left_waiting(caplog: pytest.LogCaptureFixture) -> None:
    class Forsaken(Notes):
        async def hear(self, news: Sequence[News]) -> None:
            raise asyncio.CancelledError

    async with office(Forsaken()) as here:
        assert await asyncio.wait_for(here.say(request()), timeout=2) == b""
    assert caplog.records == []


async def test_who_is_shown_in_while_he_does_not_read_may_go_on_to_read(monkeypatch: pytest.MonkeyPatch) -> None:
    callers: list[porter.Porter] = []
    come = porter.Porter.connection_made

    def note(self: porter.Porter, transport: asyncio.BaseTransport) -> None:
        callers.append(self)
        come(self, transport)

    monkeypatch.setattr(porter.Porter, "connection_made", note)
    async with office(Notes()) as here:
        reader, writer = await asyncio.open_connection("127.0.0.1", here.port)
        writer.write(request())
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 204")
        (caller,) = callers
        caller.pause_writing()
        writer.write(b"GET /ping HTTP/1.1\r\nHost: x\r\n\r\n")
        await reader.readuntil(b"pong\n")
        assert caller.handler is not None
        paused = [caller.handler.writing_paused]
        caller.resume_writing()
        paused.append(caller.handler.writing_paused)
        writer.close()
    assert paused == [True, False]


def bent(dice: random.Random) -> bytes:
    """A receipt with something odd about it: its headers, lines, length, target, or what comes behind it."""

    def mostly(usual: str, *odd: str) -> str:
        return usual if dice.random() < 0.9 else dice.choice(odd)

    body = dice.choice([WORD, WORD, FORGED, b"", b"xxx"])
    signature = sign(target(), dice.choice([WORD, body, body]))
    usual = ["Host: x", f"X-Signature: {signature}", f"Content-Length: {len(body)}"]
    odd = [
        *usual, f"x-signature:{signature} ", f"Content-Length: {len(body) + 1}", "Content-Length: +5",
        "Transfer-Encoding: chunked", "Expect: 100-continue", "Connection: close", "Connection: Upgrade", "Upgrade: x",
        " folded", "Bad Name: x", "X-Empty:", "X-É: é", "X-\x01: y", "Content-Encoding: gzip",
    ]  # fmt: skip
    headers = [one for one in usual if dice.random() < 0.95] + dice.choices(odd, k=dice.choice([0, 1, 1, 2]))
    method = mostly("POST", "GET", "PUT", "post")
    path = mostly(target(), target() + "?a=b", "/inbound/plain", "/callbacks/other/x", "*", "/%")
    version = mostly("HTTP/1.1", "HTTP/1.0", "HTTP/2.0", "http/1.1")
    head = mostly("\r\n", "\n").join([f"{method} {path} {version}", *headers, "", ""])
    return head.encode() + body + mostly("", "\r\n", "GET", "\x00").encode()


@pytest.mark.parametrize("seeds", [range(3), pytest.param(range(3, 100), marks=pytest.mark.long)], ids=len)
@pytest.mark.timeout(900)
async def test_he_answers_as_aiohttp_does(seeds: range, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(porter, "HURRY_S", 0.05)
    monkeypatch.setattr(listener, "SWEEP_S", 0.05)
    for seed in seeds:
        dice = random.Random(seed)
        requests = [bent(dice) for _ in range(300)]
        heard: list[tuple[list[list[int]], list[str], list[Any]]] = []
        for listening in (public_listener, by_aiohttp):
            monkeypatch.setattr(test_callbacks, "listening", listening)
            notes = Notes()
            async with office(notes, body_timeout_s=0.1, connections_max=1_000) as here:
                said = await asyncio.gather(*(told(here.port, one, quiet_s=1.5) for one in requests))
            kept = sorted(news.receipt.reference for news in notes.news)
            heard.append(([statuses(one) for one in said], kept, sorted(here.counted)))
        (door, kept, counted), (behind, *others) = heard
        assert [(one, at, by) for one, at, by in zip(requests, door, behind, strict=True) if at != by] == []
        assert [kept, counted] == others
        assert len(kept) > 30  # the others are bent so that nobody takes them


def test_the_bound_is_above_any_receipt() -> None:
    assert 8 * len(request()) < PLAIN_MAX
