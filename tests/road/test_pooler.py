"""
Behind PgBouncer. In session mode all is as without it; in transaction mode with ``pooler = "transaction"``, and without
that the daemon refuses.

The pools here are smaller than the number of lines, and lend their sessions out in turn: whatever relies on meeting
the same session again does not meet it.
"""

from __future__ import annotations

import asyncio
import os
import pwd
import re
import shutil
import statistics
import subprocess
import sys
import time
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING
from uuid import uuid4

import asyncpg
import pytest

from daemon.database import HOT_SETTINGS, Line
from daemon.simulator import AUTH_TOKEN
from tests.road.stage import Cast, cpu_s, free_ports
from tests.road.test_postgres import CAST, SILENT, TOLD, again, confirm, fail_over, home, judged, stage

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.road.stage import Stage
    from tests.road.test_postgres import Ground

__all__ = ["home"]

PROGRAM = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.skipif(PROGRAM is None, reason="NOT TESTED BEHIND A POOLER: no pgbouncer (apt-get install pgbouncer)"),
]

SETTINGS = """
[databases]
outrider = host={socket} dbname=outrider user=outrider password={password}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = any
auth_file = {users}
pool_mode = {mode}
default_pool_size = {size}
server_round_robin = 1
server_login_retry = 1
"""
TOLD_POOLER = {"pooler": "transaction"}
OUTRIDER = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'outrider' AND pid <> pg_backend_pid()"


