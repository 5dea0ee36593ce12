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

# How often the fate of a message was ambiguous: the only legal source of a second copy.
DOUBTS = """
SELECT id, count(*) AS times FROM outrider.attempt WHERE kind = 'exchange' AND outcome = 'uncertain' GROUP BY id
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
class Evidence:
    """Everything the judgement needs."""

    committed: Sequence[Committed]
    rolled_back: Sequence[Row]
    told: Sequence[Told]
    doubts: Mapping[UUID, int]
    sent: Sequence[Entry]
    speakers: Sequence[Speaker]
    exit_code: int  # the daemon's


async def gather(stage: Stage, application: Application, *, exit_code: int) -> Evidence:
    """Read both sides. The daemon has ended; the database and the ledger's file are still there."""
    connection = await connect(stage.dsn)
    try:
        told = [Told(**dict(row)) for row in await connection.fetch(MESSAGES)]
        doubts = {row["id"]: row["times"] for row in await connection.fetch(DOUBTS)}
    finally:
        await connection.close()
    return Evidence(
        committed=tuple(application.committed),
        rolled_back=tuple(application.rolled_back),
        told=told,
        doubts=doubts,
        sent=tuple(Ledger.read(stage.ledger).entries) if stage.ledger.exists() else (),
        speakers=application.scenario.speakers,
        exit_code=exit_code,
    )
