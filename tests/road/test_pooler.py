"""
Behind PgBouncer. In session mode all is as without it; in transaction mode the daemon cannot work, and says so.

Prepared statements, their settings and LISTEN belong to a session. A pooler that gives each transaction another one
(``pool_mode = transaction``, before its version 1.21 in any case) breaks the first and loses the second without a word.
"""

from __future__ import annotations

import asyncio
import os
import pwd
import shutil
import subprocess
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

import asyncpg
import pytest

from tests.road.stage import free_ports
from tests.road.test_postgres import TOLD, home, judged, stage

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.road.test_postgres import Ground

__all__ = ["home"]

PROGRAM = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
pytestmark = [
    pytest.mark.long,
    pytest.mark.timeout(180),
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
default_pool_size = 20
"""


@asynccontextmanager
async def pooler(ground: Ground, folder: Path, mode: str) -> AsyncIterator[str]:
    """A pooler before *ground*; the DSN that leads through it."""
    (port,) = free_ports(1)
    password = (ground.home / "password").read_text().strip().rpartition(":")[2]
    users, settings = folder / "users", folder / "pgbouncer.ini"
    users.write_text(f'"outrider" "{password}"\n')
    settings.write_text(
        SETTINGS.format(socket=ground.socket.parent, password=password, port=port, users=users, mode=mode)
    )
    for path in (users, settings):
        path.chmod(0o644)
    assert PROGRAM is not None
    nobody = pwd.getpwnam("nobody").pw_uid if os.geteuid() == 0 else None  # it refuses to be root, as Postgres does
    process = subprocess.Popen(  # noqa: ASYNC220 (the loop's own cannot become another user)
        [PROGRAM, settings], user=nobody, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    dsn = f"postgresql://outrider@127.0.0.1:{port}/outrider"
    try:
        for _ in range(100):
            try:
                await (await asyncpg.connect(dsn, statement_cache_size=0)).close()
                break
            except OSError:
                await asyncio.sleep(0.05)
        yield dsn
    finally:
        process.terminate()
        await asyncio.to_thread(process.wait)


async def test_in_session_mode_all_is_as_without_it(home: Path, tmp_path: Path) -> None:
    async with stage(home, tmp_path, TOLD) as (ground, road), pooler(ground, home, "session") as dsn:
        road.dsn = dsn
        await road.start()
        await road.insert(200, service="otp", intent="otp")
        await road.quiet()
        await judged(road, 200)
        hot = await road.connection.fetchval(
            "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'outrider' AND datname = 'outrider'"
        )
        assert hot >= 5  # its own settings came through
        assert await road.stop() == 0


async def test_in_transaction_mode_it_stops_and_says_why_and_nothing_is_lost(home: Path, tmp_path: Path) -> None:
    async with stage(home, tmp_path, TOLD) as (ground, road):
        async with pooler(ground, home, "transaction") as dsn:
            road.dsn = dsn
            await road.insert(50, service="otp", intent="otp")
            with suppress(AssertionError):  # it may call itself ready for a moment, or not
                await road.start(ready_s=5)
            assert road._process is not None
            assert await asyncio.wait_for(road._process.wait(), 30) == 1
            assert "pgbouncer with pool_mode set to" in road.log.read_text()
        road.dsn = ground.dsn
        await road.start()
        await road.quiet()
        await judged(road, 50, in_doubt=50)
