"""The whole road, with everything real: an inserted row becomes a delivered message."""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections import Counter
from statistics import median
from typing import TYPE_CHECKING

import orjson
import pytest

from daemon.simulator import Faults
from tests.road.stage import Cast

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.road.stage import Stage

    SetUp = Callable[..., Awaitable[Stage]]

CAST = Cast(
    senders={"72345": 200, "+15550100001": 50, "+15550100002": 50},
    services={"otp": ["72345"], "notifications": ["+15550100001", "+15550100002"]},
)
PROMPT = Faults.model_validate({"receipts": {"sent": {"kind": "fixed", "ms": 5}, "final": {"kind": "fixed", "ms": 20}}})


@pytest.mark.every_postgres
async def test_every_row_is_sent_once_and_delivered(stage: SetUp) -> None:
    road = await stage(CAST, PROMPT)
    await road.insert(50, service="otp", intent="otp")  # before the daemon: it waits
    await road.start()
    await road.insert(100, service="notifications", intent="notifications")
    await road.until("SELECT count(*) = 150 FROM outrider.message WHERE status = 'delivered'")
    sent = await road.sent()
    assert len(sent) == 150
    assert all(attempts == [1] for attempts in sent.values())
    assert await road.connection.fetchval("SELECT count(*) FROM outrider.queue") == 0
    assert await road.stop() == 0
    assert await road.connection.fetchval("SELECT count(*) FROM outrider.claim") == 0


async def test_the_order_of_a_key_is_kept(stage: SetUp) -> None:
    road = await stage(CAST)
    await road.start()
    for number in range(20):
        await road.insert(
            1, service="notifications", intent="delivery", body=f"part {number}", order_key="conversation"
        )
    await road.quiet()
    rows = await road.connection.fetch("SELECT o.id FROM outrider.outbox o ORDER BY o.seq")
    assert list(await road.sent()) == [row["id"] for row in rows]  # by when the judge saw them


async def test_a_row_of_the_future_waits_and_a_cancelled_one_is_never_sent(stage: SetUp) -> None:
    road = await stage(CAST)
    await road.start()
    await road.connection.execute(
        "INSERT INTO outrider.outbox (recipient, service, body, send_at) VALUES"
        " ('+12025550101', 'notifications', 'soon', now() + interval '1 second'),"
        " ('+12025550102', 'notifications', 'never', now() + interval '1 hour')"
    )
    never = await road.connection.fetchval("SELECT id FROM outrider.outbox WHERE body = 'never'")
    assert await road.connection.fetchval("SELECT outrider.cancel($1)", never) == "canceled"
    await road.until("SELECT count(*) = 1 FROM outrider.message WHERE status IN ('accepted', 'sent', 'delivered')")
    assert (
        await road.connection.fetchval("SELECT outrider.cancel(id) FROM outrider.outbox WHERE body = 'soon'")
        == "too_late"
    )
    sent = await road.sent()
    assert len(sent) == 1
    assert never not in sent


async def test_a_paused_service_waits_and_goes_on(stage: SetUp) -> None:
    road = await stage(CAST)
    await road.start()
    await road.connection.execute("SELECT outrider.pause('service:otp', 'maintenance')")
    await asyncio.sleep(0.5)
    await road.insert(5, service="otp", intent="otp")
    await road.insert(5, service="notifications", intent="delivery")
    await road.until(
        "SELECT count(*) = 5 FROM outrider.message"
        " WHERE service = 'notifications' AND status IN ('accepted', 'sent', 'delivered')"
    )
    await asyncio.sleep(0.5)
    assert len(await road.sent()) == 5
    await road.connection.execute("SELECT outrider.resume('service:otp')")
    await road.quiet()
    assert len(await road.sent()) == 10


async def test_who_opted_out_gets_nothing(stage: SetUp) -> None:
    road = await stage(CAST)
    await road.start()
    await road.connection.execute("SELECT outrider.opt_out('+12025550001')")
    await asyncio.sleep(0.5)
    await road.insert(2, service="otp", intent="otp")
    await road.quiet()
    assert (await road.statuses())["suppressed", "opted out"] == 1
    assert len(await road.sent()) == 1


async def test_a_repeated_key_is_never_sent_and_names_the_first(stage: SetUp) -> None:
    road = await stage(CAST)
    await road.start()
    for _ in range(3):
        await road.insert(1, service="otp", intent="otp", idempotency_key="order 17")
    await road.quiet()
    first = await road.connection.fetchval("SELECT id FROM outrider.outbox ORDER BY seq LIMIT 1")
    assert (await road.statuses())["suppressed", f"duplicate of {first}"] == 2
    assert list(await road.sent()) == [first]


