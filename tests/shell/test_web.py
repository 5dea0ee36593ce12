"""The operator's listener over real sockets: who is let in, what is told, and in which words."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import aiohttp
import pytest

from daemon.metrics import Metrics
from daemon.watch import (
    Backlog,
    Balance,
    BreakerState,
    Health,
    History,
    Latency,
    Pace,
    Pause,
    ProviderNow,
    Rates,
    SenderNow,
    SenderState,
    Stage,
    State,
    Status,
    Trouble,
)
from daemon.web import Guard, Listener, operator_app
from daemon.web.headline import headline
from daemon.web.page import ROWS_MAX, page
from daemon.web.words import brief, count, milliseconds, per_second, span

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

TOKEN = "a token of thirty-two characters"
CALM = Status(
    at=1_800_000_000.0,
    version="0.1.0",
    instance="sms-1",
    state=State.SERVING,
    uptime_s=4_000.0,
    totals={"delivered": 98, "failed": 2},
    rates=Rates(sent=Pace(last_10_s=50.0, last_60_s=49.0)),
    history=History(sent=(1, 2, 3), delivered=(0, 1, 2)),
    latency=(Latency(stage=Stage.TURN, count=9, p50_ms=1.0, p95_ms=20.0, p99_ms=3_000.0),),
    queue=(Backlog(service="login", level=1, messages=2, oldest_due_age_s=0.04),),
    senders=(SenderNow(address="+15550100", provider="twilio", rate=10.0, used=0.97, waiting=3),),
    providers=(ProviderNow(name="twilio", breaker=BreakerState.CLOSED, in_flight=4),),
    troubles=(Trouble(at=1_799_999_990.0, what="<script>alert(1)</script>"),),
)
WELL = Health(alive=True, progressing=True, state=State.SERVING, detail={"in_hand": 3})


@dataclass
class Stand:
    """A daemon that says what it is told to say."""

    now: Status = CALM
    well: Health = WELL
    is_ready: tuple[bool, str] = (True, "serving")

    def health(self) -> Health:
        return self.well

    def ready(self) -> tuple[bool, str]:
        return self.is_ready

    def metrics(self) -> tuple[bytes, str]:
        return Metrics().render()

    def status(self) -> Status:
        return self.now


class Client:
    """Asks the listener."""

    def __init__(self, session: aiohttp.ClientSession, port: int) -> None:
        self.session = session
        self.url = f"http://127.0.0.1:{port}"

    async def get(self, path: str, **headers: str) -> tuple[int, str, Mapping[str, str]]:
        return await self.ask("GET", path, headers)

    async def say(self, raw: bytes) -> str:
        """Everything that is said to *raw*."""
        reader, writer = await asyncio.open_connection("127.0.0.1", int(self.url.rpartition(":")[2]))
        writer.write(raw)
        said = await reader.read()
        writer.close()
        return said.decode()

    async def ask(
        self, method: str, path: str, headers: dict[str, str], body: str = ""
    ) -> tuple[int, str, Mapping[str, str]]:
        asked = self.session.request(method, self.url + path, headers=headers, data=body, allow_redirects=False)
        async with asked as answer:
            return answer.status, await answer.text(), answer.headers


@asynccontextmanager
async def serving(watch: Stand | None = None, guard: Guard | None = None) -> AsyncIterator[Client]:
    app = operator_app(watch or Stand(), guard or Guard(None))
    listener, stop = Listener("operator", app, host="127.0.0.1", port=0), asyncio.Event()
    async with asyncio.TaskGroup() as group:
        group.create_task(listener.run(stop))
        await listener.listening.wait()
        async with aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as session:
            yield Client(session, listener.port)
        stop.set()


async def test_a_strangers_garbage_is_no_line_in_the_log_and_a_crash_of_ours_is(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Crashing(Stand):
        def status(self) -> Status:
            raise ZeroDivisionError

    async with serving(Crashing()) as client:
        port = int(client.url.rpartition(":")[2])
        for garbage in (b"GET / HTTP/1.1\r\nA\xd1: b\r\n\r\n", b"GET / HTTP/1.1\r\nContent-Length: x\r\n\r\n"):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(garbage)
            assert (await reader.readline()).startswith(b"HTTP/1.0 400")
            writer.close()
        assert caplog.records == []
        assert (await client.get("/api/status"))[0] == 500
    assert [record.levelname for record in caplog.records] == ["ERROR"]


# ---- what is told


@pytest.mark.parametrize(
    ("alive", "progressing", "status"), [(True, True, 200), (True, False, 503), (False, True, 503)]
)
async def test_health_is_alive_and_progressing(alive: bool, progressing: bool, status: int) -> None:
    watch = Stand(well=Health(alive=alive, progressing=progressing, state=State.SERVING, detail={"in_hand": 3}))
    async with serving(watch) as client, client.session.get(f"{client.url}/healthz") as answer:
        assert answer.status == status
        assert await answer.json() == {
            "alive": alive, "progressing": progressing, "state": "serving", "detail": {"in_hand": 3},
        }  # fmt: skip


async def test_readiness_names_what_is_missing() -> None:
    watch = Stand(is_ready=(False, "the database does not answer"))
    async with serving(watch) as client, client.session.get(f"{client.url}/readyz") as answer:
        assert answer.status == 503
        assert await answer.json() == {"ready": False, "reason": "the database does not answer"}


async def test_metrics_are_in_the_format_prometheus_reads() -> None:
    async with serving() as client:
        status, text, headers = await client.get("/metrics")
    assert status == 200
    assert headers["Content-Type"].startswith("text/plain; version=0.0.4")
    assert "# TYPE outrider_claims_total counter" in text


async def test_the_status_is_told_whole() -> None:
    async with serving() as client, client.session.get(f"{client.url}/api/status") as answer:
        told = await answer.json()
    assert told["queue"] == [{"service": "login", "level": 1, "messages": 2, "oldest_due_age_s": 0.04}]
    assert told["rates"]["sent"] == {"last_10_s": 50.0, "last_60_s": 49.0}
    assert told["senders"][0]["state"] == "open"


async def test_the_page_reads_well_without_a_script_and_escapes_what_it_shows() -> None:
    async with serving() as client:
        status, text, headers = await client.get("/")
    assert status == 200
    assert headers["Content-Type"] == "text/html; charset=utf-8"
    assert "Messages are going out" in text
    assert "+15550100" in text
    assert "<script>alert" not in text
    assert " style=" not in text


# ---- who is let in


@pytest.mark.parametrize("path", ["/", "/healthz", "/metrics", "/api/status", "/static/page.js", "/nowhere"])
async def test_every_answer_carries_the_policy(path: str) -> None:
    async with serving() as client:
        _, _, headers = await client.get(path)
    policy = headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'")
    assert "unsafe" not in policy
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Cache-Control"] == ("no-cache" if path.startswith("/static/") else "no-store")
    assert headers["Server"] == "outrider"


@pytest.mark.parametrize("garbage", [b"x\r\n\r\n", b"GET / HTTP/1.1\r\nContent-Length: x\r\n\r\n"])
async def test_what_is_no_http_is_answered_with_the_policy_as_well(garbage: bytes) -> None:
    async with serving() as client:
        said = await client.say(garbage)
        _, _, usual = await client.get("/healthz")
    assert said.startswith("HTTP/1.0 400 ")
    for name in usual.keys() - {"Content-Length", "Content-Type", "Date"}:
        assert f"\r\n{name}: {usual[name]}\r\n" in said
    assert said.count("\r\nServer: ") == 1


async def test_nothing_can_be_changed_here() -> None:
    async with serving() as client:
        for path in ("/", "/healthz", "/api/status"):
            for method in ("POST", "PUT", "DELETE"):
                assert (await client.ask(method, path, {}))[0] == 405


@pytest.mark.parametrize(
    "host", ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example:80", "127.0.0.1@x", ""]
)
async def test_a_foreign_name_for_the_loopback_is_turned_away(host: str) -> None:
    async with serving() as client:
        status, text, _ = await client.get("/api/status", Host=host)
    assert status == 421
    assert "sms-1" not in text


@pytest.mark.parametrize("host", ["localhost", "LocalHost:8081", "127.0.0.1:1", "[::1]:8081"])
async def test_the_loopback_answers_to_its_own_names(host: str) -> None:
    async with serving() as client:
        assert (await client.get("/api/status", Host=host))[0] == 200


@pytest.mark.parametrize(
    "shown", ["", "Bearer", "Bearer x", f"Bearer {TOKEN}x", f"Basic {TOKEN}", f"Bearer {TOKEN[:-1]}"]
)
async def test_without_the_token_nothing_is_told(shown: str) -> None:
    async with serving(guard=Guard(TOKEN)) as client:
        for path in ("/healthz", "/readyz", "/metrics", "/api/status", "/api/page", "/nowhere", "/"):
            status, text, headers = await client.get(path, Authorization=shown)
            assert status == 401
            assert headers["WWW-Authenticate"].startswith("Bearer")
            assert "sms-1" not in text


async def test_with_the_token_all_is_told_under_any_name() -> None:
    async with serving(guard=Guard(TOKEN)) as client:
        for path in ("/healthz", "/metrics", "/api/status", "/"):
            status, _, _ = await client.get(path, Authorization=f"Bearer {TOKEN}", Host="outrider.example.com")
            assert status == 200


async def test_a_browser_trades_the_token_for_a_cookie_that_ends() -> None:
    now = 1_000_000.0
    async with serving(guard=Guard(TOKEN, now=lambda: now)) as client:
        form = {"Content-Type": "application/x-www-form-urlencoded"}
        assert "Operator" in (await client.get("/"))[1]
        status, text, headers = await client.ask("POST", "/login", form, "token=wrong")
        assert (status, "Set-Cookie" in headers, "not the token" in text) == (403, False, True)
        status, _, headers = await client.ask("POST", "/login", form, "token=" + TOKEN.replace(" ", "+"))
        assert (status, headers["Location"]) == (303, "/")
        cookie, *rules = headers["Set-Cookie"].split("; ")
        assert {"HttpOnly", "SameSite=Strict", "Path=/"} <= set(rules)
        assert (await client.get("/api/status", Cookie=cookie))[0] == 200
        longer = cookie.replace("=1", "=9", 1)
        for other in (cookie[:-1], longer, "outrider=", "outrider=x.y", "outrider=²."):
            assert (await client.get("/api/status", Cookie=other))[0] == 401
        now += 12 * 3600
        assert (await client.get("/api/status", Cookie=cookie))[0] == 401


async def test_the_login_form_is_bounded() -> None:
    async with serving(guard=Guard(TOKEN)) as client:
        assert (await client.ask("POST", "/login", {}, "x" * 5_000))[0] == 413
        assert (await client.ask("POST", "/login", {}, "&".join(["a"] * 2_000)))[0] in {400, 403}


async def test_a_login_form_that_breaks_off_is_no_line_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    async with serving(guard=Guard(TOKEN)) as client:
        _, writer = await asyncio.open_connection("127.0.0.1", int(client.url.rpartition(":")[2]))
        writer.write(b"POST /login HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nhalf")
        await asyncio.sleep(0.05)
        writer.transport.abort()
        await asyncio.sleep(0.05)
        assert (await client.ask("POST", "/login", {}, "token=wrong"))[0] == 403
    assert caplog.records == []


async def test_static_files_are_three_and_known_by_their_tag() -> None:
    async with serving(guard=Guard(TOKEN)) as client:
        status, _, headers = await client.get("/static/page.css")
        assert (status, headers["Content-Type"]) == (200, "text/css; charset=utf-8")
        assert (await client.get("/static/page.css", **{"If-None-Match": headers["ETag"]}))[0] == 304
        for path in ("/static/page.html", "/static/..%2f..%2fapp.py", "/static/../healthz"):
            assert (await client.get(path))[0] in {401, 404}


# ---- in which words


@pytest.mark.parametrize(
    ("status", "tone", "answer"),
    [
        (CALM, "good", "Messages are going out"),
        (replace(CALM, queue=(), rates=Rates()), "quiet", "All is quiet"),
        (replace(CALM, state=State.STARTING), "hold", "Starting"),
        (replace(CALM, state=State.DRAINING), "hold", "Stopping"),
        (replace(CALM, state=State.HOLDING), "hold", "Standing by"),
        (replace(CALM, state=State.HOLDING, held="this is a copy"), "bad", "Nothing is sent"),
        (replace(CALM, pauses=(Pause(what="all"),)), "hold", "Everything is paused"),
        (replace(CALM, pauses=(Pause(what="service:sale"),)), "warn", "Messages are going out in part"),
        (
            replace(CALM, providers=(ProviderNow(name="x", breaker=BreakerState.OPEN, in_flight=0),)),
            "bad", "Messages are not going out",
        ),
        (
            replace(CALM, senders=(replace(CALM.senders[0], state=SenderState.BLOCKED),)),
            "warn", "Messages are going out in part",
        ),
        (
            replace(CALM, rates=Rates(), queue=(replace(CALM.queue[0], level=3, oldest_due_age_s=61.0),)),
            "bad", "Messages are not going out",
        ),
        (
            replace(CALM, queue=(replace(CALM.queue[0], oldest_due_age_s=31.0),)),
            "bad", "Urgent messages are late",
        ),
    ],
)  # fmt: skip
def test_the_headline_tells_the_gravest_truth(status: Status, tone: str, answer: str) -> None:
    told = headline(status)
    assert (told.tone, told.answer) == (tone, answer)
    assert told.because.endswith(".")


def test_a_campaign_that_waits_its_turn_is_no_trouble() -> None:
    backlog = Backlog(service="sale", level=3, messages=1_000_000, oldest_due_age_s=9_000.0)
    assert headline(replace(CALM, queue=(*CALM.queue, backlog))).tone == "good"


def test_the_worst_senders_come_first_and_the_rest_are_counted() -> None:
    many = tuple(replace(CALM.senders[0], address=f"{n:05}") for n in range(ROWS_MAX + 20))
    blocked = replace(CALM.senders[0], address="zzz", state=SenderState.BLOCKED, reason="30034")
    table = next(table for table in page(replace(CALM, senders=(*many, blocked))).tables if table.id == "senders")
    assert table.rows[0][0].text == "zzz"
    assert len(table.rows) == ROWS_MAX
    assert table.note == "and 21 more"


def test_what_is_missing_stands_first_in_the_books_and_is_no_good_news() -> None:
    books = (
        Balance(day="2026-11-27", intent="otp", inserted=1_200, settled=1_190, open=10, difference=0),
        Balance(day="2026-11-26", intent="", inserted=7, settled=5, open=0, difference=2),
    )
    told = page(replace(CALM, books=books))
    (table,) = [table for table in told.tables if table.id == "books"]
    assert [[cell.text for cell in row] for row in table.rows] == [
        ["2026-11-26", "none", "7", "5", "0", "2"],
        ["2026-11-27", "otp", "1,200", "1,190", "10", "0"],
    ]
    assert [row[-1].tone for row in table.rows] == ["bad", None]


def test_an_empty_daemon_has_a_page() -> None:
    told = page(Status(at=0.0, version="0", instance="x", state=State.STARTING, uptime_s=0.0))
    assert all(not table.rows and table.empty for table in told.tables)
    assert all(len(line.values) == 120 for line in told.chart.lines)


def test_numbers_read_as_people_say_them() -> None:
    assert [span(s) for s in (0, 0.04, 3.2, 59.6, 61, 3_600, 90_061)] == [
        "0 ms", "40 ms", "3.2 s", "1 min", "1 min 1 s", "1 h", "1 d 1 h",
    ]  # fmt: skip
    assert [per_second(r) for r in (0, 0.3, 1, 9.96, 1_480.2)] == ["0", "0.3", "1", "10", "1,480"]
    assert [milliseconds(ms) for ms in (0.42, 12.3, 3_200)] == ["0.4 ms", "12 ms", "3.2 s"]
    assert [count(1_204), brief(1_204), brief(12_807_332)] == ["1,204", "1,204", "12.8 M"]
