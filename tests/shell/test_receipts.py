"""The receipt book when the fault is ours; what it does on a real Postgres is in test_watchers.py."""

from __future__ import annotations

import asyncio
import gc
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest

from daemon.clock import Clock
from daemon.core.lifecycle import Status
from daemon.core.receipt import Receipt
from daemon.database import Line
from daemon.metrics import Metrics
from daemon.observer import Observer
from daemon.pooler import TransactionPooler
from daemon.receipts import BATCH, News, ReceiptBook, Unwritten
from daemon.settings import Settings
from daemon.supervisor import supervise

if TYPE_CHECKING:
    from asyncpg import Record


class Failing(Line):
    """Raises what it is given, one after the other; then all is well. Every write takes a moment."""

    def __init__(self, *faults: Exception, pause_s: float = 0.01) -> None:
        super().__init__("receipts", "", statements=[])
        self.pause_s = pause_s
        self.faults = list(faults)
        self.written = 0

    async def fetch(self, name: str, *arguments: object) -> list[Record]:
        if self.pause_s:
            await asyncio.sleep(self.pause_s)
        if self.faults:
            raise self.faults.pop(0)
        self.written += 1
        return []


class Telling:
    """A service that hears something, as the reconciler does."""

    name = "telling"

    def __init__(self, book: ReceiptBook) -> None:
        self._book = book

    async def run(self, stop: asyncio.Event) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(stop.wait())
            await self._book.hear([news()])


def book(line: Line) -> ReceiptBook:
    return ReceiptBook(line, Observer(Metrics(), Clock(), Settings()))


def news() -> News:
    return News(uuid4(), 1, "sim", Receipt("SM1", Status.DELIVERED, "", "", final=True))


async def test_a_fault_costs_its_own_batch_and_no_other(caplog: pytest.LogCaptureFixture) -> None:
    line = Failing(KeyError("a bug"), KeyError("a bug"))
    made = book(line)
    waiting = [asyncio.create_task(made.hear([news()] * BATCH)) for _ in range(4)]
    async with asyncio.timeout(2):
        found = await asyncio.gather(*waiting, return_exceptions=True)
        await made.hear([news()])
    assert [type(one) for one in found] == [Unwritten, Unwritten, type(None), type(None)]
    assert (line.written, made.pending) == (3, 0)
    assert [str(record.exc_info[1]) for record in caplog.records if record.exc_info] == ["'a bug'"] * 2


async def test_who_has_gone_leaves_no_complaint(caplog: pytest.LogCaptureFixture) -> None:
    class Parting(Failing):
        async def fetch(self, name: str, *arguments: object) -> list[Record]:
            asyncio.get_running_loop().call_soon(tasks[0].cancel)  # after he is told, before he hears it
            return await super().fetch(name, *arguments)

    made = book(Parting(KeyError("a bug"), pause_s=0))
    tasks = [asyncio.create_task(made.hear([news()])) for _ in range(2)]
    found = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(one) for one in found] == [asyncio.CancelledError, Unwritten]
    tasks.clear()
    found.clear()
    gc.collect()
    assert [record.name for record in caplog.records] == ["daemon.receipts"]


@pytest.mark.parametrize(("fault", "told"), [(KeyError("a bug"), Unwritten), (TransactionPooler(), TransactionPooler)])
async def test_a_service_that_hears_it_has_failed(fault: Exception, told: type[Exception]) -> None:
    made = book(Failing(fault))
    with pytest.raises(ExceptionGroup) as failed:
        await supervise([Telling(made)], stop=asyncio.Event(), grace_s=1)
    assert failed.group_contains(told)
