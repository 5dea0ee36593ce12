"""Postgres away, at the start and in the middle: nothing is lost, nothing is doubled, and nobody runs in circles."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import asyncpg
import pytest

from daemon import embedded
from daemon.migrate import migrate
from daemon.simulator import Faults
from tests.road.stage import Cast, Stage, cpu_s

if TYPE_CHECKING:
    from collections.abc import Iterator

CAST = Cast(senders={"72345": 100}, services={"otp": ["72345"]})
FAULTS = Faults.model_validate(
    {
        "latency": {"kind": "uniform", "from_ms": 50, "to_ms": 200},
        "receipts": {"sent": {"kind": "fixed", "ms": 10}, "final": {"kind": "fixed", "ms": 10}},
    }
)


@pytest.fixture
def home() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="outrider-outage-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def start(home: Path) -> embedded.Server:
    return embedded.start(home / "postgres", durable=False)


async def schema(dsn: str) -> None:
    connection = await asyncpg.connect(dsn)
    await migrate(connection, report=lambda _line: None)
    await connection.close()


@pytest.mark.timeout(120)
async def test_a_daemon_waits_for_its_database_and_says_so(home: Path, tmp_path: Path) -> None:
    server = start(home)
    dsn = server.dsn()
    await schema(dsn)
    async with Stage.set_up(CAST, tmp_path, dsn, faults=FAULTS) as road:
        await road.insert(5, service="otp", intent="otp")
        await road.connection.close()
        await asyncio.to_thread(server.stop)
        await road.start(ready=503)
        assert b"database" in (await road.ask("/readyz"))[1]
        await asyncio.sleep(2)
        assert road.log.read_text().count("database.unreachable") == 1  # said once, not at every try
        server = await asyncio.to_thread(start, home)
        road.connection = await asyncpg.connect(server.dsn())
        await road.quiet()
        assert len(await road.sent()) == 5
        await road.stop()
        await road.connection.close()
    await asyncio.to_thread(server.stop)


@pytest.mark.timeout(120)
async def test_an_outage_in_the_middle_loses_nothing(home: Path, tmp_path: Path) -> None:
    server = start(home)
    await schema(server.dsn())
    async with Stage.set_up(CAST, tmp_path, server.dsn(), faults=FAULTS) as road:
        await road.start()
        await road.insert(300, service="otp", intent="delivery")
        await road.until("SELECT count(*) > 50 FROM outrider.outcome")
        await road.connection.close()
        await asyncio.to_thread(server.stop)
        before = cpu_s(road.pid)
        await asyncio.sleep(4)
        assert cpu_s(road.pid) - before < 2.0  # half a core at most, with answers still coming in
        assert (await road.ask("/readyz"))[0] == 503
        server = await asyncio.to_thread(start, home)
        road.connection = await asyncpg.connect(server.dsn())
        await road.quiet()
        sent = await road.sent()
        assert len(sent) == 300
        assert all(attempts == [1] for attempts in sent.values())
        assert await road.stop() == 0
        await road.connection.close()
    await asyncio.to_thread(server.stop)
