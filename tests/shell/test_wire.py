"""What only the wire promises; what it shares with aiohttp is in test_transport.py."""

from __future__ import annotations

import asyncio
import gc
import random
import sys
import weakref
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daemon.core.outcome import Uncertain, Unreachable
from daemon.provider import Request, Response
from daemon.transport import BODY_LIMIT, Withdrawn
from daemon.wire import Wire
from daemon.wire.answer import FRAME_LIMIT, HEAD_LIMIT, HEADERS_LIMIT, Answer
from daemon.wire.connection import Connection
from daemon.wire.request import written
from tests.shell.peer import BODY, LATE, SOON, YES, Caller, answering, hang, post, serving

if TYPE_CHECKING:
    from collections.abc import Iterator

    from daemon.wire.answer import Verdict

CREATED = b"HTTP/1.1 201 Created\r\n"
CHUNKED = CREATED + b"Transfer-Encoding: chunked\r\n\r\n"


def heard(*parts: bytes) -> Verdict:
    answer = Answer()
    for part in parts:
        answer.feed(part)
    return answer.end()


# --- any bytes at all

PIECES = st.one_of(
    st.binary(max_size=40),
    st.sampled_from(
        [
            b"HTTP/1.1 ",
            b"HTTP/1.0 ",
            b"200 OK",
            b"201 Created",
            b"400 Bad",
            b"100 Continue",
            b"101 Upgrade",
            b"204 None",
            b"999",
            b"\r\n",
            b"\n",
            b"\r\n\r\n",
            b"Content-Length: 3",
            b"Content-Length: 0",
            b"Content-Length: 99999999999999999999999",
            b"Content-Length: -1",
            b"Transfer-Encoding: chunked",
            b"Transfer-Encoding: gzip",
            b"Connection: close",
            b"Connection: upgrade\r\nUpgrade: it",
            b"X:",
            b" folded",
            b"3\r\nabc\r\n",
            b"0\r\n\r\n",
            b"ffffffffffffffff1\r\n",
            YES,
            CREATED,
            CHUNKED,
        ]
    ),
)
STREAMS = st.lists(PIECES, max_size=12).map(b"".join)


@st.composite
def streams_and_cuts(draw: st.DrawFn) -> tuple[bytes, list[bytes]]:
    raw = draw(STREAMS)
    places = sorted(draw(st.sets(st.integers(0, len(raw)), max_size=20)) | {0, len(raw)})
    return raw, [raw[a:b] for a, b in pairwise(places)]


@given(streams_and_cuts())
@settings(max_examples=500)
def test_the_same_bytes_are_the_same_answer_however_they_are_cut(cut: tuple[bytes, list[bytes]]) -> None:
    raw, parts = cut
    verdict = heard(raw)
    assert isinstance(verdict, Response | Uncertain)
    assert heard(*parts) == verdict
    assert heard(*(bytes([byte]) for byte in raw)) == verdict


@given(streams_and_cuts())
@settings(max_examples=60)
def test_any_bytes_over_a_socket_are_an_answer_or_none(cut: tuple[bytes, list[bytes]]) -> None:
    raw, parts = cut

    async def script(caller: Caller) -> None:
        await caller.request()
        for part in parts:
            caller.say(part)
            await asyncio.sleep(0)

    async def both() -> tuple[object, object]:
        async with serving(script) as server, Wire.open(connections=1) as wire:
            first = await wire.exchange(post(server.url), deadline_s=LATE)
            assert_at_rest(wire, 1)
            async with asyncio.timeout(LATE):
                # The server hangs up after each answer; a request written before we know of it is doubt.
                while wire._connections:  # noqa: ASYNC110
                    await asyncio.sleep(0)
            return first, await wire.exchange(post(server.url), deadline_s=LATE)

    expected = heard(raw)
    for verdict in asyncio.run(both()):
        assert type(verdict) is type(expected)
        assert not isinstance(verdict, Response) or verdict == expected


