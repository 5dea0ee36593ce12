"""The judgement: what was asked, what was really sent and what is told, held against each other. Pure."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import TYPE_CHECKING

from daemon.core.lifecycle import Status
from daemon.selftest.evidence import Sent

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from uuid import UUID

    from daemon.selftest.evidence import Doubt, Evidence

# Not sent, and told why. delivered and the like must stand in the ledger.
UNSENT = frozenset({Status.FAILED, Status.EXPIRED, Status.DEAD, Status.SUPPRESSED, Status.CANCELED})
DIED = "the daemon died"  # how the reason of a doubt begins that a kill has raised
SHOWN = 3  # examples named in a broken promise
WAYS = ("receipt", "query", "policy")


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One promise, and whether it was kept."""

    name: str
    ok: bool
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Death:
    """One kill: how many requests were on the wire, and how many attempts were in doubt after it."""

    on_the_wire: int
    ambiguous: int
    just_read: (
        int  # of those in doubt: their answer had just been read, in the turn of its loop in which the daemon died
    )
    unarrived: int  # of those in doubt: had a connection in hand, and the provider never saw them
    resolved_by: Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What came of the storm."""

    messages: int
    accepted: int  # by the provider, duplicates included
    unsent: Mapping[str, int]  # by reason
    lost: int
    duplicates: int
    unexplained: int
    lost_answers: int  # doubts that no kill has raised
    resolved_by: Mapping[str, int]
    deaths: Sequence[Death]
    back_s: Sequence[float]  # from each start of the daemon to its first request
    checks: Sequence[Check]
    seed: int
    seconds: float

    @property
    def ok(self) -> bool:
        """Every promise was kept."""
        return all(check.ok for check in self.checks)

    @property
    def ambiguous(self) -> int:
        """Attempts in doubt because of a kill."""
        return sum(death.ambiguous for death in self.deaths)

    @property
    def on_the_wire(self) -> int:
        """Requests on the wire at a kill."""
        return sum(death.on_the_wire for death in self.deaths)

    @property
    def busy_kills(self) -> int:
        """Kills that found requests on the wire."""
        return sum(death.on_the_wire > 0 for death in self.deaths)

    @property
    def back_p50_s(self) -> float:
        """Half the restarts took no longer until their first request, the start of the process included."""
        return median(self.back_s) if self.back_s else 0.0

    @property
    def back_max_s(self) -> float:
        """The slowest of them."""
        return max(self.back_s, default=0.0)

    def document(self) -> dict[str, object]:
        """The report for machines (DESIGN 2.3): keys may be added, not renamed."""
        return {
            "kills": len(self.deaths),
            "messages": self.messages,
            "lost": self.lost,
            "duplicates": self.duplicates,
            "duplicates_unexplained": self.unexplained,
            "ambiguous": self.ambiguous,
            "on_the_wire": self.on_the_wire,
            "resolved_by": dict(self.resolved_by),
            "busy_kills": self.busy_kills,
            "lost_answers": self.lost_answers,
            "accepted": self.accepted,
            "unsent": dict(self.unsent),
            "back_s": {"p50": round(self.back_p50_s, 2), "max": round(self.back_max_s, 2)},
            "by_kill": [[death.on_the_wire, death.ambiguous] for death in self.deaths],
            "by_kill_resolved_by": [dict(death.resolved_by) for death in self.deaths],
            "just_read": sum(death.just_read for death in self.deaths),
            "unarrived": sum(death.unarrived for death in self.deaths),
            "checks": [{"name": check.name, "ok": check.ok, "detail": check.detail} for check in self.checks],
            "seed": self.seed,
            "seconds": round(self.seconds, 1),
            "ok": self.ok,
        }


def judge(seen: Evidence, *, seed: int, seconds: float) -> Report:
    """Hold everything against everything."""
    attempts: dict[UUID, list[int]] = defaultdict(list)
    for id, attempt in seen.sent:
        attempts[id].append(attempt)
    unsent = {
        id: reason or status for id, (status, reason) in seen.asked.items() if status in UNSENT and id not in attempts
    }
    lost = [id for id in seen.asked if id not in attempts and id not in unsent and id not in seen.waiting]
    doubled = [id for id, numbers in attempts.items() if len(numbers) > 1]
    unexplained = [id for id in doubled if not _explained(id, attempts[id], seen)]
    deaths, unfounded = _deaths(seen)
    return Report(
        messages=len(seen.asked),
        accepted=len(seen.sent),
        unsent=Counter(unsent.values()),
        lost=len(lost),
        duplicates=len(doubled),
        unexplained=len(unexplained),
        lost_answers=sum(not one.reason.startswith(DIED) for one in seen.doubts),
        resolved_by=_counted(seen.doubts),
        deaths=deaths,
        back_s=seen.back_s,
        checks=list(_checks(seen, deaths, lost=lost, unexplained=unexplained, unfounded=unfounded)),
        seed=seed,
        seconds=seconds,
    )


def _checks(
    seen: Evidence,
    deaths: Sequence[Death],
    *,
    lost: Sequence[UUID],
    unexplained: Sequence[UUID],
    unfounded: Sequence[UUID],
) -> Iterable[Check]:
    yield _check("every message was sent, or says why not", lost, "lost")
    vanished = [id for id, (status, _) in seen.asked.items() if status is None and id not in seen.waiting]
    yield _check("every message is in the books", vanished, "neither in the queue nor in outcome")
    yield _check("every duplicate is explained by a resend in attempt", unexplained, "unexplained")
    yield _check("only what was on the wire came in doubt", unfounded, "in doubt though their answer was heard")
    most = max((death.unarrived for death in deaths), default=0)
    yield Check(
        name="what came in doubt and never arrived had a connection in hand",
        ok=most <= seen.connections,
        detail=f"at most {most} for {seen.connections} connections",
    )
    untold = [one.id for one in seen.doubts if one.outcome == "lost"]
    yield _check("the dispatch log could always tell", untold, "of which it could not")
    yield _check("every doubt has ended", [one.id for one in seen.doubts if _way(one) is None], "open")
    yield _check("everything was settled", list(seen.waiting), "still in the queue")
    faults = ", ".join(f"{count} x {event}" for event, count in seen.stumbled.items())
    yield Check(name="the daemon had no fault of its own", ok=not faults, detail=faults)
    yield Check(
        name="the provider was told nothing strange",
        ok=not seen.strangers,
        detail=f"{seen.strangers} foreign tokens" if seen.strangers else "",
    )
    code = f"exit code {seen.exit_code}" if seen.exit_code else ""
    yield Check(name="the last daemon ended cleanly", ok=not code, detail=code)


def _check(name: str, wrong: Sequence[UUID], word: str) -> Check:
    examples = ", ".join(map(str, wrong[:SHOWN]))
    return Check(name=name, ok=not wrong, detail=f"{len(wrong)} {word}: {examples}" if wrong else "")


def _explained(id: UUID, numbers: Sequence[int], seen: Evidence) -> bool:
    """Whether between each copy and the next one it was decided to send again, and written down."""
    ordered = sorted(numbers)
    return all(any((id, attempt) in seen.resent for attempt in range(first, then)) for first, then in pairwise(ordered))


def _deaths(seen: Evidence) -> tuple[list[Death], list[UUID]]:
    """Each kill with its doubts, and the doubts without a cause."""
    raised: list[list[Doubt]] = [[] for _ in seen.kills]
    for one in seen.doubts:
        if seen.kills and one.reason.startswith(DIED):
            raised[_kill_of(one, seen)].append(one)
    arrived, deaths, unfounded = set(seen.sent), [], []
    for on_the_wire, unheard, doubts in zip(seen.on_the_wire, seen.unheard, raised, strict=True):
        mine = {Sent(one.id, one.attempt) for one in doubts}
        beyond = mine - on_the_wire
        just_read, unarrived = beyond & unheard, beyond - unheard - arrived
        deaths.append(
            Death(
                on_the_wire=len(on_the_wire | just_read | unarrived),
                ambiguous=len(mine),
                just_read=len(just_read),
                unarrived=len(unarrived),
                resolved_by=_counted(doubts),
            )
        )
        unfounded += [id for id, _ in beyond - just_read - unarrived]
    return deaths, unfounded


def _kill_of(one: Doubt, seen: Evidence) -> int:
    """The first kill that found it on the wire; where none did, the first after its request."""
    here = Sent(one.id, one.attempt)
    return next(
        (
            n
            for n, (wire, unheard) in enumerate(zip(seen.on_the_wire, seen.unheard, strict=True))
            if here in wire | unheard
        ),
        next((number for number, kill in enumerate(seen.kills) if one.at <= kill.at), len(seen.kills) - 1),
    )


def _counted(doubts: Iterable[Doubt]) -> dict[str, int]:
    ways = Counter(_way(one) for one in doubts)
    return {way: ways[way] for way in WAYS}


def _way(one: Doubt) -> str | None:
    """What ended it; None if nothing did."""
    match one.evidence, one.decision:
        case str(found), _:
            return "receipt" if found.startswith("a receipt") else "query"
        case None, str(decided):
            return "query" if decided.startswith("its provider, asked twice") else "policy"
        case _:
            return "receipt" if one.has_receipt else None
