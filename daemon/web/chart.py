"""Two lines over the last two minutes, as SVG paths: drawn here, so that the page needs no script to show them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from daemon.web.words import count, per_second

if TYPE_CHECKING:
    from collections.abc import Sequence

    from daemon.watch import History, Rates

SECONDS = 120
WIDTH, HEIGHT = 720, 120  # units of the drawing; the browser stretches it
SMOOTH = 3  # seconds averaged into one point: the eye looks for the trend, the read-out has the seconds


@dataclass(frozen=True, slots=True)
class Line:
    """One line: its path, the area below it, the samples themselves (oldest first), and the rate of the last 10 s."""

    name: str
    now: str
    values: tuple[int, ...]
    path: str
    area: str


@dataclass(frozen=True, slots=True)
class Chart:
    """Both lines under one scale; *top* is the number at its upper edge."""

    seconds: int
    width: int
    height: int
    top: str
    lines: tuple[Line, ...]


def chart(history: History, rates: Rates) -> Chart:
    """The last two minutes of *history*; what lies before the start is nothing."""
    top = _nice(max((*history.sent, *history.delivered), default=0))
    lines = (
        _line("sent", rates.sent.last_10_s, history.sent, top),
        _line("delivered", rates.delivered.last_10_s, history.delivered, top),
    )
    return Chart(SECONDS, WIDTH, HEIGHT, f"{count(top)}/s", lines)


def _line(name: str, now: float, values: Sequence[int], top: int) -> Line:
    padded = (*(0 for _ in range(SECONDS - len(values))), *values[-SECONDS:])
    step = WIDTH / (SECONDS - 1)
    smooth = [sum(part) / len(part) for part in (padded[max(0, x - SMOOTH + 1) : x + 1] for x in range(SECONDS))]
    path = "M" + "L".join(f"{x * step:.1f} {HEIGHT - value / top * HEIGHT:.1f}" for x, value in enumerate(smooth))
    return Line(name, per_second(now), padded, path, f"{path}L{WIDTH} {HEIGHT}L0 {HEIGHT}Z")


def _nice(peak: int) -> int:
    # The first of 10, 20, 30, 40, 50, 60, 80, 100, 200 ... with some room above the peak.
    decade = 10
    while True:
        for digit in (1, 2, 3, 4, 5, 6, 8):
            if digit * decade >= peak * 1.05:
                return digit * decade
        decade *= 10
