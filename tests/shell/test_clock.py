"""The clocks of the machine, and what their jumps do: nothing (facts: reliability, T17; quiet hours are not there yet)."""

from __future__ import annotations

import random
import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

import pytest

from daemon.clock import Clock
from daemon.core.permission import GO, Refuse
from daemon.leases import LEASE_S, SPEAK_S
from tests.shell.parts import US, Wound, engine, message
from tests.shell.test_engine import claimed
from tests.shell.test_gates import house

if TYPE_CHECKING:
    from pathlib import Path

    import asyncpg

JUMPS_S = (-86_400.0, -3_600.0, -1.0, 1.0, 3_600.0, 86_400.0)
SCHEDULES = 100_000
ZONES = (
    "Europe/Paris",
    "America/New_York",
    "America/Santiago",
    "Australia/Lord_Howe",  # by half an hour
    "America/Havana",
    "Asia/Beirut",  # at midnight, as in Havana
)


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


async def test_a_wall_clock_that_jumps_changes_no_judgement(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is too late, what is due and for how long we may speak: by the database's clock and our ticks alone."""
    dice, clock = random.Random(17), Wound()
    moments = {zone: [turn.timestamp() for turn in turns(zone)] for zone in ZONES}
    async with house(tmp_path, clock) as made:
        for number in range(SCHEDULES):
            if number % 5_000 == 0:  # our own zone, around its turns, where local arithmetic would be an hour out
                zone = ZONES[number // 5_000 % len(ZONES)]
                monkeypatch.setenv("TZ", zone)
                time.tzset()
                database = dice.choice(moments[zone]) + dice.choice((-3_600.0, 0.0, 3_600.0))
                made.desk.told_the_time(database)
                renewed = clock.went
                made.leases._deadlines, made.leases._voices = {US: renewed + SPEAK_S}, {US: frozenset({US})}
            passed = dice.choice((0.0, 0.3, 1.0, 4.0, SPEAK_S))
            database += passed
            clock.go(passed)
            clock.wall += dice.choice(JUMPS_S)
            if dice.random() < 0.3:  # a renewal, and what comes with it
                made.desk.told_the_time(database)
                renewed = clock.went
                made.leases._deadlines, made.leases._voices = {US: renewed + SPEAK_S}, {US: frozenset({US})}
            speaks = clock.went < renewed + SPEAK_S
            assert made.leases.may_write(US) == speaks
            left = dice.choice((-3_600.0, -2.0, -0.01, 0.01, 2.0, 3_600.0))
            row = message(due_at=database - 1.0, expires_at=database + left)
            if speaks:
                assert (made.desk.ask(row, US) == GO) == (left > 0)
                assert isinstance(made.desk.ask(row, US), Refuse) == (left <= 0)
            assert abs(made.desk.now() - database) < 1e-3
            assert made.desk.validity(row) == pytest.approx(max(left - 1.0, 1.0), abs=1e-3)
    monkeypatch.undo()
    time.tzset()


def turns(zone: str) -> list[datetime]:
    """The next four turns of the clocks of *zone*, as instants: an hour is left out there, or comes twice."""
    here = datetime.now(UTC).replace(minute=0, second=0, microsecond=0) + timedelta(days=1)
    found: list[datetime] = []
    while len(found) < 4:
        after = here + timedelta(minutes=30)
        if here.astimezone(ZoneInfo(zone)).utcoffset() != after.astimezone(ZoneInfo(zone)).utcoffset():
            found.append(after)
        here = after
    return found


async def test_a_lease_lasts_as_long_as_it_lasts_whatever_our_wall_clock_says(database: str, tmp_path: Path) -> None:
    clock = Wound()
    async with engine(database, tmp_path, clock=clock) as made:
        await made.announce()
        await made.leases._take()
        for jump in JUMPS_S:
            before = clock.went
            await made.leases._renew()
            clock.wall += jump
            assert US in made.leases.held, "it is not lost early"
            clock.go(SPEAK_S - 0.001)
            assert made.leases.may_write(US)
            clock.went = before + SPEAK_S
            assert not made.leases.may_write(US), "it is not believed for longer"
            assert clock.went - before < LEASE_S


@pytest.mark.every_postgres
async def test_a_send_at_in_local_time_is_the_instant_that_zone_means(
    connection: asyncpg.Connection[asyncpg.Record], database: str, tmp_path: Path
) -> None:
    """Through the hours that are missing and those that come twice; and nothing is taken before its instant."""
    insert = "INSERT INTO outrider.outbox (recipient, body, send_at) VALUES ($1, 'hello', $2::text::timestamptz)"
    async with engine(database, tmp_path) as made:
        await made.leases._take()
        for zone in ZONES:
            await connection.execute(f"SET TIME ZONE '{zone}'")
            for turn in turns(zone):
                # As an application there writes it: local, without an offset; an hour that is not there among them.
                wall = turn.astimezone(ZoneInfo(zone)).replace(tzinfo=None) - timedelta(minutes=15)
                local = [wall.replace(tzinfo=ZoneInfo(zone), fold=fold).astimezone(UTC) for fold in (0, 1)]
                assert await connection.fetchval(f"{insert} RETURNING send_at", "+12025550101", str(wall)) in local
        stored = await connection.fetch(
            "SELECT q.due_at, o.send_at FROM outrider.queue q JOIN outrider.outbox o USING (id)"
        )
        assert len(stored) == 4 * len(ZONES)
        assert all(row["due_at"] == row["send_at"] for row in stored)
        await connection.execute(
            "INSERT INTO outrider.outbox (recipient, body, send_at)"
            " SELECT '+12025550101', 'soon', clock_timestamp() + interval '300 ms'"
        )
        assert await claimed(made) == [], "not before"
        await connection.execute("SELECT pg_sleep(0.35)")
        assert len(await claimed(made)) == 1
