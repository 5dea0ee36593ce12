"""
The bench of growth: what a message costs as what waits, who sends and what is in flight grow, and how far that goes.

- claims: milliseconds of the statement that takes messages, by how many wait (:mod:`bench.claims`).
- senders: a drain by 10, 1,000 and 10,000 senders that could send four times as fast together.
- in flight: a drain to a provider that answers after just so long that so many must be on their way for 8,000 a second;
  aiohttp's client with as many beside it.
- daemons: one, and two that share the services of one database, with all messages committed at once.
- hardship: a provider that takes 50 to 200 ms, as real ones do; TLS on every connection.
- beat: 10,000 senders with a rate of one a second, and how exactly they keep it by the provider's clock.
"""

from __future__ import annotations

import tempfile
from collections import defaultdict
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from bench import load, outrider
from bench.claims import ROOM, claims
from bench.curves import Curve, Panel, drawn
from bench.peers import PEERS
from bench.shape import Shape

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping, Sequence

    from bench.claims import Claims
    from bench.load import Sink
    from daemon.embedded import Server

SENDERS, TOGETHER = (10, 1_000, 10_000), 40_000  # how many, and what they may send a second
FLIGHTS = (100, 1_000, 8_000)  # 10,000 connections are the most, and bulk has four fifths of them
PACE = 8_000  # messages a second that a provider's delay allows
FEW = 256  # in flight where nothing takes long
SLOW, SLOW_MS = 2_000, (50, 200)  # in flight, and how long an answer takes
DAEMONS = (1, 2)
BEATS = 10  # messages of each sender that may send one a second

COSTS = ("CPU s per 1,000", "Postgres", "loop lag p99 ms")

