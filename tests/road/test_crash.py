"""kill -9 in the middle of everything: nothing is lost, and nothing is doubled that is not explained (``daemon/selftest``)."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

from daemon.selftest import Plan, crash, paint

if TYPE_CHECKING:
    from daemon.selftest.verdict import Report


async def storm(plan: Plan) -> Report:
    with paint.progress(plan.kills, plan.messages, sys.stdout) as progress:
        report = await crash(plan, progress)
    paint.result(report, sys.stdout)
    paint.as_json(report, sys.stdout)
    return report


def hold(report: Report, *, busy: float) -> None:
    """Every promise, and that the storm was one: the provider was there, all ways out of doubt were gone."""
    assert report.ok, report.document()
    assert report.lost == report.unexplained == 0
    assert report.duplicates == 0  # receipts and queries tell the truth here, so nothing had to be guessed
    assert report.busy_kills >= busy * len(report.deaths)
    assert all(death.ambiguous <= death.on_the_wire for death in report.deaths)
    assert report.ambiguous > len(report.deaths)
    assert report.resolved_by["receipt"] > 0
    assert report.resolved_by["query"] > 0


@pytest.mark.timeout(240)
async def test_twenty_kills_in_five_thousand_messages(empty_database: str) -> None:
    report = await storm(Plan(kills=20, messages=5_000, seed=7, dsn=empty_database))
    hold(report, busy=0.9)
    assert report.messages == 5_000


@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    ("kills", "messages"), [(8, 2_000), pytest.param(20, 5_000, marks=pytest.mark.long)], ids=["8", "20"]
)
async def test_kills_while_aiohttp_carries_the_requests(empty_database: str, kills: int, messages: int) -> None:
    hold(await storm(Plan(kills=kills, messages=messages, seed=7, dsn=empty_database, client="aiohttp")), busy=0.8)


@pytest.mark.long
@pytest.mark.timeout(3_000)
async def test_two_hundred_kills_in_a_hundred_thousand_messages(empty_database: str) -> None:
    report = await storm(Plan(kills=200, messages=100_000, seed=11, dsn=empty_database))
    hold(report, busy=0.9)
    assert report.messages == 100_000
