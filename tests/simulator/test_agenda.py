"""The agenda: many things to be done later, one timer."""

from __future__ import annotations

import asyncio

from daemon.simulator.agenda import Agenda


async def test_what_is_due_already_does_not_disturb_what_comes_next() -> None:
    agenda, done = Agenda(), list[str]()
    agenda.after(-1.0, lambda: done.append("late"))  # uvloop's handle for this one knows no time
    agenda.after(0.0, lambda: done.append("now"))
    agenda.after(0.01, lambda: done.append("soon"))
    while len(done) < 3:
        await asyncio.sleep(0.005)
    assert done == ["late", "now", "soon"]
