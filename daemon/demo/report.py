"""
The judgement: what was inserted, what is told and what was really sent, held against each other. Pure.

Every row of the demo has a recipient of its own, so the recipient names the message on all three sides.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from daemon.core.compliance import busiest_second, used
from daemon.core.lifecycle import FINAL, WAITING
from daemon.demo.scenario import Kind

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from daemon.demo.evidence import Evidence, Told
    from daemon.simulator import Entry

# These say that a provider took it. undelivered and failed may also be a refusal at once, so they claim nothing.
TAKEN = frozenset({"accepted", "sent", "delivered", "read", "undelivered"})
ARRIVED = frozenset({"delivered", "read"})
SHOWN = 3  # examples named in a failed check
NEVER = frozenset({Kind.IMPOSSIBLE, Kind.EMPTY, Kind.STRANGE, Kind.EXPIRED, Kind.REPEAT, Kind.OPTED_OUT, Kind.CANCELED})


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One promise, and whether it was kept."""

    name: str
    ok: bool
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Percentiles:
    """Milliseconds."""

    p50: float
    p95: float
    p99: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SenderUse:
    """How fast one sender spoke, by the provider's clock. *rate* in segments per second, *used* a share of it."""

    address: str
    service: str
    messages: int
    segments: int
    rate: float
    used: float
    max_in_1s: int

    @property
    def ok(self) -> bool:
        """Never faster than it may."""
        return self.max_in_1s <= self.rate


