"""Who uses the server, and who may start it: advisory locks on files, let go by the kernel when a process dies."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PATIENCE_S = 60.0  # recovery after a crash takes a cluster of trial size some seconds
PAUSE_S = 0.02


class EmbeddedError(Exception):
    """The private Postgres cannot be had; the text says why and what to do."""


def open_lock(place: Path) -> int:
    lock = os.open(place, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    own(place)
    return lock


def own(place: Path) -> None:
    """What root leaves in a user's folder belongs to that user, who could not open it otherwise."""
    if os.geteuid() == 0:
        owner = place.parent.stat()
        os.chown(place, owner.st_uid, owner.st_gid)


def try_lock(lock: int, kind: int) -> bool:
    """Take the lock if it is free. If not, the lock held before is gone too (flock(2), on conversion)."""
    try:
        fcntl.flock(lock, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def wait_for_lock(lock: int, kind: int) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not try_lock(lock, kind):
        if time.monotonic() > deadline:
            raise EmbeddedError(f"another process has been starting or stopping this Postgres for {PATIENCE_S:.0f} s")
        time.sleep(PAUSE_S)


@contextlib.contextmanager
def locked(place: Path) -> Iterator[None]:
    lock = open_lock(place)
    try:
        wait_for_lock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)
