"""Making a cluster, and choosing as whom it runs: Postgres refuses to be root."""

from __future__ import annotations

import os
import pwd
import re
import secrets
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from daemon.embedded.locks import EmbeddedError, own

if TYPE_CHECKING:
    from collections.abc import Sequence

ROLE = "outrider"
DATABASE = "outrider"
MAKE_DATABASE = "CREATE DATABASE outrider;\n"
SOCKET = ".s.PGSQL.5432"
SOCKET_ROOM = 107  # bytes in the path of a unix socket: unix(7), sun_path, without the closing zero


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """As whom the server's programs run: a user to become, or a command to put before theirs."""

    uid: int | None = None
    gid: int | None = None
    prefix: tuple[str, ...] = ()

    def run(self, command: Sequence[str], *, say: str = "", keep: Sequence[int] = ()) -> str:
        """Run one program to its end and return what it printed; if it fails, that is the error."""
        done = subprocess.run(
            [*self.prefix, *command],
            input=say,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            pass_fds=keep,
            check=False,
            user=self.uid,
            group=self.gid,
            extra_groups=None if self.uid is None else [],
            cwd="/",
            env=environment(),
        )
        if done.returncode:
            raise EmbeddedError(f"{Path(command[0]).name} failed: {done.stdout.strip()}")
        return done.stdout

    def give(self, folder: Path) -> None:
        """Make *folder* theirs."""
        if self.uid is not None and self.gid is not None:
            os.chown(folder, self.uid, self.gid)


def environment() -> dict[str, str]:
    """Our environment without PGOPTIONS, PGPORT and the like, which would reach the server's programs."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PG")}


def identity_for(programs: Path, home: Path) -> tuple[Identity, Path]:
    """Choose whom root becomes, and the programs that one can reach."""
    if os.geteuid() != 0:
        return Identity(), programs
    nobody = pwd.getpwnam("nobody")
    number = str(nobody.pw_uid)
    namespaced = Identity(prefix=("unshare", "--user", f"--map-user={number}", f"--map-group={number}", "--"))
    cluster = home / "cluster"
    owner = (cluster if cluster.exists() else home).stat()
    if owner.st_uid != 0:
        choice = [Identity(uid=owner.st_uid, gid=owner.st_gid)]
    elif cluster.exists():
        choice = [namespaced]
    else:
        choice = [Identity(uid=nobody.pw_uid, gid=nobody.pw_gid), namespaced]
    if home.stat().st_uid == 0:
        home.chmod(0o711)  # nobody may pass through to cluster/, and read nothing else
    for identity in choice:
        if _can_work(identity, programs, home):
            return identity, programs
    copies = _copy(programs, home)
    if _can_work(choice[0], copies, home):
        return choice[0], copies
    raise EmbeddedError(
        f"Postgres does not run as root, and another user cannot reach {home}: "
        "put it outside root's home, or start as an ordinary user",
    )


def _can_work(identity: Identity, programs: Path, home: Path) -> bool:
    """Try it: the one honest answer, with modes, ACLs, mounts and namespaces in the way."""
    try:
        identity.run(["sh", "-c", 'cd "$1" && exec "$2" --version', "sh", str(home), str(programs / "initdb")])
    except (EmbeddedError, OSError):
        return False
    return True


def _copy(programs: Path, home: Path) -> Path:
    """Copy the programs (42 MB) to where the server's user can reach them; nothing runs from the copy just now."""
    package = programs.parent.parent
    copies = home / "programs"
    shutil.rmtree(copies, ignore_errors=True)
    for folder in (copies, copies / package.name):
        folder.mkdir()
        folder.chmod(0o755)  # whatever the umask
    without = shutil.ignore_patterns("include")
    # A wheel's shared libraries lie beside its package, and its programs look for them there.
    for part in (programs.parent, package.with_name(f"{package.name}.libs")):
        if part.exists():
            there = copies / part.relative_to(package.parent)
            shutil.copytree(part, there, symlinks=True, ignore=without, dirs_exist_ok=True)
    return copies / programs.relative_to(package.parent)


def make_cluster(home: Path, identity: Identity, programs: Path, *, durable: bool) -> None:
    """Make cluster/ with its role and database, or nothing at all: it gets its name only when it is whole."""
    fresh = home / "cluster.new"
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(mode=0o700)
    identity.give(fresh)
    # A file in memory, so that whoever runs initdb can read the password and it is never an argument.
    memory = os.memfd_create("password")
    try:
        os.write(memory, _password(home).encode())
        command = [str(programs / "initdb"), "-D", str(fresh), f"--username={ROLE}"]
        command += [f"--pwfile=/proc/self/fd/{memory}", "--auth-local=scram-sha-256", "--auth-host=reject"]
        command += ["--encoding=UTF8", "--locale=C.UTF-8", "--no-sync", "--no-instructions"]
        identity.run(command, keep=[memory])
    finally:
        os.close(memory)
    alone = [str(programs / "postgres"), "--single", "-D", str(fresh), "-c", "fsync=off", "postgres"]
    identity.run(alone, say=MAKE_DATABASE)
    if durable:
        identity.run([str(programs / "initdb"), "--sync-only", "-D", str(fresh)])
    fresh.rename(home / "cluster")


def _password(home: Path) -> str:
    """The password in the folder, made on first need. It is a passfile line of libpq: host:port:database:user:word."""
    place = home / "password"
    if not place.exists():
        with tempfile.NamedTemporaryFile("w", dir=home, delete=False) as made:  # mode 0600 from the start
            made.write(f"*:*:*:{ROLE}:{secrets.token_urlsafe(24)}\n")
        own(Path(made.name))
        Path(made.name).replace(place)
    return place.read_text().strip().rpartition(":")[2]


def check_version(cluster: Path, identity: Identity, programs: Path) -> None:
    """Refuse data of another major version, in plainer words than the server's."""
    made = (cluster / "PG_VERSION").read_text().strip()
    found = re.search(r"\(PostgreSQL\) (\d+)", identity.run([str(programs / "postgres"), "--version"]))
    if found is None or found[1] != made:
        ours = found[1] if found else "unknown"
        raise EmbeddedError(f"{cluster} was made by Postgres {made}, and this is {ours}: pg_upgrade or move it")


def socket_folder(cluster: Path, identity: Identity) -> tuple[Path, str | None]:
    """Where the socket goes: the cluster, or a short folder if that path will not do; it is cleared away later."""
    # A comma divides hosts in a DSN, even when it is quoted.
    if len(os.fsencode(cluster / SOCKET)) <= SOCKET_ROOM and "," not in str(cluster):
        return cluster, None
    short = Path(tempfile.mkdtemp(prefix="outrider-", dir="/tmp"))
    identity.give(short)
    return short, str(short)
