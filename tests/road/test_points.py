"""Death at every named point between a row and its receipt (``points.py``), and what is true after the next start."""

from __future__ import annotations

import asyncio
import os
import random
import sys
from typing import TYPE_CHECKING

import pytest

from daemon.selftest import evidence, verdict
from daemon.simulator import AUTH_TOKEN, Faults
from tests.road.stage import Cast

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    import asyncpg

    from daemon.selftest.verdict import Report
    from tests.road.stage import Stage

    SetUp = Callable[..., Awaitable[Stage]]

BOMBED = ("-m", "tests.road.points")
SLOW, QUICK = ({f"+155501{rate:03}00": rate} for rate in (2, 100))
HONEST = {
    "latency": {"kind": "fixed", "ms": 20},
    "receipts": {"sent": {"kind": "fixed", "ms": 50}, "final": {"kind": "fixed", "ms": 50}},
}
SILENT = HONEST | {"receipts": {"enabled": False}}
IMPATIENT = {"otp": {"resolve_for": "2s"}}
DELIVERED = "SELECT count(*) = (SELECT count(*) FROM outrider.outbox) FROM outrider.outcome WHERE status = 'delivered'"

# What the first death leaves in doubt: nothing before the dispatch log has it, nothing after it has the answer.
TABLE = {"C1": 0, "C2": 0, "C3": 0, "C4": 1, "C5": 1, "C6": 1, "C7": 0, "C8": 0, "C8b": 0, "C9": 0, "C10": 0}
# How deep into its life a daemon may die: points that each message comes to, and points of a batch, twice.
OFTEN = {"C4": 8, "C5": 8, "C6": 8, "C7": 8}


async def dies(road: Stage, point: str, *, times: int = 1, within_s: float = 20.0) -> None:
    """Run the daemon until it dies at *point*."""
    process = await road.launch(*BOMBED, f"{point}:{times}")
    async with asyncio.timeout(within_s):
        assert await process.wait() == -9, road.log.read_text()[-2000:]


async def survives(road: Stage, *, until: str) -> Report:
    """Run it without a bomb until everything is done; the judgement over all that was."""
    await road.start()
    await road.until(until)
    await road.quiet()
    code = await road.stop()
    report = verdict.judge(await evidence.gather(road, [], back_s=[], exit_code=code), seed=0, seconds=0.0)
    assert report.ok, report.document()
    assert report.duplicates == 0
    return report


async def doubts(road: Stage) -> int:
    return int(await road.connection.fetchval("SELECT count(*) FROM outrider.attempt WHERE kind = 'exchange'"))


@pytest.mark.parametrize("point", TABLE)
async def test_a_death_leaves_in_doubt_what_the_table_says(stage: SetUp, point: str) -> None:
    cast = Cast(senders=SLOW, services={"otp": list(SLOW)}, intents=IMPATIENT)
    road = await stage(cast, Faults.model_validate(HONEST))
    await road.insert(2, service="otp", intent="otp")
    await dies(road, point)
    report = await survives(road, until=DELIVERED)
    assert (await doubts(road), report.accepted) == (TABLE[point], 2)
    # What never left was sent again because its policy says so; what left was found, and not sent again.
    ways = {"C4": "policy", "C5": "receipt", "C6": "receipt"}
    assert report.resolved_by == {way: int(way == ways.get(point)) for way in verdict.WAYS}


async def test_an_insert_that_is_not_committed_was_never_there(stage: SetUp) -> None:
    road = await stage(Cast(senders=QUICK, services={"otp": list(QUICK)}), Faults.model_validate(HONEST))
    await road.start()
    transaction = road.connection.transaction()  # C0
    await transaction.start()
    await road.insert(1, service="otp", intent="otp", body="never")
    await asyncio.sleep(0.5)
    await transaction.rollback()
    await road.insert(1, service="otp", intent="otp", body="ever")
    await road.until(DELIVERED)
    assert road.simulator.ledger.accepted == 1


async def test_a_death_while_another_is_judged(stage: SetUp) -> None:
    cast = Cast(senders=SLOW, services={"otp": list(SLOW)})
    road = await stage(cast, Faults.model_validate(HONEST))
    await road.insert(2, service="otp", intent="otp")
    await dies(road, "C5")
    for _ in range(2):
        await dies(road, "R")
    report = await survives(road, until=DELIVERED)
    assert (await doubts(road), report.accepted) == (1, 2)


