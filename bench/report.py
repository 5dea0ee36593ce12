"""
What came of the bench: ratios first, because machines differ and are noisy, and only what ran side by side can be
compared.

Every ratio is taken within one round and then the middle one of all rounds is told, with the least and the most.
"""

from __future__ import annotations

import os
import platform
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from statistics import median
from typing import TYPE_CHECKING

from rich.table import Table

from bench.peers import PEERS
from bench.picture import drawn

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from bench.load import Run
    from bench.outrider import Burst, Drain, Life, Pressed, Told

# Below this the sink, not its client, may be what is measured.
HEADROOM = 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """Everybody once, one after the other. *lean* shows the ceiling of the sink and of any client of its kind."""

    lean: Run
    raw: Run
    outrider: Drain
    plain: Drain  # the same on aiohttp's client
    told: Told
    peers: Mapping[str, Run] = field(default_factory=dict)  # by key: those that are installed

    def ratios(self) -> dict[str, float | None]:
        """Outrider's rate over each of the others' (DESIGN 2.3), and the sink's ceiling over the quickest of both."""
        ours, peers = self.outrider.rate, self.peers
        return {
            **{peer.key: ours / peers[peer.key].rate if peer.key in peers else None for peer in PEERS},
            "raw_aiohttp": self.outrider.rate / self.raw.rate,
            "plain_aiohttp": self.plain.rate / self.raw.rate,
            "raw_protocol": self.outrider.rate / self.lean.rate,
            "sink_headroom": self.lean.rate / max(self.raw.rate, self.outrider.rate),
        }

    @property
    def ok(self) -> bool:
        """Whether everything arrived once, and is written down."""
        arrived = all(run.messages == run.distinct == run.asked for run in (self.lean, self.raw, *self.peers.values()))
        for ours in (self.outrider, self.plain):
            arrived &= ours.messages == ours.distinct == ours.settled == self.lean.asked
        return arrived and self.told.delivered == self.outrider.messages


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """
    All rounds, and how long a login code took from commit to provider: milliseconds at the three percentiles, alone and
    under load.
    """

    messages: int
    in_flight: int
    rounds: Sequence[Round]
    life: Life
    latency_ms: dict[str, float]
    pressed: Sequence[Pressed]
    burst: Burst | None
    postgres: str

    @property
    def ok(self) -> bool:
        """Whether everybody's messages arrived, each once, and Outrider has written down that they did."""
        return all(one.ok for one in self.rounds) and self.life.delivered == self.life.messages

    def spread(self) -> dict[str, tuple[float, float, float] | None]:
        """Least, middle and most of each ratio; None for what did not run."""
        table = [one.ratios() for one in self.rounds]
        found = {name: [row[name] for row in table] for name in table[0]}
        return {name: _spread([value for value in values if value is not None]) for name, values in found.items()}

    def document(self) -> dict[str, object]:
        """The report for machines (DESIGN 2.3): keys may be added, not renamed."""
        spread = self.spread()
        middle = {name: None if three is None else round(three[1], 3) for name, three in spread.items()}
        headroom = middle.pop("sink_headroom")
        return {
            "ratios": middle,
            "sink_headroom": headroom,
            "spread": {name: three and [round(value, 3) for value in three] for name, three in spread.items()},
            "latency_ms": self.latency_ms,
            "life": asdict(self.life),
            "pressed": [asdict(one) for one in self.pressed],
            "burst": self.burst and asdict(self.burst),
            "messages": self.messages,
            "in_flight": self.in_flight,
            "rounds": [asdict(one) for one in self.rounds],
            "machine": {
                "cpus": os.cpu_count(),
                "python": platform.python_version(),
                "postgres": self.postgres,
                **{name: version(name) for name in ("aiohttp", "uvloop", "asyncpg")},
            },
            "ok": self.ok,
        }

    def drawn(self) -> str:
        """The report as a picture."""
        return drawn(self)

    def tables(self) -> list[Table]:
        """The report for people."""
        return [self._of_ratios(), self._of_figures(), self._of_delays()]

    def _of_ratios(self) -> Table:
        table = Table(title="Ratios, each taken within a round", title_justify="left")
        table.add_column("Outrider over")
        for name in ("least", "middle", "most"):
            table.add_column(name, justify="right")
        names = {
            "raw_aiohttp": "aiohttp's client alone",
            "plain_aiohttp": "  when it sends with that client",
            **{peer.key: peer.name for peer in PEERS},
            "raw_protocol": "a bare protocol (the ceiling)",
            "sink_headroom": "(the sink's ceiling over the quicker of both)",
        }
        spread = self.spread()
        for key, name in names.items():
            three = spread[key]
            cells = ["not run", "", ""] if three is None else [f"{value:.2f}" for value in three]
            low = key == "sink_headroom" and three is not None and three[1] < HEADROOM
            table.add_row(name, *cells, style="yellow" if low else None)
        return table

    def _of_figures(self) -> Table:
        table = Table(
            title=f"The middle of {len(self.rounds)}, {self.messages:,} messages each, {self.in_flight} in flight",
            caption="On this machine, at this hour: compare nothing but ratios. Queues: with their Postgres.",
            title_justify="left",
        )
        for name in ("", "messages/s", "CPU s per 1,000", "WAL bytes a message"):
            table.add_column(name, justify="left" if not name else "right")
        rounds = self.rounds
        self._add(table, "a bare protocol", [one.lean for one in rounds])
        self._add(table, "aiohttp's client", [one.raw for one in rounds])
        for peer in PEERS:
            self._add(table, peer.name, [one.peers[peer.key] for one in rounds if peer.key in one.peers])
        drains = [one.outrider for one in rounds]
        self._add(table, "Outrider on aiohttp's client", [one.plain for one in rounds])
        self._add(table, "Outrider, its daemon", drains)
        wal = f"{median(one.wal_insert for one in drains):,.0f} inserted, {median(one.wal for one in drains):,.0f} then"
        table.add_row("  its Postgres", "", f"{median(one.cpu_postgres for one in drains):.3f}", wal)
        table.add_row("  its memory, MB", "", f"{max(one.memory_mb for one in drains):.0f}", "")
        told = [one.told for one in rounds]
        self._add(table, "  receipts, its daemon", told)
        wal = f"{median(one.wal for one in told):,.0f} a receipt"
        table.add_row("  receipts, its Postgres", "", f"{median(one.cpu_postgres for one in told):.3f}", wal)
        table.add_row("  whole lives", f"{self.life.rate:,.0f}", "", "")
        return table

    def _of_delays(self) -> Table:
        table = Table(title="Milliseconds from commit to provider", title_justify="left")
        for name in ("", "messages/s", "p50", "p95", "p99"):
            table.add_column(name, justify="left" if not name else "right")
        if self.latency_ms:
            table.add_row("login codes alone", "", *map(str, self.latency_ms.values()))
        burst = self.burst
        for one in (*self.pressed, *([burst.pressed] if burst else [])):
            rate = f"{one.per_second:,.0f}"
            table.add_row("login codes, one in ten", rate, *map(str, one.codes_ms.values()))
            table.add_row("  and all others", "", *map(str, one.bulk_ms.values()))
        if burst:
            kept = f"  receipts meanwhile ({burst.kept:.0%} still sent)"
            table.add_row(kept, f"{burst.per_second:,.0f}", *map(str, burst.latency_ms.values()))
        return table

    @staticmethod
    def _add(table: Table, name: str, runs: Sequence[Run] | Sequence[Drain] | Sequence[Told]) -> None:
        if runs:
            table.add_row(name, f"{median(one.rate for one in runs):,.0f}", f"{median(one.cpu for one in runs):.3f}")


def _spread(values: Sequence[float]) -> tuple[float, float, float] | None:
    return (min(values), median(values), max(values)) if values else None
