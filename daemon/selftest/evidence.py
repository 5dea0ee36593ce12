"""What the database and the provider's ledger say when the storm is over: facts, side by side, without judgement."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

from daemon.core.token import unseal
from daemon.selftest.stage import CONNECTIONS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path
    from uuid import UUID

    import asyncpg

    from daemon.selftest.stage import Kill
    from daemon.simulator import Simulator

KEY = "SELECT token_key FROM outrider.home"
ASKED = "SELECT o.id, u.status, u.reason FROM outrider.outbox o LEFT JOIN outrider.outcome u ON u.id = o.id"
WAITING = "SELECT id FROM outrider.queue"
RESENT = "SELECT id, attempt FROM outrider.attempt WHERE kind = 'decision' AND outcome = 'resend'"

# Each doubt and what was written down of its end. A receipt that came before the doubt did ends it without a word.
DOUBTS = """
SELECT d.id, d.attempt, extract(epoch FROM d.at)::float8 AS at, d.outcome, d.reason,
       e.reason AS evidence, c.reason AS decision,
       EXISTS (SELECT FROM outrider.receipt r WHERE r.id = d.id AND r.attempt = d.attempt) AS has_receipt
  FROM outrider.attempt d
  LEFT JOIN outrider.attempt e ON e.id = d.id AND e.attempt = d.attempt AND e.kind = 'evidence'
  LEFT JOIN outrider.attempt c ON c.id = d.id AND c.attempt = d.attempt AND c.kind = 'decision'
 WHERE d.kind = 'exchange' AND d.outcome IN ('uncertain', 'lost')
"""
STUMBLED = ("courier.stumbled", "library.spoke")  # events of the daemon's log that tell of a fault of its own


class Scene(Protocol):
    """What is asked: the tables, the ledger, the log of the daemon."""

    @property
    def connection(self) -> asyncpg.Connection[asyncpg.Record]:
        """To the database of the daemon."""
        ...

    @property
    def simulator(self) -> Simulator:
        """The provider."""
        ...

    @property
    def folder(self) -> Path:
        """Where ``daemon.log`` is."""
        ...


class Sent(NamedTuple):
    """One line of the ledger: which attempt a provider accepted."""

    id: UUID
    attempt: int


class Doubt(NamedTuple):
    """One attempt whose outcome nobody knew, and how that ended."""

    id: UUID
    attempt: int
    at: float  # wall clock: when it was sent
    outcome: str  # uncertain; lost, where no dispatch log could tell whether it was sent at all
    reason: str
    evidence: str | None
    decision: str | None
    has_receipt: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """Everything the judgement needs."""

    asked: Mapping[UUID, tuple[str | None, str | None]]  # status and reason of each message
    waiting: frozenset[UUID]  # messages still in the queue
    sent: Sequence[Sent]
    strangers: int  # lines of the ledger that name no message of ours
    doubts: Sequence[Doubt]
    resent: frozenset[tuple[UUID, int]]  # attempts after which it was decided to send again
    kills: Sequence[Kill]
    on_the_wire: Sequence[frozenset[Sent]]  # for each kill: what was on the wire,
    unheard: Sequence[frozenset[Sent]]  # and what may have been read in the moment of death
    back_s: Sequence[float]  # from each start of the daemon to its first request
    connections: int
    stumbled: Mapping[str, int]
    exit_code: int


async def gather(scene: Scene, kills: Sequence[Kill], *, back_s: Sequence[float], exit_code: int) -> Evidence:
    """Read both sides. The daemon has ended."""
    connection = scene.connection
    key = await connection.fetchval(KEY)
    named = [unseal(key, entry.token) for entry in scene.simulator.ledger.entries]
    return Evidence(
        asked={row["id"]: (row["status"], row["reason"]) for row in await connection.fetch(ASKED)},
        waiting=frozenset(row["id"] for row in await connection.fetch(WAITING)),
        sent=[Sent(*owner) for owner in named if owner],
        strangers=named.count(None),
        doubts=[Doubt(**dict(row)) for row in await connection.fetch(DOUBTS)],
        resent=frozenset((row["id"], row["attempt"]) for row in await connection.fetch(RESENT)),
        kills=kills,
        on_the_wire=[_named(key, kill.on_the_wire) for kill in kills],
        unheard=[_named(key, kill.unheard) for kill in kills],
        back_s=back_s,
        connections=CONNECTIONS,
        stumbled=_stumbled(scene),
        exit_code=exit_code,
    )


def _named(key: bytes, tokens: Iterable[str]) -> frozenset[Sent]:
    return frozenset(Sent(*owner) for token in tokens if (owner := unseal(key, token)))


def _stumbled(scene: Scene) -> Mapping[str, int]:
    with (scene.folder / "daemon.log").open(encoding="utf-8", errors="replace") as log:
        return Counter(event for line in log for event in STUMBLED if event in line)
