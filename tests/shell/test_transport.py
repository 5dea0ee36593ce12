"""Every way an exchange can go wrong on a real socket, and what each permits (facts: reliability 2.4)."""

from __future__ import annotations

import asyncio
import gzip
import socket
import ssl
import subprocess
from typing import TYPE_CHECKING, TypeAlias

import aiohttp
import pytest

from daemon.core.outcome import Uncertain, Unreachable
from daemon.provider import Request, Response
from daemon.transport import BODY_LIMIT, Transport, Withdrawn, _Flight
from daemon.wire import Wire
from tests.shell.peer import BODY, LATE, SOON, YES, Caller, Script, answering, hang, post, serving

if TYPE_CHECKING:
    from pathlib import Path

Kind: TypeAlias = type[Transport] | type[Wire]


@pytest.fixture(params=[Transport, Wire], ids=["aiohttp", "wire"])
def kind(request: pytest.FixtureRequest) -> Kind:
    """Both must do the same, to the word."""
    return request.param  # type: ignore[no-any-return]


async def once(kind: Kind, script: Script, *, deadline_s: float = LATE) -> Response | Unreachable | Uncertain:
    async with serving(script) as server, kind.open(connections=1) as transport:
        return await transport.exchange(post(server.url), deadline_s=deadline_s)


# --- what works


async def test_an_answer_comes_back_whole_with_lower_case_headers(kind: Kind) -> None:
    answer = await once(kind, answering(YES))
    assert answer == Response(201, {"content-length": "7", "x-name": "Value"}, b'{"a":1}')


async def test_the_request_leaves_as_the_dialect_wrote_it(kind: Kind) -> None:
    async with serving(answering(YES)) as server, kind.open(connections=1) as transport:
        await transport.exchange(post(server.url + "?DateSent%3E=a%2Bb"), deadline_s=LATE)
    head, _, body = bytes(server.heard).partition(b"\r\n\r\n")
    assert head.startswith(b"POST /2010-04-01/Messages.json?DateSent%3E=a%2Bb HTTP/1.1\r\n")
    assert body == BODY
    assert b"Content-Type: application/x-www-form-urlencoded" in head
    assert b"Authorization: Basic eA==" in head


async def test_a_question_without_a_body_is_an_exchange_too(kind: Kind) -> None:
    async with serving(answering(YES)) as server, kind.open(connections=1) as transport:
        written: list[int] = []
        asked = Request("GET", server.url, {"Accept": "application/json"})
        answer = await transport.exchange(asked, deadline_s=LATE, on_write=lambda: written.append(1))
    assert isinstance(answer, Response)
    assert answer.status == 201
    assert written == [1]
    assert server.heard.startswith(b"GET ")


async def test_one_connection_serves_one_exchange_after_another(kind: Kind) -> None:
    async def script(caller: Caller) -> None:
        while await caller.request():
            caller.say(YES)

    async with serving(script) as server, kind.open(connections=4) as transport:
        for _ in range(5):
            assert isinstance(await transport.exchange(post(server.url), deadline_s=LATE), Response)
    assert server.connections == 1


