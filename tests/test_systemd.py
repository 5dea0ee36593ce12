"""The units, as far as they can be judged without running them: their words, their hardening, their likeness."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

UNITS = Path(__file__).parent.parent / "systemd"
NAMES = ("outrider.service", "outrider@.service")
EXPOSURE_LIMIT = 15  # tenths, as systemd-analyze counts

pytestmark = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="NOT TESTED: systemd-analyze is missing (apt-get install systemd)"
)


def read(name: str) -> str:
    return (UNITS / name).read_text()


def analyze(*arguments: str) -> tuple[int, str]:
    done = subprocess.run(["systemd-analyze", *arguments], capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def verify(text: str, folder: Path, name: str) -> str:
    """What systemd has to say of a unit, its program being elsewhere. An unknown word is told and exits 0."""
    (folder / name).write_text(re.sub(r"^ExecStart=.*$", "ExecStart=/bin/true", text, flags=re.MULTILINE))
    return analyze("verify", str(folder / name.replace("@.", "@two.")))[1]


def lines(name: str) -> list[str]:
    return [line for line in read(name).splitlines() if line and not line.startswith("#")]


@pytest.mark.parametrize("name", NAMES)
def test_systemd_understands_every_word(name: str, tmp_path: Path) -> None:
    assert verify(read(name), tmp_path, name) == ""


@pytest.mark.parametrize("name", NAMES)
def test_a_word_it_does_not_know_is_seen(name: str, tmp_path: Path) -> None:
    assert "ProtectEverything" in verify(read(name) + "[Service]\nProtectEverything=yes\n", tmp_path, name)


@pytest.mark.parametrize("name", NAMES)
def test_the_exposure_is_within_the_limit(name: str) -> None:
    code, said = analyze("security", "--offline=true", f"--threshold={EXPOSURE_LIMIT}", "--no-pager", str(UNITS / name))
    assert code == 0, said


def test_a_weaker_unit_would_be_over_the_limit(tmp_path: Path) -> None:
    (tmp_path / NAMES[0]).write_text(
        read(NAMES[0]).replace("SystemCallFilter=", "#").replace("CapabilityBoundingSet=", "#")
    )
    code, _ = analyze(
        "security", "--offline=true", f"--threshold={EXPOSURE_LIMIT}", "--no-pager", str(tmp_path / NAMES[0])
    )
    assert code != 0


def test_the_two_units_differ_only_in_the_instance() -> None:
    one, many = map(lines, NAMES)
    assert len(one) == len(many)
    differing = {
        ours.partition("=")[0]: (ours, theirs) for ours, theirs in zip(one, many, strict=True) if ours != theirs
    }
    assert set(differing) == {
        "Description",
        "ExecStart",
        "User",
        "WorkingDirectory",
        "StateDirectory",
        "RuntimeDirectory",
    }
    assert all("%i" in theirs for _, theirs in differing.values())


@pytest.mark.parametrize(
    "line",
    [
        "Type=notify",
        "NotifyAccess=main",
        "WatchdogSec=30",
        "ExecReload=/bin/kill -HUP $MAINPID",
        "TimeoutStopSec=45",
        "Restart=always",
        "RestartSec=1",
        "StartLimitIntervalSec=0",
        "DynamicUser=yes",
        "StateDirectoryMode=0700",
        "IPAddressDeny=link-local multicast",
    ],
)
def test_what_operations_rely_on_is_there(line: str) -> None:
    assert line in lines(NAMES[0])


def test_nothing_secret_is_asked_for_in_the_environment() -> None:
    assert not [line for line in lines(NAMES[0]) if line.startswith(("Environment", "PassEnvironment"))]
