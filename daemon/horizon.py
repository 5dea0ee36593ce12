"""
The horizon: whose old snapshot keeps vacuum from its work.

A queue lives on vacuum: rows come and go by the million. A transaction left open somewhere (a report, a forgotten psql,
a replica that lags) keeps every row that has died since it began. Claims are made so that they stay quick all the same
(outbox.py, the mark), but the tables grow, and only a person can end it: so the culprit is named.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import structlog

from daemon.database import storable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from asyncpg import Record

log = structlog.get_logger()

OLD_S = 300.0  # hundreds of thousands of dead rows at a busy hour


class Culprit(NamedTuple):
    """Who holds vacuum back."""

    who: str  # such as "process 4711 (psql)"
    age_s: float

    def __str__(self) -> str:
        return f"{self.who} has kept vacuum from its work for {self.age_s / 60:.0f} min"


class Horizon:
    """Remembers since when the oldest is the oldest: Postgres tells that to the privileged alone."""

    def __init__(self, tick: Callable[[], float]) -> None:
        self._tick = tick
        self._oldest: tuple[str, str] | None = None
        self._since = 0.0
        self._told = False
        self.culprit: Culprit | None = None  # who is older than OLD_S now

    def seen(self, rows: Sequence[Record]) -> Culprit | None:
        """Take in what ``sql/horizon.sql`` brought; a culprit when there is a new one."""
        now = self._tick()
        oldest = (rows[0]["who"], rows[0]["xid"]) if rows else None
        if oldest != self._oldest:
            self._oldest, self._since, self._told = oldest, now, False
        age_s = max(now - self._since, rows[0]["age_s"] or 0.0) if rows else 0.0
        self.culprit = Culprit(storable(rows[0]["who"]) or "", age_s) if rows and age_s >= OLD_S else None
        if self.culprit is None or self._told:
            return None
        self._told = True
        log.warning(
            "vacuum.held", who=self.culprit.who, age_s=round(age_s), hint="dead rows stay until its transaction ends"
        )
        return self.culprit