def _long_answers() -> Iterator[tuple[str, bytes, type]]:
    name = b"X: "
    spare = HEAD_LIMIT - len(CREATED) - len(name) - len(b"\r\nContent-Length: 0\r\n\r\n")
    for extra, kind in ((0, Response), (1, Uncertain)):
        head = CREATED + name + b"y" * (spare + extra) + b"\r\nContent-Length: 0\r\n\r\n"
        yield f"head + {extra}", head, kind
    for count, kind in ((HEADERS_LIMIT, Response), (HEADERS_LIMIT + 1, Uncertain)):
        yield f"{count} headers", CREATED + b"X: y\r\n" * (count - 1) + b"Content-Length: 0\r\n\r\n", kind
    yield "interim", b"HTTP/1.1 103 Early Hints\r\n\r\n" * 5_000 + YES, Uncertain
    yield "no line at all", b"H" * 200_000, Uncertain
    yield "endless status", b"HTTP/1.1 201 " + b"C" * 200_000, Uncertain


@pytest.mark.parametrize(("raw", "kind"), [row[1:] for row in _long_answers()], ids=[row[0] for row in _long_answers()])
@pytest.mark.parametrize("size", [1, 1_000, 65_536, 1 << 20])
def test_a_head_is_bounded_to_the_byte(raw: bytes, kind: type, size: int) -> None:
    assert type(heard(*(raw[at : at + size] for at in range(0, len(raw), size)))) is kind


@pytest.mark.parametrize("size", [37, 65_536, 1 << 20])
def test_small_chunks_endless_extensions_and_trailers_are_no_way_round_the_limit(size: int) -> None:
    room = FRAME_LIMIT + HEAD_LIMIT
    for rest in (b"1;" + b"x" * room, b"0\r\nX: " + b"y" * room, b"1;" + b"x" * 100 + b"\r\na\r\n" * (room // 100)):
        raw = CHUNKED + rest
        answer = Answer()
        for at in range(0, len(raw), size):
            answer.feed(raw[at : at + size])
        assert isinstance(answer.verdict, Response)
        assert (answer.verdict.status, answer.keep) == (201, False)


@pytest.mark.parametrize("extra", [0, 1])
def test_a_body_is_bounded_to_the_byte(extra: int) -> None:
    raw = CREATED + b"Content-Length: %d\r\n\r\n" % (BODY_LIMIT + extra) + b"x" * (BODY_LIMIT + extra)
    verdict = heard(raw)
    assert isinstance(verdict, Response)
    assert len(verdict.body) == BODY_LIMIT
    assert isinstance(heard(raw.replace(b"201", b"400")), Uncertain if extra else Response)


def test_a_broken_chunk_in_the_same_packet_is_no_worse_than_in_the_next() -> None:
    # With aiohttp this hangs on how the network cut it: Uncertain in one packet, the yes in two.
    assert (
        heard(CHUNKED + b"zz\r\n") == heard(CHUNKED, b"zz\r\n") == Response(201, {"transfer-encoding": "chunked"}, b"")
    )


@pytest.mark.parametrize("extra", [b"garbage", b"\x00" * 9, YES])
def test_a_whole_answer_stands_whatever_follows_it(extra: bytes) -> None:
    # With aiohttp garbage in the same packet makes the answer Uncertain.
    answer = Answer()
    verdict = answer.feed(YES + extra)
    assert isinstance(verdict, Response)
    assert (verdict.body, answer.keep) == (b'{"a":1}', False)


@pytest.mark.parametrize(
    ("raw", "keep"),
    [
        (YES, True),
        (YES.replace(b"1.1", b"1.0"), False),
        (YES.replace(b"X-Name: Value", b"Connection: close"), False),
        (YES.replace(b"1.1", b"1.0").replace(b"X-Name: Value", b"Connection: keep-alive"), True),
        (CHUNKED + b"0\r\n\r\n", True),
        (CHUNKED + b"0\r\nConnection: close\r\n\r\n", False),
        (CHUNKED + b"0\r\nX: y\r\n\r\n", True),
        (CREATED.replace(b"201", b"101") + b"Connection: upgrade\r\nUpgrade: it\r\n\r\n", False),
        (CREATED.replace(b"201", b"101") + b"\r\n", False),
    ],
)
def test_a_connection_is_kept_only_if_the_provider_keeps_it(raw: bytes, keep: bool) -> None:
    answer = Answer()
    assert isinstance(answer.feed(raw), Response)
    assert answer.keep is keep


LINES = st.lists(
    st.sampled_from([b"Connection: close", b"Connection: keep-alive", b"Upgrade: it", b"X: y"]), max_size=3
)
BODIES = st.sampled_from(
    [(b"Content-Length: 3", b"abc"), (b"Transfer-Encoding: chunked", b"3\r\nabc\r\n0\r\n"), (b"X: y", b"")]
)


@given(st.sampled_from([b"1.0", b"1.1"]), st.sampled_from([101, 201, 204, 304, 400]), LINES, BODIES, LINES)
@settings(max_examples=500)
def test_whoever_is_kept_reads_the_next_answer_as_if_it_were_the_first(
    version: bytes, status: int, headers: list[bytes], body: tuple[bytes, bytes], trailers: list[bytes]
) -> None:
    kind, text = body
    raw = b"\r\n".join([b"HTTP/%b %d It" % (version, status), *headers, kind, b"", text])
    if kind.endswith(b"chunked"):
        raw += b"\r\n".join([*trailers, b"", b""])
    answer = Answer()
    if answer.feed(raw) and answer.keep:
        answer.begin()
        assert answer.feed(YES) == heard(YES)
        assert answer.keep


async def test_the_next_answer_is_read_well_whatever_the_last_one_said_behind_its_body() -> None:
    async def script(caller: Caller) -> None:
        await caller.request()
        caller.say(CHUNKED + b"0\r\nConnection: close\r\n\r\n")
        await hang(caller)  # it says so, and does not hurry

    async with serving(script) as rude, serving(answering(YES)) as other, Wire.open(connections=2) as wire:
        for server, body in ((rude, b""), (other, b'{"a":1}'), (rude, b""), (rude, b""), (other, b'{"a":1}')):
            verdict = await wire.exchange(post(server.url), deadline_s=LATE)
            assert isinstance(verdict, Response)
            assert (verdict.status, verdict.body) == (201, body)
    assert rude.connections == 3


# --- the request


def test_a_request_is_one_piece_to_the_byte() -> None:
    request = Request("POST", "https://api.example:8443/2010/M.json?a=%2B1", {"Accept": "*/*", "X": "é"}, b"b=1")
    origin, raw = written(request)
    assert origin == ("https", "api.example", 8443)
    head = "POST /2010/M.json?a=%2B1 HTTP/1.1\r\nHost: api.example:8443\r\nAccept: */*\r\nX: é\r\nContent-Length: 3\r\n\r\n"
    assert raw == head.encode() + b"b=1"


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("https://api.example/", b"api.example"),
        ("http://api.example:80/", b"api.example"),
        ("http://api.example:443/", b"api.example:443"),
        ("http://[::1]:8080/", b"[::1]:8080"),
    ],
)
def test_the_host_is_named_as_the_url_names_it(url: str, host: bytes) -> None:
    assert b"\r\nHost: " + host + b"\r\n" in written(Request("GET", url, {}))[1]


