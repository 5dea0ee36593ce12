"""
A flood of receipts: repeated, forged, all at once. None that is true is lost, none that is not is kept.

Over the real public listener, with Twilio's signatures, into a real Postgres. Asked again where we say 503, as providers
do; whoever was answered 2xx was heard. The long form runs the whole daemon, which goes on sending meanwhile.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections import deque
from contextlib import asynccontextmanager
from pathlib import Path
from statistics import quantiles
from typing import TYPE_CHECKING, Self, cast
from urllib.parse import urlencode

import aiohttp
import asyncpg
import pytest

from daemon.callbacks import Callbacks
from daemon.clock import Clock
from daemon.core.token import seal
from daemon.database import Line
from daemon.metrics import Metrics
from daemon.observer import Observer
from daemon.receipts import ReceiptBook
from daemon.settings import Settings
from daemon.simulator import AUTH_TOKEN, Faults
from daemon.simulator.twilio import sign
from daemon.web import public_listener
from tests.road.stage import Cast, Stage
from tests.shell.parts import dialect

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Sequence

    Post = tuple[str, bytes, str, bool]  # path, body, signature, whether it is true

KEY = b"k" * 32
CLIENTS = 50

FLOOD, FLOOD_PER_S = 20_000, 5_000
ANSWER_P99_S = 0.5
SENDING_KEPT = 0.8  # of the throughput before the flood
GROWTH_MAX = 50 * 2**20  # bytes
FORGED_MAX_S = 200e-6  # of the daemon's CPU, reading and answering included
SENT_PER_S = 200
CAST = Cast(
    senders={"72345": SENT_PER_S, **{f"8234{number}": 1_000 for number in range(3)}},
    services={"steady": ["72345"], "before": [f"8234{number}" for number in range(3)]},
)
SILENT = Faults.model_validate({"receipts": {"enabled": False}})  # the flood is all there is to hear


@asynccontextmanager
async def public(database: str) -> AsyncIterator[int]:
    observer = Observer(Metrics(), Clock(), Settings())
    line = Line("receipts", database, statements=("receive", "inbound"), hot=True)

    async def opt_out(recipient: str) -> None:
        raise AssertionError(recipient)

    callbacks = Callbacks(
        {"sim": dialect()}, key=KEY, book=ReceiptBook(line, observer), metrics=observer, opt_out=opt_out
    )
    listener, stop = public_listener(callbacks, host="127.0.0.1", port=0), asyncio.Event()
    async with asyncio.TaskGroup() as group:
        group.create_task(listener.run(stop))
        await listener.listening.wait()
        yield listener.port
        stop.set()
    await line.close()


def posts(sent: Iterable[tuple[str, str]], rng: random.Random, *, port: int, secret: str) -> list[Post]:
    """A "delivered" for each token and SID: three in ten twice, and one forged for every nine true ones; in any order."""
    made: list[Post] = []
    for token, sid in sent:
        path = f"/callbacks/sim/{token}"
        form = {"MessageSid": sid, "MessageStatus": "delivered", "To": "+12025550100"}
        signature = sign(secret, f"http://127.0.0.1:{port}{path}", form.items())
        true = (path, urlencode(form).encode(), signature, True)
        made += [true] * (2 if rng.random() < 0.3 else 1)
    for _ in range(len(made) // 9):
        path, body, signature, _ = rng.choice(made)
        made.append((path, body.replace(b"delivered", b"undelivered"), signature, False))
    rng.shuffle(made)
    return made


async def told(port: int, waiting: list[Post]) -> list[tuple[bool, int]]:
    """Say all of *waiting*, each until it is answered other than "come again"; whether it was true, and the answer."""
    answers: list[tuple[bool, int]] = []

    async def client(session: aiohttp.ClientSession) -> None:
        while waiting:
            path, body, signature, true = waiting.pop()
            headers = {"X-Twilio-Signature": signature, "Content-Type": "application/x-www-form-urlencoded"}
            async with session.post(f"http://127.0.0.1:{port}{path}", data=body, headers=headers) as answer:
                if answer.status == 503:
                    waiting.append((path, body, signature, true))
                else:
                    answers.append((true, answer.status))

    async with aiohttp.ClientSession() as session:
        await asyncio.gather(*(client(session) for _ in range(CLIENTS)))
    return answers


async def flooded(database: str, *, messages: int, cut: bool) -> None:
    async with asyncpg.create_pool(database, min_size=1, max_size=1) as connection:
        await flooded_through(connection, database, messages=messages, cut=cut)


async def flooded_through(connection: asyncpg.Pool[asyncpg.Record], database: str, *, messages: int, cut: bool) -> None:
    rows = await connection.fetch(
        "INSERT INTO outrider.outbox (recipient, service, body)"
        " SELECT '+12025550100', 'default', 'x' FROM generate_series(1, $1::integer) RETURNING id",
        messages,
    )
    sent = [(seal(KEY, row["id"], 1), f"SM{number:032x}") for number, row in enumerate(rows)]
    flood = posts(sent, random.Random(5), port=1, secret="token")
    true = sum(one[3] for one in flood)
    async with public(database) as port:
        telling = asyncio.create_task(told(port, list(flood)))
        while cut and not telling.done():  # the connection that writes them down is cut again and again
            await asyncio.sleep(0.3)
            await connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE application_name = 'outrider' AND datname = current_database()"
            )
        answers = await telling
    assert sorted(set(answers)) == [(False, 403), (True, 204)]
    assert len(answers) == len(flood)
    delivered = await connection.fetchval("SELECT count(*) FROM outrider.outcome WHERE status = 'delivered'")
    assert delivered == messages
    kept = await connection.fetchval("SELECT count(*) FROM outrider.receipt")
    assert kept >= true  # one whose answer was lost with the connection was told again
    assert cut or kept == true
    assert await connection.fetchval("SELECT count(*) FROM outrider.receipt WHERE status <> 'delivered'") == 0


@pytest.mark.parametrize("cut", [False, True], ids=["in peace", "while Postgres hangs up"])
async def test_a_flood_of_receipts(database: str, cut: bool) -> None:
    await flooded(database, messages=1_000, cut=cut)


@pytest.mark.long
@pytest.mark.timeout(300)
async def test_a_flood_of_twenty_thousand_receipts(database: str) -> None:
    await flooded(database, messages=20_000, cut=True)


# --- while the daemon sends


class Telephone(asyncio.Protocol):
    """One connection that says bytes and hears a status: the caller shall not be what takes the time."""

    def __init__(self) -> None:
        self._heard = b""
        self._answer: asyncio.Future[int] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._heard += data
        if b"\r\n\r\n" in self._heard and self._answer is not None:  # none of the answers has a body
            self._answer.set_result(int(self._heard[9:12]))
            self._heard = b""

    def connection_lost(self, error: Exception | None) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(error or ConnectionResetError())

    async def say(self, raw: bytes) -> int:
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(raw)
        return await self._answer

    def close(self) -> None:
        self._transport.abort()


def raw(post: Post) -> bytes:
    path, body, signature, _ = post
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nX-Twilio-Signature: {signature}\r\nContent-Length: {len(body)}\r\n"
    return f"{head}Content-Type: application/x-www-form-urlencoded\r\n\r\n".encode() + body


async def poured(port: int, flood: Sequence[Post], *, per_s: float) -> list[tuple[bool, int, float]]:
    """
    Say *flood* at *per_s*, whether or not answers come; whether each was true, its answer, and how long that took.

    Counted from when it was due: what waits for a free line waits for us.
    """
    loop = asyncio.get_running_loop()
    answers: list[tuple[bool, int, float]] = []
    waiting = deque((number / per_s, raw(post), post[3]) for number, post in enumerate(flood))
    began = loop.time()

    async def line() -> None:
        _, telephone = await loop.create_connection(Telephone, "127.0.0.1", port)
        while waiting:
            due, said, true = waiting.popleft()
            if (early := began + due - loop.time()) > 0:
                await asyncio.sleep(early)
            status = await telephone.say(said)
            answers.append((true, status, loop.time() - began - due))
            if status == 503:
                waiting.append((loop.time() - began + 0.2, said, true))
        telephone.close()

    await asyncio.gather(*(line() for _ in range(4 * CLIENTS)))
    return answers


def resident(pid: int) -> int:
    """Bytes of *pid* in memory."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