@dataclass(frozen=True, slots=True, kw_only=True)
class Duplicate:
    """A person who was written to more than once."""

    message: str
    service: str
    copies: int
    explained: bool  # the attempt table names as many doubts as there are surplus copies


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What came of the demo."""

    inserted: int
    by_status: Mapping[str, int]
    by_service: Mapping[str, Mapping[str, int]]
    reasons: Sequence[tuple[str, str, str, int]]  # service, status, reason, how many
    latency_ms: Mapping[str, Percentiles]
    senders: Sequence[SenderUse]
    duplicates: Sequence[Duplicate]
    checks: Sequence[Check]

    @property
    def ok(self) -> bool:
        """Every promise was kept."""
        return all(check.ok for check in self.checks)

    def document(self) -> dict[str, object]:
        """The report for machines (DESIGN 2.3): keys may be added, not renamed."""
        return {
            "inserted": self.inserted,
            "by_status": dict(self.by_status),
            "latency_ms": {
                stage: {"p50": some.p50, "p95": some.p95, "p99": some.p99} for stage, some in self.latency_ms.items()
            },
            "senders": [
                {"address": one.address, "rate": one.rate, "used": round(one.used, 4), "max_in_1s": one.max_in_1s}
                for one in self.senders
            ],
            "duplicates": [
                {"id": one.message, "service": one.service, "copies": one.copies, "explained": one.explained}
                for one in self.duplicates
            ],
            "checks": [{"name": check.name, "ok": check.ok, "detail": check.detail} for check in self.checks],
            "ok": self.ok,
        }


def judge(seen: Evidence) -> Report:
    """Hold everything against everything."""
    senders = [_use(seen, speaker.address) for speaker in seen.speakers]
    duplicates = _duplicates(seen)
    by_service: dict[str, Counter[str]] = defaultdict(Counter)
    for one in seen.told:
        by_service[one.service][one.status] += 1
    reasons = Counter((one.service, one.status, _gist(one)) for one in seen.told if one.status not in ARRIVED)
    return Report(
        inserted=len(seen.committed),
        by_status=dict(Counter(one.status for one in seen.told).most_common()),
        by_service={name: dict(counts.most_common()) for name, counts in sorted(by_service.items())},
        reasons=[(*what, many) for what, many in sorted(reasons.items(), key=lambda item: (item[0][0], -item[1]))],
        latency_ms=_latency(seen),
        senders=senders,
        duplicates=duplicates,
        checks=[
            _all_are_there(seen),
            _all_have_an_end(seen),
            _conserved(seen),
            _silent_where_asked(seen),
            _explained(duplicates),
            _slow_enough(senders),
            Check(name="the daemon ended well", ok=seen.exit_code == 0, detail=f"exit code {seen.exit_code}"),
        ],
    )


def percentiles(seconds: Iterable[float]) -> Percentiles | None:
    """The 50th, 95th and 99th percentile by nearest rank, in milliseconds; None of nothing."""
    ordered = sorted(seconds)
    if not ordered:
        return None

    def at(percent: int) -> float:
        return round(ordered[max(0, -(-percent * len(ordered) // 100) - 1)] * 1000, 1)

    return Percentiles(p50=at(50), p95=at(95), p99=at(99))


def _all_are_there(seen: Evidence) -> Check:
    asked = Counter(one.row.recipient for one in seen.committed)
    told = Counter(one.recipient for one in seen.told)
    missing, surplus = asked - told, told - asked
    detail = f"{asked.total():,} committed, {told.total():,} in outrider.message"
    if missing or surplus:
        detail += f"; missing: {_some(missing)}; not ours: {_some(surplus)}"
    return Check(name="every committed row is there, once", ok=not missing and not surplus, detail=detail)


def _all_have_an_end(seen: Evidence) -> Check:
    still = [one for one in seen.told if one.status not in FINAL | WAITING]
    ended = sum(one.status in FINAL for one in seen.told)
    detail = f"{ended:,} final, {len(seen.told) - ended - len(still):,} accepted and waiting for a receipt"
    if still:
        detail += f"; not settled: {_some(f'{one.id} {one.status}: {one.reason}' for one in still)}"
    return Check(name="every message has come to an end", ok=not still, detail=detail)


def _conserved(seen: Evidence) -> Check:
    """What was sent and what ended unsent add up to what was inserted, and neither side knows more than the other."""
    sent = {entry.to for entry in seen.sent}
    ours = {one.recipient for one in seen.told}
    lost = [one for one in seen.told if one.status in TAKEN and one.recipient not in sent]
    denied = [one for one in seen.told if one.recipient in sent and not _may_be_sent(one, seen)]
    strangers = sent - ours
    unsent = Counter(one.status for one in seen.told if one.recipient not in sent)
    reached = len(sent & ours)
    detail = f"{len(seen.committed):,} inserted = {reached:,} sent + {unsent.total():,} not sent"
    if unsent:
        detail += f" ({', '.join(f'{many} {status}' for status, many in unsent.most_common())})"
    for name, some in (("claimed but never sent", lost), ("sent though ended as unsent", denied)):
        if some:
            detail += f"; {name}: {_some(f'{one.id} {one.status}: {one.reason}' for one in some)}"
    if strangers:
        detail += f"; sent to people nobody asked for: {_some(strangers)}"
    adds_up = reached + unsent.total() == len(seen.committed)
    return Check(name="nothing was lost or made up", ok=adds_up and not (lost or denied or strangers), detail=detail)


def _may_be_sent(one: Told, seen: Evidence) -> bool:
    """Whether the ledger may know this message: its status says so, a receipt refused it, or a doubt is on record."""
    return one.status in TAKEN | {"failed"} or _doubts(one, seen) > 0 or one.status not in FINAL


def _doubts(one: Told, seen: Evidence) -> int:
    trouble = seen.troubles.get(one.id)
    return trouble.doubts if trouble else 0


def _silent_where_asked(seen: Evidence) -> Check:
    sent = {entry.to for entry in seen.sent}
    unwanted = {one.row.recipient: one.row.kind for one in seen.committed if one.row.kind in NEVER}
    unwanted |= {row.recipient: row.kind for row in seen.rolled_back}
    wrong = [f"{recipient} ({kind})" for recipient, kind in unwanted.items() if recipient in sent]
    detail = f"{len(unwanted)} rows: {', '.join(f'{many} {kind}' for kind, many in Counter(unwanted.values()).items())}"
    if wrong:
        detail += f"; sent all the same: {_some(wrong)}"
    return Check(name="nothing was sent that must not be", ok=not wrong, detail=detail)


def _duplicates(seen: Evidence) -> list[Duplicate]:
    copies = Counter(entry.to for entry in seen.sent)
    return [
        Duplicate(
            message=str(one.id),
            service=one.service,
            copies=copies[one.recipient],
            explained=_doubts(one, seen) >= copies[one.recipient] - 1,
        )
        for one in seen.told
        if copies[one.recipient] > 1
    ]


def _explained(duplicates: Sequence[Duplicate]) -> Check:
    strange = [one.message for one in duplicates if not one.explained]
    if not duplicates:
        detail = "no duplicate"
    else:
        known = Counter(one.service for one in duplicates)
        which = ", ".join(f"{many} {name}" for name, many in known.items())
        detail = f"{len(duplicates)} sent again in doubt ({which})"
    if strange:
        detail += f"; not in the attempt table: {_some(strange)}"
    return Check(name="every duplicate has a doubt on record", ok=not strange, detail=detail)


def _slow_enough(senders: Sequence[SenderUse]) -> Check:
    fast = [f"{one.address} {one.max_in_1s} of {one.rate:g}" for one in senders if not one.ok]
    detail = f"too fast: {_some(fast)}" if fast else f"{len(senders)} senders, none above its limit in any second"
    return Check(name="no sender spoke faster than it may", ok=not fast, detail=detail)


def _use(seen: Evidence, address: str) -> SenderUse:
    speaker = next(one for one in seen.speakers if one.address == address)
    entries = [entry for entry in seen.sent if entry.sender == address]
    events = [(entry.mono, entry.segments) for entry in entries]
    return SenderUse(
        address=address,
        service=speaker.service,
        messages=len(entries),
        segments=sum(entry.segments for entry in entries),
        rate=speaker.rate,
        used=used(events, speaker.rate),
        max_in_1s=busiest_second(events, speaker.rate),
    )


def _latency(seen: Evidence) -> dict[str, Percentiles]:
    """
    Each stage of the road; the way from commit to provider also for each service.

    What was refused or lost on its first try and came later is a series of its own (``retried``): it measures the
    provider's faults and the patience of the intent, not the daemon.
    """
    first: dict[str, Entry] = {}
    for copy in seen.sent:
        first.setdefault(copy.to, copy)
    committed = {one.row.recipient: one for one in seen.committed}
    spans: dict[str, list[float]] = defaultdict(list)
    for one in seen.told:
        asked, entry = committed.get(one.recipient), first.get(one.recipient)
        if asked is None or entry is None:
            continue
        # The provider may have it before the commit has returned to us.
        wait = max(0.0, entry.t - asked.at)
        trouble = seen.troubles.get(one.id)
        if trouble is not None and trouble.first_at < entry.t:
            spans["commit_to_provider.retried"].append(wait)
        else:
            spans["commit_to_provider"].append(wait)
            spans[f"commit_to_provider.{one.service}"].append(wait)
        if one.accepted_at is not None:
            spans["provider_to_accepted"].append(max(0.0, one.accepted_at - entry.t))
            if one.delivered_at is not None:
                spans["accepted_to_delivered"].append(max(0.0, one.delivered_at - one.accepted_at))
    return {stage: some for stage, values in sorted(spans.items()) if (some := percentiles(values))}


def _gist(one: Told) -> str:
    """Its reason, without what differs from message to message."""
    reason = one.reason or ""
    return "duplicate of another" if reason.startswith("duplicate of ") else reason or one.code or ""


def _some(things: Iterable[object]) -> str:
    listed = list(things)
    if not listed:
        return "none"
    return ", ".join(map(str, listed[:SHOWN])) + (f" and {len(listed) - SHOWN} more" if len(listed) > SHOWN else "")
