"""
Postgres in trouble: killed, cut off, answering nothing, gone for long, and come back younger than it was.

The provider's ledger judges, as everywhere: what is accepted there and lost here would be sent twice; what is neither
there nor told here would be lost.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import asyncpg
import pytest

from daemon import embedded
from daemon.migrate import migrate
from daemon.simulator import AUTH_TOKEN, Faults
from tests.road.stage import Cast, Stage, cpu_s
from tests.trouble.proxy import Proxy, swallow

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

CAST = Cast(senders={"72345": 100}, services={"otp": ["72345"]}, timeout_s=5.0)
SLOW = {"latency": {"kind": "uniform", "from_ms": 50, "to_ms": 300}}
TOLD = Faults.model_validate(
    SLOW | {"receipts": {"sent": {"kind": "fixed", "ms": 200}, "final": {"kind": "fixed", "ms": 200}}}
)
SILENT = Faults.model_validate(SLOW | {"receipts": {"enabled": False}})


@pytest.fixture
def home() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="outrider-postgres-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


class Ground:
    """A Postgres of one's own, durable as in production: to be killed, copied and replaced."""

    def __init__(self, home: Path) -> None:
        self.home = home / "postgres"
        self.cluster = self.home / "cluster"
        self._server = embedded.start(self.home)

    @property
    def dsn(self) -> str:
        return self._server.dsn()

    @property
    def socket(self) -> Path:
        return self._server._socket / ".s.PGSQL.5432"

    def kill(self) -> None:
        """kill -9 of the postmaster; its children notice and go."""
        pid = int((self.cluster / "postmaster.pid").read_text().split()[0])
        os.kill(pid, signal.SIGKILL)
        with suppress(OSError):
            while True:
                Path(f"/proc/{pid}/cwd").readlink()  # while that stands, it would be joined, not started again
                time.sleep(0.01)

    def start(self) -> None:
        """Start it again, as soon as the dead one's shared memory is free."""
        self._server._leave()
        deadline = time.monotonic() + 20
        while True:
            try:
                self._server = embedded.start(self.home)
            except embedded.EmbeddedError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)
            else:
                return

    def stop(self) -> None:
        self._server.stop()


@asynccontextmanager
async def stage(home: Path, folder: Path, faults: Faults, cast: Cast = CAST) -> AsyncIterator[tuple[Ground, Stage]]:
    ground = await asyncio.to_thread(Ground, home)
    connection = await asyncpg.connect(ground.dsn)
    await migrate(connection, report=lambda _line: None)
    await connection.close()
    try:
        async with Stage.set_up(cast, folder, ground.dsn, faults=faults) as road:
            yield ground, road
    finally:
        await asyncio.to_thread(ground.stop)


async def again(ground: Ground, road: Stage) -> None:
    """Postgres starts again, and we connect to it again."""
    await asyncio.to_thread(ground.start)
    road.connection = await asyncpg.connect(ground.dsn)


async def judged(road: Stage, asked: int, *, in_doubt: int = 0) -> None:
    """Every message reached the provider once; at most *in_doubt* of them had to be looked for."""
    sent = await road.sent()
    assert len(sent) == asked
    assert {id: attempts for id, attempts in sent.items() if len(attempts) > 1} == {}
    doubted = await road.connection.fetchval(
        "SELECT count(DISTINCT id) FROM outrider.attempt WHERE kind = 'exchange' AND outcome IN ('uncertain', 'lost')"
    )
    assert doubted <= in_doubt
    told = await road.connection.fetchval(
        "SELECT count(*) FROM outrider.message WHERE status IN ('accepted', 'sent', 'delivered')"
    )
    assert told == asked


async def resumed_within(road: Stage, seconds: float) -> None:
    """Messages are settled again, so soon after Postgres is up."""
    before = await road.connection.fetchval("SELECT count(*) FROM outrider.outcome")
    await road.until(f"SELECT count(*) > {before} FROM outrider.outcome", within_s=seconds, every_s=0.02)