@given(
    st.tuples(st.text(max_size=8), st.text(max_size=8)),
    st.sampled_from(["", "\r\n", "\n", "\r", "\0", "\r\nX: 1"]),
)
@settings(max_examples=300)
def test_no_header_adds_a_line(header: tuple[str, str], smuggled: str) -> None:
    name, value = header
    try:
        raw = written(Request("POST", "http://a/", {name: value + smuggled}, BODY))[1]
    except ValueError:  # surrogates cannot be encoded: a ValueError as well
        return
    assert smuggled == ""
    assert raw.count(b"\n") == raw.count(b"\r") == raw.count(b"\r\n") == 5


@pytest.mark.parametrize(
    "request_",
    [
        Request("HEAD", "http://a/", {}),
        Request("GET / HTTP/1.1\r\nX: y", "http://a/", {}),
        Request("", "http://a/", {}),
        Request("POST", "http://a/\r\nX: y", {}),
        Request("POST", "http://a/b c", {}),
        Request("POST", "http://a/é", {}),
        Request("POST", "http://you:me@a/", {}),
        *(Request("POST", "http://a/", {name: "1"}) for name in ("Host", "content-length", "Transfer-Encoding")),
    ],
)
def test_what_would_change_how_a_request_is_read_is_our_bug(request_: Request) -> None:
    with pytest.raises(ValueError, match=r"."):
        written(request_)


# --- the pool


