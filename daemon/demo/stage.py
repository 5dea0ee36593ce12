"""
The stage of the demo: a folder, a Postgres, a provider and a daemon, each a process of its own.

All of it comes down again, whatever ends the demo: the end, a mistake, Ctrl-C, SIGTERM; the kernel takes the processes
down when we are killed.
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

from daemon import embedded, migrate
from daemon.cli.database import postgres_folder
from daemon.cli.trouble import Trouble
from daemon.core.pacing import WINDOW_S
from daemon.database import connect
from daemon.demo import scenery
from daemon.demo.children import free_ports, last_words, scratch_folder, spawn, stop
from daemon.settings import load

if TYPE_CHECKING:
    from asyncio.subprocess import Process
    from collections.abc import AsyncIterator, Callable, Sequence
    from pathlib import Path

    from daemon.demo.scenario import Speaker

READY_S = 20.0  # until the provider listens, and until the daemon holds its leases
LEASES = "SELECT count(*) FROM outrider.lease WHERE until > now()"


class Stage:
    """Where the demo plays. Made by :meth:`up`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = folder / "config.toml"
        self.faults = folder / "faults.toml"
        self.ledger = folder / "ledger.jsonl"
        self.dsn = ""
        self.provider_url = ""
        self.operator_url = ""
        self.daemon: Process | None = None

    @classmethod
    @asynccontextmanager
    async def up(
        cls, speakers: Sequence[Speaker], *, seed: int, keep: Path | None, say: Callable[[str], None]
    ) -> AsyncIterator[Stage]:
        """Build the stage; take it down on leaving the block. With *keep* its folder stays."""
        async with AsyncExitStack() as down:
            stage = cls(scratch_folder(keep, down, prefix="outrider-demo-"))
            say("starting a private Postgres, a provider that misbehaves, and the daemon")
            stage.faults.write_text(scenery.faults(speakers, seed=seed), encoding="utf-8")
            await stage._start_provider(down)
            public, operator = free_ports()
            stage.operator_url = f"http://127.0.0.1:{operator}/"
            text = scenery.config(speakers, provider_url=stage.provider_url, public_port=public, operator_port=operator)
            stage.config.write_text(text, encoding="utf-8")
            await stage._start_database(down)
            await stage._start_daemon(down)
            say(f"the daemon's pages: {stage.operator_url}")
            yield stage
            if keep is not None:
                say(f"everything is left in {stage.folder}; look with: outrider psql --config {stage.config}")

    async def stop_daemon(self) -> int:
        """Ask the daemon to end, and return its exit code; -9 if it would not."""
        assert self.daemon is not None, "the daemon was never started"
        return await stop(self.daemon)

    def check_alive(self) -> None:
        """Raise Trouble, with its last words, if the daemon has ended by itself."""
        if self.daemon is not None and self.daemon.returncode is not None:
            raise Trouble(f"the daemon ended by itself with code {self.daemon.returncode}", *self._last_words("daemon"))

    async def _start_provider(self, down: AsyncExitStack) -> None:
        options = ("--port", "0", "--faults", str(self.faults), "--ledger", str(self.ledger))
        provider = await self._spawn(down, "provider", "simulate", *options, stdout=asyncio.subprocess.PIPE)
        assert provider.stdout is not None
        try:
            async with asyncio.timeout(READY_S):
                line = (await provider.stdout.readline()).decode()
        except TimeoutError:
            line = ""
        if "http://" not in line:
            raise Trouble("the provider of the demo did not start", *self._last_words("provider"))
        self.provider_url = line[line.index("http://") :].strip()

    async def _start_database(self, down: AsyncExitStack) -> None:
        server = await asyncio.to_thread(embedded.start, postgres_folder(load(self.config)))
        down.push_async_callback(asyncio.to_thread, server.stop)
        self.dsn = server.dsn()
        connection = await connect(self.dsn)
        try:
            await migrate.migrate(connection, report=lambda _: None)
        finally:
            await connection.close()

    async def _start_daemon(self, down: AsyncExitStack) -> None:
        """Start it, and wait until it holds all its leases: from then on it sends."""
        groups = len(load(self.config).groups())
        self.daemon = await self._spawn(down, "daemon", "run", "--config", str(self.config))
        connection = await connect(self.dsn)
        try:
            async with asyncio.timeout(READY_S):
                while await connection.fetchval(LEASES) < groups:
                    self.check_alive()
                    await asyncio.sleep(0.05)
        except TimeoutError:
            raise Trouble(f"the daemon was not ready within {READY_S:.0f} s", *self._last_words("daemon")) from None
        finally:
            await connection.close()
        # A daemon that knows nothing of its senders' last second takes it for used up, and keeps quiet for that long.
        await asyncio.sleep(WINDOW_S)

    async def _spawn(self, down: AsyncExitStack, name: str, *arguments: str, stdout: int | None = None) -> Process:
        process = await spawn(self.folder, name, *arguments, stdout=stdout)
        down.push_async_callback(stop, process)
        return process

    def _last_words(self, name: str) -> list[str]:
        return last_words(self.folder, name)
