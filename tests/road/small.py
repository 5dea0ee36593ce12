"""
A disk that is small, and can be full: a tmpfs in a mount namespace of its own, which nobody else sees and which goes
with its processes. As a program: the daemon with its state folder on such a disk, and short files in it.
"""

from __future__ import annotations

import ctypes
import errno
import subprocess
import sys
import tomllib
from contextlib import suppress
from pathlib import Path

CLONE_NEWNS = 0x20000
BLOCK = bytes(4096)
FILE_BYTES = 64 << 10  # of the dispatch log: 150 messages, not 22,000


def mount(folder: Path, size: str) -> None:
    """Put a small disk at *folder*, for this thread and what it starts. Raises OSError where that is not allowed."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNS):
        raise OSError(ctypes.get_errno(), "unshare")
    for command in (["--make-rprivate", "/"], ["-t", "tmpfs", "-o", f"size={size},mode=777", "tmpfs", str(folder)]):
        if subprocess.run(["mount", *command], capture_output=True, check=False).returncode:
            raise OSError(errno.EPERM, "mount")


def allowed() -> bool:
    """Whether it can be had here; asked in a process of its own."""
    asked = subprocess.run(
        ["unshare", "--mount", "mount", "-t", "tmpfs", "tmpfs", "/mnt"], capture_output=True, check=False
    )
    return asked.returncode == 0


def fill(path: Path) -> None:
    """Write *path* until nothing more goes onto its disk."""
    with suppress(OSError), path.open("ab", buffering=0) as filler:
        while True:
            filler.write(BLOCK)


if __name__ == "__main__":
    from daemon import journal
    from daemon.__main__ import main

    state = Path(tomllib.loads(Path(sys.argv[-1]).read_text())["daemon"]["state"])
    state.mkdir(exist_ok=True)
    mount(state, "1m")
    journal.FILE_BYTES = FILE_BYTES
    main()
