"""
A scratch folder, and our own commands as children in it: for the demo and for the self-test.

Whatever ends the parent, the children come down: told in their order when it ends by itself, by the kernel when it is
killed.
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
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from daemon.cli.trouble import Trouble

if TYPE_CHECKING:
    from asyncio.subprocess import Process
    from collections.abc import Mapping
    from contextlib import AsyncExitStack

STOP_S = 20.0  # until a process has ended that was asked to; its own drain is shorter
LAST_WORDS = 8  # lines of a log that are shown
_PR_SET_PDEATHSIG = 1  # prctl(2)


def scratch_folder(keep: Path | None, down: AsyncExitStack, *, prefix: str) -> Path:
    """A new folder, gone with *down*; or the new or empty folder *keep*, which stays. Raises Trouble."""
    if keep is None:
        folder = Path(tempfile.mkdtemp(prefix=prefix))
        down.callback(shutil.rmtree, folder, ignore_errors=True)
    else:
        folder = keep.absolute()
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise Trouble(f"{folder} is not empty; give --keep a new folder")
    if os.geteuid() == 0:
        folder.chmod(0o711)  # Postgres does not run as root, and its user must reach the data
    return folder


def free_ports() -> tuple[int, int]:
    """Two ports nobody listens on just now."""
    with socket.socket() as one, socket.socket() as other:
        one.bind(("127.0.0.1", 0))
        other.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1]), int(other.getsockname()[1])


async def spawn(
    folder: Path, name: str, *arguments: str, stdout: int | None = None, environment: Mapping[str, str] | None = None
) -> Process:
    """Start one of our own commands in *folder*; its stderr, and stdout unless told otherwise, go to ``NAME.log``."""
    with (folder / f"{name}.log").open("ab") as log:
        return await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "daemon", *arguments),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=log if stdout is None else stdout,
            stderr=log,
            cwd=folder,
            env={**os.environ, "PYTHONPATH": _import_path(), **(environment or {})},
            start_new_session=True,  # Ctrl-C is for us; they are told in their order
            preexec_fn=_end_with_parent,
        )


async def stop(process: Process) -> int:
    """Ask *process* to end, and return its exit code; -9 if it would not."""
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


def last_words(folder: Path, name: str) -> list[str]:
    """The end of ``NAME.log``."""
    with suppress(OSError):
        text = (folder / f"{name}.log").read_text(encoding="utf-8", errors="replace")
        return [f"  {line}" for line in text.splitlines()[-LAST_WORDS:]]
    return []


def _import_path() -> str:
    """Where our own package is, for a child whose working folder is another."""
    root = str(Path(__file__).resolve().parents[2])
    return os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))


_libc = ctypes.CDLL(None, use_errno=True)  # looked up here: between fork and exec nothing may be loaded


def _end_with_parent() -> None:
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
