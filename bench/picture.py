"""The bench as one drawing: everybody's messages per second, on one axis, with the least and the most of all rounds."""

from __future__ import annotations

import math
from html import escape
from statistics import median
from typing import TYPE_CHECKING

from bench.peers import PEERS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from bench.report import Report

WIDTH, ROW, LEFT, RIGHT, TOP, BOTTOM = 860, 34, 220, 96, 64, 52  # pixels
OURS, THEIRS = "#0b7a75", "#9aa5b1"
STYLE = (
    "text{font:13px system-ui,sans-serif;fill:#1f2933}.quiet{fill:#616e7c;font-size:12px}.title{font-size:16px;"
    "font-weight:600}line{stroke:#cbd2d9}.whisker{stroke:#1f2933;stroke-width:1.5}.ground{fill:#ffffff}"
)


def drawn(report: Report) -> str:
    """*report* as SVG. The axis is logarithmic: a hundredfold would not fit on another."""
    bars = sorted(_bars(report), key=lambda bar: -median(bar[1]))
    low = 10 ** math.floor(math.log10(min(min(rates) for _, rates in bars)))
    high = 10 ** math.ceil(math.log10(max(max(rates) for _, rates in bars)))
    height = TOP + ROW * len(bars) + BOTTOM

    def at(rate: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * math.log(rate / low) / math.log(high / low)

    title = f"Messages a second, {report.messages:,} of them, {report.in_flight} in flight, {len(report.rounds)} rounds"
    said = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{title}">',
        f'<style>{STYLE}</style><rect class="ground" width="{WIDTH}" height="{height}"/>',
        f'<text class="title" x="20" y="32">{title}</text>',
        *_axis(low, high, at, height),
    ]
    for number, (name, rates) in enumerate(bars):
        said += _bar(name, rates, at, TOP + ROW * number)
    note = "Whiskers: least and most. On one machine, in one run: compare nothing but ratios."
    said.append(f'<text class="quiet" x="20" y="{height - 14}">{note}</text></svg>\n')
    return "\n".join(said)


def _bars(report: Report) -> Iterator[tuple[str, Sequence[float]]]:
    rounds = report.rounds
    yield "a bare protocol (the ceiling)", [one.lean.rate for one in rounds]
    yield "aiohttp's client alone", [one.raw.rate for one in rounds]
    yield "Outrider", [one.outrider.rate for one in rounds]
    for peer in PEERS:
        if rates := [one.peers[peer.key].rate for one in rounds if peer.key in one.peers]:
            yield peer.name, rates


def _axis(low: float, high: float, at: Callable[[float], float], height: float) -> Iterator[str]:
    tick = low
    while tick <= high:
        x = at(tick)
        yield f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{TOP - 8}" y2="{height - BOTTOM + 6}"/>'
        yield f'<text class="quiet" x="{x:.1f}" y="{TOP - 14}" text-anchor="middle">{tick:,.0f}</text>'
        tick *= 10


def _bar(name: str, rates: Sequence[float], at: Callable[[float], float], top: float) -> Iterator[str]:
    middle, centre = median(rates), top + ROW / 2
    colour = OURS if name == "Outrider" else THEIRS
    yield f'<text x="{LEFT - 12}" y="{centre + 4:.1f}" text-anchor="end">{escape(name)}</text>'
    yield (
        f'<rect x="{LEFT}" y="{top + 6}" width="{at(middle) - LEFT:.1f}" height="{ROW - 12}" rx="3" fill="{colour}"/>'
    )
    yield (f'<line class="whisker" x1="{at(min(rates)):.1f}" x2="{at(max(rates)):.1f}" y1="{centre}" y2="{centre}"/>')
    yield f'<text x="{max(at(middle), at(max(rates))) + 8:.1f}" y="{centre + 4:.1f}">{middle:,.0f}</text>'