errors = Console(stderr=True, highlight=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Grown:
    """One drain. *beside*: the rates of others that were given the same, by their keys."""

    size: int
    rate: float
    cpu: float
    cpu_postgres: float
    memory_mb: float
    lag_ms: float  # of the event loop, p99
    beside: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Beat:
    """Senders at one segment a second. Shares of it that they used, by the provider's clock, between first and last."""

    senders: int
    messages: int
    most_in_1s: int  # of any sender, in any sliding second
    used_least: float
    used: float  # the middle one
    lag_ms: float
    cpu: float
    cpu_postgres: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Growth:
    """All of it."""

    claims: Sequence[Claims]
    senders: Sequence[Grown]
    flights: Sequence[Grown]
    daemons: Sequence[Grown]
    slow: Grown
    tls: Grown
    beat: Beat

    def tables(self) -> list[Table]:
        """For people."""
        return [
            self._of_claims(),
            _table("By senders", "senders", self.senders),
            _table("By messages in flight", "in flight", self.flights),
            _table("By daemons on one database", "daemons", self.daemons),
            _table(f"To a provider that takes {SLOW_MS[0]} to {SLOW_MS[1]} ms", "in flight", [self.slow]),
            _table("With TLS on every connection (the others have none)", "in flight", [self.tls]),
            self._of_beat(),
        ]

    @property
    def ok(self) -> bool:
        """Whether nobody was too fast; what is lost or sent twice has ended it before (BenchError)."""
        return self.beat.most_in_1s <= 1

    def document(self) -> dict[str, object]:
        """For machines."""
        return asdict(self)

    def drawn(self) -> str:
        """As a picture."""
        living = [one for one in self.claims if not one.dead]
        return drawn([
            Panel(f"ms of a claim of {ROOM}, p50", "messages waiting", [
                Curve("alone in its lane", [(one.waiting, one.alone_ms["p50"]) for one in living]),
                Curve("the front of all that waits", [(one.waiting, one.front_ms["p50"]) for one in living]),
            ]),
            Panel("CPU s for 1,000 messages", "senders", _costs(self.senders)),
            Panel("CPU s for 1,000 messages", "in flight", _costs(self.flights)),
        ])  # fmt: skip

    def _of_claims(self) -> Table:
        table = Table(title=f"Milliseconds of a claim of {ROOM}", title_justify="left")
        for name in ("waiting", "dead", "alone p50", "p99", "the front p50", "p99"):
            table.add_column(name, justify="right")
        for one in self.claims:
            four = [one.alone_ms["p50"], one.alone_ms["p99"], one.front_ms["p50"], one.front_ms["p99"]]
            table.add_row(f"{one.waiting:,}", f"{one.dead:,}", *(f"{value:.2f}" for value in four))
        return table

    def _of_beat(self) -> Table:
        beat, table = self.beat, Table(title="Senders at one segment a second", title_justify="left")
        for name in ("senders", "most in 1 s", "used, middle", "least", *COSTS):
            table.add_column(name, justify="right")
        used = f"{beat.used:.2%}", f"{beat.used_least:.2%}"
        costs = f"{beat.cpu:.3f}", f"{beat.cpu_postgres:.3f}", f"{beat.lag_ms:.1f}"
        table.add_row(f"{beat.senders:,}", str(beat.most_in_1s), *used, *costs)
        return table


def _costs(grown: Sequence[Grown]) -> list[Curve]:
    return [
        Curve("daemon", [(one.size, one.cpu) for one in grown]),
        Curve("its Postgres", [(one.size, one.cpu_postgres) for one in grown]),
    ]


def _table(title: str, name: str, grown: Sequence[Grown]) -> Table:
    names = {"raw": "aiohttp's client", **{peer.key: peer.name for peer in PEERS}}
    others = list(grown[0].beside)
    table = Table(title=title, title_justify="left")
    ratios = [f"of {names[key]}" for key in others]
    for column in (name, "messages/s", *ratios, *COSTS, "MB"):
        table.add_column(column, justify="right")
    for one in grown:
        shares = [f"{one.rate / one.beside[key]:.2f}" for key in others]
        costs = f"{one.cpu:.3f}", f"{one.cpu_postgres:.3f}", f"{one.lag_ms:.1f}"
        table.add_row(f"{one.size:,}", f"{one.rate:,.0f}", *shares, *costs, f"{one.memory_mb:.0f}")
    return table


@dataclass(frozen=True, slots=True, kw_only=True)
class Drains:
    """Drains of as many messages, each on a database of its own."""

    server: Server
    messages: int

    async def one(
        self, name: str, sink: Sink, size: int, *, in_flight: int = FEW, shape: Shape = Shape(), warm: bool = False
    ) -> Grown:
        """One, on the database *name*; *size* is what grows. Raises BenchError when anything is amiss."""
        drain, lag_ms = await self._drained(name, sink, self.messages, in_flight, shape, warm=warm)
        return Grown(
            size=size, rate=drain.rate, cpu=drain.cpu, cpu_postgres=drain.cpu_postgres, memory_mb=drain.memory_mb,
            lag_ms=lag_ms,
        )  # fmt: skip

    async def beat(self) -> Beat:
        """As many senders as there are messages, but 10,000 at most."""
        many = min(SENDERS[-1], self.messages)
        async with load.sink() as sink:
            shape = Shape(senders=many, rate=1)
            drain, lag_ms = await self._drained("beat", sink, BEATS * many, FEW, shape, evenly=True)
            times = defaultdict(list)
            for at, sender in await sink.arrivals("From"):
                times[sender].append(at)
        used = [(len(one) - 1) / (one[-1] - one[0]) for one in times.values() if len(one) > 1]
        return Beat(
            senders=len(times), messages=drain.messages, most_in_1s=max(map(most_in_1s, times.values())),
            used_least=min(used), used=median(used), lag_ms=lag_ms, cpu=drain.cpu, cpu_postgres=drain.cpu_postgres,
        )  # fmt: skip

    async def _drained(
        self, name: str, sink: Sink, messages: int, in_flight: int, shape: Shape, **how: bool
    ) -> tuple[outrider.Drain, float]:
        async with outrider.Outrider.installed(self.server, name, shape) as ours:
            drain = await ours.drain(sink, messages, in_flight, **how)
            lag_ms = await ours.lag_ms()
        found = (drain.messages, drain.distinct, drain.settled)
        if set(found) != {messages}:
            raise load.BenchError(f"of {messages:,} messages arrived, to as many people, and settled: {found}")
        errors.print(f"  {name:20} {drain.rate:8,.0f} /s", markup=False)
        return drain, lag_ms


def most_in_1s(times: Sequence[float]) -> int:
    """The most of *times*, which are in order, within any second."""
    most = first = 0
    for number, at in enumerate(times):
        while times[first] <= at - 1.0:
            first += 1
        most = max(most, number - first + 1)
    return most


async def _by_flights(drains: Drains) -> list[Grown]:
    found = []
    for many in FLIGHTS:
        delay_ms = 1000 * many / PACE
        async with load.sink(delay_ms, delay_ms) as sink:
            one = await drains.one(f"in_flight_{many}", sink, many, in_flight=many)
            raw = await load.client("raw", sink, drains.messages, many)
        found.append(replace(one, beside={"raw": raw.rate}))
    return found


async def _slow(drains: Drains) -> Grown:
    async with load.sink(*SLOW_MS) as sink:
        one = await drains.one("slow", sink, SLOW, in_flight=SLOW)
        return replace(one, beside=await _beside(drains, sink, SLOW))


async def _tls(drains: Drains) -> Grown:
    with tempfile.TemporaryDirectory(prefix="outrider-bench-") as folder:
        identity = load.made_identity(Path(folder))
        async with load.sink(identity=identity) as sink:
            one = await drains.one("tls", sink, FEW, shape=Shape(trusts=identity))
    async with load.sink() as sink:
        return replace(one, beside=await _beside(drains, sink, FEW))


async def _beside(drains: Drains, sink: Sink, in_flight: int) -> dict[str, float]:
    """The rates of aiohttp's client and of the quickest peer that is installed."""
    rates = {"raw": (await load.client("raw", sink, drains.messages, in_flight)).rate}
    for peer in PEERS[:1]:
        if peer.installed:
            run = await peer.drain(drains.server, sink, drains.messages, in_flight, name=f"beside_{in_flight}")
            rates[peer.key] = run.rate
    return rates


async def scale(arguments: argparse.Namespace) -> Growth:
    """All of it."""
    found: list[Claims] = []
    async with outrider.postgres() as server:
        for waiting in (0, arguments.waiting // 10, arguments.waiting):
            errors.print(f"  {waiting:,} waiting", markup=False)
            found += await claims(server, waiting)
        drains = Drains(server=server, messages=arguments.messages)
        async with load.sink() as sink:
            senders = [
                await drains.one(f"senders_{many}", sink, many, shape=Shape(senders=many, rate=TOGETHER // many))
                for many in SENDERS
            ]
            daemons = [
                await drains.one(f"daemons_{many}", sink, many, shape=Shape(daemons=many), warm=True)
                for many in DAEMONS
            ]
        return Growth(
            claims=found, senders=senders, flights=await _by_flights(drains), daemons=daemons,
            slow=await _slow(drains), tls=await _tls(drains), beat=await drains.beat(),
        )  # fmt: skip
