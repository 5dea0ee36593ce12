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

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from bench.load import Run
    from bench.outrider import Drain

# Below this the sink, not its client, may be what is measured.
HEADROOM = 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """Everybody once, one after the other. *lean* shows the ceiling of the sink and of any client of its kind."""

    lean: Run
    raw: Run
    outrider: Drain
    peers: Mapping[str, Run] = field(default_factory=dict)  # by key: those that are installed

    def ratios(self) -> dict[str, float | None]:
        """Outrider's rate over each of the others' (DESIGN 2.3), and the sink's ceiling over the quickest of both."""
        ours, peers = self.outrider.rate, self.peers
        return {
            **{peer.key: ours / peers[peer.key].rate if peer.key in peers else None for peer in PEERS},
            "raw_aiohttp": self.outrider.rate / self.raw.rate,
            "raw_protocol": self.outrider.rate / self.lean.rate,
            "sink_headroom": self.lean.rate / max(self.raw.rate, self.outrider.rate),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """All rounds, and how long a login code took from commit to provider: milliseconds at the three percentiles."""

    messages: int
    in_flight: int
    rounds: Sequence[Round]
    latency_ms: dict[str, float]
    postgres: str

    @property
    def ok(self) -> bool:
        """Whether everybody's messages arrived, each once, and Outrider has written down that they did."""
        everybody = [run for one in self.rounds for run in (one.lean, one.raw, one.outrider)]
        arrived = all(run.messages == run.distinct == self.messages for run in everybody)
        arrived &= all(run.messages == run.distinct == run.asked for one in self.rounds for run in one.peers.values())
        return arrived and all(one.outrider.settled == self.messages for one in self.rounds)

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

    def tables(self) -> list[Table]:
        """The report for people."""
        return [self._of_ratios(), self._of_figures()]

    def _of_ratios(self) -> Table:
        table = Table(title="Ratios, each taken within a round", title_justify="left")
        table.add_column("Outrider over")
        for name in ("least", "middle", "most"):
            table.add_column(name, justify="right")
        names = {
            "raw_aiohttp": "aiohttp's client alone",
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
        self._add(table, "Outrider, its daemon", drains)
        wal = f"{median(one.wal_insert for one in drains):,.0f} inserted, {median(one.wal for one in drains):,.0f} then"
        table.add_row("  its Postgres", "", f"{median(one.cpu_postgres for one in drains):.3f}", wal)
        if self.latency_ms:
            told = ", ".join(f"{name} {value}" for name, value in self.latency_ms.items())
            table.add_row("  commit to provider, ms", "", "", told)
        return table

    @staticmethod
    def _add(table: Table, name: str, runs: Sequence[Run] | Sequence[Drain]) -> None:
        if runs:
            table.add_row(name, f"{median(one.rate for one in runs):,.0f}", f"{median(one.cpu for one in runs):.3f}")


def _spread(values: Sequence[float]) -> tuple[float, float, float] | None:
    return (min(values), median(values), max(values)) if values else None
