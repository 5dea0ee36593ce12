"""
Disks that are full, Postgres's and that of the state folder: it stops, says so once, and goes on by itself.

What leaves must stand in both: in a claim, and in the dispatch log. Where either cannot be written nothing leaves.
"""

from __future__ import annotations

import asyncio
import subprocess
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import asyncpg
import pytest

from daemon.migrate import migrate
from tests.road import small
from tests.road.stage import Cast, Stage, cpu_s
from tests.road.test_postgres import TOLD, Ground, home, judged, stage

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

__all__ = ["home"]

pytestmark = [
    pytest.mark.long,
    pytest.mark.timeout(240),
    pytest.mark.skipif(
        not small.allowed(), reason="NOT TESTED WITH A FULL DISK: a tmpfs in a namespace of one's own takes root"
    ),
]
CAST = Cast(senders={"72345": 200}, services={"otp": ["72345"]}, timeout_s=5.0, in_hand=400)
SMALL = ("-m", "tests.road.small")


async def ready(road: Stage, wanted: int, *, within_s: float = 30) -> str:
    """Wait until ``/readyz`` answers *wanted*; what it says."""
    async with asyncio.timeout(within_s):
        while True:
            try:
                status, said = await road.ask("/readyz")
            except OSError:
                status = 0
            if status == wanted:
                return said.decode()
            await asyncio.sleep(0.05)


async def keep_full(filler: Path) -> None:
    """Take what room the dispatch log gives back, too: it removes what it needs no more."""
    while True:
        small.fill(filler)
        await asyncio.sleep(0.02)


async def stands_still(road: Stage, *, seconds: float) -> int:
    """Nothing is sent for so long, once what was in hand with a durable claim has left; how many had been."""
    accepted = -1
    async with asyncio.timeout(60):
        while accepted != (accepted := road.simulator.ledger.accepted):
            await asyncio.sleep(3)
    before = cpu_s(road.pid)
    await asyncio.sleep(seconds)
    assert road.simulator.ledger.accepted == accepted
    print(f"{(cpu_s(road.pid) - before) / seconds:.1%} of a core while full")
    assert cpu_s(road.pid) - before < seconds * 0.25
    return accepted


def said(road: Stage, event: str) -> int:
    return road.log.read_text().count(f'"event":"{event}"')


async def test_a_full_state_folder_stops_it_until_there_is_room(home: Path, tmp_path: Path) -> None:
    async with stage(home, tmp_path, TOLD, CAST) as (_, road):
        await road.launch(*SMALL)
        await ready(road, 200)
        filler = Path(f"/proc/{road.pid}/root{road.state}/filler")
        await road.insert(2_000, service="otp", intent="delivery")
        while road.simulator.ledger.accepted < 300:
            await asyncio.sleep(0.01)
        filling = asyncio.create_task(keep_full(filler))
        assert "No space left" in await ready(road, 503)
        stopped_at = await stands_still(road, seconds=8)
        assert stopped_at < 2_000
        assert b'outrider_disk_full{where="state"} 1.0' in (await road.ask("/metrics"))[1]
        assert (await road.ask("/healthz"))[0] == 200  # it need not be killed for it
        assert said(road, "journal.failed") == 1
        filling.cancel()
        await asyncio.to_thread(filler.unlink)
        await ready(road, 200)
        await road.quiet(within_s=90)
        await judged(road, 2_000)
        print(f"state folder full after {stopped_at} of 2,000; all sent once")
        assert b'outrider_disk_full{where="state"} 0.0' in (await road.ask("/metrics"))[1]
        assert said(road, "journal.failed") == said(road, "journal.mended")
        assert await road.stop() == 0


class Cramped:
    """A Postgres whose tables lie on a small disk. All that must see the disk runs in one thread."""

    def __init__(self, home: Path) -> None:
        self._thread = ThreadPoolExecutor(1)
        self._home = home
        self._disk = home / "small"
        self._disk.mkdir()
        self.ground: Ground = self._thread.submit(self._start).result()

    def _start(self) -> Ground:
        small.mount(self._disk, "48m")
        return Ground(self._home)

    async def _run(self, function: object, *arguments: object) -> None:
        await asyncio.get_running_loop().run_in_executor(self._thread, function, *arguments)  # type: ignore[arg-type]

    async def move_in(self) -> None:
        """The tables go to the small disk."""
        admin = await asyncpg.connect(self.ground._server.dsn("postgres"))
        owner = self.ground.cluster.stat()
        await self._run(lambda: subprocess.run(["chown", f"{owner.st_uid}:{owner.st_gid}", self._disk], check=True))
        await admin.execute(f"CREATE TABLESPACE small LOCATION '{self._disk}'")
        await admin.execute("ALTER DATABASE outrider SET TABLESPACE small")
        await admin.close()

    async def fill(self) -> None:
        await self._run(small.fill, self._disk / "filler")

    async def free(self) -> None:
        await self._run((self._disk / "filler").unlink)

    async def stop(self) -> None:
        await self._run(self.ground.stop)
        self._thread.shutdown()


@asynccontextmanager
async def cramped(home: Path, folder: Path) -> AsyncIterator[tuple[Cramped, Stage]]:
    made = await asyncio.to_thread(Cramped, home)
    try:
        await made.move_in()
        connection = await asyncpg.connect(made.ground.dsn)
        await migrate(connection, report=lambda _line: None)
        await connection.close()
        async with Stage.set_up(CAST, folder, made.ground.dsn, faults=TOLD) as road:
            yield made, road
    finally:
        await made.stop()


async def test_a_full_disk_of_postgres_stops_it_until_there_is_room(home: Path, tmp_path: Path) -> None:
    async with cramped(home, tmp_path) as (made, road):
        await road.start()
        await road.insert(4_000, service="otp", intent="delivery")
        while road.simulator.ledger.accepted < 300:
            await asyncio.sleep(0.01)
        await made.fill()
        assert "disk is full" in await ready(road, 503)
        stopped_at = await stands_still(road, seconds=8)
        assert stopped_at < 4_000
        assert b'outrider_disk_full{where="database"} 1.0' in (await road.ask("/metrics"))[1]
        assert 1 <= said(road, "database.full") <= 4  # once for each line that met it
        await made.free()
        await ready(road, 200)
        await road.quiet(within_s=120)
        await judged(road, 4_000)
        print(f"Postgres full after {stopped_at} of 4,000; all sent once")
        assert await road.stop() == 0
