"""The fleet: couriers who come back are kept, and carry nothing while they rest."""

from __future__ import annotations

import asyncio
import weakref
from typing import TYPE_CHECKING, Any, cast

from daemon.fleet import Fleet

if TYPE_CHECKING:
    from daemon.core.message import Message
    from daemon.courier import Courier
    from daemon.lanes import Lanes


class Errand:
    """What is carried here: all that matters of it is whether somebody still holds it."""


class Legs:
    """A courier who is there at once."""

    def __init__(self) -> None:
        self.delivered = 0

    async def deliver(self, _errand: Errand) -> None:
        self.delivered += 1


class Road:
    """All of the lanes that a fleet sees."""

    closed = False

    def close(self) -> None:
        self.closed = True


async def test_whoever_rests_has_let_go_of_the_message_and_takes_the_next() -> None:
    legs, stop = Legs(), asyncio.Event()
    fleet = Fleet(cast("Courier", legs), cast("Lanes", Road()))
    running = asyncio.create_task(fleet.run(stop))
    await asyncio.sleep(0)
    tasks = len(asyncio.all_tasks())
    errands: list[weakref.ref[Any]] = []
    for _ in range(3):
        errand = Errand()
        errands.append(weakref.ref(errand))
        fleet.take(cast("Message", errand))
        del errand
        await asyncio.sleep(0.01)
    assert [errand() for errand in errands] == [None] * 3
    assert (legs.delivered, fleet.at_rest, len(asyncio.all_tasks()) - tasks) == (3, 1, 1)
    stop.set()
    await running
    assert len(asyncio.all_tasks()) == tasks - 1
