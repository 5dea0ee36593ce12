"""Callbacks over real sockets and, where something is written, a real Postgres."""

from __future__ import annotations

import asyncio
import hmac
import json
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import UUID

import aiohttp
import asyncpg
import pytest

from daemon.callbacks import BODY_MAX, Callbacks, Kind, Result
from daemon.clock import Clock
from daemon.core.lifecycle import Status
from daemon.core.receipt import Receipt
from daemon.core.token import seal
from daemon.database import DatabaseDown, Line
from daemon.metrics import Metrics
from daemon.observer import Observer
from daemon.pooler import TransactionPooler
from daemon.provider import Forged, Inbound
from daemon.receipts import News, Overrun, ReceiptBook
from daemon.settings import Settings
from daemon.web import Listener, public_listener
from daemon.web.porter import HEADERS
from daemon.web.public import public_app

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping, Sequence

    from daemon.callbacks import Book
    from daemon.provider import Callback

KEY = b"our own key, 32 bytes of it, yes"
SECRET = b"the provider's secret"
ID = UUID("0190f5a0-0000-7000-8000-000000000001")
WORD = b'{"reference": "SM1", "status": "delivered"}'
STOP = b'{"reference": "SM2", "from": "+15550123", "to": "+15550100", "body": "STOP", "opt_out": "STOP"}'


listening: Callable[..., Listener] = public_listener