async def kills(ground: Ground, road: Stage, *, times: int, each: int) -> None:
    for number in range(times):
        await road.insert(each, service="otp", intent="delivery", body=f"kill {number}")
        began = road.simulator.ledger.accepted
        while road.simulator.ledger.accepted < began + each // 3:
            await asyncio.sleep(0.01)
        ground.kill()
        await again(ground, road)
        await resumed_within(road, 2.5)


@pytest.mark.timeout(120)
async def test_a_killed_postmaster_costs_neither_a_message_nor_a_double(home: Path, tmp_path: Path) -> None:
    async with stage(home, tmp_path, TOLD) as (ground, road):
        await road.start()
        await kills(ground, road, times=1, each=150)
        await road.quiet()
        await judged(road, 150)
        assert await road.stop() == 0


@pytest.mark.long
@pytest.mark.timeout(600)
async def test_twenty_killed_postmasters(home: Path, tmp_path: Path) -> None:
    async with stage(home, tmp_path, TOLD) as (ground, road):
        await road.start()
        await kills(ground, road, times=20, each=200)
        await road.quiet()
        await judged(road, 4_000)
        assert await road.stop() == 0


@pytest.mark.timeout(120)
async def test_a_storm_of_terminated_backends(home: Path, tmp_path: Path) -> None:
    async with stage(home, tmp_path, TOLD) as (_, road):
        await road.start()
        await road.insert(300, service="otp", intent="delivery")
        for _ in range(20):
            await asyncio.sleep(0.1)
            await road.connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE application_name = 'outrider' AND random() < 0.7"
            )
        await road.quiet()
        await judged(road, 300)


def restart(ground: Ground, how: signal.Signals) -> None:
    """As an operator does: SIGINT ends transactions (fast), SIGQUIT leaves them where they are (immediate)."""
    pid = int((ground.cluster / "postmaster.pid").read_text().split()[0])
    os.kill(pid, how)
    with suppress(OSError):
        while True:
            Path(f"/proc/{pid}/cwd").readlink()
            time.sleep(0.01)


@pytest.mark.long
@pytest.mark.timeout(300)
async def test_ten_restarts_in_the_middle_of_commits(home: Path, tmp_path: Path) -> None:
    """Each COMMIT waits for half a second, so that a restart finds some under way: did they come through, or not?"""
    async with stage(home, tmp_path, TOLD) as (ground, road):
        await road.connection.execute("ALTER SYSTEM SET commit_delay = 100000")  # µs, the most there is
        await road.connection.execute("ALTER SYSTEM SET commit_siblings = 0")
        await road.connection.execute("SELECT pg_reload_conf()")
        await road.start()
        caught = 0
        for number in range(10):
            await road.insert(100, service="otp", intent="delivery", body=f"restart {number}")
            caught += await committing(road)
            await road.connection.close()
            await asyncio.to_thread(restart, ground, signal.SIGINT if number % 2 else signal.SIGQUIT)
            await again(ground, road)
        await road.quiet(within_s=90)
        await judged(road, 1_000)
        print(f"{caught} of 10 restarts met a COMMIT under way")
        assert caught >= 8
        # A claim whose COMMIT came through unheard is closed, or its rows would be in doubt after a crash.
        assert await road.connection.fetchval("SELECT count(*) FROM outrider.claim") == 0
        assert await road.stop() == 0


async def committing(road: Stage) -> bool:
    """Wait for a commit of the daemon's to be under way: it holds its transaction and waits for its WAL."""
    for _ in range(1_000):
        if await road.connection.fetchval(
            "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE application_name = 'outrider' AND state = 'active'"
            " AND (wait_event IN ('WALWrite', 'WalSync', 'WALSync') OR wait_event IS NULL) AND backend_xid IS NOT NULL)"
        ):
            return True
        await asyncio.sleep(0.002)
    return False


