"""
The stage of the demo: a folder, a Postgres, a provider and a daemon, each a process of its own.

All of it comes down again, whatever ends the demo: the end, a mistake, Ctrl-C, SIGTERM; the kernel takes the processes
down when we are killed.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import shutil
import signal
import socket
import sys
import tempfile
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from daemon import embedded, migrate
from daemon.cli.database import postgres_folder
from daemon.cli.trouble import Trouble
from daemon.core.pacing import WINDOW_S
from daemon.database import connect
from daemon.demo import scenery
from daemon.settings import load

if TYPE_CHECKING:
    from asyncio.subprocess import Process
    from collections.abc import AsyncIterator, Callable, Sequence

    from daemon.demo.scenario import Speaker

READY_S = 20.0  # until the provider listens, and until the daemon holds its leases
STOP_S = 20.0  # until a process has ended that was asked to; its own drain is shorter
LAST_WORDS = 8  # lines of a log that are shown
LEASES = "SELECT count(*) FROM outrider.lease WHERE until > now()"
_PR_SET_PDEATHSIG = 1  # prctl(2)


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
            stage = cls(_folder(keep, down))
            say("starting a private Postgres, a provider that misbehaves, and the daemon")
            stage.faults.write_text(scenery.faults(speakers, seed=seed), encoding="utf-8")
            await stage._start_provider(down)
            public, operator = _free_ports()
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
        return await _stop(self.daemon)

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
        """Start one of our own commands; its stderr, and its stdout unless told otherwise, go to ``NAME.log``."""
        with (self.folder / f"{name}.log").open("wb") as log:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                *("-m", "daemon", *arguments),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log if stdout is None else stdout,
                stderr=log,
                cwd=self.folder,
                env={**os.environ, "PYTHONPATH": _import_path()},
                start_new_session=True,  # Ctrl-C is for us; they are told in their order
                preexec_fn=_end_with_parent,
            )
        down.push_async_callback(_stop, process)
        return process

    def _last_words(self, name: str) -> list[str]:
        with suppress(OSError):
            text = (self.folder / f"{name}.log").read_text(encoding="utf-8", errors="replace")
            return [f"  {line}" for line in text.splitlines()[-LAST_WORDS:]]
        return []


def _folder(keep: Path | None, down: AsyncExitStack) -> Path:
    if keep is None:
        folder = Path(tempfile.mkdtemp(prefix="outrider-demo-"))
        down.callback(shutil.rmtree, folder, ignore_errors=True)
    else:
        folder = keep.absolute()
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise Trouble(f"{folder} is not empty; give --keep a new folder")
    if os.geteuid() == 0:
        folder.chmod(0o711)  # Postgres does not run as root, and its user must reach the data
    return folder


def _free_ports() -> tuple[int, int]:
    """Two ports nobody listens on just now."""
    with socket.socket() as one, socket.socket() as other:
        one.bind(("127.0.0.1", 0))
        other.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1]), int(other.getsockname()[1])


def _import_path() -> str:
    """Where our own package is, for a child whose working folder is another."""
    root = str(Path(__file__).resolve().parents[2])
    return os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))


async def _stop(process: Process) -> int:
    if process.returncode is None:
        with suppress(ProcessLookupError):
            process.terminate()
        try:
            async with asyncio.timeout(STOP_S):
                await process.wait()
        except TimeoutError:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    assert process.returncode is not None
    return process.returncode


_libc = ctypes.CDLL(None, use_errno=True)  # looked up here: between fork and exec nothing may be loaded


def _end_with_parent() -> None:
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
