"""The clocks of the machine."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from daemon.clock import Clock

if TYPE_CHECKING:
    from pathlib import Path


def test_ticks_never_go_back() -> None:
    clock = Clock()
    ticks = [clock.tick() for _ in range(1_000)]
    assert ticks == sorted(ticks)


def test_ticks_count_suspension_where_the_kernel_can() -> None:
    if not hasattr(time, "CLOCK_BOOTTIME"):
        pytest.skip("this kernel has no CLOCK_BOOTTIME")
    before = time.clock_gettime(time.CLOCK_BOOTTIME)
    assert before <= Clock().tick() <= time.clock_gettime(time.CLOCK_BOOTTIME)


def test_now_is_the_wall_clock() -> None:
    before = time.time()
    assert before <= Clock().now() <= time.time()


def test_a_boot_has_a_name_where_the_kernel_gives_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert Clock().boot_id() == Clock().boot_id()
    monkeypatch.setattr("daemon.clock._BOOT_ID", tmp_path / "none")
    assert Clock().boot_id() == ""