async def test_a_stopping_daemon_gives_back_what_it_has_not_sent(stage: SetUp) -> None:
    road = await stage(Cast(senders={"+15550100001": 5}, services={"slow": ["+15550100001"]}))
    await road.start()
    await road.insert(50, service="slow", intent="marketing")
    await road.until("SELECT count(*) >= 5 FROM outrider.outcome")
    assert await road.stop() == 0
    assert Counter(word for word, _ in (await road.statuses()).elements())["sending"] == 0
    await road.start()
    await road.quiet()
    assert all(len(attempts) == 1 for attempts in (await road.sent()).values())
    assert len(await road.sent()) == 50


@pytest.mark.long
@pytest.mark.timeout(1_200)
async def test_fifty_stops_under_load_leave_no_doubt_and_no_row_behind(stage: SetUp) -> None:
    """SIGTERM with requests on the wire, messages waiting for their turn and more in the queue."""
    dice = random.Random("stops")
    quick = {f"+1555010{number:04}": 50 for number in range(4)}
    cast = Cast(
        senders={**quick, "+15550200001": 2},
        services={"quick": list(quick), "slow": ["+15550200001"]},
        intents={"delivery": {"on_ambiguous": "resend"}},
    )
    wire = {"latency": {"kind": "uniform", "from_ms": 20, "to_ms": 400}}
    road = await stage(cast, Faults.model_validate(wire | PROMPT.model_dump(include={"receipts"})))
    ledger, connection = road.simulator.ledger, road.connection
    stopped, resumed, busy = [], [], 0
    await road.insert(300, service="slow", intent="marketing")
    for number in range(50):
        await road.insert(150, service="quick", intent="delivery", body=f"Hello {number}")
        before = ledger.accepted
        await road.start()
        ready = time.monotonic()
        while ledger.accepted == before:
            await asyncio.sleep(0.002)
        resumed.append(time.monotonic() - ready)
        await asyncio.sleep(dice.uniform(0.0, 0.5))
        busy += bool(road.simulator.on_the_wire(math.inf))
        began = time.monotonic()
        assert await road.stop() == 0
        stopped.append(time.monotonic() - began)
        assert await connection.fetchval("SELECT count(*) FROM outrider.claim") == 0
        left = await connection.fetch("SELECT DISTINCT state, due_at <= clock_timestamp() AS due FROM outrider.queue")
        assert {tuple(row) for row in left} == {("ready", True)}
    await connection.execute("DELETE FROM outrider.queue WHERE lane = 'slow'")  # two minutes of it are left
    await road.start()
    await road.quiet()
    sent = await road.sent()
    print(
        f"exit after {median(stopped):.2f} s, at most {max(stopped):.2f}; {busy} of 50 with requests on the wire; first"
        f" request {median(resumed):.2f} s after ready, at most {max(resumed):.2f}; {len(sent)} sent"
    )
    assert max(stopped) <= 10
    assert max(resumed) <= 2
    assert busy >= 40
    assert (
        await connection.fetchval("SELECT count(*) FROM outrider.attempt WHERE outcome IN ('uncertain', 'lost')") == 0
    )
    assert all(len(attempts) == 1 for attempts in sent.values())
    asked = await connection.fetch("SELECT id FROM outrider.outbox WHERE service = 'quick'")
    assert {row["id"] for row in asked} <= set(sent)


async def test_a_reload_takes_up_a_new_service(stage: SetUp) -> None:
    road = await stage(CAST)
    await road.start()
    config = road.folder / "config.toml"
    config.write_text(config.read_text() + "[services.alerts]\nsenders = ['72345']\n")
    await road.hang_up()
    await asyncio.sleep(0.5)
    await road.insert(3, service="alerts", intent="security")
    await road.quiet()
    assert len(await road.sent()) == 3


async def test_a_daemon_tells_how_it_is(stage: SetUp) -> None:
    road = await stage(CAST)
    await road.start()
    await road.insert(20, service="otp", intent="otp")
    await road.quiet()
    assert (await road.ask("/healthz"))[0] == 200
    status = orjson.loads((await road.ask("/api/status"))[1])
    assert status["totals"]["accepted"] == 20
    exposition = (await road.ask("/metrics"))[1].decode()
    assert 'outrider_exchanges_total{outcome="accepted",provider="sim"} 20.0' in exposition
    log = road.log.read_text()
    assert "+1202" not in log
    assert "Hello" not in log