async def test_a_death_between_a_decision_and_its_story(stage: SetUp) -> None:
    cast = Cast(senders=SLOW, services={"otp": list(SLOW)}, intents=IMPATIENT)
    lying = SILENT | {"list_lag_ms": 3_600_000}  # when asked, it says that it never had it
    road = await stage(cast, Faults.model_validate(lying))
    await road.insert(1, service="otp", intent="otp")
    await dies(road, "C5")
    await dies(road, "D")
    await road.start()
    await road.quiet()
    assert await road.stop() == 0
    seen = await evidence.gather(road, [], back_s=[], exit_code=0)
    report = verdict.judge(seen, seed=0, seconds=0.0)
    assert report.ok, report.document()
    assert (report.duplicates, report.unexplained) == (1, 0)


@pytest.mark.long  # the next look at a doubt comes 20 s after the one that died
async def test_a_death_between_evidence_and_its_effect(stage: SetUp) -> None:
    cast = Cast(senders=SLOW, services={"otp": list(SLOW)})
    road = await stage(cast, Faults.model_validate(SILENT))
    await road.insert(1, service="otp", intent="delivery")
    await dies(road, "C5")
    await dies(road, "E")
    report = await survives(road, until="SELECT EXISTS (SELECT FROM outrider.outcome)")
    assert report.resolved_by == {"receipt": 0, "query": 1, "policy": 0}


@pytest.mark.long  # four starts
async def test_a_message_that_no_daemon_survives_kills_three(stage: SetUp) -> None:
    road = await stage(Cast(senders=QUICK, services={"otp": list(QUICK)}), Faults.model_validate(HONEST))
    await road.insert(3, service="otp", intent="otp")
    await road.insert(1, service="otp", intent="otp", body="poison")
    await road.insert(3, service="otp", intent="otp")
    for _ in range(3):
        await dies(road, "P")
    process = await road.launch(*BOMBED, "P")  # it would go off again
    await road.until("SELECT count(*) = 6 FROM outrider.outcome WHERE status = 'delivered'")
    assert process.returncode is None
    (told,) = await road.connection.fetch("SELECT status, reason, attempts FROM outrider.outcome WHERE rank = 5")
    assert told["status"] == "dead"
    assert told["reason"] == "poison: it was open in 3 crashes of the daemon; the last time it was not sent"
    assert {tuple(attempts) for attempts in (await road.sent()).values()} <= {(1,), (2,), (3,), (4,)}
    assert len(await road.sent()) == 6
    assert await road.stop() == 0


async def test_a_replay_of_many_is_taken_up_where_it_died(
    stage: SetUp, connection: asyncpg.Connection[asyncpg.Record]
) -> None:
    road = await stage(Cast(senders=SLOW, services={"otp": list(SLOW)}))
    await road.insert(1_200, service="otp", intent="otp")
    await connection.execute("DELETE FROM outrider.queue")
    await connection.execute(
        "INSERT INTO outrider.outcome (id, status, rank, attempts, reason) SELECT id, 'dead', 5, 1, 'parked' FROM outrider.outbox"
    )
    config = str(road.write_config())

    environment = {**os.environ, "SIMULATOR_TOKEN": AUTH_TOKEN}

    async def replay(*program: str) -> int:
        command = (*program, "dead", "replay", "--reason", "parked", "--limit", "2000", "--config", config)
        process = await asyncio.create_subprocess_exec(
            sys.executable, *command, stdout=asyncio.subprocess.DEVNULL, env=environment
        )
        return await process.wait()

    assert await replay(*BOMBED, "C12") == -9
    assert await connection.fetchval("SELECT count(*) FROM outrider.queue") == 500
    assert await replay("-m", "daemon") == 0
    assert await connection.fetchval("SELECT count(*) FROM outrider.queue") == 1_200
    assert await connection.fetchval("SELECT count(*) FROM outrider.attempt WHERE outcome = 'replayed'") == 1_200
    assert await connection.fetchval("SELECT count(*) FROM outrider.outcome") == 0


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("point", TABLE)
async def test_fifty_deaths_at_one_point(stage: SetUp, point: str) -> None:
    dice = random.Random(point)
    cast = Cast(senders=QUICK, services={"otp": list(QUICK)}, intents=IMPATIENT)
    road = await stage(cast, Faults.model_validate(HONEST))
    await road.insert(600, service="otp", intent="otp")  # to as many people: a list shows the last 20 to each
    for _ in range(50):
        await dies(road, point, times=dice.randint(1, OFTEN.get(point, 2)))
    report = await survives(road, until="SELECT true")  # a receipt that finds nobody for 8 s is not told again
    print(point, {"doubts": await doubts(road)}, report.resolved_by)
    assert report.accepted == 600
    if TABLE[point]:
        assert await doubts(road) >= 50
