"""Supervision: a crash drains, only the deadline cancels."""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING

import pytest

from daemon.supervisor import notify, supervise

if TYPE_CHECKING:
    from pathlib import Path


class Serving:
    """A service that says what happened to it."""

    def __init__(self, name: str = "serving", *, ending_s: float = 0.0) -> None:
        self.name = name
        self.ended: str | None = None
        self._ending_s = ending_s

    async def run(self, stop: asyncio.Event) -> None:
        try:
            await stop.wait()
            await asyncio.sleep(self._ending_s)
            self.ended = "drained"
        except asyncio.CancelledError:
            self.ended = "cancelled"
            raise


class Failing:
    name = "failing"

    async def run(self, stop: asyncio.Event) -> None:
        await asyncio.sleep(0)
        raise ValueError("a bug")


class Forsaken:
    name = "forsaken"

    async def run(self, stop: asyncio.Event) -> None:
        waited_for: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waited_for.cancel()
        await waited_for


class Returning:
    name = "returning"

    async def run(self, stop: asyncio.Event) -> None:
        return


async def test_all_are_drained_when_told_to_stop() -> None:
    stop, services = asyncio.Event(), [Serving(ending_s=0.02), Serving(ending_s=0.01)]
    asyncio.get_running_loop().call_later(0.01, stop.set)
    await supervise(services, stop=stop, grace_s=10)
    assert [service.ended for service in services] == ["drained", "drained"]


async def test_a_crash_drains_the_others_and_is_told() -> None:
    other = Serving(ending_s=0.02)
    with pytest.raises(ExceptionGroup) as failed:
        await supervise([other, Failing()], stop=asyncio.Event(), grace_s=10)
    assert failed.group_contains(ValueError, match="a bug")
    assert other.ended == "drained"


async def test_the_deadline_cancels() -> None:
    stop, slow, quick = asyncio.Event(), Serving(ending_s=60), Serving()
    stop.set()
    with pytest.raises(ExceptionGroup) as failed:
        await supervise([slow, quick], stop=stop, grace_s=0.05)
    assert failed.group_contains(TimeoutError)
    assert (slow.ended, quick.ended) == ("cancelled", "drained")


async def test_a_service_that_returns_by_itself_has_failed() -> None:
    other = Serving()
    with pytest.raises(ExceptionGroup) as failed:
        await supervise([other, Returning()], stop=asyncio.Event(), grace_s=10)
    assert failed.group_contains(RuntimeError, match="returning returned before")
    assert other.ended == "drained"


async def test_a_service_that_was_cancelled_by_nobody_has_failed(capsys: pytest.CaptureFixture[str]) -> None:
    other = Serving(ending_s=0.02)
    with pytest.raises(ExceptionGroup) as failed:
        await supervise([other, Forsaken()], stop=asyncio.Event(), grace_s=10)
    assert failed.group_contains(RuntimeError, match="forsaken was cancelled")
    assert other.ended == "drained"
    assert "service.failed" in capsys.readouterr().out


async def test_two_crashes_are_both_told() -> None:
    with pytest.raises(ExceptionGroup) as failed:
        await supervise([Failing(), Failing(), Serving()], stop=asyncio.Event(), grace_s=10)
    assert len(failed.value.exceptions) == 2


def test_systemd_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = f"/tmp/outrider-test-{tmp_path.name}.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as bus:
        bus.bind(f"\0{path}")
        monkeypatch.setenv("NOTIFY_SOCKET", f"@{path}")
        notify("READY=1", "STATUS=serving")
        assert bus.recv(100) == b"READY=1\nSTATUS=serving"


def test_a_systemd_that_is_gone_or_slow_holds_up_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", f"/tmp/outrider-nobody-{tmp_path.name}.sock")
    notify("READY=1")
    path = f"/tmp/outrider-deaf-{tmp_path.name}.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as bus:
        bus.bind(f"\0{path}")
        monkeypatch.setenv("NOTIFY_SOCKET", f"@{path}")
        for _ in range(2_000):  # more than a queue holds
            notify("WATCHDOG=1")
    monkeypatch.delenv("NOTIFY_SOCKET")
    notify("WATCHDOG=1")
