"""
What ought not to be, as it is found: counted by kind, told to those who watch, and in the log.

It stands in ``outrider.anomaly`` before it is told here. A fault that repeats with every message must not fill a disk:
of each kind one line a minute, with how many it stands for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from asyncpg import Record

    from daemon.metrics import Metrics

log = structlog.get_logger()

QUIET_S = 60.0  # between two lines of one kind


class Anomalies:
    """Tells of them. *trouble*: for the page."""

    def __init__(self, metrics: Metrics, *, tick: Callable[[], float], trouble: Callable[[str], None]) -> None:
        self._metrics = metrics
        self._tick = tick
        self._trouble = trouble
        self._told: dict[str, float] = {}  # kind -> when it was last told
        self._untold: dict[str, int] = {}

    def found(self, rows: Iterable[Record]) -> None:
        """*rows* are new in the table: kind, about (the message, or null), reference, detail."""
        for row in rows:
            kind = row["kind"]
            self._metrics.anomalies(kind).inc()
            self._untold[kind] = self._untold.get(kind, 0) + 1
            if self._tick() - self._told.get(kind, -QUIET_S) < QUIET_S:
                continue
            self._told[kind] = self._tick()
            about = str(row["about"]) if row["about"] is not None else None
            log.warning(
                "anomaly.found", kind=kind, message_id=about, reference=row["reference"], reason=row["detail"],
                count=self._untold.pop(kind),
            )  # fmt: skip
            self._trouble(f"{kind}: {row['detail']} ({about or row['reference']})")
