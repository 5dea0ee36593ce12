"""Death at every named point between a row and its receipt (``points.py``), and what is true after the next start."""

from __future__ import annotations

import asyncio
import os
import random
import sys
import time
from collections import Counter
from typing import TYPE_CHECKING, Self

import asyncpg
import orjson
import pytest

from daemon.selftest import evidence, verdict
from daemon.selftest.stage import Kill
from daemon.simulator import AUTH_TOKEN, Faults
from tests.road.stage import Cast

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

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


class Nest:
    """Deaths at points, one after the other, and what each left on the wire (``points.py`` says why a nest)."""

    def __init__(self, road: Stage) -> None:
        self.road = road
        self.config = str(road.write_config())
        self.deaths: list[Kill] = []
        self._began = time.monotonic()
        self._process: asyncio.subprocess.Process

    async def __aenter__(self) -> Self:
        with self.road.log.open("ab") as out:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, *BOMBED, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=out,
                env={**os.environ, "SIMULATOR_TOKEN": AUTH_TOKEN},
            )  # fmt: skip
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        await self._process.wait()

    async def run(self, bomb: str, *arguments: str) -> int:
        """Run the command line with *bomb* in it; its exit code."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(orjson.dumps([bomb, *arguments, "--config", self.config]) + b"\n")
        return int(await self._process.stdout.readline())

    async def dies(self, point: str, *, times: int = 1) -> None:
        """Run the daemon until it dies at *point*."""
        simulator = self.road.simulator
        assert await self.run(f"{point}:{times}", "run") == -9, self.road.log.read_text()[-2000:]
        at, now = time.time(), asyncio.get_running_loop().time()
        while simulator.connected:
            await asyncio.sleep(0.002)
        wire = frozenset(simulator.on_the_wire(now))
        self.deaths.append(Kill(at=at, on_the_wire=wire, unheard=frozenset(simulator.unheard()), sending=True))

    async def survived(self, point: str, *, duplicates: int = 0) -> Report:
        """The judgement over all of it, after a daemon without a bomb has done the rest. Prints the figures."""
        seen = await evidence.gather(self.road, self.deaths, back_s=[], exit_code=await self.road.stop())
        report = verdict.judge(seen, seed=0, seconds=time.monotonic() - self._began)
        assert [f"{check.name}: {check.detail}" for check in report.checks if not check.ok] == []
        assert report.duplicates == duplicates
        figures = {"deaths": len(report.deaths), "on the wire": report.on_the_wire, "in doubt": report.ambiguous}
        print(point, figures, report.resolved_by, f"lost {report.lost}, doubled {duplicates}, {report.seconds:.0f} s")
        return report


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("point", TABLE)
async def test_fifty_deaths_at_one_point(stage: SetUp, point: str) -> None:
    dice = random.Random(point)
    cast = Cast(senders=QUICK, services={"otp": list(QUICK)}, intents=IMPATIENT)
    road = await stage(cast, Faults.model_validate(HONEST))
    await road.insert(600, service="otp", intent="otp")  # to as many people: a list shows the last 20 to each
    async with Nest(road) as nest:
        for _ in range(50):
            await nest.dies(point, times=dice.randint(1, OFTEN.get(point, 2)))
        await road.start()
        await road.quiet()  # a receipt that finds nobody for 8 s is not told again
        report = await nest.survived(point)
    assert report.accepted == 600
    if TABLE[point]:
        assert report.ambiguous >= 50


@pytest.mark.long
@pytest.mark.timeout(600)
async def test_fifty_inserts_that_are_never_committed(stage: SetUp) -> None:
    road = await stage(Cast(senders=QUICK, services={"otp": list(QUICK)}), Faults.model_validate(HONEST))
    await road.start()
    ours = road.connection
    for number in range(50):  # C0
        road.connection = await asyncpg.connect(road.dsn)
        transaction = road.connection.transaction()
        await transaction.start()
        await road.insert(20, service="otp", intent="otp", body="never")
        if number % 2:
            await transaction.rollback()
        road.connection.terminate()
        road.connection = ours
        await road.insert(2, service="otp", intent="otp", body=f"ever {number}")
    await road.until(DELIVERED)
    assert road.simulator.ledger.accepted == await ours.fetchval("SELECT count(*) FROM outrider.outbox") == 100


@pytest.mark.long
@pytest.mark.timeout(600)
async def test_fifty_deaths_while_others_are_judged(stage: SetUp) -> None:
    dice = random.Random("R")
    cast = Cast(senders=QUICK, services={"otp": list(QUICK)}, intents=IMPATIENT)
    road = await stage(cast, Faults.model_validate(HONEST))
    await road.insert(600, service="otp", intent="otp")
    async with Nest(road) as nest:
        for _ in range(50):
            await nest.dies("C5", times=dice.randint(1, 8))
            await nest.dies("R")
        await road.start()
        await road.quiet()
        report = await nest.survived("R")
    assert report.accepted == 600
    assert report.ambiguous >= 50


async def doubtful(road: Stage, nest: Nest) -> int:
    """
    One death with many on the wire; how many are in doubt. Codes: of others no more than 16 go to a provider that has
    not answered yet.
    """
    await road.insert(150, service="otp", intent="otp")
    await nest.dies("C5", times=60)
    await nest.dies("R")  # what is on the wire is known to be in doubt from here on
    return len(await road.connection.fetch("SELECT FROM outrider.queue WHERE state = 'unknown'"))


async def come_due(road: Stage) -> None:
    """The next look at each doubt is now, in any order: nobody waits 20 s fifty times."""
    await road.connection.execute(
        "UPDATE outrider.queue SET due_at = clock_timestamp() - random() * interval '1 second' WHERE state = 'unknown'"
    )


ON_THE_WIRE = {"latency": {"kind": "fixed", "ms": 60_000}, "receipts": {"enabled": False}}


@pytest.mark.long
@pytest.mark.timeout(600)
async def test_fifty_deaths_between_a_decision_and_its_story(stage: SetUp) -> None:
    cast = Cast(senders=QUICK, services={"otp": list(QUICK)}, intents=IMPATIENT)
    road = await stage(cast, Faults.model_validate(ON_THE_WIRE | {"list_lag_ms": 3_600_000}))
    async with Nest(road) as nest:
        assert await doubtful(road, nest) > 50
        road.simulator.faults = Faults.model_validate(SILENT | {"list_lag_ms": 3_600_000})
        for _ in range(50):
            await come_due(road)
            await nest.dies("D")
        await road.start()
        await road.quiet()
        sent = Counter(len(attempts) for attempts in (await road.sent()).values())
        report = await nest.survived("D", duplicates=150 - sent[1])
    assert report.duplicates >= 50
    assert report.unexplained == 0


@pytest.mark.long
@pytest.mark.timeout(600)
async def test_fifty_deaths_between_evidence_and_its_effect(stage: SetUp) -> None:
    patient = {"otp": {"on_ambiguous": "resolve", "resolve_for": "600s"}}
    cast = Cast(senders=QUICK, services={"otp": list(QUICK)}, intents=patient)
    road = await stage(cast, Faults.model_validate(ON_THE_WIRE))
    async with Nest(road) as nest:
        assert await doubtful(road, nest) > 50
        road.simulator.faults = Faults.model_validate(SILENT)
        for _ in range(50):
            await come_due(road)
            await nest.dies("E")
        await come_due(road)
        await road.start()
        await road.quiet()
        report = await nest.survived("E")
    assert report.accepted == 150
    assert report.resolved_by["policy"] == 0


@pytest.mark.long
@pytest.mark.timeout(600)
async def test_fifty_replays_that_die_half_done(stage: SetUp) -> None:
    dice = random.Random("C12")
    road = await stage(Cast(senders=SLOW, services={"otp": list(SLOW)}))
    await road.insert(1_200, service="otp", intent="otp")
    replay = ("dead", "replay", "--reason", "parked", "--limit", "2000")
    async with Nest(road) as nest:
        for number in range(1, 51):
            async with road.connection.transaction():
                await road.connection.execute("DELETE FROM outrider.queue")
                await road.connection.execute(
                    "INSERT INTO outrider.outcome (id, status, rank, attempts, reason)"
                    " SELECT id, 'dead', 5, 1, 'parked' FROM outrider.outbox"
                )
            times = dice.randint(1, 3)
            assert await nest.run(f"C12:{times}", *replay) == -9
            assert await road.connection.fetchval("SELECT count(*) FROM outrider.queue") == min(500 * times, 1_200)
            assert await nest.run("", *replay) == 0
            assert await road.connection.fetchval("SELECT count(*) FROM outrider.queue") == 1_200
            assert await road.connection.fetchval("SELECT count(*) FROM outrider.outcome") == 0
            told = await road.connection.fetchval("SELECT count(*) FROM outrider.signal WHERE kind = 'replay'")
            assert told == 3 * number
