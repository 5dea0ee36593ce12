"""
The unit as it is shipped, run by a real systemd in namespaces of its own: start, credentials, reload, watchdog, drain.

Inside, the machine's file system is read-only and every folder that systemd writes to is a fresh one in memory, so
nothing outside can be changed. Only the program's place differs from the shipped unit (a drop-in), and the watchdog is
more impatient.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import textwrap
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parent.parent
SYSTEMD = Path("/lib/systemd/systemd")
TOKEN = "a token of the operator's"
PATIENCE_S = 30.0
GROUP = f"outrider-test-{os.getpid()}"  # the one trace outside: a control group, removed at the end

# $1 the checkout, $2 Python's own folder, $3 its packages, $4 the name of the interpreter
BOOT = """
    set -eu
    mount --make-rshared /
    mount -o remount,bind,ro /
    ip link set lo up
    mount -t tmpfs -o mode=755 none /opt
    mkdir -p /opt/outrider/python /opt/outrider/packages /opt/outrider/checkout
    mount --bind "$2" /opt/outrider/python
    mount --bind "$3" /opt/outrider/packages
    mount --bind "$1" /opt/outrider/checkout
    for folder in /run /tmp /var; do mount -t tmpfs -o mode=755 none $folder; done  # the checkout may have lain there
    mkdir -p /run/etc/now /run/etc/work /var/lib
    mount -t overlay -o lowerdir=/etc,upperdir=/run/etc/now,workdir=/run/etc/work none /etc
    umount -R /sys/fs/cgroup 2>/dev/null || true
    mount -t cgroup2 none /sys/fs/cgroup
    mkdir -p "/sys/fs/cgroup/$GROUP"
    echo $$ >"/sys/fs/cgroup/$GROUP/cgroup.procs"

    # Nothing of the machine's own is started: neither its services nor what sets up kernel and disks.
    units=/etc/systemd/system
    for wanted in /lib/systemd/system/*.wants/* /etc/systemd/system/*.wants/*; do
        ln -sf /dev/null "$units/$(basename "$wanted")"
    done
    printf '[Unit]\\nDescription=nothing\\n' >"$units/nothing.target"

    mkdir -p /etc/outrider/credentials "$units/outrider.service.d"
    cp /opt/outrider/checkout/systemd/outrider.service "$units/"
    printf %s "$TOKEN" >/etc/outrider/credentials/operator_token
    sed -e 's/^\\[database\\]/&\\ntrial = true/' -e 's/^\\[web.operator\\]/&\\ntoken_credential = "operator_token"/' \\
        /opt/outrider/checkout/config.toml >/etc/outrider/config.toml
    cat >"$units/outrider.service.d/here.conf" <<UNIT
    [Service]
    ExecStart=
    ExecStart=/opt/outrider/python/bin/$4 -m daemon run --config /etc/outrider/config.toml
    Environment=PYTHONHOME=/opt/outrider/python LD_LIBRARY_PATH=/opt/outrider/python/lib
    Environment=PYTHONPATH=/opt/outrider/checkout:/opt/outrider/packages
    LoadCredential=operator_token:/etc/outrider/credentials/operator_token
    StandardOutput=append:/run/outrider.log
    StandardError=append:/run/outrider.log
    WatchdogSec=4
    UNIT
    export container=outrider-test
    exec /lib/systemd/systemd --system --unit=nothing.target --log-target=console
"""
ASK = """
import sys, urllib.error, urllib.request
request = urllib.request.Request(sys.argv[1], headers={"Authorization": "Bearer " + sys.argv[2]} if sys.argv[2] else {})
try:
    print(urllib.request.urlopen(request, timeout=5).status)
except urllib.error.HTTPError as refused:
    print(refused.code)
"""
NAMESPACES = ("unshare", "--mount", "--pid", "--uts", "--ipc", "--net", "--cgroup", "--fork", "--mount-proc")


def _missing() -> str | None:
    """Why no systemd of our own can be run here; None where it can."""
    if os.geteuid() != 0:
        return "namespaces need root"
    for tool in ("unshare", "nsenter", "ip", "mount"):
        if shutil.which(tool) is None:
            return f"{tool} is missing"
    if not SYSTEMD.exists():
        return "systemd is not installed"
    tried = "mount -o remount,bind,ro / && mount -t tmpfs none /run && mkdir /run/cgroup && mount -t cgroup2 none /run/cgroup"
    done = subprocess.run([*NAMESPACES, "sh", "-c", tried], capture_output=True, text=True, check=False)
    return None if done.returncode == 0 else f"no namespaces or no cgroup v2: {done.stderr.strip()}"


_WHY = _missing()
pytestmark = [
    pytest.mark.skipif(_WHY is not None, reason=f"THE UNIT WAS NOT RUN: {_WHY}"),
    pytest.mark.timeout(180),
]


class Machine:
    """A systemd and what runs under it."""

    def __init__(self, pid: int) -> None:
        self._pid = pid

    def inside(self, *words: str) -> str:
        """Run *words* in there; what they print."""
        enter = ("nsenter", "--target", str(self._pid), "--mount", "--pid", "--net", "--uts", "--ipc", "--cgroup")
        done = subprocess.run([*enter, *words], capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}\n{self.log()[-4000:]}"
        return done.stdout

    def systemctl(self, *words: str) -> str:
        return self.inside("systemctl", "--no-pager", *words)

    def shown(self, name: str) -> str:
        """A property of the unit."""
        return self.systemctl("show", "--value", "--property", name, "outrider").strip()

    def log(self) -> str:
        """All the daemon has said."""
        return Path(f"/proc/{self._pid}/root/run/outrider.log").read_text(encoding="utf-8")

    def ask(self, path: str, token: str = "") -> int:
        """The status of the operator's page at *path*."""
        enter = ("nsenter", "--target", str(self._pid), "--net", sys.executable, "-c", ASK)
        done = subprocess.run(
            [*enter, f"http://127.0.0.1:8081{path}", token], capture_output=True, text=True, check=True, timeout=30
        )
        return int(done.stdout)

    def until(self, name: str, value: str) -> None:
        """Wait until a property of the unit has *value*."""
        deadline = time.monotonic() + PATIENCE_S
        while self.shown(name) != value:
            assert time.monotonic() < deadline, f"{name} is {self.shown(name)}, not {value}\n{self.log()[-4000:]}"
            time.sleep(0.1)


def _first_of(pid: int) -> int:
    """The first process in the namespace that process *pid* has made, once it is systemd."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()
        if children and Path(f"/proc/{children[0]}/comm").read_text(encoding="ascii").strip() == "systemd":
            return int(children[0])
        time.sleep(0.05)
    raise AssertionError("systemd did not start")


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    """A systemd of our own, with the unit installed and started."""
    python = Path(sys.base_prefix)
    words = [
        str(ROOT),
        str(python),
        sysconfig.get_paths()["purelib"],
        f"python{sys.version_info[0]}.{sys.version_info[1]}",
    ]
    process = subprocess.Popen(
        [*NAMESPACES, "--kill-child", "sh", "-c", textwrap.dedent(BOOT), "boot", *words],
        env={"PATH": os.environ["PATH"], "TOKEN": TOKEN, "GROUP": GROUP}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        made = Machine(_first_of(process.pid))
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline and not Path(f"/proc/{made._pid}/root/run/systemd/private").exists():
            time.sleep(0.05)
        made.systemctl("start", "outrider")  # Type=notify: it returns when READY=1 has come
        yield made
    finally:
        process.kill()
        process.wait()
        # Its processes take a moment to be gone.
        sweep = f"find /mnt/{GROUP} -depth -type d -exec rmdir {{}} + && exit; sleep 0.2;" * 10
        sweep = f"mount -t cgroup2 none /mnt; {sweep}"
        subprocess.run(["unshare", "--mount", "sh", "-c", sweep], capture_output=True, check=False)


def test_it_starts_as_nobody_and_says_that_it_serves(machine: Machine) -> None:
    assert machine.shown("ActiveState") == "active"
    assert machine.shown("StatusText") == "serving"
    assert machine.inside("stat", "--format", "%U %a", "/var/lib/private/outrider").strip() == "outrider 700"
    assert '"event":"daemon.ready"' in machine.log().replace(" ", "")


def test_its_secret_comes_as_a_credential(machine: Machine) -> None:
    assert machine.ask("/readyz", TOKEN) == 200
    assert machine.ask("/", "") in {401, 403}
    assert machine.ask("/", "another") in {401, 403}
    assert TOKEN not in machine.log()


def test_a_reload_takes_up_a_good_file_and_refuses_a_bad_one(machine: Machine) -> None:
    pid = machine.shown("MainPID")
    machine.inside("sed", "--in-place", "s/^rate = .*/rate = 3/", "/etc/outrider/config.toml")
    machine.systemctl("reload", "outrider")
    machine.until("ReloadResult", "success")
    _wait_for(machine, "settings.reloaded")

    machine.inside("sh", "-c", "echo 'nonsense = 1' >>/etc/outrider/config.toml")
    machine.systemctl("reload", "outrider")
    _wait_for(machine, "settings.refused")
    assert machine.shown("ActiveState") == "active"
    assert machine.shown("MainPID") == pid
    machine.inside("sed", "--in-place", "/^nonsense/d", "/etc/outrider/config.toml")


def test_a_daemon_that_stands_still_is_killed_and_started_again(machine: Machine) -> None:
    before = machine.shown("MainPID")
    machine.inside("kill", "-STOP", before)
    machine.until("NRestarts", "1")
    machine.until("ActiveState", "active")
    assert machine.shown("MainPID") not in {before, "0"}
    assert machine.ask("/readyz", TOKEN) == 200


def test_it_drains_when_told_to_stop(machine: Machine) -> None:
    machine.systemctl("stop", "outrider")
    assert machine.shown("Result") == "success"
    assert machine.shown("ExecMainStatus") == "0"
    _wait_for(machine, "daemon.draining")


def _wait_for(machine: Machine, event: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while event not in machine.log():
        assert time.monotonic() < deadline, machine.log()[-4000:]
        time.sleep(0.1)
