"""
Every parser of ``parsers.py``, fed mutations of what it is meant for: none may crash, hang, grow or be answered 500.

Seeded, so that whatever breaks breaks again; the bytes are told, and belong into the parser's seeds afterwards.
"""

from __future__ import annotations

import asyncio
import gc
import os
import random
import re
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.trouble.parsers import INBOUND, RECEIPT, TOKEN, parsers
from tests.trouble.test_slowloris import PATIENCE_S, public

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tests.trouble.parsers import Parser

HANG_S, PATIENCE_IN_THE_GATE_S = 0.1, 5.0  # the gate runs on machines of any speed
SHORT = 250  # in the gate one in so many of the long test's mutations
GROWTH_MAX = (
    8 * 2**20
)  # bytes a parser may keep of the second half of its mutations: what is loaded on need is, by then
LONGEST = 200_000
DIGITS = b"9" * 5_000  # more than int() reads
ODD = (
    b"", b"\0", b"\xff", b"\r\n", b"\n\n", b"%", b"%00", b"%u", b"&", b"=", b"+", b";", b"?", b"#", b":", b",", b"/", b"\\",
    b'"', b"{", b"}", b"[", b"]", b"[[", b"-1", b"0", b"1e400", b"nan", b"inf", b"null", b"true", DIGITS, b"\xed\xa0\x80",
    b"\xf4\x90\x80\x80", b"\xe2\x80\xae", b"1979-05-27T07:32:00Z", b"Content-Length: -1\r\n", b"Transfer-Encoding: chunked\r\n",
)  # fmt: skip
_word = re.compile(rb"[A-Za-z0-9_]+|[^A-Za-z0-9_]")


class Mutator:
    """Makes strange things out of ordinary ones."""

    def __init__(self, seeds: Sequence[bytes], dice: random.Random) -> None:
        self._seeds = seeds
        self._dice = dice
        self._words: list[bytes] = [*sorted({word for seed in seeds for word in _word.findall(seed)}), *ODD]
        self._ways: Sequence[Callable[[bytes], bytes]] = (
            self._flip, self._flip, self._cut, self._write, self._write, self._exchange, self._again, self._cross,
        )  # fmt: skip

    def make(self) -> bytes:
        """One strange thing: some changes upon each other, seldom more than a few."""
        raw = self._dice.choice(self._seeds)
        for _ in range(min(int(self._dice.expovariate(0.5)) + 1, 12)):
            change = self._dice.choice(self._ways)
            raw = change(raw)
        return raw[:LONGEST]

    def _at(self, raw: bytes) -> int:
        return self._dice.randrange(len(raw) + 1)

    def _flip(self, raw: bytes) -> bytes:
        at = self._at(raw)
        return raw[:at] + bytes([self._dice.randrange(256)]) + raw[at + 1 :]

    def _cut(self, raw: bytes) -> bytes:
        start, end = sorted((self._at(raw), self._at(raw)))
        return raw[:start] + raw[end:]

    def _write(self, raw: bytes) -> bytes:
        at = self._at(raw)
        return raw[:at] + self._dice.choice(self._words) + raw[at:]

    def _exchange(self, raw: bytes) -> bytes:
        """One word for another."""
        found = [*_word.finditer(raw[:5_000])]
        if not found:
            return raw
        word = self._dice.choice(found)
        return raw[: word.start()] + self._dice.choice(self._words) + raw[word.end() :]

    def _again(self, raw: bytes) -> bytes:
        """A piece many times: depth, and length."""
        at = self._at(raw)
        piece = raw[at : at + self._dice.choice((1, 1, 2, 20))]
        return raw[:at] + piece * self._dice.choice((2, 2, 10, 10, 100, 2_000)) + raw[at:]

    def _cross(self, raw: bytes) -> bytes:
        other = self._dice.choice(self._seeds)
        return raw[: self._at(raw)] + other[self._at(other) :]