@pytest.mark.long
@pytest.mark.timeout(300)
async def test_a_minute_without_postgres_costs_little_and_ends_within_a_second(home: Path, tmp_path: Path) -> None:
    """What is in hand is sent and waits; then nothing is done but to look; and nobody waits for it at the end."""
    async with stage(home, tmp_path, SILENT) as (ground, road):
        await road.start()
        await road.insert(400, service="otp", intent="delivery")
        while road.simulator.ledger.accepted < 100:
            await asyncio.sleep(0.01)
        ground.kill()
        while (before := road.simulator.ledger.accepted) != await later(road, seconds=2):
            pass
        spent, began = cpu_s(road.pid), time.monotonic()
        await asyncio.sleep(max(60 - 5, 1))
        share = (cpu_s(road.pid) - spent) / (time.monotonic() - began)
        assert road.simulator.ledger.accepted == before
        await asyncio.to_thread(ground.start)
        up = time.monotonic()
        while (await road.ask("/readyz"))[0] != 200:
            await asyncio.sleep(0.01)
        back = time.monotonic() - up
        road.connection = await asyncpg.connect(ground.dsn)
        await road.quiet(within_s=90)
        await judged(road, 400)
        print(f"while away {share:.1%} of a core; ready {back:.2f} s after Postgres")
        assert share < 0.05
        assert back <= 1.1
        assert await road.stop() == 0


async def later(road: Stage, *, seconds: float) -> int:
    await asyncio.sleep(seconds)
    return road.simulator.ledger.accepted


# What Postgres answers to a claim (it brings texts), and to a batch of verdicts (rows of five columns, the first a count).
ANSWERS = {"claim": b"Hello", "verdict": b"\x00\x05\x00\x00\x00\x08"}


@pytest.mark.timeout(120)
@pytest.mark.parametrize("of", ANSWERS)
async def test_a_commit_whose_answer_is_lost(home: Path, tmp_path: Path, of: str) -> None:
    """The statement has taken effect and nobody hears of it: every third answer vanishes, and the connection with it."""
    seen = 0

    def every_third(chunk: bytes) -> bool:
        nonlocal seen
        seen += ANSWERS[of] in chunk
        return ANSWERS[of] in chunk and seen % 3 == 0

    async with stage(home, tmp_path, TOLD) as (ground, road), Proxy(ground.socket) as way:
        road.dsn = f"postgresql://outrider@127.0.0.1:{way.port}/outrider?passfile={ground.home / 'password'}"
        await road.start()
        way.down = swallow(every_third)
        for number in range(10):
            await road.insert(20, service="otp", intent="delivery", body=f"Hello {number}")
            await asyncio.sleep(0.2)
        await road.quiet(within_s=90)
        assert seen >= 9
        assert "database.lost" in road.log.read_text()
        await judged(road, 200)
        await road.until(
            "SELECT NOT EXISTS (SELECT FROM outrider.claim)", within_s=5
        )  # nor is one left that nobody holds


async def outage(ground: Ground, road: Stage, *, seconds: float) -> None:
    """Postgres goes while answers come in; the daemon is killed before it returns."""
    await road.start()
    await road.insert(100, service="otp", intent="delivery")
    while road.simulator.ledger.accepted < 40:
        await asyncio.sleep(0.01)
    ground.kill()
    await asyncio.sleep(seconds)
    accepted = road.simulator.ledger.accepted
    await road.kill()
    await asyncio.sleep(0.5)  # what was on the wire arrives
    assert road.simulator.ledger.accepted >= accepted > 40
    await again(ground, road)
    await road.start()
    await road.quiet(within_s=90)
    # All answers had come in before the kill: the dispatch log had them, and nothing had to be guessed.
    await judged(road, 100)


@pytest.mark.timeout(180)
async def test_answers_that_came_while_postgres_was_away_survive_the_daemon(home: Path, tmp_path: Path) -> None:
    async with stage(home, tmp_path, SILENT) as (ground, road):
        await outage(ground, road, seconds=3)


