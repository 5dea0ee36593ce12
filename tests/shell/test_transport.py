"""Every way an exchange can go wrong on a real socket, and what each permits (facts: reliability 2.4)."""

from __future__ import annotations

import asyncio
import gzip
import socket
import struct
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

import aiohttp
import pytest

from daemon.core.outcome import Uncertain, Unreachable
from daemon.provider import Request, Response
from daemon.transport import BODY_LIMIT, Transport, Withdrawn, _Flight

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

BODY = b"To=%2B15005550001&Body=hello"
YES = b"HTTP/1.1 201 Created\r\nContent-Length: 7\r\nX-Name: Value\r\n\r\n" + b'{"a":1}'
SOON = 0.3  # seconds: a deadline that is meant to pass
LATE = 10.0  # one that is not


@dataclass
class Wire:
    """One connection, as the server sees it."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    heard: bytearray  # shared by all connections of the server

    async def request(self) -> bytes:
        head = await self.reader.readuntil(b"\r\n\r\n")
        self.heard += head
        length = next(
            (int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")), 0
        )
        body = await self.reader.readexactly(length)
        self.heard += body
        return head + body

    def say(self, raw: bytes) -> None:
        self.writer.write(raw)

    def reset(self) -> None:
        """Hang up with RST."""
        raw: socket.socket = self.writer.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


@dataclass
class Server:
    url: str
    heard: bytearray = field(default_factory=bytearray)
    connections: int = 0


Script: TypeAlias = "Callable[[Wire], Awaitable[None]]"


@asynccontextmanager
async def serving(script: Script) -> AsyncIterator[Server]:
    server = Server("")

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server.connections += 1
        try:
            await script(Wire(reader, writer, server.heard))
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            # What a client sends after its own deadline must be seen too.
            if not writer.is_closing():
                writer.close()

    listening = await asyncio.start_server(talk, "127.0.0.1", 0)
    server.url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}/2010-04-01/Messages.json"
    try:
        yield server
    finally:
        listening.close()


def post(url: str, body: bytes = BODY) -> Request:
    return Request(
        "POST", url, {"Content-Type": "application/x-www-form-urlencoded", "Authorization": "Basic eA=="}, body
    )


async def once(script: Script, *, deadline_s: float = LATE) -> Response | Unreachable | Uncertain:
    async with serving(script) as server, Transport.open(connections=1) as transport:
        return await transport.exchange(post(server.url), deadline_s=deadline_s)


def answering(raw: bytes) -> Script:
    async def script(wire: Wire) -> None:
        await wire.request()
        wire.say(raw)

    return script


async def hang(wire: Wire) -> None:
    await wire.reader.read()  # until the client hangs up


# --- what works


async def test_an_answer_comes_back_whole_with_lower_case_headers() -> None:
    answer = await once(answering(YES))
    assert answer == Response(201, {"content-length": "7", "x-name": "Value"}, b'{"a":1}')


async def test_the_request_leaves_as_the_dialect_wrote_it() -> None:
    async with serving(answering(YES)) as server, Transport.open(connections=1) as transport:
        await transport.exchange(post(server.url + "?DateSent%3E=a%2Bb"), deadline_s=LATE)
    head, _, body = bytes(server.heard).partition(b"\r\n\r\n")
    assert head.startswith(b"POST /2010-04-01/Messages.json?DateSent%3E=a%2Bb HTTP/1.1\r\n")
    assert body == BODY
    assert b"Content-Type: application/x-www-form-urlencoded" in head
    assert b"Authorization: Basic eA==" in head


async def test_a_question_without_a_body_is_an_exchange_too() -> None:
    async with serving(answering(YES)) as server, Transport.open(connections=1) as transport:
        written: list[int] = []
        asked = Request("GET", server.url, {"Accept": "application/json"})
        answer = await transport.exchange(asked, deadline_s=LATE, on_write=lambda: written.append(1))
    assert isinstance(answer, Response)
    assert answer.status == 201
    assert written == [1]
    assert server.heard.startswith(b"GET ")


async def test_one_connection_serves_one_exchange_after_another() -> None:
    async def script(wire: Wire) -> None:
        while await wire.request():
            wire.say(YES)

    async with serving(script) as server, Transport.open(connections=4) as transport:
        for _ in range(5):
            assert isinstance(await transport.exchange(post(server.url), deadline_s=LATE), Response)
    assert server.connections == 1


async def test_chunks_and_interim_answers_are_put_together() -> None:
    head = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </>\r\n\r\nHTTP/1.1 201 Created\r\n"
    answer = await once(answering(head + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"))
    assert isinstance(answer, Response)
    assert (answer.status, answer.body) == (201, b"abcde")


async def test_nothing_is_decompressed() -> None:
    bomb = gzip.compress(bytes(10_000_000))
    head = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(bomb)
    answer = await once(answering(head + bomb))
    assert isinstance(answer, Response)
    assert answer.body == bomb


async def test_an_answer_of_just_the_limit_is_whole() -> None:
    answer = await once(answering(b"HTTP/1.1 400 Bad\r\nContent-Length: %d\r\n\r\n" % BODY_LIMIT + bytes(BODY_LIMIT)))
    assert isinstance(answer, Response)
    assert len(answer.body) == BODY_LIMIT


@pytest.mark.parametrize("status", [200, 307, 308, 400, 429, 500, 503])
async def test_any_whole_answer_is_the_dialects_to_judge_and_no_redirect_is_followed(status: int) -> None:
    requests = 0

    async def script(wire: Wire) -> None:
        nonlocal requests
        while await wire.request():
            requests += 1
            wire.say(b"HTTP/1.1 %d X\r\nLocation: /elsewhere\r\nContent-Length: 0\r\n\r\n" % status)

    answer = await once(script)
    assert isinstance(answer, Response)
    assert (answer.status, requests) == (status, 1)


# --- it never left


async def test_a_refused_connection_is_unreachable() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))  # bound, not listening: nobody else can take it
        async with Transport.open(connections=1) as transport:
            answer = await transport.exchange(post(f"http://127.0.0.1:{free.getsockname()[1]}/"), deadline_s=LATE)
    assert isinstance(answer, Unreachable)
    assert "Connect" in answer.reason


async def test_a_name_that_does_not_resolve_is_unreachable() -> None:
    async with Transport.open(connections=1) as transport:
        answer = await transport.exchange(post("http://provider.invalid/"), deadline_s=LATE)
    assert isinstance(answer, Unreachable)


async def test_a_connection_that_does_not_come_about_in_time_is_unreachable() -> None:
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        address = full.getsockname()
        # A backlog of 0 still takes one; the next SYNs are dropped.
        fillers = [socket.socket() for _ in range(4)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(address)
        async with Transport.open(connections=1) as transport:
            answer = await transport.exchange(post(f"http://127.0.0.1:{address[1]}/"), deadline_s=SOON)
        for filler in fillers:
            filler.close()
    assert answer == Unreachable("no connection in time")


async def test_a_tls_handshake_that_stalls_is_unreachable() -> None:
    async with serving(hang) as server, Transport.open(connections=1) as transport:
        answer = await transport.exchange(post(server.url.replace("http:", "https:")), deadline_s=SOON)
    assert answer == Unreachable("no connection in time")


async def test_speaking_tls_to_a_plain_server_is_unreachable() -> None:
    async def script(wire: Wire) -> None:
        await wire.reader.read(10)
        wire.say(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    async with serving(script) as server, Transport.open(connections=1) as transport:
        answer = await transport.exchange(post(server.url.replace("http:", "https:")), deadline_s=LATE)
    assert isinstance(answer, Unreachable)


async def test_waiting_in_vain_for_a_free_connection_is_unreachable_and_not_stamped() -> None:
    written: list[str] = []
    async with serving(hang) as server, Transport.open(connections=1) as transport:
        first = asyncio.create_task(
            transport.exchange(post(server.url), deadline_s=3 * SOON, on_write=lambda: written.append("first"))
        )
        await asyncio.sleep(0.05)
        second = await transport.exchange(post(server.url), deadline_s=SOON, on_write=lambda: written.append("second"))
        assert second == Unreachable("no connection in time")
        assert await first == Uncertain("no whole answer in time")
    assert written == ["first"]


async def test_a_url_that_is_none_never_leaves() -> None:
    async with Transport.open(connections=1) as transport:
        assert isinstance(await transport.exchange(post("ftp://127.0.0.1/"), deadline_s=LATE), Unreachable)


# --- it may have left


async def _fin_on_accept(wire: Wire) -> None:
    wire.writer.close()


async def _reset_on_accept(wire: Wire) -> None:
    wire.reset()


async def _fin_after_headers(wire: Wire) -> None:
    await wire.reader.readuntil(b"\r\n\r\n")
    wire.writer.close()


async def _fin_after_request(wire: Wire) -> None:
    await wire.request()


async def _reset_after_request(wire: Wire) -> None:
    await wire.request()
    wire.reset()


async def _fin_within_the_head(wire: Wire) -> None:
    await wire.request()
    wire.say(b"HTTP/1.1 201 Cre")


@pytest.mark.parametrize(
    "script",
    [_fin_after_headers, _fin_after_request, _reset_after_request, _fin_within_the_head],
    ids=lambda script: script.__name__[1:],
)
async def test_a_connection_lost_after_the_request_is_uncertain(script: Script) -> None:
    assert isinstance(await once(script), Uncertain)


@pytest.mark.parametrize("script", [_fin_on_accept, _reset_on_accept], ids=lambda script: script.__name__[1:])
async def test_a_connection_lost_at_once_is_unreachable_only_if_nothing_was_stamped(script: Script) -> None:
    for _ in range(20):  # the race is real: either may win
        written: list[int] = []
        async with serving(script) as server, Transport.open(connections=1) as transport:
            answer = await transport.exchange(post(server.url), deadline_s=LATE, on_write=lambda: written.append(1))  # noqa: B023
        assert isinstance(answer, Uncertain if written else Unreachable)


@pytest.mark.parametrize(
    "raw",
    [
        b"garbage\r\n\r\n",
        b"\x00\xff\xfe" * 100 + b"\r\n\r\n",
        b"HTTP/9.9 2xx Maybe\r\n\r\n",
        b"HTTP/1.1 201 Created\r\nContent-Length: abc\r\n\r\n{}",
        b"HTTP/1.1 201 Created\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 201 Created\r\nX: " + b"y" * 100_000 + b"\r\n\r\n",
    ],
    ids=["words", "bytes", "status", "length", "chunk in the same packet", "endless header"],
)
async def test_garbage_is_uncertain_though_aiohttp_calls_it_400(raw: bytes) -> None:
    assert isinstance(await once(answering(raw)), Uncertain)


async def test_silence_is_uncertain() -> None:
    async def script(wire: Wire) -> None:
        await wire.request()
        await hang(wire)

    assert await once(script, deadline_s=SOON) == Uncertain("no whole answer in time")


async def test_a_server_that_does_not_even_read_is_uncertain() -> None:
    assert await once(hang, deadline_s=SOON) == Uncertain("no whole answer in time")


async def test_endless_interim_answers_end_at_the_deadline() -> None:
    async def script(wire: Wire) -> None:
        await wire.request()
        while True:
            wire.say(b"HTTP/1.1 103 Early Hints\r\n\r\n")
            await wire.writer.drain()
            await asyncio.sleep(0.02)

    assert isinstance(await once(script, deadline_s=SOON), Uncertain)


# --- a status line, but not the whole of its body


async def _cut(wire: Wire) -> None:
    await wire.request()
    wire.say(wire_head + b"Content-Length: 100\r\n\r\nhalf")


async def _stalled(wire: Wire) -> None:
    await wire.request()
    wire.say(wire_head + b"Content-Length: 100\r\n\r\nhalf")
    await hang(wire)


async def _dripping(wire: Wire) -> None:
    await wire.request()
    wire.say(wire_head + b"Content-Length: 1000\r\n\r\n")
    while True:
        wire.say(b"h")
        await wire.writer.drain()
        await asyncio.sleep(0.02)


async def _oversize(wire: Wire) -> None:
    await wire.request()
    wire.say(wire_head + b"Content-Length: %d\r\n\r\n" % (BODY_LIMIT + 1) + b"h" * (BODY_LIMIT + 1))


async def _endless_chunks(wire: Wire) -> None:
    await wire.request()
    wire.say(wire_head + b"Transfer-Encoding: chunked\r\n\r\n")
    while True:
        wire.say(b"1000\r\n" + b"h" * 4096 + b"\r\n")
        await wire.writer.drain()


async def _chunk_of_no_size(wire: Wire) -> None:
    await wire.request()
    wire.say(wire_head + b"Transfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n")
    await wire.writer.drain()
    await asyncio.sleep(0.05)
    wire.say(b"zz\r\n")


async def _reset_within(wire: Wire) -> None:
    await wire.request()
    wire.say(wire_head + b"Content-Length: 100\r\n\r\nhalf")
    await wire.writer.drain()
    await asyncio.sleep(0.05)
    wire.reset()


wire_head = b""
BROKEN = [_cut, _stalled, _dripping, _oversize, _endless_chunks, _chunk_of_no_size, _reset_within]


@pytest.mark.parametrize("script", BROKEN, ids=lambda script: script.__name__[1:])
async def test_a_yes_stays_a_yes_when_its_body_breaks(script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "wire_head", b"HTTP/1.1 201 Created\r\n")
    answer = await once(script, deadline_s=2 * SOON)
    assert isinstance(answer, Response)
    assert answer.status == 201
    assert len(answer.body) <= BODY_LIMIT


@pytest.mark.parametrize("status", [b"400 Bad", b"429 Slow", b"307 There", b"500 Oh"])
@pytest.mark.parametrize("script", BROKEN, ids=lambda script: script.__name__[1:])
async def test_no_other_answer_counts_when_its_body_breaks(
    script: Script, status: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(globals(), "wire_head", b"HTTP/1.1 " + status + b"\r\n")
    assert isinstance(await once(script, deadline_s=2 * SOON), Uncertain)


# --- the moment of writing


async def test_the_stamp_comes_once_with_a_connection_and_before_any_byte() -> None:
    async with serving(answering(YES)) as server, Transport.open(connections=1) as transport:
        seen: list[tuple[int, bytes]] = []

        def stamp() -> None:
            seen.append((server.connections, bytes(server.heard)))

        # Whatever had left before the stamp would be here by the time the server answers.
        assert isinstance(await transport.exchange(post(server.url), deadline_s=LATE, on_write=stamp), Response)
    assert [heard for _, heard in seen] == [b""]


@pytest.mark.parametrize("error", [Withdrawn("opted out"), OSError(28, "disk full"), TimeoutError(), ValueError("bug")])
async def test_what_the_stamp_raises_comes_out_and_nothing_leaves(error: Exception) -> None:
    connected = asyncio.Event()
    received = bytearray()

    async def script(wire: Wire) -> None:
        connected.set()
        received.extend(await wire.reader.read())

    def refuse() -> None:
        raise error

    async with serving(script) as server:
        async with Transport.open(connections=1) as transport:
            with pytest.raises(type(error)) as raised:
                await transport.exchange(post(server.url), deadline_s=LATE, on_write=refuse)
            assert raised.value is error
        await asyncio.wait_for(connected.wait(), LATE)
        await asyncio.sleep(0.1)
    assert received == b""


async def test_a_withdrawn_exchange_leaves_the_transport_usable() -> None:
    def refuse() -> None:
        raise Withdrawn

    async with serving(answering(YES)) as server, Transport.open(connections=1) as transport:
        with pytest.raises(Withdrawn):
            await transport.exchange(post(server.url), deadline_s=LATE, on_write=refuse)
        assert isinstance(await transport.exchange(post(server.url), deadline_s=LATE), Response)
    assert server.heard.count(b"POST ") == 1


async def test_a_request_is_never_repeated_on_another_connection() -> None:
    requests = 0

    async def script(wire: Wire) -> None:
        nonlocal requests
        await wire.request()
        requests += 1
        if requests == 1:
            wire.say(YES)
            await wire.request()  # the second arrives on a connection that is then slammed
            requests += 1
        wire.reset()

    for method in ("POST", "PUT", "DELETE"):  # aiohttp repeats the last two by itself
        requests = 0
        stamps: list[int] = []
        async with serving(script) as server, Transport.open(connections=1) as transport:
            request = Request(method, server.url, {}, BODY)
            assert isinstance(await transport.exchange(request, deadline_s=LATE), Response)
            answer = await transport.exchange(request, deadline_s=LATE, on_write=lambda: stamps.append(1))  # noqa: B023
        assert isinstance(answer, Uncertain)
        assert (requests, stamps) == (2, [1])


async def test_nothing_leaves_after_the_verdict() -> None:
    async with serving(answering(YES)) as server, aiohttp.ClientSession() as session:
        stamps: list[int] = []
        flight = _Flight(BODY, lambda: stamps.append(1), 0.0)
        flight.over = True
        with pytest.raises(aiohttp.ClientConnectionError):
            await session.post(server.url, data=flight)
        await asyncio.sleep(0.05)
    assert (server.connections, stamps, bytes(server.heard)) == (1, [], b"")


async def test_a_connection_known_to_be_closed_is_not_written_to_nor_stamped() -> None:
    stamps: list[int] = []
    hooks = aiohttp.TraceConfig()

    async def close(session: aiohttp.ClientSession, *_: object) -> None:
        assert session.connector is not None
        for protocol in session.connector._acquired:
            assert protocol.transport is not None
            protocol.transport.close()

    hooks.on_request_headers_sent.append(close)  # the last thing before the body is asked for
    async with serving(answering(YES)) as server, aiohttp.ClientSession(trace_configs=[hooks]) as session:
        answer = await Transport(session).exchange(post(server.url), deadline_s=LATE, on_write=lambda: stamps.append(1))
    assert isinstance(answer, Unreachable)
    assert (stamps, bytes(server.heard)) == ([], b"")


async def test_a_kept_connection_that_died_is_replaced_or_told_as_unreachable() -> None:
    async with serving(answering(YES)) as server, Transport.open(connections=1) as transport:
        for _ in range(30):  # each answer is followed by FIN, which races the next request
            stamps: list[int] = []
            answer = await transport.exchange(post(server.url), deadline_s=LATE, on_write=lambda: stamps.append(1))  # noqa: B023
            assert isinstance(answer, Response | (Uncertain if stamps else Unreachable))


# --- cancelling


async def test_being_cancelled_is_not_a_deadline() -> None:
    async with serving(hang) as server, Transport.open(connections=1) as transport:
        task = asyncio.create_task(transport.exchange(post(server.url), deadline_s=LATE))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_cancelled_anywhere_nothing_leaves_without_a_stamp() -> None:
    outcomes = set()
    async with serving(answering(YES)) as server:
        for turns in range(60):
            stamps: list[int] = []
            server.heard.clear()
            async with Transport.open(connections=1) as transport:
                exchange = transport.exchange(post(server.url), deadline_s=LATE, on_write=lambda: stamps.append(1))  # noqa: B023
                task = asyncio.create_task(exchange)
                for _ in range(turns):
                    await asyncio.sleep(0)
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
                await asyncio.sleep(0.01)
            assert stamps or not server.heard
            outcomes.add((bool(stamps), task.cancelled()))
    assert {(False, True), (True, True)} <= outcomes  # the interruptions fell on both sides of the write


async def test_a_callers_own_time_limit_stays_its_own() -> None:
    async with serving(hang) as server, Transport.open(connections=1) as transport:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(SOON):
                await transport.exchange(post(server.url), deadline_s=LATE)


async def test_a_passed_deadline_leaves_no_mark_on_the_task() -> None:
    async with serving(hang) as server, Transport.open(connections=1) as transport:
        assert isinstance(await transport.exchange(post(server.url), deadline_s=SOON), Uncertain)
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0
        await asyncio.sleep(0)  # a cancellation left over would strike here


async def test_many_exchanges_end_at_their_own_deadlines() -> None:
    async def script(wire: Wire) -> None:
        await wire.request()
        await asyncio.sleep(2 * SOON)
        wire.say(YES)

    async with serving(script) as server, Transport.open(connections=40) as transport:
        short = [transport.exchange(post(server.url), deadline_s=SOON) for _ in range(20)]
        long = [transport.exchange(post(server.url), deadline_s=LATE) for _ in range(20)]
        answers = await asyncio.gather(*short, *long)
    assert [type(answer) for answer in answers] == [Uncertain] * 20 + [Response] * 20


async def test_an_idle_transport_arms_no_timer() -> None:
    async with serving(answering(YES)) as server, Transport.open(connections=1) as transport:
        await transport.exchange(post(server.url), deadline_s=LATE)
        assert transport._flights == set()
        await asyncio.sleep(0.25)  # two sweeps
        assert transport._sweeping is False


async def test_no_reason_names_a_number() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/Messages.json?To=%2B15005550001"
        async with Transport.open(connections=1) as transport:
            refused = await transport.exchange(Request("GET", url, {}), deadline_s=LATE)
            unspeakable = await transport.exchange(Request("GET", url.replace("http", "gopher"), {}), deadline_s=LATE)
    assert isinstance(refused, Unreachable)
    assert isinstance(unspeakable, Unreachable)
    assert "15005550001" not in refused.reason + unspeakable.reason


async def test_no_connections_is_a_mistake_not_a_boundless_pool() -> None:
    with pytest.raises(ValueError, match="at least one"):
        async with Transport.open(connections=0):
            pass
