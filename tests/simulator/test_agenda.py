"""The agenda: many things to be done later, one timer."""

from __future__ import annotations

import asyncio

from daemon.simulator.agenda import Agenda


async def test_what_is_due_already_does_not_disturb_what_comes_next() -> None:
    agenda, done, all_done = Agenda(), list[str](), asyncio.Event()
    agenda.after(-1.0, lambda: done.append("late"))  # uvloop's handle for this one knows no time
    agenda.after(0.0, lambda: done.append("now"))
    agenda.after(0.01, lambda: done.append("soon"))
    agenda.after(0.02, all_done.set)
    await all_done.wait()
    assert done == ["late", "now", "soon"]