def spent(pid: int) -> float:
    """Seconds of CPU *pid* has taken."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Gauge:
    """What the daemon does meanwhile: how fast it sends, how much CPU and, at most, how much memory it takes."""

    def __init__(self, road: Stage) -> None:
        self._road = road
        self.most = 0
        self.per_s = self.cpu_s = self.lasted_s = 0.0

    async def __aenter__(self) -> Self:
        self._sent, self._began = self._road.simulator.ledger.accepted, time.monotonic()
        self._spent = spent(self._road.pid)
        self._watching = asyncio.create_task(self._watch())
        return self

    async def __aexit__(self, *_: object) -> None:
        self.lasted_s = time.monotonic() - self._began
        self.per_s = (self._road.simulator.ledger.accepted - self._sent) / self.lasted_s
        self.cpu_s = spent(self._road.pid) - self._spent
        self._watching.cancel()

    async def _watch(self) -> None:
        while True:
            self.most = max(self.most, resident(self._road.pid))
            await asyncio.sleep(0.05)


@pytest.mark.long
@pytest.mark.timeout(300)
async def test_a_flood_while_the_daemon_sends(database: str, tmp_path: Path) -> None:
    messages = round(FLOOD * 0.9 / 1.3)
    async with Stage.set_up(CAST, tmp_path, database, faults=SILENT) as road:
        await road.start()
        await road.insert(messages, service="before", intent="delivery")
        await road.quiet(within_s=120)
        sent = [(entry.token, entry.sid) for entry in road.simulator.ledger.entries]
        await road.insert(60 * SENT_PER_S, service="steady", intent="marketing")
        flood = posts(sent, random.Random(5), port=road.public, secret=AUTH_TOKEN)
        await asyncio.sleep(3)
        async with Gauge(road) as before:
            await asyncio.sleep(6)
        async with Gauge(road) as during:
            answers = await poured(road.public, flood, per_s=FLOOD_PER_S)
        forged = [post for post in flood if not post[3]]
        calm, began = spent(road.pid), time.monotonic()
        await asyncio.sleep(2)
        calm = (spent(road.pid) - calm) / (time.monotonic() - began)
        cpu, began = spent(road.pid), time.monotonic()
        refused = await poured(road.public, forged * 2, per_s=2_000)
        cpu = (spent(road.pid) - cpu - calm * (time.monotonic() - began)) / len(refused)
        assert {answer[:2] for answer in refused} == {(False, 403)}
        await kept(road, flood, messages)
    heard(answers, before, during, cpu, len(flood))


async def kept(road: Stage, flood: Sequence[Post], messages: int) -> None:
    """Every true one was kept, no other was."""
    row = await road.connection.fetchrow(
        "SELECT count(*) AS all, count(*) FILTER (WHERE status = 'delivered') AS delivered FROM outrider.receipt"
    )
    assert row is not None
    assert row["all"] == row["delivered"] == sum(post[3] for post in flood)
    assert (
        await road.connection.fetchval("SELECT count(*) FROM outrider.outcome WHERE status = 'delivered'") == messages
    )


def heard(
    answers: Sequence[tuple[bool, int, float]], before: Gauge, during: Gauge, cpu_s: float, many: int
) -> None:  # fmt: skip
    """The figures, and what they are held to."""
    final = [answer for answer in answers if answer[1] != 503]
    assert {answer[:2] for answer in final} == {(True, 204), (False, 403)}
    assert len(final) == many
    p99, slowest = quantiles([took for *_, took in final], n=100)[-1], max(took for *_, took in final)
    print(
        f"{many} receipts at {FLOOD_PER_S}/s in {during.lasted_s:.1f} s, {during.cpu_s:.1f} s of them CPU of the daemon's:"
        f" 0 lost, {len(answers) - many} told to come again, answered p99"
        f" {p99 * 1e3:.0f} ms, at most {slowest * 1e3:.0f} ms; sending {before.per_s:.0f}/s before, {during.per_s:.0f}/s"
        f" meanwhile; memory {(during.most - before.most) / 2**20:+.1f} MB; a forged one {cpu_s * 1e6:.0f} us"
    )
    assert p99 < ANSWER_P99_S
    assert during.per_s >= SENDING_KEPT * before.per_s
    assert during.most - before.most < GROWTH_MAX
    assert cpu_s < FORGED_MAX_S
