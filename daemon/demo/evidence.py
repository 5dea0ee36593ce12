"""What the database and the provider's ledger say when everything is over: facts, side by side, without judgement."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from daemon.database import connect
from daemon.simulator import Ledger

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from uuid import UUID

    from daemon.demo.inserter import Application, Committed
    from daemon.demo.scenario import Row, Speaker
    from daemon.demo.stage import Stage
    from daemon.simulator import Entry

# The recipient is masked in the view; here the owner of the tables asks, to compare with the ledger.
MESSAGES = """
SELECT m.id, o.recipient, m.service, m.status, m.reason, m.code,
       extract(epoch FROM m.created_at)::float8 AS created_at, extract(epoch FROM m.accepted_at)::float8 AS accepted_at,
       (SELECT extract(epoch FROM min(r.at))::float8 FROM outrider.receipt r
         WHERE r.id = m.id AND r.status = 'delivered') AS delivered_at
  FROM outrider.message m JOIN outrider.outbox o ON o.id = m.id
"""

# Tries that did not end in a plain acceptance: when the first ended, and how many left the fate of the message open.
# Only the latter may have led to a second copy.
TROUBLES = """
SELECT id, extract(epoch FROM min(at))::float8 AS first_at, count(*) FILTER (WHERE outcome = 'uncertain') AS doubts
  FROM outrider.attempt WHERE kind = 'exchange' GROUP BY id
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """One message as ``outrider.message`` tells it. Times are seconds since the epoch."""

    id: UUID
    recipient: str
    service: str
    status: str
    reason: str | None
    code: str | None
    created_at: float
    accepted_at: float | None
    delivered_at: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Troubles:
    """What went wrong with one message on its way."""

    first_at: float  # seconds since the epoch
    doubts: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """Everything the judgement needs."""

    committed: Sequence[Committed]
    rolled_back: Sequence[Row]
    told: Sequence[Told]
    troubles: Mapping[UUID, Troubles]
    sent: Sequence[Entry]
    speakers: Sequence[Speaker]
    exit_code: int  # the daemon's


async def gather(stage: Stage, application: Application, *, exit_code: int) -> Evidence:
    """Read both sides. The daemon has ended; the database and the ledger's file are still there."""
    connection = await connect(stage.dsn)
    try:
        told = [Told(**dict(row)) for row in await connection.fetch(MESSAGES)]
        troubles = {
            row["id"]: Troubles(first_at=row["first_at"], doubts=row["doubts"])
            for row in await connection.fetch(TROUBLES)
        }
    finally:
        await connection.close()
    return Evidence(
        committed=tuple(application.committed),
        rolled_back=tuple(application.rolled_back),
        told=told,
        troubles=troubles,
        sent=tuple(Ledger.read(stage.ledger).entries) if stage.ledger.exists() else (),
        speakers=application.scenario.speakers,
        exit_code=exit_code,
    )