def assert_at_rest(wire: Wire, connections: int) -> None:
    """Every room is free or holds an idle connection; nobody flies, nobody waits."""
    idle = {connection for resting in wire._idle.values() for connection in resting}
    assert wire._connections == idle
    assert wire._rooms + len(idle) == connections
    assert not any(not waiter.future.done() for waiter in wire._waiters)
    assert all(connection.future is None for connection in idle)


async def test_waiters_are_served_in_the_order_they_came() -> None:
    async def script(caller: Caller) -> None:
        while await caller.request():
            await asyncio.sleep(0.001)
            caller.say(YES)

    order: list[int] = []
    async with serving(script) as server, Wire.open(connections=1) as wire:
        await asyncio.gather(
            *(
                wire.exchange(post(server.url), deadline_s=LATE, on_write=lambda number=number: order.append(number))  # type: ignore[misc]
                for number in range(20)
            )
        )
        assert_at_rest(wire, 1)
    assert order == list(range(20))


async def test_the_one_used_last_is_used_next() -> None:
    async def script(caller: Caller) -> None:
        while await caller.request():
            await asyncio.sleep(0.01)
            caller.say(YES)

    async with serving(script) as server, Wire.open(connections=5) as wire:
        await asyncio.gather(*(wire.exchange(post(server.url), deadline_s=LATE) for _ in range(5)))
        (idle,) = wire._idle.values()
        last = idle[-1]
        await wire.exchange(post(server.url), deadline_s=LATE)
        assert idle[-1] is last
    assert server.connections == 5


async def test_two_providers_share_one_limit_and_neither_starves() -> None:
    async def script(caller: Caller) -> None:
        while await caller.request():
            caller.say(YES)

    async with serving(script) as one, serving(script) as other, Wire.open(connections=1) as wire:
        urls = [one.url, other.url] * 10
        answers = await asyncio.gather(*(wire.exchange(post(url), deadline_s=LATE) for url in urls))
        assert_at_rest(wire, 1)
    assert {type(answer) for answer in answers} == {Response}


async def test_cancelled_at_any_turn_nothing_is_left_behind() -> None:
    async def script(caller: Caller) -> None:
        while await caller.request():
            await asyncio.sleep(0)
            caller.say(YES)

    async with serving(script) as server, Wire.open(connections=2) as wire:
        for turns in range(40):
            tasks = [
                asyncio.create_task(wire.exchange(post(server.url), deadline_s=LATE, on_write=lambda: None))
                for _ in range(6)
            ]
            for _ in range(turns):
                await asyncio.sleep(0)
            for task in tasks[turns % 2 :: 2]:
                task.cancel()
            answers = await asyncio.gather(*tasks, return_exceptions=True)
            assert {type(answer) for answer in answers} <= {Response, asyncio.CancelledError}
            assert all(isinstance(answer, Response) for answer in answers[1 - turns % 2 :: 2])
            assert_at_rest(wire, 2)
    assert_closed(wire, 2)


def assert_closed(wire: Wire, connections: int) -> None:
    assert wire._rooms == connections
    assert not wire._connections
    assert not wire._waiters
    assert wire._reaper is None
    assert not [it for it in gc.get_objects() if type(it) is Connection and it.alive]


