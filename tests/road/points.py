"""
Outrider with a bomb in it: ``python -m tests.road.points C4:3 run --config FILE`` kills itself the third time it comes to point C4.

Without arguments it is a nest: everything is loaded once, and for each line of its input, ``["C4:3", "run", ...]``, such a
process leaves it by a fork, and how that ended is told on a line: fifty deaths cost one start of Python, not fifty.

Nothing of this is in the daemon, and nothing of the daemon is replaced: a point is a method of one of its parts, and
death comes before it, after it, or while Postgres is at it. A method that is gone fails here, loudly.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from functools import wraps
from typing import TYPE_CHECKING, Any, NamedTuple

import asyncpg

import daemon.app
import daemon.cli.dead
import daemon.cli.serve  # noqa: F401 (all of it, before anything leaves the nest)
from daemon.__main__ import main
from daemon.database import Line
from daemon.desk import Desk
from daemon.journal import Journal
from daemon.providers.twilio import Twilio
from daemon.wire.connection import Connection

if TYPE_CHECKING:
    from collections.abc import Callable

FLUSHED_S = 0.001  # until the loop has handed to the kernel what was written
HELD_S = 0.05  # time enough for whoever would answer without waiting
AT_IT_S = 0.002  # how long Postgres is left alone with a statement whose answer nobody will read


class Point(NamedTuple):
    """Where death comes."""

    owner: type
    method: str
    when: str  # before, after, flushed (once the bytes are out), asked (Postgres is at it), held (a while before)
    statement: str = ""  # what a line is asked: its name, or how the query begins; or how a message begins

    def here(self, arguments: tuple[Any, ...], result: object) -> bool:
        """Whether this call is the point: the right statement, and one that did something; or the right message."""
        if self.owner is Desk:
            return bool(arguments[0].body.startswith(self.statement))
        return str(arguments[0]).startswith(self.statement) and (self.method == "ask" or result != [])


POINTS = {
    "C1": Point(Line, "fetch", "before", "claim"),  # committed by the application, not claimed
    "C2": Point(Line, "fetch", "asked", "claim"),  # the claim's COMMIT is sent, not acknowledged
    "C3": Point(Line, "fetch", "after", "claim"),  # claimed
    "C4": Point(Journal, "dispatched", "after"),  # in the dispatch log, not written
    "C5": Point(Connection, "send", "flushed"),  # written
    "C6": Point(Twilio, "hear", "before"),  # the answer is read
    "C7": Point(Journal, "answered", "after"),  # the verdict is in the dispatch log
    "C8": Point(Line, "fetch", "asked", "settle"),  # the verdict's COMMIT is sent, not acknowledged
    "C8b": Point(Line, "fetch", "after", "settle"),  # and acknowledged, but not noted
    "C9": Point(Line, "fetch", "held", "receive"),  # a receipt is read, not committed
    "C10": Point(Line, "fetch", "after", "receive"),  # committed, not answered
    # A replay of many, half done.
    "C12": Point(
        asyncpg.Connection, "fetch", "after", "SELECT message, answer, segments, due_at FROM outrider.replay("
    ),
    "P": Point(Desk, "prepare", "before", "poison"),  # a message that no daemon survives
    "R": Point(Line, "fetch", "before", "release"),  # what a death left open is judged, not closed
    "D": Point(Line, "fetch", "after", "decide"),  # it is decided to send again
    "E": Point(Line, "ask", "after", "INSERT INTO outrider.attempt"),  # evidence is told, and has not taken effect
}


class Bomb:
    """Goes off when its point has been reached so many times."""

    def __init__(self, point: Point, times: int) -> None:
        self.point = point
        self.left = times

    def hit(self) -> bool:
        """Once more; whether it was the last time."""
        self.left -= 1
        return self.left == 0

    def plant(self) -> None:
        """Put it around the method."""
        original = getattr(self.point.owner, self.point.method)
        around = self._around_coroutine if asyncio.iscoroutinefunction(original) else self._around
        setattr(self.point.owner, self.point.method, wraps(original)(around(original)))

    def _around(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def method(part: object, *arguments: Any, **options: Any) -> Any:
            point = self.point
            if point.when == "before" and (not point.statement or point.here(arguments, None)) and self.hit():
                die()
            result = original(part, *arguments, **options)
            if point.when == "after" and self.hit():
                die()
            if point.when == "flushed" and self.hit():
                asyncio.get_running_loop().call_later(FLUSHED_S, die)
            return result

        return method

    def _around_coroutine(self, original: Callable[..., Any]) -> Callable[..., Any]:
        async def method(part: object, *arguments: Any, **options: Any) -> Any:
            point = self.point
            if point.when == "before" and point.here(arguments, None) and self.hit():
                die()
            if point.when == "held" and point.here(arguments, None) and self.hit():
                await asyncio.sleep(HELD_S)
                die()
            if point.when == "asked" and point.here(arguments, None) and self.hit():
                asyncio.get_running_loop().call_later(AT_IT_S, die)
            result = await original(part, *arguments, **options)
            if point.when == "after" and point.here(arguments, result) and self.hit():
                die()
            return result

        return method


def die() -> None:
    """``kill -9``."""
    os.kill(os.getpid(), signal.SIGKILL)


def bombed(bomb: str, *arguments: str) -> None:
    """The command line, with *bomb* in it: ``POINT`` or ``POINT:TIMES``; without one if that is empty."""
    name, _, times = bomb.partition(":")
    if name:
        Bomb(POINTS[name], int(times or 1)).plant()
    sys.argv[1:] = arguments
    main()


def nest() -> None:
    """Let out one after the other; each has a minute to die in."""
    for line in sys.stdin:
        child = os.fork()
        if not child:
            signal.alarm(60)
            os.dup2(2, 1)  # the answers of the nest are not mixed with what it says
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            bombed(*json.loads(line))
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    bombed(*sys.argv[1:]) if sys.argv[1:] else nest()
