"""The limit a provider puts on each sender: in no sliding second more segments than its rate."""

from __future__ import annotations

import math
from collections import defaultdict, deque

from daemon.core.compliance import busiest_second


class Throttles:
    """What each sender has just sent; exact, and as slow as counting one second's messages."""

    def __init__(self) -> None:
        self._recent: dict[str, deque[tuple[float, int]]] = defaultdict(deque)

    def admit(self, sender: str, segments: int, *, rate: float, now: float) -> bool:
        """Whether *sender* may send *segments* at *now* (monotonic); if so, they are counted."""
        recent = self._recent[sender]
        while recent and recent[0][0] + recent[0][1] / rate < now - 1:
            recent.popleft()
        # A rate of 1.5/s puts two segments into some seconds: the limit of a window is the next whole number.
        fits = busiest_second([*recent, (now, segments)], rate) <= math.ceil(rate)
        if fits:
            recent.append((now, segments))
        return fits
