"""
The demo: an application, a daemon and a provider that misbehaves, in one go and without configuration.

Nothing in it is a stand-in for Outrider: a real Postgres, the daemon as its own process, the provider as its own
process, real INSERTs in between. What it claims at the end it has checked against the provider's ledger::

    scenario.py   what is inserted, and when; pure
    stage.py      the folder, the database and the two processes, up and down again
    children.py   a scratch folder, and commands of ours as processes in it; the self-test uses it too
    scenery.py    the files they are given: config.toml, faults.toml
    inserter.py   the application: transactions of every size
    watch.py      what can be seen from outside, and when it is over
    evidence.py   what the database and the ledger say afterwards
    report.py     the judgement over it; pure
    paint.py      progress and tables
"""

from __future__ import annotations

import asyncio
import signal
import sys
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING

from daemon.demo import evidence, paint, report, scenario
from daemon.demo.inserter import Application
from daemon.demo.stage import Stage
from daemon.demo.watch import Watch

if TYPE_CHECKING:
    from pathlib import Path

    from daemon.demo.report import Report

__all__ = ["Plan", "perform"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What the demo shall do. *patience_s* bounds the wait from the first row to the last answer."""

    messages: int = scenario.DEFAULT_MESSAGES
    seed: int = 1
    patience_s: float = 70.0
    keep: Path | None = None
    as_json: bool = False


async def perform(plan: Plan) -> bool:
    """Play the demo, print what came of it, and say whether every promise was kept."""
    # A polite kill is a Ctrl-C too: everything that was started is taken down.
    me = asyncio.current_task()
    assert me is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, me.cancel)
    script = scenario.write(plan.messages, plan.seed)
    progress = paint.progress(sys.stderr)
    async with Stage.up(script.speakers, seed=plan.seed, keep=plan.keep, say=progress.say) as stage:
        found = await _play(plan, script, stage, progress)
    paint.results(found, sys.stderr if plan.as_json else sys.stdout)
    if plan.as_json:
        paint.as_json(found, sys.stdout)
    return found.ok


async def _play(plan: Plan, script: scenario.Scenario, stage: Stage, progress: paint.Progress) -> Report:
    application = Application(stage.dsn, script)
    watch = Watch(stage, application)
    try:
        async with asyncio.TaskGroup() as group:
            inserting = group.create_task(application.run())
            async with aclosing(watch.until_quiet(plan.patience_s)) as views:
                async for view in views:
                    progress.show(view)
            inserting.cancel()
    except ExceptionGroup as several:
        raise first_of(several) from several
    finally:
        progress.close()
    progress.say("stopping the daemon")
    exit_code = await stage.stop_daemon()
    seen = await evidence.gather(stage, application, exit_code=exit_code)
    return report.judge(seen)


def first_of(trouble: Exception) -> Exception:
    """What happened first; the rest of a group is mostly its consequence."""
    while isinstance(trouble, ExceptionGroup):
        trouble = trouble.exceptions[0]
    return trouble