@pytest.mark.long
@pytest.mark.timeout(300)
async def test_answers_that_came_in_a_minute_without_postgres(home: Path, tmp_path: Path) -> None:
    async with stage(home, tmp_path, SILENT) as (ground, road):
        await outage(ground, road, seconds=60)


# --- it comes back younger than it was


class Replica:
    """A copy of the data as they stood at one moment, to take the place of the original: a standby behind by seconds."""

    def __init__(self, ground: Ground) -> None:
        self._ground = ground
        self._folder = ground.home / "replica"

    async def take(self, connection: asyncpg.Connection[asyncpg.Record]) -> None:
        await connection.execute("SELECT pg_backup_start('replica', true)")
        self._copy(self._ground.cluster, self._folder)
        stopped = await connection.fetchrow("SELECT * FROM pg_backup_stop(false)")
        assert stopped is not None
        shutil.rmtree(self._folder / "pg_wal")
        self._copy(self._ground.cluster / "pg_wal", self._folder / "pg_wal")
        for name in ("postmaster.pid", "postmaster.opts"):
            (self._folder / name).unlink(missing_ok=True)
        (self._folder / "backup_label").write_text(stopped["labelfile"])
        (self._folder / "recovery.signal").touch()
        with (self._folder / "postgresql.auto.conf").open("a") as settings:
            settings.write("restore_command = 'false'\n")
        owner = self._ground.cluster.stat()
        for path in (self._folder, *self._folder.rglob("*")):
            os.chown(path, owner.st_uid, owner.st_gid)

    def promote(self) -> None:
        """The original is gone; the copy stands in its place, on the next timeline."""
        self._ground.cluster.rename(self._ground.home / "gone")
        self._folder.rename(self._ground.cluster)

    @staticmethod
    def _copy(source: Path, target: Path) -> None:
        subprocess.run(["cp", "-a", str(source), str(target)], check=False, capture_output=True)  # files come and go


async def fail_over(ground: Ground, road: Stage, *, frozen: bool = False) -> set[str]:
    """
    Send 60, of which a standby knows only that they were asked for, and promote it; the ids sent until then.
    *frozen*: the daemon does not see Postgres go; whoever asks thaws it.
    """
    await road.insert(60, service="otp", intent="delivery")
    replica = Replica(ground)
    await replica.take(road.connection)
    await road.start()
    while road.simulator.ledger.accepted < 30:
        await asyncio.sleep(0.01)
    if frozen:
        road.freeze()
    ground.kill()
    await asyncio.sleep(1)  # answers come in, and cannot be written
    replica.promote()
    await again(ground, road)
    assert await road.connection.fetchval("SELECT count(*) FROM outrider.queue") == 60  # as if nothing had been sent
    return {entry.token for entry in road.simulator.ledger.entries}


async def confirm(road: Stage) -> None:
    shell = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "daemon", "resume", "--sole-sender", "--yes", "--config",
        str(road.folder / "config.toml"), env={"SIMULATOR_TOKEN": AUTH_TOKEN},
    )  # fmt: skip
    assert await shell.wait() == 0


@pytest.mark.timeout(180)
@pytest.mark.parametrize("killed", [False, True], ids=["the daemon lives on", "the daemon is killed too"])
async def test_a_promoted_standby_that_has_forgotten_what_was_sent(home: Path, tmp_path: Path, killed: bool) -> None:
    async with stage(home, tmp_path, SILENT) as (ground, road):
        await road.start()  # the home is written down: this is the database it knows
        await road.stop()
        before = await fail_over(ground, road)
        if killed:
            await road.kill()
            await road.start(ready=503)
        await asyncio.sleep(2)
        status, why = await road.ask("/readyz")
        assert status == 503
        assert b"promoted" in why
        assert {entry.token for entry in road.simulator.ledger.entries} == before  # it holds
        await confirm(road)
        await road.quiet(within_s=90)
        await judged(road, 60, in_doubt=len(before))
