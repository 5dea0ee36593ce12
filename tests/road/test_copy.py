"""A copied database must not send: whoever restores a dump beside the original texts nobody twice."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING

from daemon import embedded
from daemon.simulator import AUTH_TOKEN
from tests.road.stage import Cast, Stage

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    SetUp = Callable[..., Awaitable[Stage]]

CAST = Cast(senders={"72345": 100}, services={"otp": ["72345"]})


async def shell(*command: str, stdin: bytes | None = None, **environment: str) -> bytes:
    process = await asyncio.create_subprocess_exec(
        *command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, env=environment or None
    )
    out, _ = await process.communicate(stdin)
    assert process.returncode == 0, command
    return out


async def test_a_restored_dump_sends_nothing_until_told(stage: SetUp, empty_database: str, tmp_path: Path) -> None:
    road = await stage(CAST)
    await road.start()
    await road.insert(5, service="otp", intent="otp")
    await road.quiet()
    assert await road.stop() == 0
    await road.insert(7, service="otp", intent="otp")  # waiting when the dump is taken

    programs = embedded.binaries()
    dump = await shell(str(programs / "pg_dump"), road.dsn)
    await shell(str(programs / "psql"), "-q", "-v", "ON_ERROR_STOP=1", empty_database, stdin=dump)

    folder = tmp_path / "copy"
    folder.mkdir()
    async with Stage.set_up(CAST, folder, empty_database) as copy:
        await copy.start(ready=503)
        assert await copy.connection.fetchval("SELECT count(*) FROM outrider.queue") == 7
        await asyncio.sleep(3)
        status, why = await copy.ask("/readyz")
        assert status == 503
        assert b"sole-sender" in why
        assert copy.simulator.ledger.accepted == 0
        await shell(
            sys.executable, "-m", "daemon", "resume", "--sole-sender", "--yes", "--config", str(folder / "config.toml"),
            SIMULATOR_TOKEN=AUTH_TOKEN,
        )  # fmt: skip
        await copy.quiet()
        assert copy.simulator.ledger.accepted == 7

    await road.start()  # the original is where it was, and goes on
    await road.quiet()
    assert road.simulator.ledger.accepted == 12