async def test_chunks_and_interim_answers_are_put_together(kind: Kind) -> None:
    head = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </>\r\n\r\nHTTP/1.1 201 Created\r\n"
    answer = await once(kind, answering(head + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"))
    assert isinstance(answer, Response)
    assert (answer.status, answer.body) == (201, b"abcde")


async def test_nothing_is_decompressed(kind: Kind) -> None:
    bomb = gzip.compress(bytes(10_000_000))
    head = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(bomb)
    answer = await once(kind, answering(head + bomb))
    assert isinstance(answer, Response)
    assert answer.body == bomb


async def test_an_answer_of_just_the_limit_is_whole(kind: Kind) -> None:
    answer = await once(
        kind, answering(b"HTTP/1.1 400 Bad\r\nContent-Length: %d\r\n\r\n" % BODY_LIMIT + bytes(BODY_LIMIT))
    )
    assert isinstance(answer, Response)
    assert len(answer.body) == BODY_LIMIT


@pytest.mark.parametrize("status", [200, 301, 302, 307, 308, 400, 429, 500, 503])
async def test_any_whole_answer_is_the_dialects_to_judge_and_no_redirect_is_followed(kind: Kind, status: int) -> None:
    requests = 0

    async def script(caller: Caller) -> None:
        nonlocal requests
        while await caller.request():
            requests += 1
            caller.say(b"HTTP/1.1 %d X\r\nLocation: /elsewhere\r\nContent-Length: 0\r\n\r\n" % status)

    answer = await once(kind, script)
    assert isinstance(answer, Response)
    assert (answer.status, requests) == (status, 1)


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 201 Created\r\nConnection: close\r\nContent-Length: 2\r\n\r\n",
        b"HTTP/1.0 201 Created\r\nContent-Length: 2\r\n\r\n",
        b"HTTP/1.1 400 Bad\r\n\r\n",
        b"HTTP/1.1 201 Created\r\nTransfer-Encoding: identity\r\n\r\n",
    ],
    ids=["close", "1.0", "no length", "coding without an end"],
)
async def test_a_provider_that_closes_is_dialled_again(kind: Kind, head: bytes) -> None:
    async with serving(answering(head + b"{}")) as server, kind.open(connections=1) as transport:
        for _ in range(3):
            answer = await transport.exchange(post(server.url), deadline_s=LATE)
            assert isinstance(answer, Response)
            assert (answer.status, answer.body) == (int(head[9:12]), b"{}")
    assert server.connections == 3


async def test_what_follows_a_whole_answer_is_never_the_next_one(kind: Kind) -> None:
    async def script(caller: Caller) -> None:
        await caller.request()
        caller.say(b"HTTP/1.1 400 Bad\r\nContent-Length: 2\r\n\r\n{}" + YES)
        await hang(caller)

    async with serving(script) as server, kind.open(connections=1) as transport:
        for _ in range(3):
            answer = await transport.exchange(post(server.url), deadline_s=LATE)
            assert isinstance(answer, Response)
            assert (answer.status, answer.body) == (400, b"{}")
    assert server.connections == 3


@pytest.mark.parametrize("status", [204, 304])
async def test_an_answer_without_a_body_is_whole(kind: Kind, status: int) -> None:
    async def script(caller: Caller) -> None:
        while await caller.request():
            caller.say(b"HTTP/1.1 %d X\r\n\r\n" % status)

    assert isinstance(await once(kind, script), Response)


async def test_headers_are_heard_alike(kind: Kind) -> None:
    said = b"A:\r\nB: \t two words \t\r\nC: \xc3\xa9\xff\r\nSame: 1\r\nsame: 2\r\nContent-Length: 0\r\n"
    answer = await once(kind, answering(b"HTTP/1.1 201 Created\r\n" + said + b"\r\n"))
    assert isinstance(answer, Response)
    heard = {"a": "", "b": "two words", "c": "é\udcff", "same": "2", "content-length": "0"}
    assert answer.headers == heard


# --- over TLS


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """For 127.0.0.1, signed by nobody. And its key."""
    folder = tmp_path_factory.mktemp("tls")
    request = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=127.0.0.1"
    subprocess.run(
        [*request.split(), "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", folder / "key", "-out", folder / "it"],
        check=True,
        capture_output=True,
    )
    return folder / "it", folder / "key"


@pytest.fixture
def tls(certificate: tuple[Path, Path]) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    return context


