"""Curves in one drawing: a panel for each thing that grows. Both axes of a panel begin at nothing; x is logarithmic."""

from __future__ import annotations

import math
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

from bench.picture import OURS, STYLE, THEIRS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 380, 300, 52, 20, 76, 56  # pixels of a panel
COLOURS = (OURS, "#b4540a", THEIRS)


@dataclass(frozen=True, slots=True)
class Curve:
    """What one line says: how much, by how many."""

    name: str
    points: Sequence[tuple[int, float]]


@dataclass(frozen=True, slots=True)
class Panel:
    """Curves that share their axes."""

    of: str
    by: str
    curves: Sequence[Curve]


def drawn(panels: Sequence[Panel]) -> str:
    """*panels* side by side, as SVG."""
    width = WIDTH * len(panels)
    said = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {HEIGHT}" role="img" aria-label="Growth">',
        f'<style>{STYLE}</style><rect class="ground" width="{width}" height="{HEIGHT}"/>',
    ]
    for number, panel in enumerate(panels):
        said += [f'<g transform="translate({WIDTH * number} 0)">', *_panel(panel), "</g>"]
    return "\n".join([*said, "</svg>\n"])


def _panel(panel: Panel) -> Iterator[str]:
    points = [point for curve in panel.curves for point in curve.points]
    # log2(1 + n): nothing has its place too, and ten times as many are as far apart everywhere else.
    most = max(math.log2(1 + many) for many, _ in points)
    least = min(math.log2(1 + many) for many, _ in points)
    top = _round_up(max(value for _, value in points))

    def x(many: int) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (math.log2(1 + many) - least) / ((most - least) or 1)

    def y(value: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * value / top

    yield f'<text class="title" x="{LEFT}" y="28">{escape(panel.of)}</text>'
    for step in range(3):
        value = top * step / 2
        yield f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(value):.1f}" y2="{y(value):.1f}"/>'
        yield f'<text class="quiet" x="{LEFT - 6}" y="{y(value) + 4:.1f}" text-anchor="end">{value:g}</text>'
    below = [(x(many), HEIGHT - BOTTOM + 18, _short(many)) for many in sorted({many for many, _ in points})]
    for at, line, word in (*below, ((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 18, panel.by)):
        yield f'<text class="quiet" x="{at:.1f}" y="{line}" text-anchor="middle">{escape(word)}</text>'
    for number, curve in enumerate(panel.curves):
        colour = COLOURS[number]
        path = " ".join(f"{x(many):.1f},{y(value):.1f}" for many, value in curve.points)
        yield f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>'
        for many, value in curve.points:
            yield f'<circle cx="{x(many):.1f}" cy="{y(value):.1f}" r="3" fill="{colour}"/>'
        yield f'<text x="{LEFT + 6}" y="{TOP - 26 + 16 * number}" style="fill:{colour}">{escape(curve.name)}</text>'


def _round_up(value: float) -> float:
    """The next of 1, 2 and 5 times a power of ten, with a fifth of room for the names of the curves."""
    wanted = 1.2 * value
    power = 10.0 ** math.floor(math.log10(wanted))
    return next(step * power for step in (1, 2, 5, 10) if step * power >= wanted)


def _short(many: int) -> str:
    for unit, name in ((1_000_000, "M"), (1_000, "k")):
        if many >= unit:
            return f"{many / unit:g}{name}"
    return str(many)
