"""
A flood of receipts: repeated, forged, all at once. None that is true is lost, none that is not is kept.

Over the real public listener, with Twilio's signatures, into a real Postgres. Asked again where we say 503, as providers
do; whoever was answered 2xx was heard.
"""

from __future__ import annotations

import asyncio
import random
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING
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
from daemon.simulator.twilio import sign
from daemon.web import Listener, public_app
from tests.shell.parts import dialect

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from uuid import UUID

    Post = tuple[str, bytes, str, bool]  # path, body, signature, whether it is true

KEY = b"k" * 32
CLIENTS = 50


@asynccontextmanager
async def public(database: str) -> AsyncIterator[int]:
    observer = Observer(Metrics(), Clock(), Settings())
    line = Line("receipts", database, statements=("receive", "inbound"), hot=True)

    async def opt_out(recipient: str) -> None:
        raise AssertionError(recipient)

    callbacks = Callbacks(
        {"sim": dialect()}, key=KEY, book=ReceiptBook(line, observer), metrics=observer, opt_out=opt_out
    )
    listener, stop = Listener("public", public_app(callbacks), host="127.0.0.1", port=0), asyncio.Event()
    async with asyncio.TaskGroup() as group:
        group.create_task(listener.run(stop))
        await listener.listening.wait()
        yield listener.port
        stop.set()
    await line.close()


def posts(ids: Sequence[UUID], rng: random.Random) -> list[Post]:
    """A "delivered" for each of *ids*: three in ten twice, and one forged for every nine true ones; in any order."""
    made: list[Post] = []
    for number, id in enumerate(ids):
        path = f"/callbacks/sim/{seal(KEY, id, 1)}"
        form = {"MessageSid": f"SM{number:032x}", "MessageStatus": "delivered", "To": "+12025550100"}
        signature = sign("token", f"http://127.0.0.1:1{path}", form.items())
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
    connection = await asyncpg.connect(database)
    rows = await connection.fetch(
        "INSERT INTO outrider.outbox (recipient, service, body)"
        " SELECT '+12025550100', 'default', 'x' FROM generate_series(1, $1::integer) RETURNING id",
        messages,
    )
    flood = posts([row["id"] for row in rows], random.Random(5))
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
    await connection.close()


@pytest.mark.parametrize("cut", [False, True], ids=["in peace", "while Postgres hangs up"])
async def test_a_flood_of_receipts(database: str, cut: bool) -> None:
    await flooded(database, messages=1_000, cut=cut)


@pytest.mark.long
@pytest.mark.timeout(300)
async def test_a_flood_of_twenty_thousand_receipts(database: str) -> None:
    await flooded(database, messages=20_000, cut=True)
