"""
The whole catalogue of what providers do, hundreds of times each, while a healthy provider is asked beside it.

Each word must be what the table says, every place and descriptor must be free afterwards, and the neighbour must not
notice. What one behaviour permits is shown by itself in ``tests/shell/test_catalogue.py``.
"""

from __future__ import annotations

import asyncio
import gc
import time
from contextlib import contextmanager
from statistics import median, quantiles
from typing import TYPE_CHECKING

import pytest

from tests.shell.peer import LATE, SOON
from tests.shell.test_catalogue import (
    CATALOGUE,
    SID,
    SILENCE,
    accepted,
    all_places_are_free,
    ask,
    kind,
    nothing_left,
)
from tests.trouble.everyone import everyone

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from daemon.transport import Transport
    from daemon.wire import Wire
    from tests.shell.test_catalogue import Kind

__all__ = ["kind"]

STORM_PER_S = 120  # 10,000 messages in less than 90 s, as asked (facts: reliability 5, T6)
PASSES_S = 3 * SOON  # a deadline that is meant to pass, on a machine with much to do
ILL_PLACES = 256  # nobody shall wait for one, even while the machine stands still for a second
ROUNDS, CALM_S = 10, 4.0


async def storm(transport: Transport | Wire, urls: Mapping[str, str], *, each: int) -> None:
    """*each* messages to all of *urls* in turns, at a steady rate, and the word of every one."""

    async def one(name: str) -> None:
        outcome = await ask(transport, urls[name], deadline_s=PASSES_S if name in SILENCE else LATE)
        assert CATALOGUE[name][1](outcome), f"{name}: {outcome}"

    began = time.monotonic()
    async with asyncio.TaskGroup() as group:
        for number, name in enumerate(list(urls) * each):
            await asyncio.sleep(max(began + number / STORM_PER_S - time.monotonic(), 0))
            group.create_task(one(name))


async def neighbour(transport: Transport | Wire, url: str, until: asyncio.Future[None]) -> float:
    """The p99 of a healthy provider, asked fifty times a second, in seconds."""
    took: list[float] = []

    async def one() -> None:
        began = time.monotonic()
        assert accepted(SID)(await ask(transport, url, deadline_s=LATE))
        took.append(time.monotonic() - began)

    async with asyncio.TaskGroup() as group:
        while not until.done():
            group.create_task(one())
            await asyncio.sleep(0.02)
    return quantiles(took, n=100)[-1]


@contextmanager
def collected_as_in_the_daemon() -> Iterator[None]:
    """All that pytest has loaded is frozen, as app.py does: each full collection of it stood still for 60 ms."""
    usual = gc.get_threshold()
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 50, 100)
    try:
        yield
    finally:
        gc.set_threshold(*usual)
        gc.unfreeze()


@pytest.mark.long
@pytest.mark.timeout(400)
async def test_each_behaviour_two_hundred_and_fifty_times_and_a_neighbour_who_does_not_notice(kind: Kind) -> None:
    """Calm and storm by turns, so that whatever else the machine does meets both; providers in processes of their own."""
    calm, stormy = [], []
    with collected_as_in_the_daemon():
        async with (
            everyone(*CATALOGUE.keys() - SILENCE) as loud,  # beside these, the quiet ones would not keep their times
            everyone(*SILENCE) as quiet,
            everyone("healthy") as good,
            nothing_left(),
            kind.open(connections=ILL_PLACES) as ill,
            kind.open(connections=64) as well,
        ):
            for _ in range(ROUNDS):
                waiting = asyncio.create_task(asyncio.sleep(CALM_S))
                calm.append(await neighbour(well, good["healthy"], waiting))
                storming = asyncio.create_task(storm(ill, {**loud, **quiet}, each=250 // ROUNDS))
                stormy.append(await neighbour(well, good["healthy"], storming))
                await storming
            await all_places_are_free(ill, ILL_PLACES)
    before, meanwhile = median(calm), median(stormy)
    print(
        f"{250 // ROUNDS * ROUNDS * len(CATALOGUE)} messages to {len(CATALOGUE)} behaviours, each read as the table says;"
        f" a neighbour's p99 {before * 1e3:.1f} ms in calm, {meanwhile * 1e3:.1f} ms meanwhile ({meanwhile / before - 1:+.1%})"
    )
    assert meanwhile < 1.1 * before