@pytest.mark.parametrize("early", [YES, b""], ids=["spoke", "hung up"])
async def test_what_happened_while_aiohttp_dialled_is_not_forgotten(
    early: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def script(caller: Caller) -> None:
        caller.say(early)
        if early:
            await hang(caller)

    stamps: list[int] = []
    async with serving(script) as server, Wire.open(connections=1) as wire:
        dial = wire._connector.connect

        async def slowly(*asked: object) -> object:
            held = await dial(*asked)  # type: ignore[arg-type]
            await asyncio.sleep(0.05)
            return held

        monkeypatch.setattr(wire._connector, "connect", slowly)
        answer = await wire.exchange(post(server.url), deadline_s=LATE, on_write=lambda: stamps.append(1))
        assert isinstance(answer, Unreachable)
        assert_at_rest(wire, 1)
    assert (stamps, bytes(server.heard)) == ([], b"")


async def test_a_withdrawn_exchange_gives_its_connection_back() -> None:
    def refuse() -> None:
        raise Withdrawn

    async with serving(answering(YES)) as server, Wire.open(connections=1) as wire:
        for _ in range(5):
            with pytest.raises(Withdrawn):
                await wire.exchange(post(server.url), deadline_s=LATE, on_write=refuse)
            assert_at_rest(wire, 1)
    assert (server.connections, bytes(server.heard)) == (1, b"")


async def test_closing_ends_what_is_under_way_with_the_truth() -> None:
    async with serving(hang) as server:
        async with Wire.open(connections=1) as wire:
            flying = asyncio.create_task(wire.exchange(post(server.url), deadline_s=LATE))
            await asyncio.sleep(0.05)
            waiting = asyncio.create_task(wire.exchange(post(server.url), deadline_s=LATE))
            await asyncio.sleep(0.05)
        assert isinstance(await flying, Uncertain)
        assert isinstance(await waiting, Unreachable)
        assert_closed(wire, 1)
        assert isinstance(await wire.exchange(post(server.url), deadline_s=LATE), Unreachable)


async def test_every_failure_gives_its_room_back() -> None:
    async def rude(caller: Caller) -> None:
        await caller.request()
        caller.reset()

    async with serving(rude) as server, serving(hang) as silent, Wire.open(connections=2) as wire:
        for url in [server.url, "http://127.0.0.1:1/", "http://provider.invalid/", silent.url, server.url + "x"]:
            await asyncio.gather(*(wire.exchange(post(url), deadline_s=SOON) for _ in range(5)))
            assert_at_rest(wire, 2)
    assert_closed(wire, 2)


async def test_whoever_reads_for_all_mixes_nothing_up() -> None:
    """Answers in pieces, cut, broken and followed by garbage, many at once: each exchange hears its own or none."""
    dice = random.Random(4)

    async def script(caller: Caller) -> None:
        while request := await caller.request():
            number, how = request.rpartition(b"=")[2], dice.randrange(8)
            head = b"X-Number: %b\r\nContent-Length: %d\r\n\r\n" % (number, len(number))
            raw = CREATED + head + number
            raw = {5: raw[: -len(number)], 6: b"garbage\r\n\r\n", 7: raw + YES}.get(how, raw)
            for at in range(0, len(raw), 20):
                caller.say(raw[at : at + 20])
                await asyncio.sleep(dice.choice([0, 0, 0.001]))
            if how == 5:
                return

    async with serving(script) as server, Wire.open(connections=20) as wire:
        answers = await asyncio.gather(
            *(wire.exchange(post(server.url, b"N=%d" % number), deadline_s=LATE) for number in range(600))
        )
        assert_at_rest(wire, 20)
        assert 0 < len(wire._answers) <= 20
        assert all(answer.verdict is None for answer in wire._answers)
    whole = [(number, answer) for number, answer in enumerate(answers) if isinstance(answer, Response)]
    assert len(whole) > 400
    for number, answer in whole:
        assert answer.headers["x-number"] == str(number)
        assert answer.body in {b"%d" % number, b""}


class Watched(dict[str, str]):
    """Headers, and unlike others one can see them go."""


async def test_who_waits_for_an_answer_holds_nothing_that_reads_or_asks() -> None:
    heard = asyncio.Event()

    async def silent(caller: Caller) -> None:
        await caller.request()
        heard.set()
        await hang(caller)

    async with serving(silent) as server, Wire.open(connections=2) as wire:
        said, stamp = Watched(), lambda: None
        kept: list[weakref.ref[object]] = [weakref.ref(said), weakref.ref(stamp)]
        waiting = asyncio.create_task(
            wire.exchange(Request("POST", server.url, said, BODY), deadline_s=LATE, on_write=stamp)
        )
        del said, stamp
        await heard.wait()
        assert [one() for one in kept] == [None, None]
        assert [connection._answer for connection in wire._connections] == [None]
        waiting.cancel()


async def test_no_connection_outlives_its_use_in_memory() -> None:
    async with serving(answering(YES)) as server, Wire.open(connections=1) as wire:
        await wire.exchange(post(server.url), deadline_s=LATE)
        (connection,) = wire._connections
        await asyncio.sleep(0.05)  # the provider's FIN
        assert wire._connections == set()
        assert sys.getrefcount(connection) <= 3
