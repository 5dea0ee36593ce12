"""What time it is: the only place that asks, so that tests can answer."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")

# Counts on while the machine sleeps, as CLOCK_MONOTONIC does not: a lease must not look young after a night in a
# closed laptop. Other kernels than Linux have only the monotonic one.
_STEADY = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


class Clock:
    """The machine's clocks. Tests give a subclass that is wound by hand."""

    __slots__ = ()

    # Both are asked a dozen times for each message: functions of C, without one of ours around them.

    #: Seconds since the epoch, wall clock: for what is stored and compared with the database. May jump.
    now: Callable[[], float] = staticmethod(time.time)

    #: Seconds since some moment before: for spans and deadlines. Never goes back, counts suspension.
    tick: Callable[[], float] = staticmethod(partial(time.clock_gettime, _STEADY))

    def boot_id(self) -> str:
        """What names this run of the kernel: it changes with every power loss. Empty where there is none."""
        try:
            return _BOOT_ID.read_text(encoding="ascii").strip()
        except OSError:
            return ""
