"""
Was a sender slow enough? Counting segments the way the promise about rates is worded.

Segment *j* of a message received at *t* counts at ``t + j / rate``: long messages occupy their sender longer. So
counted, no sliding second may hold more segments than the rate (DESIGN, section 3).

Windows are half-open: a segment exactly one second after another is in the next window. Sums of floats are not exact,
so a window is taken :data:`ROUNDING_S` short of its length; a sender is forgiven that much and no more.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

# Near 1.8e9 (the wall clock) neighbouring floats are 0.24 µs apart, and a position is a sum of two roundings.
ROUNDING_S = 1e-6


def busiest_second(events: Sequence[tuple[float, int]], rate: float, *, window_s: float = 1.0) -> int:
    """
    The most segments that any sliding window holds.

    *events* are ``(time in seconds, segments)`` in any order; *rate* is in segments per second, and an infinite rate
    counts all segments of a message at its arrival.
    """
    positions = sorted(_positions(events, rate))
    reach = window_s - ROUNDING_S
    busiest = oldest = 0
    for newest, position in enumerate(positions):
        while position - positions[oldest] >= reach:
            oldest += 1
        busiest = max(busiest, newest - oldest + 1)
    return busiest


def used(events: Sequence[tuple[float, int]], rate: float) -> float:
    """
    The share of the limit that was used between the first and the last segment.

    Each segment occupies ``1 / rate`` seconds, so a perfectly paced sender used exactly 1.0, and a lone segment too.
    More than 1.0 means too fast on average. Nothing sent is 0.0.
    """
    segments = sum(count for _, count in events)
    if not segments:
        return 0.0
    positions = list(_positions(events, rate))
    return segments / (rate * (max(positions) - min(positions)) + 1)


def _positions(events: Iterable[tuple[float, int]], rate: float) -> Iterable[float]:
    return (time + segment / rate for time, segments in events for segment in range(segments))
