"""
A bad road to the provider: whatever the network does, nothing is lost and nothing is doubled that is not explained.

The judge stands behind the road: the simulator's ledger knows what arrived, whatever we were told about it. A minute of
each of twelve toxics is in ``test_minutes.py``.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, NamedTuple

import orjson
import pytest

from daemon.simulator import Faults
from tests.road.stage import Cast
from tests.trouble.proxy import (
    Proxy,
    latency,
    limit_data,
    reset_after,
    slicer,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping

    from tests.road.stage import Stage
    from tests.trouble.proxy import Toxic

    SetUp = Callable[..., Awaitable[Stage]]

CAST = Cast(
    senders={f"+1555010{number:04}": 20 for number in range(5)},
    services={"otp": [f"+1555010{number:04}" for number in range(5)]},
    timeout_s=3.0,
)
TOLD = Faults.model_validate(
    {"receipts": {"sent": {"kind": "fixed", "ms": 100}, "final": {"kind": "fixed", "ms": 200}}}
)
RATE = 50  # messages a second: half of what the senders may
TOXICS: Mapping[str, Callable[[], Toxic]] = {
    "late and uneven": lambda: latency(0.5, jitter_s=0.4),
    "in single bytes": lambda: slicer(1),
    "closed after a while": lambda: limit_data(2_000),
    "reset within the first": lambda: reset_after(60),
}


@asynccontextmanager
async def bad_road(stage: SetUp) -> AsyncIterator[tuple[Stage, Proxy]]:
    """A daemon whose provider lives behind a road that can be made bad."""
    road = await stage(CAST, TOLD)
    host, _, port = road.simulator.url.removeprefix("http://").partition(":")
    async with Proxy((host, int(port))) as way:
        road.provider_url = f"http://127.0.0.1:{way.port}"
        await road.start()
        yield road, way


async def keep_on(road: Stage, *, seconds: float, name: str, rate: float = RATE) -> int:
    """Insert at half of what the senders may, for *seconds*; how many that were."""
    count = 0
    began = time.monotonic()
    while (passed := time.monotonic() - began) < seconds:
        more = int(passed * rate) - count
        # Each to a person of their own: of hundreds of texts to one number no list tells which arrived.
        await road.connection.execute(
            "INSERT INTO outrider.outbox (recipient, service, intent, body)"
            " SELECT '+1202' || (5550000 + ($1::integer + n) % 10000)::text, 'otp', 'delivery', $2"
            " FROM generate_series(1, $3::integer) AS n",
            count, name, more,
        )  # fmt: skip
        count += more
        await asyncio.sleep(0.1)
    return count


async def judged(road: Stage, asked: int, *, after: str = "the road") -> None:
    """Sent, or ended and told so; twice only where a decision says why."""
    sent = await road.sent()
    ended = await road.connection.fetchval(
        "SELECT count(*) FROM outrider.outcome WHERE status IN ('dead', 'failed', 'expired') AND id <> ALL ($1::uuid[])",
        list(sent),
    )
    assert len(sent) + ended == asked
    doubled = [id for id, attempts in sent.items() if len(attempts) > 1]
    explained = await road.connection.fetchval(
        "SELECT count(DISTINCT id) FROM outrider.attempt"
        " WHERE kind = 'decision' AND outcome = 'resend' AND id = ANY ($1::uuid[])",
        doubled,
    )
    print(
        f"{after}: asked {asked}, sent {len(sent)}, ended {ended}, doubled {len(doubled)} of which explained {explained}"
    )
    assert explained == len(doubled)


async def breaker(road: Stage) -> str:
    word: str = orjson.loads((await road.ask("/api/status"))[1])["providers"][0]["breaker"]
    return word


async def becomes(road: Stage, state: str, *, within_s: float) -> float:
    """Seconds until the breaker is *state*."""
    began = time.monotonic()
    while await breaker(road) != state:
        assert time.monotonic() - began < within_s, f"still not {state}"
        await asyncio.sleep(0.05)
    return time.monotonic() - began


@pytest.mark.timeout(180)
async def test_answers_that_are_late_in_pieces_or_cut_cost_nothing(stage: SetUp) -> None:
    asked = 0
    async with bad_road(stage) as (road, way):
        for name in ("late and uneven", "in single bytes", "reset within the first", "closed after a while"):
            way.down = TOXICS[name]()
            asked += await keep_on(road, seconds=2, name=name)
        way.heal()
        await road.quiet(within_s=120)
        await judged(road, asked)
        assert way.connections > 5  # the road did break


class Seen(NamedTuple):
    """What an outage was like."""

    opened_s: float  # after its beginning
    closed_s: float  # after its end
    wasted: int  # calls that nobody listened to
    drained: float  # of what the senders may, in the eight seconds after it closed


async def outage(road: Stage, way: Proxy, *, seconds: float) -> Seen:
    """Nobody listens for *seconds*, under load all the time."""
    sending = asyncio.create_task(keep_on(road, seconds=seconds + 12, name="outage"))
    while road.simulator.ledger.accepted < 20:
        await asyncio.sleep(0.02)
    await way.cut()
    began = time.monotonic()
    opened = await becomes(road, "open", within_s=20)
    await asyncio.sleep(max(seconds - (time.monotonic() - began), 0.0))
    await way.mend()
    closed = await becomes(road, "closed", within_s=90)
    before = road.simulator.ledger.accepted
    since = time.monotonic()
    await asyncio.sleep(8)
    drained = (road.simulator.ledger.accepted - before) / (time.monotonic() - since) / sum(CAST.senders.values())
    asked = await sending
    await road.quiet(within_s=120)
    await judged(road, asked)
    wasted = await road.connection.fetchval("SELECT count(*) FROM outrider.attempt WHERE outcome = 'unreachable'")
    print(
        f"an outage of {seconds} s: breaker open after {opened:.2f} s, closed {closed:.2f} s after its end; {wasted} calls"
        f" in vain; then {drained:.1%} of what the senders may"
    )
    return Seen(opened, closed, wasted, drained)


@pytest.mark.timeout(240)
async def test_a_breaker_opens_in_an_outage_and_closes_after_it(stage: SetUp) -> None:
    async with bad_road(stage) as (road, way):
        seen = await outage(road, way, seconds=3)
    assert seen.opened_s <= 2.0
    assert seen.closed_s <= 15.0


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("seconds", [10, 60])
async def test_a_long_outage(stage: SetUp, seconds: int) -> None:
    async with bad_road(stage) as (road, way):
        seen = await outage(road, way, seconds=seconds)
    assert seen.opened_s <= 2.0
    assert seen.closed_s <= 15.0
    assert seen.wasted < 20 + seconds / 3  # at that rate 200 in ten minutes, beside those that were on their way
    assert seen.drained >= (0.95 if seconds >= 60 else 0.0)  # after ten seconds there is not enough to drain
