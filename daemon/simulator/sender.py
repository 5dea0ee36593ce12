"""What one sender has sent, countable at any moment without counting everything again."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from itertools import islice
from math import inf

from daemon.core.compliance import busiest_second

LONGEST = 64  # more segments than any message of 1,600 characters can have


@dataclass(slots=True)
class Tally:
    """What counting at one rate has come to so far."""

    counted: int = 0  # messages
    busiest: int = 0  # segments in the busiest second
    last: float = -inf  # where the last segment counts


class Sender:
    """One sender's messages, the last *keep* of them event by event."""

    def __init__(self, keep: int) -> None:
        self.events: deque[tuple[float, int]] = deque(maxlen=keep)  # (monotonic time, segments)
        self.messages = 0
        self.segments = 0
        self._first = inf
        self._tallies: dict[float, Tally] = {}

    def add(self, mono: float, segments: int) -> None:
        """Count a message that arrived at *mono*. Messages are added in the order of their arrival."""
        self._first = min(self._first, mono)
        self.events.append((mono, segments))
        self.messages += 1
        self.segments += segments

    def busiest_second(self, rate: float) -> int:
        """The most segments in any sliding second so far. Only what came since the last call is counted."""
        return self._tally(rate).busiest

    def used(self, rate: float) -> float:
        """The share of *rate* used between the first and the last segment; see :func:`daemon.core.compliance.used`."""
        return self.segments / (rate * (self._tally(rate).last - self._first) + 1) if self.segments else 0.0

    def _tally(self, rate: float) -> Tally:
        tally = self._tallies.setdefault(rate, Tally())
        new = min(self.messages - tally.counted, len(self.events))
        if new:
            fresh = list(islice(reversed(self.events), new))
            # A window with a new segment in it starts less than a second before the oldest of them.
            since = fresh[-1][0] - 1 - LONGEST / rate
            for event in islice(reversed(self.events), new, None):
                if event[0] < since:
                    break
                fresh.append(event)
            tally.busiest = max(tally.busiest, busiest_second(fresh, rate))
            tally.last = max(tally.last, *(time + max(0, segments - 1) / rate for time, segments in fresh))
            tally.counted = self.messages
        return tally