@pytest.fixture(autouse=True, params=["at the door", "by aiohttp"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test goes both ways: receipts are answered by the porter, and by aiohttp as whatever is not plain."""
    if request.param == "by aiohttp":
        monkeypatch.setitem(globals(), "listening", by_aiohttp)


def by_aiohttp(callbacks: Callbacks, **where: Any) -> Listener:
    return Listener("public", public_app(callbacks), **where)


class Plain:
    """A dialect of few words: JSON, signed with HMAC over target and raw body in X-Signature."""

    name = "plain"

    def receipts(self, callback: Callback) -> Sequence[Receipt] | Forged:
        if not self._signed(callback):
            return Forged("bad signature")
        told = self._read(callback.body)
        if "status" not in told:
            return []
        return [Receipt(reference=told["reference"], status=Status(told["status"]), reason=told.get("reason", ""))]

    def inbound(self, callback: Callback) -> Inbound | Forged | None:
        if not self._signed(callback):
            return Forged("bad signature", status=401)
        told = self._read(callback.body)
        if "from" not in told:
            return None
        return Inbound(
            reference=told["reference"], sender=told["to"], recipient=told["from"], body=told["body"],
            opt_out=told.get("opt_out"), details={"city": told.get("city", "")},
        )  # fmt: skip

    def reply(self) -> tuple[str, bytes]:
        return "text/xml", b"<Response/>"

    @staticmethod
    def _signed(callback: Callback) -> bool:
        return hmac.compare_digest(callback.headers.get("x-signature", ""), sign(callback.target, callback.body))

    @staticmethod
    def _read(body: bytes) -> dict[str, str]:
        try:
            told = json.loads(body)
        except ValueError:
            return {}
        return told if isinstance(told, dict) else {}


def sign(target: str, body: bytes) -> str:
    return hmac.new(SECRET, target.encode() + body, "sha256").hexdigest()


@dataclass
class Notes:
    """A book that only remembers; *trouble* is raised instead."""

    trouble: Exception | None = None
    news: list[News] = field(default_factory=list)
    letters: list[Inbound] = field(default_factory=list)

    async def hear(self, news: Sequence[News]) -> None:
        if self.trouble:
            raise self.trouble
        self.news.extend(news)

    async def heard_from(self, provider: str, message: Inbound) -> None:
        if self.trouble:
            raise self.trouble
        self.letters.append(message)


class Answer(NamedTuple):
    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass
class Office:
    """A public listener in front of a book, and a client."""

    session: aiohttp.ClientSession
    port: int
    counted: list[tuple[str, Kind, Result]]
    stopped: list[str]

    async def post(self, target: str, body: bytes, *, signature: str | None = None) -> Answer:
        headers = {"X-Signature": sign(target, body) if signature is None else signature}
        async with self.session.post(f"http://127.0.0.1:{self.port}{target}", data=body, headers=headers) as answer:
            return Answer(answer.status, answer.headers, await answer.read())

    async def say(self, raw: bytes) -> bytes:
        """Everything the server says to *raw*, until it hangs up."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(raw)
        said = await reader.read()
        writer.close()
        return said


@asynccontextmanager
async def office(book: Book, *, body_timeout_s: float = 5.0, connections_max: int = 100) -> AsyncIterator[Office]:
    counted: list[tuple[str, Kind, Result]] = []
    stopped: list[str] = []

    class Tally:
        def callback(self, provider: str, kind: Kind, result: Result) -> None:
            counted.append((provider, kind, result))

    async def opt_out(recipient: str) -> None:
        stopped.append(recipient)

    callbacks = Callbacks(
        {"plain": Plain()}, key=KEY, book=book, metrics=Tally(), opt_out=opt_out, body_timeout_s=body_timeout_s
    )
    listener = listening(callbacks, host="127.0.0.1", port=0, connections_max=connections_max)
    stop = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        group.create_task(listener.run(stop))
        await listener.listening.wait()
        async with aiohttp.ClientSession() as session:
            yield Office(session, listener.port, counted, stopped)
        stop.set()


def observer() -> Observer:
    return Observer(Metrics(), Clock(), Settings())


def target(attempt: int = 1) -> str:
    return f"/callbacks/plain/{seal(KEY, ID, attempt)}"


async def test_a_receipt_is_in_postgres_when_its_204_arrives(database: str) -> None:
    line = Line("receipts", database, statements=["receive", "inbound"])
    async with office(ReceiptBook(line, observer())) as here:
        answer = await here.post(target(), WORD)
        assert answer.status == 204
        connection = await asyncpg.connect(database)
        rows = await connection.fetch("SELECT id, attempt, provider, reference, status FROM outrider.receipt")
        assert [tuple(row) for row in rows] == [(ID, 1, "plain", "SM1", "delivered")]
        await connection.close()
    assert here.counted == [("plain", "receipt", "kept")]
    await line.close()


async def test_bytes_that_postgres_cannot_store_spoil_nobodys_commit(database: str) -> None:
    line = Line("receipts", database, statements=["receive", "inbound"])
    nasty = rb'{"reference": "SM\u0000\ud800", "status": "failed", "reason": "' + b"x" * 5_000 + b'"}'
    letter = rb'{"reference": "\u0000", "from": "+15550123", "to": "7", "body": "a\u0000\udfffb", "city": "\u0000"}'
    async with office(ReceiptBook(line, observer())) as here:
        answers = await asyncio.gather(*(here.post(target(), body) for body in (nasty, WORD, nasty)))
        assert [answer.status for answer in answers] == [204, 204, 204]
        assert (await here.post("/inbound/plain", letter)).status == 200
        connection = await asyncpg.connect(database)
        assert await connection.fetchval("SELECT count(*) FROM outrider.receipt") == 3
        assert await connection.fetchval("SELECT max(length(reason)) FROM outrider.receipt") == 512
        assert await connection.fetchval("SELECT body FROM outrider.inbound") == "a\ufffd\ufffdb"
        await connection.close()
    await line.close()


async def test_while_postgres_is_away_providers_are_told_to_come_again() -> None:
    line = Line("receipts", "postgresql://nobody@127.0.0.1:1/none", statements=["receive", "inbound"])
    async with office(ReceiptBook(line, observer())) as here:
        for path, body in ((target(), WORD), ("/inbound/plain", STOP)):
            answer = await here.post(path, body)
            assert answer.status == 503
            assert int(answer.headers["Retry-After"]) > 0
    assert {result for _, _, result in here.counted} == {"refused"}


@pytest.mark.parametrize("trouble", [DatabaseDown("gone"), Overrun()])
async def test_what_was_not_kept_is_never_answered_2xx(trouble: Exception) -> None:
    async with office(Notes(trouble)) as here:
        assert (await here.post(target(), WORD)).status == 503
        assert (await here.post("/inbound/plain", STOP)).status == 503


@pytest.mark.parametrize("signature", ["", "0" * 64, "sha256=x"])
async def test_a_bad_signature_is_refused_and_nothing_is_written(signature: str) -> None:
    book = Notes()
    async with office(book) as here:
        assert (await here.post(target(), WORD, signature=signature)).status == 403
        assert (await here.post("/inbound/plain", STOP, signature=signature)).status == 401
    assert (book.news, book.letters, here.stopped) == ([], [], [])
    assert here.counted == [("plain", "receipt", "forged"), ("plain", "inbound", "forged")]


async def test_the_signature_covers_the_very_bytes_of_path_and_query() -> None:
    book = Notes()
    odd = f"{target()}?a=%7e&b=x+y&a=%2F"
    async with office(book) as here:
        head = f"POST {odd} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(WORD)}\r\nConnection: close\r\n"
        for signed, status in ((odd, b"204"), (odd.replace("%7e", "~"), b"403")):
            said = await here.say(f"{head}X-Signature: {sign(signed, WORD)}\r\n\r\n".encode() + WORD)
            assert said.split(b" ")[1] == status
    assert len(book.news) == 1


async def test_two_signatures_are_none() -> None:
    async with office(Notes()) as here:
        good = f"X-Signature: {sign(target(), WORD)}\r\n"
        said = await here.say(
            f"POST {target()} HTTP/1.1\r\nHost: x\r\n{good}X-Signature: 0\r\nContent-Length: {len(WORD)}\r\n"
            "Connection: close\r\n\r\n".encode()
            + WORD
        )
    assert said.split(b" ")[1] == b"403"


async def test_a_foreign_token_with_a_good_signature_is_parked_and_thanked_for() -> None:
    book = Notes()
    async with office(book) as here:
        for token in ("x", seal(b"another key" * 3, ID, 1), "%C3%A4", target()[:-1].rpartition("/")[2]):
            assert (await here.post(f"/callbacks/plain/{token}", WORD)).status == 204
    assert {(news.id, news.attempt) for news in book.news} == {(None, None)}
    assert {result for _, _, result in here.counted} == {"stray"}


async def test_an_unknown_provider_is_404() -> None:
    async with office(Notes()) as here:
        assert (await here.post("/callbacks/nobody/x", WORD)).status == 404
        assert (await here.post("/inbound/nobody", WORD)).status == 404
    assert here.counted == []


async def test_a_stop_is_in_force_before_its_reply() -> None:
    book = Notes()
    async with office(book) as here:
        answer = await here.post("/inbound/plain", STOP)
        assert (answer.status, answer.headers["Content-Type"], answer.body) == (200, "text/xml", b"<Response/>")
        assert here.stopped == ["+15550123"]
        assert [letter.body for letter in book.letters] == ["STOP"]
        assert (
            await here.post("/inbound/plain", STOP.replace(b'"opt_out": "STOP"', b'"opt_out": "HELP"'))
        ).status == 200
        assert here.stopped == ["+15550123"]


async def test_a_body_that_drips_is_cut_off() -> None:
    async with office(Notes(), body_timeout_s=0.2) as here:
        said = await here.say(f"POST {target()} HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nhalf".encode())
    assert said.startswith(b"HTTP/1.1 408 ")
    assert here.counted == [("plain", "receipt", "too_slow")]


async def test_a_body_that_breaks_off_writes_nothing_and_answers_nobody() -> None:
    book = Notes()
    async with office(book) as here:
        said = await here.say(
            f"POST {target()} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n".encode()
        )
        _, writer = await asyncio.open_connection("127.0.0.1", here.port)
        writer.write(f"POST {target()} HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nhalf".encode())
        await writer.drain()
        writer.close()
        assert (await here.post(target(), WORD)).status == 204
    assert said.split(b" ")[1] == b"400"
    assert len(book.news) == 1


async def test_a_body_beyond_its_bound_is_413() -> None:
    book = Notes()
    async with office(book) as here:
        assert (await here.post(target(), b"x" * (BODY_MAX - 1))).status == 204
        assert (await here.post(target(), b"x" * (BODY_MAX + 1))).status == 413
    assert book.news == []


@pytest.mark.parametrize(
    "body", [b"", b"\x00", b"null", b"[]", b'"x"', b"{" * 30_000, b"\xff\xfe", b"NaN", b'{"reference": "x"}']
)
async def test_no_bytes_make_it_stumble(body: bytes) -> None:
    async with office(Notes()) as here:
        assert (await here.post(target(), body)).status == 204
        assert (await here.post("/inbound/plain", body)).status == 200


async def test_a_compressed_body_stays_as_it_came() -> None:
    async with office(Notes()) as here:
        said = await here.say(
            f"POST {target()} HTTP/1.1\r\nHost: x\r\nContent-Encoding: gzip\r\nX-Signature: {sign(target(), WORD)}\r\n"
            f"Content-Length: {len(WORD)}\r\nConnection: close\r\n\r\n".encode()
            + WORD
        )
    assert said.split(b" ")[1] == b"204"


async def test_who_comes_when_it_is_full_takes_the_place_of_whoever_keeps_us_waiting_longest() -> None:
    async with office(Notes(), connections_max=2) as here:
        slow, half = await asyncio.open_connection("127.0.0.1", here.port)
        half.write(f"POST {target()} HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nhalf".encode())
        await asyncio.sleep(0.05)  # accepted, each in its own turn of the loop
        later, idle = await asyncio.open_connection("127.0.0.1", here.port)
        await asyncio.sleep(0.05)
        assert (await here.post(target(), WORD)).status == 204
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await asyncio.wait_for(slow.readexactly(1), timeout=2)
        idle.write(b"GET /ping HTTP/1.1\r\nHost: x\r\n\r\n")
        assert await asyncio.wait_for(later.readexactly(12), timeout=2) == b"HTTP/1.1 200"
        half.close()
        idle.close()


async def test_nobody_loses_his_place_while_he_is_answered() -> None:
    committed = asyncio.Event()

    class Slow(Notes):
        async def hear(self, news: Sequence[News]) -> None:
            await committed.wait()
            await super().hear(news)

    async with office(Slow(), connections_max=1) as here:
        asked = asyncio.create_task(here.post(target(), WORD))
        await asyncio.sleep(0.05)
        reader, writer = await asyncio.open_connection("127.0.0.1", here.port)
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await asyncio.wait_for(reader.readexactly(1), timeout=2)
        writer.close()
        committed.set()
        assert (await asked).status == 204


async def test_ping_says_pong_and_nothing_about_us() -> None:
    async with office(Notes()) as here, here.session.get(f"http://127.0.0.1:{here.port}/ping") as answer:
        assert (answer.status, await answer.text(), answer.headers["Server"]) == (200, "pong\n", "outrider")


@pytest.mark.parametrize("garbage", [b"x\r\n\r\n", b"POST / HTTP/1.1\r\nContent-Length: x\r\n\r\n"])
async def test_what_is_no_http_is_told_no_more_about_us_than_anybody(garbage: bytes) -> None:
    async with office(Notes()) as here:
        said = await here.say(garbage)
    assert said.startswith(b"HTTP/1.0 400 ")
    for name, value in HEADERS.items():
        assert f"\r\n{name}: {value}\r\n".encode() in said
    assert said.count(b"\r\nServer: ") == 1


async def test_a_fault_in_the_book_is_a_500_and_the_next_receipt_is_kept(caplog: pytest.LogCaptureFixture) -> None:
    class Odd(Line):
        async def fetch(self, name: str, *arguments: object) -> list[asyncpg.Record]:
            if "odd" in str(arguments):
                raise KeyError("a bug")
            return []

    odd = WORD.replace(b"SM1", b"odd")
    async with office(ReceiptBook(Odd("receipts", "", statements=[]), observer())) as here:
        assert [(await here.post(target(), body)).status for body in (odd, WORD, odd)] == [500, 204, 500]
    told = [str(record.exc_info[1]) for record in caplog.records if record.exc_info]
    assert sorted(told) == ["'a bug'"] * 2 + ["receipts could not be written"] * 2


async def test_a_pooler_nobody_told_of_ends_the_listener() -> None:
    callbacks = Callbacks(
        {"plain": Plain()}, key=KEY, book=Notes(TransactionPooler()), metrics=_Silent(), opt_out=_nobody
    )
    listener = listening(callbacks, host="127.0.0.1", port=0)
    serving = asyncio.create_task(listener.run(asyncio.Event()))
    await listener.listening.wait()
    async with aiohttp.ClientSession() as session:
        headers = {"X-Signature": sign(target(), WORD)}
        assert await _status(session, f"http://127.0.0.1:{listener.port}{target()}", WORD, headers) == 500
    with pytest.raises(TransactionPooler):
        await asyncio.wait_for(serving, timeout=2)


async def test_an_answer_under_way_is_finished_when_the_daemon_stops() -> None:
    committed = asyncio.Event()

    class Slow(Notes):
        async def hear(self, news: Sequence[News]) -> None:
            await committed.wait()
            await super().hear(news)

    book = Slow()
    callbacks = Callbacks({"plain": Plain()}, key=KEY, book=book, metrics=_Silent(), opt_out=_nobody)
    listener, stop = listening(callbacks, host="127.0.0.1", port=0), asyncio.Event()
    async with asyncio.TaskGroup() as group, aiohttp.ClientSession() as session:
        serving = group.create_task(listener.run(stop))
        await listener.listening.wait()
        headers = {"X-Signature": sign(target(), WORD)}
        url = f"http://127.0.0.1:{listener.port}{target()}"
        asked = group.create_task(_status(session, url, WORD, headers))
        await asyncio.sleep(0.1)
        stop.set()
        await asyncio.sleep(0.1)
        assert not serving.done()
        committed.set()
        assert await asked == 204
    assert len(book.news) == 1


class _Silent:
    def callback(self, provider: str, kind: Kind, result: Result) -> None:
        pass


async def _nobody(recipient: str) -> None:
    raise AssertionError(recipient)


async def _status(session: aiohttp.ClientSession, url: str, body: bytes, headers: dict[str, str]) -> int:
    async with session.post(url, data=body, headers=headers) as answer:
        return answer.status
