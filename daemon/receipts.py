"""
The receipt book: what providers tell us, committed together before anybody is answered.

Each caller of :meth:`ReceiptBook.hear` waits until its own news is durable; all that arrive while one commit is under
way go together into the next (group commit). Merging is the lattice's work (``core/receipt.py``,
``sql/receive.sql``), so nothing here depends on order or repetition.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from daemon.core.lifecycle import RANKS
from daemon.database import DatabaseDown
from daemon.pooler import TransactionPooler

if TYPE_CHECKING:
    from collections.abc import Sequence
    from uuid import UUID

    from daemon.core.receipt import Receipt
    from daemon.database import Line
    from daemon.observer import Observer
    from daemon.provider import Inbound

BATCH = 500  # receipts in one commit: 7 ms of Postgres
PENDING_MAX = 20_000  # a burst of 5,000/s for 4 s; beyond it callers are told to come again

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class News:
    """One receipt, and whose it is: the token in the callback URL said so. id is None without a token of ours."""

    id: UUID | None
    attempt: int | None
    provider: str
    receipt: Receipt


class Overrun(Exception):
    """More receipts are waiting than the book has room for: the provider shall come again."""


class Unwritten(Exception):
    """A fault of ours stood between the news and the table. The log tells which; nobody may be answered with a yes."""


class ReceiptBook:
    """
    Takes news, and returns when it is committed. Raises DatabaseDown or Overrun: nothing was written then.

    TransactionPooler and Unwritten are no trouble that passes: they are for whoever ends the daemon, or says 500.
    """

    def __init__(self, line: Line, observer: Observer) -> None:
        self._line = line
        self._observer = observer
        self._pending: deque[tuple[Sequence[News], asyncio.Future[None]]] = deque()
        self._size = 0
        self._writer: asyncio.Task[None] | None = None

    @property
    def pending(self) -> int:
        """Receipts that wait for a commit."""
        return self._size

    async def hear(self, news: Sequence[News]) -> None:
        """Write *news* down; returns once it is durable."""
        if not news:
            return
        if self._size + len(news) > PENDING_MAX:
            raise Overrun
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._pending.append((news, done))
        self._size += len(news)
        if self._writer is None:
            self._begin()
        await done

    async def heard_from(self, provider: str, message: Inbound) -> None:
        """Keep what a person wrote to us; a repeat changes nothing."""
        await self._line.fetch(
            "inbound", provider, message.reference, message.sender, message.recipient, message.body, message.opt_out,
            dict(message.details),
        )  # fmt: skip

    def _begin(self) -> None:
        self._writer = asyncio.create_task(self._write(), name="receipts")
        self._writer.add_done_callback(self._ended)

    def _ended(self, writer: asyncio.Task[None]) -> None:
        """All is written, or a batch was our undoing: what came meanwhile does not go with it."""
        self._writer = None
        if writer.cancelled():
            return  # so is everything: the loop closes
        if fault := writer.exception():
            _log.error("receipts could not be written", exc_info=fault)
        if self._pending:
            self._begin()

    async def _write(self) -> None:
        while self._pending:
            batch: list[News] = []
            waiting: list[asyncio.Future[None]] = []
            while self._pending and len(batch) < BATCH:
                news, done = self._pending.popleft()
                batch.extend(news)
                waiting.append(done)
            self._size -= len(batch)
            await self._commit(batch, waiting)

    async def _commit(self, batch: list[News], waiting: list[asyncio.Future[None]]) -> None:
        try:
            rows = await self._line.fetch("receive", *_columns(batch))
        except (DatabaseDown, TransactionPooler) as trouble:
            _refuse(waiting, trouble)
        else:
            self._observer.heard(batch, [(row["provider"], row["delay_s"]) for row in rows if row["provider"]])
            self._observer.anomalies.found(row for row in rows if row["kind"])
            for done in waiting:
                if not done.done():
                    done.set_result(None)
        finally:
            # Cancelled, or our own fault: whoever waits must not be answered with a 2xx, nor believe himself cancelled.
            _refuse(waiting, Unwritten("receipts could not be written"))


def _refuse(waiting: Sequence[asyncio.Future[None]], trouble: Exception) -> None:
    for done in waiting:
        if not done.done():
            done.set_exception(trouble)


def _columns(batch: Sequence[News]) -> tuple[list[object], ...]:
    return (
        [news.id for news in batch],
        [news.attempt for news in batch],
        [news.provider for news in batch],
        [news.receipt.reference for news in batch],
        [news.receipt.status.value for news in batch],
        [RANKS[news.receipt.status] for news in batch],
        [news.receipt.code or None for news in batch],
        [news.receipt.reason or None for news in batch],
        [news.receipt.final for news in batch],
    )