class Pooler:
    """A PgBouncer before *ground*: to be killed, and started again on the same port."""

    def __init__(self, ground: Ground, folder: Path, mode: str, *, size: int) -> None:
        (port,) = free_ports(1)
        password = (ground.home / "password").read_text().strip().rpartition(":")[2]
        users, self._settings = folder / "users", folder / "pgbouncer.ini"
        users.write_text(f'"outrider" "{password}"\n')
        self._settings.write_text(
            SETTINGS.format(
                socket=ground.socket.parent, password=password, port=port, users=users, mode=mode, size=size
            )
        )
        for path in (users, self._settings):
            path.chmod(0o644)
        self.dsn = f"postgresql://outrider@127.0.0.1:{port}/outrider"
        self._process: subprocess.Popen[bytes] | None = None

    async def start(self) -> None:
        assert PROGRAM is not None
        nobody = pwd.getpwnam("nobody").pw_uid if os.geteuid() == 0 else None  # it refuses to be root, as Postgres does
        self._process = subprocess.Popen(  # noqa: ASYNC220 (the loop's own cannot become another user)
            [PROGRAM, self._settings], user=nobody, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        for _ in range(100):
            try:
                await (await asyncpg.connect(self.dsn, statement_cache_size=0)).close()
            except OSError:
                await asyncio.sleep(0.05)
            else:
                return
        raise AssertionError("PgBouncer does not answer")

    async def kill(self) -> None:
        """kill -9."""
        assert self._process is not None
        self._process.kill()
        await asyncio.to_thread(self._process.wait)


@asynccontextmanager
async def pooler(ground: Ground, folder: Path, mode: str, *, size: int = 3) -> AsyncIterator[Pooler]:
    """A pooler before *ground*; the DSN that leads through it."""
    made = Pooler(ground, folder, mode, size=size)
    await made.start()
    try:
        yield made
    finally:
        await made.kill()


def told(cast: Cast, **keys: str) -> Cast:
    """*cast*, as somebody configures it who knows of the pooler."""
    return replace(cast, database={**TOLD_POOLER, **keys})


def through(road: Stage, way: Pooler, **keys: str) -> None:
    """The daemon of *road* goes through *way*, and its configuration says so."""
    road.dsn, road.cast = way.dsn, told(road.cast, **keys)


@pytest.mark.long
async def test_in_session_mode_all_is_as_without_it(home: Path, tmp_path: Path) -> None:
    async with stage(home, tmp_path, TOLD) as (ground, road), pooler(ground, home, "session", size=20) as way:
        road.dsn = way.dsn
        await road.start()
        await road.insert(200, service="otp", intent="otp")
        await road.quiet()
        await judged(road, 200)
        assert await road.connection.fetchval(OUTRIDER) >= 5  # its own settings came through
        assert await road.stop() == 0


async def test_a_transaction_pooler_nobody_told_of_is_refused_and_nothing_is_lost(home: Path, tmp_path: Path) -> None:
    async with stage(home, tmp_path, TOLD) as (ground, road):
        async with pooler(ground, home, "transaction") as way:
            road.dsn = way.dsn
            await road.insert(50, service="otp", intent="otp")
            process = await road.launch()
            assert await asyncio.wait_for(process.wait(), 30) == 78
            (refused,) = [line for line in road.log.read_text().splitlines() if "database.refused" in line]
            assert 'say pooler = \\"transaction\\"' in refused
            road.cast = replace(CAST, database={**TOLD_POOLER, "listen_url": way.dsn})  # said, and then not meant
            process = await road.launch()
            assert await asyncio.wait_for(process.wait(), 30) == 78
            assert "listen_url leads through a transaction pooler" in road.log.read_text()
        road.dsn, road.cast = ground.dsn, CAST
        await road.start()
        await road.quiet()
        await judged(road, 50)


@pytest.mark.parametrize("direct", [True, False], ids=["with listen_url", "by polling alone"])
async def test_in_transaction_mode_it_works_and_leaves_nothing_behind(home: Path, tmp_path: Path, direct: bool) -> None:
    async with stage(home, tmp_path, TOLD) as (ground, road), pooler(ground, home, "transaction") as way:
        through(road, way, **({"listen_url": ground.dsn} if direct else {}))
        await road.start()
        await road.insert(200, service="otp", intent="otp")
        await road.quiet()
        await judged(road, 200)
        # Its name is a setting like the others: outside of a transaction no session bears it, but the ear's.
        await road.until(f"SELECT ({OUTRIDER} AND state = 'idle') = {int(direct)}", within_s=5)
        assert await road.stop() == 0
        assert ("database.unheard" in road.log.read_text()) is not direct
        assert await left_behind(way) == []


async def left_behind(way: Pooler) -> list[object]:
    """What is not as Postgres has it, in any of the pooler's sessions: settings, prepared statements, locks, tables."""
    names = [*HOT_SETTINGS, "statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout"]
    found: list[object] = []
    for _ in range(12):  # in turn, so each several times
        connection = await asyncpg.connect(way.dsn, statement_cache_size=0)
        async with connection.transaction():
            found += await connection.fetch(
                "SELECT name, setting FROM pg_settings WHERE name = ANY ($1) AND setting <> reset_val", names
            )
            found += await connection.fetch("SELECT name FROM pg_prepared_statements WHERE name <> ''")
            found += await connection.fetch(
                "SELECT objid FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()"
            )
            found += await connection.fetch("SELECT relname FROM pg_class WHERE relnamespace = pg_my_temp_schema()")
        await connection.close()
    return found


async def test_its_settings_are_in_force_in_each_transaction(home: Path, tmp_path: Path) -> None:
    """Postgres itself says, beside each plan it made, which of the planner's settings were not its own."""
    async with stage(home, tmp_path, TOLD) as (ground, road):
        for setting in ("session_preload_libraries = auto_explain", "auto_explain.log_min_duration = 0",
                        "auto_explain.log_settings = on"):  # fmt: skip
            await road.connection.execute(f"ALTER SYSTEM SET {setting}")
        await road.connection.execute("SELECT pg_reload_conf()")
        async with pooler(ground, home, "transaction") as way:
            through(road, way, listen_url=ground.dsn)
            await road.start()
            await road.insert(100, service="otp", intent="otp")
            await road.quiet()
            assert await road.stop() == 0
        plans = (ground.home / "log").read_text().split("plan:\n")
        seen = 0
        for mark in ("INSERT INTO outrider.claim", "INSERT INTO outrider.outcome"):
            hot = [plan for plan in plans if mark in plan]
            seen += len(hot)
            for plan in hot:
                settings = dict(re.findall(r"(\w+) = '(\w+)'", plan.partition("Settings: ")[2].partition("\n")[0]))
                assert {name: settings.get(name) for name in HOT_SETTINGS} == dict(HOT_SETTINGS)
        assert seen > 10


@pytest.mark.long
async def test_five_killed_poolers_cost_neither_a_message_nor_a_double(home: Path, tmp_path: Path) -> None:
    async with stage(home, tmp_path, TOLD) as (ground, road), pooler(ground, home, "transaction") as way:
        through(road, way, listen_url=ground.dsn)
        await road.start()
        for number in range(5):
            await road.insert(800, service="otp", intent="delivery", body=f"kill {number}")
            began = road.simulator.ledger.accepted
            while road.simulator.ledger.accepted < began + 300:
                await asyncio.sleep(0.01)
            await way.kill()
            await asyncio.sleep(0.2)
            await way.start()
        await road.quiet(within_s=90)
        await judged(road, 4_000)
        assert await road.stop() == 0
        assert road.log.read_text().count("database.lost") >= 5


@pytest.mark.long
async def test_three_daemons_through_one_pooler_and_postgres_killed_behind_it(home: Path, tmp_path: Path) -> None:
    senders = {f"7234{number}": 30.0 for number in range(6)}
    cast = Cast(senders=senders, services={f"s{one}": [one] for one in senders}, timeout_s=5.0)
    async with stage(home, tmp_path, TOLD, cast) as (ground, road), pooler(ground, home, "transaction", size=4) as way:
        through(road, way)
        daemons = [road, road.beside("second"), road.beside("third")]
        for one in daemons:
            await one.start(ready=200 if one is road else 503)  # there is no group to be had yet
        while not all([await one.holds() for one in daemons]):
            await asyncio.sleep(0.1)
        for number in range(4):
            for service in cast.services:
                await road.insert(60, service=service, intent="delivery", body=f"kill {number}")
            await asyncio.sleep(1)
            ground.kill()
            await again(ground, road)
        await road.quiet(within_s=90)
        await judged(road, 4 * 6 * 60)
        assert {sender: road.busiest(sender) <= 30 for sender in senders} == dict.fromkeys(senders, True)
        assert [await one.stop() for one in daemons] == [0, 0, 0]


@pytest.mark.long
async def test_a_standby_promoted_behind_the_pooler_is_seen(home: Path, tmp_path: Path) -> None:
    """While the daemon stands still. It is seen without the guard in each claim too (that: shell/test_database.py)."""
    async with stage(home, tmp_path, SILENT) as (ground, road), pooler(ground, home, "transaction") as way:
        through(road, way)
        await road.start()  # the home is written down: this is the database it knows
        await road.stop()
        await fail_over(ground, road, frozen=True)
        road.thaw()
        await asyncio.sleep(3)  # what it had in hand leaves
        before = {entry.token for entry in road.simulator.ledger.entries}
        await asyncio.sleep(2)
        status, why = await road.ask("/readyz")
        assert (status, b"promoted" in why) == (503, True)
        assert {entry.token for entry in road.simulator.ledger.entries} == before  # it holds
        await confirm(road)
        await road.quiet(within_s=90)
        await judged(road, 60, in_doubt=len(before))


async def outrider(road: Stage, *arguments: str, code: int = 0) -> str:
    """A command, as an operator types it."""
    shell = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "daemon", *arguments, "--config", str(road.write_config()),
        env={"SIMULATOR_TOKEN": AUTH_TOKEN, "COLUMNS": "200"}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    said, _ = await shell.communicate()
    assert shell.returncode == code, said.decode()
    return said.decode()


@pytest.mark.long
async def test_an_operator_s_commands_go_through_it(home: Path, tmp_path: Path) -> None:
    async with stage(home, tmp_path, TOLD) as (ground, road), pooler(ground, home, "transaction") as way:
        road.dsn = way.dsn
        assert 'say pooler = "transaction"' in await outrider(road, "check", code=78)
        assert "session lock" in await outrider(road, "migrate", code=1)
        through(road, way)
        assert "transaction, as configured" in await outrider(road, "check")
        assert "[database].listen_url" in await outrider(road, "migrate", code=1)
        through(road, way, listen_url=ground.dsn)
        assert "up to date" in await outrider(road, "migrate")
        await road.start()
        busy = asyncio.create_task(load(road))  # others are in its sessions all the time
        sent = await outrider(road, "send", "--to", "+12025550101", "--service", "otp", "--body", "hello", "--wait")
        assert "delivered" in sent
        message = await road.connection.fetchval("SELECT id FROM outrider.outbox WHERE body = 'hello'")
        assert "delivered" in await outrider(road, "why", str(message))
        assert "72345" in await outrider(road, "status")
        assert "too_late" in await outrider(road, "cancel", str(message))
        await outrider(road, "pause", "service:otp")
        await outrider(road, "resume", "service:otp")
        await road.insert(1, service="otp", intent="delivery", body="x", tenant="gone", sender="99999")
        await road.until("SELECT count(*) = 1 FROM outrider.message WHERE tenant = 'gone' AND status = 'failed'")
        assert "99999" in await outrider(road, "dead", "list")
        assert "1" in await outrider(road, "dead", "replay", "--preview", "--since", "-1h")
        busy.cancel()
        await road.quiet()


async def load(road: Stage) -> None:
    connection = await asyncpg.connect(road.dsn, statement_cache_size=0)
    while True:
        async with connection.transaction():
            await connection.execute("SELECT pg_sleep(0.002)")


@pytest.mark.long
async def test_what_it_costs(home: Path, tmp_path: Path) -> None:
    """From commit to provider for one message at a time, and a backlog drained: direct and pooled, by turns."""
    fast = Cast(senders={"72345": 5_000}, services={"otp": ["72345"]}, connections=256, in_hand=4_000)
    async with stage(home, tmp_path, TOLD, fast) as (ground, road), pooler(ground, home, "transaction", size=20) as way:
        ways = {
            "direct": (ground.dsn, fast),
            "pooled, listen_url": (way.dsn, told(fast, listen_url=ground.dsn)),
            "pooled, polling": (way.dsn, told(fast)),
        }
        for name, (road.dsn, road.cast) in [*ways.items(), *ways.items()]:
            await road.start()
            waits = [await single(road) for _ in range(100)]
            before, began = cpu_s(road.pid), time.monotonic()
            await asyncio.sleep(3)
            idle = (cpu_s(road.pid) - before) / (time.monotonic() - began)
            await road.insert(4_000, service="otp", intent="marketing")
            before, began = cpu_s(road.pid), time.monotonic()
            await road.until("SELECT NOT EXISTS (SELECT FROM outrider.queue)", every_s=0.02)
            rate, spent = 4_000 / (time.monotonic() - began), (cpu_s(road.pid) - before) / 4
            p50, p95 = statistics.median(waits), statistics.quantiles(waits, n=20)[-1]
            print(f"{name:20} commit -> provider p50 {p50 * 1000:.1f} p95 {p95 * 1000:.1f} ms,"
                  f" {rate:.0f} msg/s drained, {spent:.3f} s of CPU for 1,000, idle {idle:.1%} of a core")  # fmt: skip
            assert await road.stop() == 0
        assert len(await road.sent()) == 6 * 4_100
        await one_claim(ground.dsn, way.dsn)


async def one_claim(direct: str, pooled: str) -> None:
    """A claim that finds nothing, asked in turn on both ways."""
    lines = {
        "direct": Line("direct", direct, statements=("claim",), hot=True, wary=True),
        "pooled": Line("pooled", pooled, statements=("claim",), hot=True, wary=True, pooled=True),
    }
    took: dict[str, list[float]] = {name: [] for name in lines}
    for _ in range(300):
        for name, line in lines.items():
            began = time.perf_counter()
            await line.fetch("claim", uuid4(), ["g"], ["otp"], [1], [10], [datetime.now(UTC)], [], ["g"], [1])
            took[name].append(time.perf_counter() - began)
    for name, line in lines.items():
        print(f"a claim, {name}: {statistics.median(took[name]) * 1000:.2f} ms")
        await line.close()


async def single(road: Stage) -> float:
    """Seconds from one login code's commit to its arrival."""
    count = road.simulator.ledger.accepted
    await road.insert(1, service="otp", intent="otp")
    began = time.monotonic()
    while road.simulator.ledger.accepted == count:
        await asyncio.sleep(0.0005)
    return time.monotonic() - began
