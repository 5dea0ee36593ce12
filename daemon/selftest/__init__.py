"""
The self-test: what is promised of ``kill -9``, tried out on the machine and the Postgres it shall hold on.

A real Postgres, the daemon as a process that is killed again and again, and a provider whose ledger is the judge: it
is written before it answers, so what stands there was sent, whatever the daemon believes::

    stage.py      the folder, the database, the provider, and a daemon to be killed
    storm.py      what is inserted, and when the daemon dies
    evidence.py   what the database and the ledger say afterwards
    verdict.py    the judgement over it; pure
    paint.py      a line for each kill, the table at the end
"""

from __future__ import annotations

import asyncio
import signal
import sys
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING

from daemon.selftest import evidence, paint, verdict
from daemon.selftest.stage import Stage
from daemon.selftest.storm import Storm

if TYPE_CHECKING:
    from pathlib import Path

    from daemon.selftest.verdict import Report

__all__ = ["Plan", "crash", "perform"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """
    What shall be done. *dsn*: a database that has no schema of ours; None: a private one. *client*: what carries the
    requests, as config.toml calls it.
    """

    kills: int = 20
    messages: int = 5_000
    seed: int = 1
    dsn: str | None = None
    client: str = "wire"
    keep: Path | None = None
    as_json: bool = False


async def perform(plan: Plan) -> bool:
    """Raise the storm, print what came of it, and say whether every promise was kept. Raises Trouble."""
    # A polite kill is a Ctrl-C too: everything that was started is taken down.
    me = asyncio.current_task()
    assert me is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, me.cancel)
    with paint.progress(plan.kills, plan.messages, sys.stderr) as progress:
        found = await crash(plan, progress)
    paint.result(found, sys.stderr if plan.as_json else sys.stdout)
    if plan.as_json:
        paint.as_json(found, sys.stdout)
    return found.ok


async def crash(plan: Plan, progress: paint.Progress) -> Report:
    """The storm and the judgement, without a word but *progress*. Raises Trouble."""
    began = asyncio.get_running_loop().time()
    async with Stage.up(dsn=plan.dsn, client=plan.client, keep=plan.keep, seed=plan.seed, say=progress.say) as stage:
        storm = Storm(stage, kills=plan.kills, messages=plan.messages, dice=Random(plan.seed), progress=progress)
        kills = await storm.rage()
        await storm.settle()
        exit_code = await stage.stop_daemon()
        seen = await evidence.gather(stage, kills, back_s=storm.back_s, exit_code=exit_code)
    return verdict.judge(seen, seed=plan.seed, seconds=asyncio.get_running_loop().time() - began)