@pytest.fixture
def trusted(certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Where aiohttp keeps the context both transports dial with."""
    context = ssl.create_default_context(cafile=certificate[0])
    monkeypatch.setattr(aiohttp.connector, "_SSL_CONTEXT_VERIFIED", context)


@pytest.mark.usefixtures("trusted")
async def test_one_tls_connection_serves_one_exchange_after_another(kind: Kind, tls: ssl.SSLContext) -> None:
    async def script(caller: Caller) -> None:
        while await caller.request():
            caller.say(YES)

    async with serving(script, tls) as server, kind.open(connections=4) as transport:
        for _ in range(5):
            answer = await transport.exchange(post(server.url, BODY + b"x" * 100_000), deadline_s=LATE)
            assert isinstance(answer, Response)
    assert server.connections == 1


@pytest.mark.usefixtures("trusted")
@pytest.mark.parametrize(
    ("raw", "kinds"),
    [(b"", Uncertain), (b"HTTP/1.1 201 Cr", Uncertain), (b"HTTP/1.1 201 Created\r\n\r\nid", Response)],
    ids=["nothing", "half a head", "an answer that ends so"],
)
async def test_a_tls_provider_that_hangs_up_is_judged_like_any_other(
    kind: Kind, tls: ssl.SSLContext, raw: bytes, kinds: type
) -> None:
    async with serving(answering(raw), tls) as server, kind.open(connections=1) as transport:
        assert isinstance(await transport.exchange(post(server.url), deadline_s=LATE), kinds)


async def test_a_certificate_nobody_vouches_for_is_unreachable(kind: Kind, tls: ssl.SSLContext) -> None:
    stamps: list[int] = []
    async with serving(answering(YES), tls) as server, kind.open(connections=1) as transport:
        answer = await transport.exchange(post(server.url), deadline_s=LATE, on_write=lambda: stamps.append(1))
    assert isinstance(answer, Unreachable)
    assert "Certificate" in answer.reason
    assert (stamps, bytes(server.heard)) == ([], b"")


# --- it never left


async def test_a_refused_connection_is_unreachable(kind: Kind) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))  # bound, not listening: nobody else can take it
        async with kind.open(connections=1) as transport:
            answer = await transport.exchange(post(f"http://127.0.0.1:{free.getsockname()[1]}/"), deadline_s=LATE)
    assert isinstance(answer, Unreachable)
    assert "Connect" in answer.reason


async def test_a_name_that_does_not_resolve_is_unreachable(kind: Kind) -> None:
    async with kind.open(connections=1) as transport:
        answer = await transport.exchange(post("http://provider.invalid/"), deadline_s=LATE)
    assert isinstance(answer, Unreachable)


async def test_a_connection_that_does_not_come_about_in_time_is_unreachable(kind: Kind) -> None:
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        address = full.getsockname()
        # A backlog of 0 still takes one; the next SYNs are dropped.
        fillers = [socket.socket() for _ in range(4)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(address)
        async with kind.open(connections=1) as transport:
            answer = await transport.exchange(post(f"http://127.0.0.1:{address[1]}/"), deadline_s=SOON)
        for filler in fillers:
            filler.close()
    assert answer == Unreachable("no connection in time")


async def test_a_tls_handshake_that_stalls_is_unreachable(kind: Kind) -> None:
    async with serving(hang) as server, kind.open(connections=1) as transport:
        answer = await transport.exchange(post(server.url.replace("http:", "https:")), deadline_s=SOON)
    assert answer == Unreachable("no connection in time")


async def test_speaking_tls_to_a_plain_server_is_unreachable(kind: Kind) -> None:
    async def script(caller: Caller) -> None:
        await caller.reader.read(10)
        caller.say(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    async with serving(script) as server, kind.open(connections=1) as transport:
        answer = await transport.exchange(post(server.url.replace("http:", "https:")), deadline_s=LATE)
    assert isinstance(answer, Unreachable)


async def test_waiting_in_vain_for_a_free_connection_is_unreachable_and_not_stamped(kind: Kind) -> None:
    written: list[str] = []
    async with serving(hang) as server, kind.open(connections=1) as transport:
        first = asyncio.create_task(
            transport.exchange(post(server.url), deadline_s=3 * SOON, on_write=lambda: written.append("first"))
        )
        await asyncio.sleep(0.05)
        second = await transport.exchange(post(server.url), deadline_s=SOON, on_write=lambda: written.append("second"))
        assert second == Unreachable("no connection in time")
        assert await first == Uncertain("no whole answer in time")
    assert written == ["first"]


async def test_who_speaks_before_being_asked_is_not_asked(kind: Kind) -> None:
    async def script(caller: Caller) -> None:
        caller.say(YES)
        await hang(caller)

    for _ in range(10):  # the race is real: either may win
        stamps: list[int] = []
        async with serving(script) as server, kind.open(connections=1) as transport:
            answer = await transport.exchange(post(server.url), deadline_s=SOON, on_write=lambda: stamps.append(1))  # noqa: B023
        assert stamps or isinstance(answer, Unreachable)


@pytest.mark.parametrize("name", ["X\r\nY", "X\nY"])
async def test_a_smuggled_line_is_our_bug_and_nothing_leaves(kind: Kind, name: str) -> None:
    async with serving(answering(YES)) as server, kind.open(connections=1) as transport:
        for headers in ({name: "1"}, {"X": name}, {"X": name[1:]}):
            stamps: list[int] = []
            with pytest.raises(ValueError, match=r"control character|line break"):
                await transport.exchange(
                    Request("POST", server.url, headers, BODY),
                    deadline_s=LATE,
                    on_write=lambda: stamps.append(1),  # noqa: B023
                )
            assert stamps == []
    assert server.heard == b""


async def test_a_url_that_is_none_never_leaves(kind: Kind) -> None:
    async with kind.open(connections=1) as transport:
        assert isinstance(await transport.exchange(post("ftp://127.0.0.1/"), deadline_s=LATE), Unreachable)


# --- it may have left


async def _fin_on_accept(caller: Caller) -> None:
    caller.writer.close()


async def _reset_on_accept(caller: Caller) -> None:
    caller.reset()


async def _fin_after_headers(caller: Caller) -> None:
    await caller.reader.readuntil(b"\r\n\r\n")
    caller.writer.close()


async def _fin_after_request(caller: Caller) -> None:
    await caller.request()


async def _reset_after_request(caller: Caller) -> None:
    await caller.request()
    caller.reset()


async def _fin_within_the_head(caller: Caller) -> None:
    await caller.request()
    caller.say(b"HTTP/1.1 201 Cre")


@pytest.mark.parametrize(
    "script",
    [_fin_after_headers, _fin_after_request, _reset_after_request, _fin_within_the_head],
    ids=lambda script: script.__name__[1:],
)
async def test_a_connection_lost_after_the_request_is_uncertain(kind: Kind, script: Script) -> None:
    assert isinstance(await once(kind, script), Uncertain)


@pytest.mark.parametrize("script", [_fin_on_accept, _reset_on_accept], ids=lambda script: script.__name__[1:])
async def test_a_connection_lost_at_once_is_unreachable_only_if_nothing_was_stamped(kind: Kind, script: Script) -> None:
    for _ in range(20):  # the race is real: either may win
        written: list[int] = []
        async with serving(script) as server, kind.open(connections=1) as transport:
            answer = await transport.exchange(post(server.url), deadline_s=LATE, on_write=lambda: written.append(1))  # noqa: B023
        assert isinstance(answer, Uncertain if written else Unreachable)


@pytest.mark.parametrize(
    "raw",
    [
        b"garbage\r\n\r\n",
        b"\x00\xff\xfe" * 100 + b"\r\n\r\n",
        b"HTTP/9.9 2xx Maybe\r\n\r\n",
        b"HTTP/1.1 201 Created\r\nContent-Length: abc\r\n\r\n{}",
        b"HTTP/1.1 201 Created\r\nX: " + b"y" * 100_000 + b"\r\n\r\n",
    ],
    ids=["words", "bytes", "status", "length", "endless header"],
)
async def test_garbage_is_uncertain(kind: Kind, raw: bytes) -> None:
    assert isinstance(await once(kind, answering(raw)), Uncertain)


async def test_silence_is_uncertain(kind: Kind) -> None:
    async def script(caller: Caller) -> None:
        await caller.request()
        await hang(caller)

    assert await once(kind, script, deadline_s=SOON) == Uncertain("no whole answer in time")


async def test_a_server_that_does_not_even_read_is_uncertain(kind: Kind) -> None:
    assert await once(kind, hang, deadline_s=SOON) == Uncertain("no whole answer in time")


async def test_endless_interim_answers_end_at_the_deadline(kind: Kind) -> None:
    async def script(caller: Caller) -> None:
        await caller.request()
        while True:
            caller.say(b"HTTP/1.1 103 Early Hints\r\n\r\n")
            await caller.writer.drain()
            await asyncio.sleep(0.02)

    assert isinstance(await once(kind, script, deadline_s=SOON), Uncertain)


# --- a status line, but not the whole of its body


async def _cut(caller: Caller) -> None:
    await caller.request()
    caller.say(status_line + b"Content-Length: 100\r\n\r\nhalf")


async def _stalled(caller: Caller) -> None:
    await caller.request()
    caller.say(status_line + b"Content-Length: 100\r\n\r\nhalf")
    await hang(caller)


async def _dripping(caller: Caller) -> None:
    await caller.request()
    caller.say(status_line + b"Content-Length: 1000\r\n\r\n")
    while True:
        caller.say(b"h")
        await caller.writer.drain()
        await asyncio.sleep(0.02)


async def _oversize(caller: Caller) -> None:
    await caller.request()
    caller.say(status_line + b"Content-Length: %d\r\n\r\n" % (BODY_LIMIT + 1) + b"h" * (BODY_LIMIT + 1))


async def _endless_chunks(caller: Caller) -> None:
    await caller.request()
    caller.say(status_line + b"Transfer-Encoding: chunked\r\n\r\n")
    while True:
        caller.say(b"1000\r\n" + b"h" * 4096 + b"\r\n")
        await caller.writer.drain()


async def _chunk_of_no_size(caller: Caller) -> None:
    await caller.request()
    caller.say(status_line + b"Transfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n")
    await caller.writer.drain()
    await asyncio.sleep(0.05)
    caller.say(b"zz\r\n")


async def _reset_within(caller: Caller) -> None:
    await caller.request()
    caller.say(status_line + b"Content-Length: 100\r\n\r\nhalf")
    await caller.writer.drain()
    await asyncio.sleep(0.05)
    caller.reset()


status_line = b""
BROKEN = [_cut, _stalled, _dripping, _oversize, _endless_chunks, _chunk_of_no_size, _reset_within]


@pytest.mark.parametrize("script", BROKEN, ids=lambda script: script.__name__[1:])
async def test_a_yes_stays_a_yes_when_its_body_breaks(
    kind: Kind, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(globals(), "status_line", b"HTTP/1.1 201 Created\r\n")
    answer = await once(kind, script, deadline_s=2 * SOON)
    assert isinstance(answer, Response)
    assert answer.status == 201
    assert len(answer.body) <= BODY_LIMIT


@pytest.mark.parametrize("status", [b"400 Bad", b"429 Slow", b"307 There", b"500 Oh"])
@pytest.mark.parametrize("script", BROKEN, ids=lambda script: script.__name__[1:])
async def test_no_other_answer_counts_when_its_body_breaks(
    kind: Kind, script: Script, status: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(globals(), "status_line", b"HTTP/1.1 " + status + b"\r\n")
    assert isinstance(await once(kind, script, deadline_s=2 * SOON), Uncertain)


# --- the moment of writing


async def test_the_stamp_comes_once_with_a_connection_and_before_any_byte(kind: Kind) -> None:
    async with serving(answering(YES)) as server, kind.open(connections=1) as transport:
        seen: list[tuple[int, bytes]] = []

        def stamp() -> None:
            seen.append((server.connections, bytes(server.heard)))

        # Whatever had left before the stamp would be here by the time the server answers.
        assert isinstance(await transport.exchange(post(server.url), deadline_s=LATE, on_write=stamp), Response)
    assert [heard for _, heard in seen] == [b""]


@pytest.mark.parametrize("error", [Withdrawn("opted out"), OSError(28, "disk full"), TimeoutError(), ValueError("bug")])
async def test_what_the_stamp_raises_comes_out_and_nothing_leaves(kind: Kind, error: Exception) -> None:
    connected = asyncio.Event()
    received = bytearray()

    async def script(caller: Caller) -> None:
        connected.set()
        received.extend(await caller.reader.read())

    def refuse() -> None:
        raise error

    async with serving(script) as server:
        async with kind.open(connections=1) as transport:
            with pytest.raises(type(error)) as raised:
                await transport.exchange(post(server.url), deadline_s=LATE, on_write=refuse)
            assert raised.value is error
        await asyncio.wait_for(connected.wait(), LATE)
        await asyncio.sleep(0.1)
    assert received == b""


async def test_a_withdrawn_exchange_leaves_the_transport_usable(kind: Kind) -> None:
    def refuse() -> None:
        raise Withdrawn

    async with serving(answering(YES)) as server, kind.open(connections=1) as transport:
        with pytest.raises(Withdrawn):
            await transport.exchange(post(server.url), deadline_s=LATE, on_write=refuse)
        assert isinstance(await transport.exchange(post(server.url), deadline_s=LATE), Response)
    assert server.heard.count(b"POST ") == 1


async def test_a_request_is_never_repeated_on_another_connection(kind: Kind) -> None:
    requests = 0

    async def script(caller: Caller) -> None:
        nonlocal requests
        await caller.request()
        requests += 1
        if requests == 1:
            caller.say(YES)
            await caller.request()  # the second arrives on a connection that is then slammed
            requests += 1
        caller.reset()

    for method in ("POST", "PUT", "DELETE"):  # aiohttp repeats the last two by itself
        requests = 0
        stamps: list[int] = []
        async with serving(script) as server, kind.open(connections=1) as transport:
            request = Request(method, server.url, {}, BODY)
            assert isinstance(await transport.exchange(request, deadline_s=LATE), Response)
            answer = await transport.exchange(request, deadline_s=LATE, on_write=lambda: stamps.append(1))  # noqa: B023
        assert isinstance(answer, Uncertain)
        assert (requests, stamps) == (2, [1])


async def test_with_aiohttp_nothing_leaves_after_the_verdict() -> None:
    async with serving(answering(YES)) as server, aiohttp.ClientSession() as session:
        stamps: list[int] = []
        flight = _Flight(BODY, lambda: stamps.append(1), 0.0)
        flight.over = True
        with pytest.raises(aiohttp.ClientConnectionError):
            await session.post(server.url, data=flight)
        await asyncio.sleep(0.05)
    assert (server.connections, stamps, bytes(server.heard)) == (1, [], b"")


async def test_with_aiohttp_a_connection_known_to_be_closed_is_not_written_to_nor_stamped() -> None:
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


@pytest.mark.parametrize("farewell", [b"", YES, b"HTTP/1.1 408 Request Timeout\r\n\r\n"], ids=["fin", "yes", "408"])
async def test_what_a_resting_connection_says_is_nobodys_answer(kind: Kind, farewell: bytes) -> None:
    async def script(caller: Caller) -> None:
        await caller.request()
        caller.say(b"HTTP/1.1 400 Bad\r\nContent-Length: 0\r\n\r\n")
        await caller.writer.drain()
        await asyncio.sleep(0.05)
        caller.say(farewell)
        if farewell:
            await hang(caller)

    async with serving(script) as server, kind.open(connections=1) as transport:
        for number in range(3):
            stamps: list[int] = []
            answer = await transport.exchange(post(server.url), deadline_s=LATE, on_write=lambda: stamps.append(1))  # noqa: B023
            if kind is Transport and farewell and number:  # aiohttp does not look at what came meanwhile
                assert isinstance(answer, Response if stamps else Unreachable)
            else:
                assert isinstance(answer, Response)
                assert (answer.status, stamps) == (400, [1])
            await asyncio.sleep(0.1)
    assert server.connections == 3 or kind is Transport


async def test_a_connection_rests_no_longer_than_told(kind: Kind) -> None:
    gone = asyncio.Event()

    async def script(caller: Caller) -> None:
        await caller.request()
        caller.say(YES)
        await hang(caller)
        gone.set()

    async with serving(script) as server, kind.open(connections=1, idle_s=0.1) as transport:
        await transport.exchange(post(server.url), deadline_s=LATE)
        await asyncio.wait_for(gone.wait(), LATE)
        await transport.exchange(post(server.url), deadline_s=LATE)
    assert server.connections == 2


async def test_connections_never_outnumber_the_limit(kind: Kind) -> None:
    open_now, most = 0, 0

    async def script(caller: Caller) -> None:
        nonlocal open_now, most
        open_now += 1
        most = max(most, open_now)
        try:
            while await caller.request():
                await asyncio.sleep(0.001)
                caller.say(YES)
        finally:
            open_now -= 1

    async with serving(script) as server, kind.open(connections=3) as transport:
        answers = await asyncio.gather(*(transport.exchange(post(server.url), deadline_s=LATE) for _ in range(60)))
    assert {type(answer) for answer in answers} == {Response}
    assert most == 3


async def test_a_kept_connection_that_died_is_replaced_or_told_as_unreachable(kind: Kind) -> None:
    async with serving(answering(YES)) as server, kind.open(connections=1) as transport:
        for _ in range(30):  # each answer is followed by FIN, which races the next request
            stamps: list[int] = []
            answer = await transport.exchange(post(server.url), deadline_s=LATE, on_write=lambda: stamps.append(1))  # noqa: B023
            assert isinstance(answer, Response | (Uncertain if stamps else Unreachable))


# --- cancelling


async def test_being_cancelled_is_not_a_deadline(kind: Kind) -> None:
    async with serving(hang) as server, kind.open(connections=1) as transport:
        task = asyncio.create_task(transport.exchange(post(server.url), deadline_s=LATE))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_cancelled_anywhere_nothing_leaves_without_a_stamp(kind: Kind) -> None:
    outcomes: set[tuple[bool, bool]] = set()
    both = {(False, True), (True, True)}
    async with serving(answering(YES)) as server:
        for turns in range(600):
            if turns >= 60 and both <= outcomes:
                break
            stamps: list[int] = []
            server.heard.clear()
            async with kind.open(connections=1) as transport:
                exchange = transport.exchange(post(server.url), deadline_s=LATE, on_write=lambda: stamps.append(1))  # noqa: B023
                task = asyncio.create_task(exchange)
                for _ in range(turns % 60):
                    await asyncio.sleep(0)
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
                await asyncio.sleep(0.01)
            assert stamps or not server.heard
            outcomes.add((bool(stamps), task.cancelled()))
    assert both <= outcomes  # the interruptions fell on both sides of the write


async def test_a_cancelled_exchange_takes_its_connection_with_it(kind: Kind) -> None:
    asked, gone = asyncio.Event(), asyncio.Event()

    async def script(caller: Caller) -> None:
        await caller.request()
        asked.set()
        await hang(caller)
        gone.set()

    async with serving(script) as server, kind.open(connections=1) as transport:
        task = asyncio.create_task(transport.exchange(post(server.url), deadline_s=LATE))
        await asyncio.wait_for(asked.wait(), LATE)
        task.cancel()
        await asyncio.wait_for(gone.wait(), LATE / 2)  # an answer that came now would be nobody's


async def test_a_callers_own_time_limit_stays_its_own(kind: Kind) -> None:
    async with serving(hang) as server, kind.open(connections=1) as transport:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(SOON):
                await transport.exchange(post(server.url), deadline_s=LATE)


async def test_a_passed_deadline_leaves_no_mark_on_the_task(kind: Kind) -> None:
    async with serving(hang) as server, kind.open(connections=1) as transport:
        assert isinstance(await transport.exchange(post(server.url), deadline_s=SOON), Uncertain)
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0
        await asyncio.sleep(0)  # a cancellation left over would strike here


async def test_many_exchanges_end_at_their_own_deadlines(kind: Kind) -> None:
    async def script(caller: Caller) -> None:
        await caller.request()
        await asyncio.sleep(2 * SOON)
        caller.say(YES)

    async with serving(script) as server, kind.open(connections=40) as transport:
        short = [transport.exchange(post(server.url), deadline_s=SOON) for _ in range(20)]
        long = [transport.exchange(post(server.url), deadline_s=LATE) for _ in range(20)]
        answers = await asyncio.gather(*short, *long)
    assert [type(answer) for answer in answers] == [Uncertain] * 20 + [Response] * 20


async def test_an_idle_transport_arms_no_timer(kind: Kind) -> None:
    async with serving(answering(YES)) as server, kind.open(connections=1) as transport:
        await transport.exchange(post(server.url), deadline_s=LATE)
        await asyncio.sleep(0.25)  # two sweeps
        assert transport._sweeping is False


async def test_no_reason_names_a_number(kind: Kind) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/Messages.json?To=%2B15005550001"
        async with kind.open(connections=1) as transport:
            refused = await transport.exchange(Request("GET", url, {}), deadline_s=LATE)
            unspeakable = await transport.exchange(Request("GET", url.replace("http", "gopher"), {}), deadline_s=LATE)
    assert isinstance(refused, Unreachable)
    assert isinstance(unspeakable, Unreachable)
    assert "15005550001" not in refused.reason + unspeakable.reason


async def test_no_connections_is_a_mistake_not_a_boundless_pool(kind: Kind) -> None:
    with pytest.raises(ValueError, match="at least one"):
        async with kind.open(connections=0):
            pass
