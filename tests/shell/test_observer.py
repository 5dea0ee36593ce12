"""The observer: what an operator is told of troubles."""

from __future__ import annotations

from typing import TYPE_CHECKING

from daemon.observer import FORGED_S, TROUBLES
from tests.shell.parts import Wound, engine

if TYPE_CHECKING:
    from pathlib import Path

NOWHERE = "postgresql://nobody@127.0.0.1:1/none"


async def test_forged_callbacks_push_nothing_else_out_of_the_recent_troubles(tmp_path: Path) -> None:
    clock = Wound()
    async with engine(NOWHERE, tmp_path, clock=clock) as made:
        observer = made.book._observer

        def told() -> list[str]:
            return [trouble.what for trouble in observer.status().troubles]

        def forged(provider: str, many: int) -> None:
            for _ in range(many):
                observer.callback(provider, "receipt", "forged")

        observer.trouble("a gate is open")
        clock.go(1)
        forged("sim", 3 * TROUBLES)
        clock.go(1)
        forged("other", 1)
        assert told() == [
            "callbacks in the name of other with a bad signature: 1 within a minute",
            "callbacks in the name of sim with a bad signature: 60 within a minute",
            "a gate is open",
        ]
        for _ in range(2 * TROUBLES):
            clock.go(FORGED_S)
            forged("sim", 2)
        assert told()[0] == "callbacks in the name of sim with a bad signature: 2 within a minute"
        assert len(told()) == 3
        for number in range(TROUBLES):
            clock.go(1)
            observer.trouble(str(number))
        assert told() == [str(number) for number in reversed(range(TROUBLES))]
