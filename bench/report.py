"""
What came of the bench: ratios first, because machines differ and are noisy, and only what ran side by side can be compared.

Every ratio is taken within one round and then the middle one of all rounds is told, with the least and the most.
"""

from __future__ import annotations

import os
import platform
from dataclasses import asdict, dataclass
from importlib.metadata import version
from statistics import median
from typing import TYPE_CHECKING

from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

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
    pgqueuer: Run | None = None

    def ratios(self) -> dict[str, float | None]:
        """Outrider's rate over each of the others' (DESIGN 2.3), and the sink's ceiling over the quickest of both."""
        peer = self.pgqueuer
        return {
            "pgqueuer": None if peer is None else self.outrider.rate / peer.rate,
            "procrastinate": None,
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
        everybody = [run for one in self.rounds for run in (one.lean, one.raw, one.outrider, one.pgqueuer) if run]
        arrived = all(run.messages == run.distinct == self.messages for run in everybody)
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
            "pgqueuer": "PgQueuer + aiohttp",
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
            title=f"{self.messages:,} messages a run, {self.in_flight} in flight: least / middle / most",
            caption="On this machine, at this hour: compare nothing but ratios.",
            title_justify="left",
        )
        for name in ("", "messages a second", "CPU ms per 1,000", "of it Postgres", "WAL a message: insert, rest"):
            table.add_column(name, justify="left" if not name else "right")
        every = self.rounds
        table.add_row("bare protocol", _three(one.lean.rate for one in every), _ms(one.lean.cpu for one in every))
        table.add_row("aiohttp's client", _three(one.raw.rate for one in every), _ms(one.raw.cpu for one in every))
        if peers := [one.pgqueuer for one in every if one.pgqueuer]:
            table.add_row("PgQueuer", _three(one.rate for one in peers), _ms(one.cpu for one in peers))
        drains = [one.outrider for one in every]
        table.add_row(
            "Outrider",
            _three(one.rate for one in drains),
            _ms(one.cpu + one.cpu_postgres for one in drains),
            _ms(one.cpu_postgres for one in drains),
            f"{median(one.wal_insert for one in drains):.0f} B, {median(one.wal for one in drains):.0f} B",
        )
        told = "  ".join(f"{name} {value:.1f} ms" for name, value in self.latency_ms.items())
        table.add_section()
        table.add_row("commit to provider", told or "not measured")
        return table


def _three(values: Iterable[float]) -> str:
    several = list(values)
    return f"{min(several):,.0f} / {median(several):,.0f} / {max(several):,.0f}"


def _ms(seconds: Iterable[float]) -> str:
    return _three(value * 1000 for value in seconds)


def _spread(values: Sequence[float]) -> tuple[float, float, float] | None:
    return (min(values), median(values), max(values)) if values else None