def memory() -> int:
    """What this process has in memory, in bytes."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


def took(parser: Parser, raw: bytes) -> float:
    """Seconds of our own time to eat *raw*: the machine's other work is not the parser's."""
    began = time.thread_time()
    parser.eat(raw)
    return time.thread_time() - began


def fuzz(name: str, parser: Parser, times: int, *, weighed: bool = False) -> None:
    mutator = Mutator(parser.seeds, random.Random(name))
    slowest, settled, began = 0.0, 0, time.monotonic()
    longest = HANG_S if weighed else PATIENCE_IN_THE_GATE_S
    for seed in parser.seeds:
        parser.eat(seed)
    for number in range(times):
        if weighed and number == times // 2:
            settled = memory()
        raw = mutator.make()
        try:
            slow = took(parser, raw)
            if slow > longest:
                slow = min(slow, *(took(parser, raw) for _ in range(3)))  # a collection of garbage hangs only once
        except Exception as crash:
            raise AssertionError(f"{name} crashed on {shown(raw)}") from crash
        assert slow <= longest, f"{name} took {slow:.2f} s for {shown(raw)}"
        slowest = max(slowest, slow)
    grown = memory() - settled if weighed else 0
    spent = time.monotonic() - began
    print(f"{name}: {times} in {spent:.1f} s, slowest {slowest * 1e3:.1f} ms, grown {grown / 2**20:.1f} MB")
    assert grown <= GROWTH_MAX, f"{name} keeps {grown} bytes"


def shown(raw: bytes) -> str:
    return repr(raw) if len(raw) < 2_000 else f"{raw[:500]!r} ... {raw[-500:]!r} ({len(raw)} bytes)"


async def test_no_parser_stumbles_over_anything(tmp_path: Path) -> None:
    for name, parser in parsers(tmp_path).items():
        fuzz(name, parser, parser.times // SHORT)


@pytest.mark.long
@pytest.mark.timeout(900)
async def test_no_parser_stumbles_over_a_million_things(tmp_path: Path) -> None:
    table = parsers(tmp_path)
    assert sum(parser.times for parser in table.values()) >= 1_000_000
    for name, parser in table.items():
        fuzz(name, parser, parser.times, weighed=True)


# --- the whole public listener, over a socket


REQUESTS = tuple(
    f"{method} {target} HTTP/1.1\r\nHost: x\r\nX-Twilio-Signature: {'A' * 27}=\r\n"
    f"Content-Type: application/x-www-form-urlencoded\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    + body
    for method, target, body in (
        ("POST", f"/callbacks/sim/{TOKEN}", RECEIPT),
        ("POST", "/inbound/sim", INBOUND),
        ("GET", f"/callbacks/sim/{TOKEN}?{RECEIPT.decode()}", b""),
        ("GET", "/ping", b""),
    )
)


async def answers(port: int, raw: bytes, *, within_s: float = 0.1) -> list[int]:
    """What the listener says to *raw*: the statuses. Most of it waits for more, and is left."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    said = b""
    with suppress(ConnectionError, TimeoutError):
        writer.write(raw)
        async with asyncio.timeout(within_s):
            while heard := await reader.read(65_536):
                said += heard
    writer.transport.abort()
    return [int(status) for status in re.findall(rb"^HTTP/1\.[01] (\d+)", said, re.MULTILINE)]


async def asked(times: int, caplog: pytest.LogCaptureFixture, *, clients: int = 32) -> None:
    mutator = Mutator(REQUESTS, random.Random("requests"))
    heard: Counter[int] = Counter()

    async def client(port: int) -> None:
        for _ in range(times // clients):
            raw = mutator.make()
            statuses = await answers(port, raw)
            assert not [status for status in statuses if status >= 500], f"{statuses} to {shown(raw)}"
            heard.update(statuses)

    async with public() as listener:
        await asyncio.gather(*(client(listener.port) for _ in range(clients)))
        assert await answers(listener.port, REQUESTS[-1], within_s=PATIENCE_S) == [200]
    assert caplog.records == []  # nor does any of them cost a line in the log
    print(f"requests: {times}, answered {dict(heard)}")


async def test_no_request_is_answered_500(caplog: pytest.LogCaptureFixture) -> None:
    await asked(320, caplog)


@pytest.mark.long
@pytest.mark.timeout(300)
async def test_no_request_of_twenty_thousand_is_answered_500(caplog: pytest.LogCaptureFixture) -> None:
    await asked(20_000, caplog)
