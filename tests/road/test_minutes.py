"""
A minute of everything a network does, before the provider and before Postgres, all of it side by side.

Twelve toxics, those that have a direction in both: each with a daemon, a database and a simulator of its own, as many
at a time as two cores carry. Afterwards nothing is mended by hand: it must go on by itself.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, TypeAlias

import asyncpg
import pytest

from daemon import embedded
from daemon.database import STATEMENT_TIMEOUT_S
from daemon.migrate import migrate
from tests.road.stage import Cast, Stage
from tests.road.test_bad_road import TOLD, judged, keep_on
from tests.road.test_postgres import home
from tests.trouble.proxy import Proxy, bandwidth, blackhole, latency, limit_data, reset_after, slicer, swallow

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    from tests.trouble.proxy import Toxic

__all__ = ["home"]

Weather: TypeAlias = "Callable[[Proxy], Awaitable[None]]"
Scene: TypeAlias = "Callable[[Path, str], AbstractAsyncContextManager[tuple[Stage, Proxy]]]"  # in a folder, a database

SENDERS = [f"+1555010{number:04}" for number in range(5)]
CAST = Cast(senders=dict.fromkeys(SENDERS, 6), services={"otp": SENDERS}, timeout_s=3.0, connections=32)
RATE = 15  # messages a second: half of what the senders may
AT_ONCE = 8  # minutes side by side: 120 messages a second are no load for two cores, eight daemons starting are
SECONDS = 60


def toxics(size: int, patience_s: float) -> Mapping[str, Callable[[], Toxic]]:
    """What can be done to one direction. *size* is what one exchange says, in bytes, about; so long it is waited for."""
    return {
        "late and uneven": lambda: latency(0.5, jitter_s=0.4),
        "later than we wait": lambda: latency(patience_s + 1),
        "thin": lambda: bandwidth(2 * size),
        "in single bytes": lambda: slicer(1),
        "a blackhole": lambda: blackhole,
        "closed after a while": lambda: limit_data(2 * size),
        "reset within the first": lambda: reset_after(60),
        "reset after a while": lambda: reset_after(5 * size),
        "now and then": lambda: swallow(lambda chunk: sum(chunk) % 5 == 0),
    }


async def slow_to_close(way: Proxy) -> None:
    way.linger_s = 2.0
    way.hang_up()


async def half_open(way: Proxy) -> None:
    way.half_open = True
    way.hang_up()


async def doubled(way: Proxy) -> None:
    way.doubled = True
    way.hang_up()


def one_way(direction: str, toxic: Callable[[], Toxic]) -> Weather:
    async def turn(way: Proxy) -> None:
        setattr(way, direction, toxic())

    return turn


def weather(size: int, patience_s: float) -> dict[str, Weather]:
    return {
        **{
            f"{name}, {direction}": one_way(direction, toxic)
            for (name, toxic), direction in product(toxics(size, patience_s).items(), ("up", "down"))
        },
        "slow to close": slow_to_close,
        "half open": half_open,
        "doubled": doubled,
        "nobody listens": Proxy.cut,
    }


@dataclass
class Country:
    """A Postgres with room for many daemons, and a database for each."""

    server: embedded.Server
    template: str = "template_of_minutes"

    async def prepare(self, databases: int) -> list[str]:
        admin = await asyncpg.connect(self.server.dsn("postgres"))
        await admin.execute(f"CREATE DATABASE {self.template}")
        first = await asyncpg.connect(self.server.dsn(self.template))
        await migrate(first, report=lambda _line: None)
        await first.close()
        names = [f"minute_{number}" for number in range(databases)]
        for name in names:
            await admin.execute(f"CREATE DATABASE {name} TEMPLATE {self.template}")
        await admin.close()
        return names

    @asynccontextmanager
    async def before_the_provider(self, folder: Path, name: str) -> AsyncIterator[tuple[Stage, Proxy]]:
        async with Stage.set_up(CAST, folder, self.server.dsn(name), faults=TOLD) as road:
            host, _, port = road.simulator.url.removeprefix("http://").partition(":")
            async with Proxy((host, int(port))) as way:
                road.provider_url = f"http://127.0.0.1:{way.port}"
                await road.start(ready_s=60)
                yield road, way

    @asynccontextmanager
    async def before_postgres(self, folder: Path, name: str) -> AsyncIterator[tuple[Stage, Proxy]]:
        async with (
            Stage.set_up(CAST, folder, self.server.dsn(name), faults=TOLD) as road,
            Proxy(self.server._socket / ".s.PGSQL.5432") as way,
        ):
            password = self.server.home / "password"
            road.dsn = f"postgresql://outrider@127.0.0.1:{way.port}/{name}?passfile={password}"
            await road.start(ready_s=60)
            yield road, way


async def resumed(road: Stage, *, within_s: float) -> float:
    """Seconds until a message that is asked for now is settled."""
    began = time.monotonic()
    asked = await road.connection.fetchval(
        "INSERT INTO outrider.outbox (recipient, service, intent, body)"
        " VALUES ('+12025559999', 'otp', 'otp', 'the first after it') RETURNING id"
    )
    await road.until(f"SELECT EXISTS (SELECT FROM outrider.outcome WHERE id = '{asked}')", within_s=within_s)
    return time.monotonic() - began


async def a_minute(road: Stage, way: Proxy, turn: Weather) -> tuple[int, float]:
    """Some seconds before it, a minute of it, some after it: how many were asked for, and how soon it went on."""
    asked = await keep_on(road, seconds=3, name="before", rate=RATE)
    await turn(way)
    asked += await keep_on(road, seconds=SECONDS, name="during", rate=RATE)
    way.heal()
    await way.mend()
    took = await resumed(road, within_s=90)  # an open breaker rests for up to 72 s, and tries no login code first
    return asked + 1 + await keep_on(road, seconds=5, name="after", rate=RATE), took


async def all_minutes(country: Country, folder: Path, weathers: Mapping[str, Weather], scene: Scene) -> None:
    """A minute of each of *weathers*, and a word about each that did harm."""
    room = asyncio.Semaphore(AT_ONCE)

    async def one(name: str, database: str) -> None:
        here = folder / database
        here.mkdir()
        async with AsyncExitStack() as seat, AsyncExitStack() as stay:
            await seat.enter_async_context(room)
            road, way = await stay.enter_async_context(scene(here, database))
            asked, took = await a_minute(road, way, weathers[name])
            await seat.aclose()  # what is in doubt now is asked for until it is known: twice, a minute apart
            began = time.monotonic()
            await road.quiet(within_s=300)
            calm = time.monotonic() - began
            await judged(
                road,
                asked,
                after=f"{name} ({way.connections} connections): went on after {took:.1f} s, quiet {calm:.0f} s later",
            )

    databases = await country.prepare(len(weathers))
    found = await asyncio.gather(*map(one, weathers, databases), return_exceptions=True)
    harm = [f"{name}: {error!r}" for name, error in zip(weathers, found, strict=True) if error is not None]
    assert not harm, "\n\n".join(harm)


@pytest.fixture
def country(home: Path) -> Iterator[Country]:
    with embedded.start(home, durable=False, settings={"max_connections": "400"}) as server:
        yield Country(server)


@pytest.mark.long
@pytest.mark.timeout(900)
async def test_a_minute_of_each_before_the_provider(country: Country, tmp_path: Path) -> None:
    await all_minutes(country, tmp_path, weather(1_000, CAST.timeout_s), country.before_the_provider)


@pytest.mark.long
@pytest.mark.timeout(900)
async def test_a_minute_of_each_before_postgres(country: Country, tmp_path: Path) -> None:
    await all_minutes(country, tmp_path, weather(10_000, STATEMENT_TIMEOUT_S), country.before_postgres)
