"""
The janitor: periodic duty. Doubts are resolved by evidence, or ended by policy; rows that wait behind nobody are freed;
weeks are made ahead; what the pages show is sampled.

Doubts of our groups are ours, and so are those of lanes that nobody serves any more (their service or sender has left
the settings): any daemon may look into them. No lease stands behind that, and none is needed: a look pushes the next
one out, and what comes of it is written only if the same attempt is still in doubt.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

import structlog

from daemon.core.address import plausible
from daemon.core.doubt import Decide, Look, next_step
from daemon.core.lifecycle import RANKS, Status
from daemon.core.message import Attempt, OnAmbiguous
from daemon.core.outcome import Accepted, Uncertain, Unreachable
from daemon.database import DatabaseDown, as_object, sleep_unless
from daemon.horizon import Horizon
from daemon.inspector import Manifest
from daemon.provider import Absent, Unclear

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from uuid import UUID

    from aiolimiter import AsyncLimiter
    from asyncpg import Record

    from daemon.database import Line
    from daemon.desk import Desk
    from daemon.gates import Gate
    from daemon.leases import Leases
    from daemon.observer import Observer
    from daemon.provider import Finding

log = structlog.get_logger()

LOOK_S = 0.5
ABSENT_MAX = 10_000
NOBODYS_S = 10.0  # how often one looks for doubts in lanes that nobody serves, and forgets those that ended elsewhere
DOUBTS = 50  # doubts looked into at a time
WHO_MAX = 10  # senders asked about a message of which nobody knows who sent it, if anybody did
NEXT_LOOK_S = 20.0  # when a doubt is looked into again, unless its plan says sooner
ORDER_HOLD_S = 60.0  # how long a head may hold the others of its order_key
WEEKS_S = 3600.0
HORIZON_S = 15.0
SAMPLE_SHARE = 20  # a sample of the backlog may take one part in so many of the time
STATEMENTS = ("doubts", "lanes_apart", "declared", "known", "decide", "free_order", "late", "attempts", "horizon")


class Janitor:
    """Does what is due."""

    name = "janitor"

    def __init__(
        self,
        line: Line,
        desk: Desk,
        leases: Leases,
        gates: Mapping[str, Gate],
        observer: Observer,
        *,
        questions: AsyncLimiter,
        woken: Callable[[], None],
    ) -> None:
        self._line = line
        self._desk = desk
        self._leases = leases
        self._gates = gates
        self._observer = observer
        self._questions = questions
        self._woken = woken
        self._horizon = Horizon(desk.tick)
        self._manifest = Manifest(line, desk)
        # In doubt: which attempt, and since when the provider has not known it.
        self._absent: dict[UUID, tuple[int, float]] = {}
        self._nobodys_at = 0.0

    async def run(self, stop: asyncio.Event) -> None:
        """Sweep until *stop*. A provider that hangs holds up nothing but the doubts about it."""
        async with asyncio.TaskGroup() as group:
            resolving = group.create_task(self._resolving())
            await self._duty(stop)
            resolving.cancel()  # questions change nothing

    async def _resolving(self) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            try:
                await self._doubts()
                if self._desk.tick() >= self._nobodys_at:
                    await self._nobodys_doubts()
                    await self._forget()
                    self._nobodys_at = self._desk.tick() + NOBODYS_S
            except DatabaseDown:
                await asyncio.sleep(1.0)

    async def _duty(self, stop: asyncio.Event) -> None:
        weeks_at, sample_at, horizon_at = 0.0, 0.0, 0.0
        while not await sleep_unless(stop, LOOK_S):
            now = self._desk.tick()
            try:
                if await self._line.fetch("free_order", 500, ORDER_HOLD_S):
                    self._woken()
                if now >= weeks_at:
                    await self._line.ask("SELECT outrider.make_weeks()")
                    weeks_at = now + WEEKS_S
                if now >= horizon_at:
                    await self._look_at_the_horizon()
                    horizon_at = now + HORIZON_S
                if now >= sample_at:
                    await self._sample()
                    sample_at = self._desk.tick() + max(1.0, SAMPLE_SHARE * (self._desk.tick() - now))
            except DatabaseDown:
                await sleep_unless(stop, 1.0)

    async def _look_at_the_horizon(self) -> None:
        fresh = self._horizon.seen(await self._line.fetch("horizon"))
        self._observer.vacuum_held = self._horizon.culprit
        if fresh is not None:
            self._observer.trouble(str(fresh))

    async def _sample(self) -> None:
        self._observer.backlog(await self._line.ask("SELECT * FROM outrider.backlog"))

    async def _doubts(self) -> None:
        # Nothing is asked before: what holds its successors is looked for before they may pass it. Once they have, one
        # of theirs with the same words could be taken for it.
        await self._look_into([lane for lane, group in self._desk.lanes.items() if group in self._leases.held])

    async def _nobodys_doubts(self) -> None:
        doubtful = frozenset(row["lane"] for row in await self._line.fetch("lanes_apart", "unknown"))
        if lanes := await self._manifest.unserved(doubtful):
            await self._look_into(lanes)

    async def _look_into(self, lanes: list[str]) -> None:
        # Those about one recipient one by one: of identical texts each must know what the one before was credited with.
        alike: dict[str | None, list[Record]] = {}
        for row in await self._line.fetch("doubts", lanes, DOUBTS, NEXT_LOOK_S):
            alike.setdefault(row["recipient"], []).append(row)
        async with asyncio.TaskGroup() as group:
            for rows in alike.values():
                group.create_task(self._resolve_all(rows))

    async def _resolve_all(self, rows: Sequence[Record]) -> None:
        with suppress(DatabaseDown):  # their next look is soon
            for row in rows:
                await self._resolve(row)

    async def _resolve(self, row: Record) -> None:
        """Look into one doubt: evidence first, then the policy of its intent."""
        if row["heard"] is not None and RANKS[row["heard"]] >= RANKS[Status.ACCEPTED]:
            await self._found(row, Accepted(None, row["heard"]), "a receipt had come")
            return
        finding = await self._ask(row)
        if isinstance(finding, Accepted):
            await self._found(row, finding, "the provider, when asked, knew it")
            return
        now = self._desk.now()
        since = row["since"].timestamp() if row["since"] is not None else now
        step = next_step(
            now=now,
            since=since,
            absent_since=self._absent_since(row, finding, now),
            askable=finding is not None,
            dispatched=row["provider"] is not None,
            policy=self._policy(row),
            resolve_for_s=self._desk.settings.intent(row["intent"] or "").resolve_for,
            expires_at=row["useless_at"].timestamp() if row["useless_at"] is not None else None,
            canceled=row["id"] in self._desk.canceled,
        )
        match step:
            case Decide(status, reason):
                await self._decide(row, status, reason)
            case Look(at):
                await self._line.ask(
                    "UPDATE outrider.queue SET due_at = to_timestamp($2) WHERE id = $1 AND state = 'unknown'",
                    row["id"],
                    at,
                )

    def _absent_since(self, row: Record, finding: Finding | None, now: float) -> float | None:
        """Since when its provider has known nothing of this very attempt."""
        if not isinstance(finding, Absent):
            self._absent.pop(row["id"], None)
            return None
        attempt, since = self._absent.get(row["id"], (None, now))
        if attempt != row["attempts"]:
            since = now  # what was said of an earlier one says nothing of this
        self._absent[row["id"]] = row["attempts"], since
        if len(self._absent) > ABSENT_MAX:
            del self._absent[next(iter(self._absent))]
        return since

    def _policy(self, row: Record) -> str:
        policy: str = row["on_ambiguous"] or self._desk.settings.intent(row["intent"] or "").on_ambiguous
        # Sent again it would end as refused, as if it had never left.
        return OnAmbiguous.RESOLVE if policy == OnAmbiguous.RESEND and row["lane"] not in self._desk.lanes else policy

    async def _forget(self) -> None:
        """Let go of what is in doubt no more."""
        if not self._absent:
            return
        rows = await self._line.ask(
            "SELECT id, attempts FROM outrider.queue"
            " WHERE id = ANY ($1::uuid[]) AND state IS NOT DISTINCT FROM 'unknown'",
            list(self._absent),
        )
        still = {row["id"]: row["attempts"] for row in rows}
        self._absent = {id: one for id, one in self._absent.items() if still.get(id) == one[0]}

    async def _ask(self, row: Record) -> Finding | None:
        """Ask the provider, or all whom it may have been sent by; None where none can be asked."""
        senders = self._desk.senders_of(row)
        if row["since"] is None or len(senders) > WHO_MAX:
            return None
        findings = [await self._ask_about(row, sender) for sender in senders]
        known = [one for one in findings if isinstance(one, Accepted)]
        unclear = [one for one in findings if not isinstance(one, Absent)]  # one that cannot be asked proves nothing
        return known[0] if known else unclear[0] if unclear else Absent() if findings else None

    async def _ask_about(self, row: Record, sender: str) -> Finding | None:
        gate = self._gates.get(row["provider"] or self._desk.provider_of(sender) or "")
        if gate is None:
            return None
        attempt = self._attempt(row, gate.name, sender)
        if not attempt.text and not row["media"]:
            return Unclear("its text cannot be told any more: a template has changed")
        question = gate.dialect.find(attempt)
        if question is None:
            return None
        async with self._questions:
            answer = await gate.link.exchange(question, deadline_s=gate.timeout_s)
        if isinstance(answer, Unreachable | Uncertain):
            return Unclear(answer.reason)
        named = gate.dialect.named(answer)
        known = await self._line.fetch("known", named) if named else ()
        attempt = replace(attempt, known_references=frozenset(one["reference"] for one in known))
        finding = gate.dialect.found(attempt, answer)
        if isinstance(finding, Absent) and not self._tellable(row):
            return Unclear("nobody serves its lane any more: it may have had other words, or another number")
        return finding

    def _tellable(self, row: Record) -> bool:
        """Whether we know what was sent, and to whom: a lane that is not ours may have other templates and regions."""
        ours = row["lane"] in self._desk.lanes
        return ours or (row["template"] is None and plausible(row["recipient"] or ""))

    def _attempt(self, row: Record, provider: str, sender: str) -> Attempt:
        return Attempt(
            id=row["id"],
            attempt=row["attempts"],
            provider=provider,
            sender=sender,
            recipient=self._desk.number(row["recipient"] or "", row["service"] or "default"),
            text=self._desk.text_of(row["body"], row["template"], as_object(row["variables"])),
            segments=row["segments"] or 1,
            sent_at=row["since"].timestamp(),
        )

    async def _found(self, row: Record, accepted: Accepted, how: str) -> None:
        """It was sent: out of doubt. Told first: a kill in between must not leave the story without its end."""
        await self._story(row, how, accepted.reference)
        moment = row["since"]
        rank = RANKS[accepted.status]
        await self._line.fetch(
            "late", [row["id"]], [row["attempts"]], [accepted.status], [rank], [row["segments"]],
            [row["provider"] or self._desk.provider_of(accepted.sender or "")], [accepted.sender or row["sender"]],
            [accepted.reference], [moment],
        )  # fmt: skip
        self._absent.pop(row["id"], None)
        self._observer.resolved("accepted")

    async def _decide(self, row: Record, status: str, reason: str) -> None:
        """Nothing told: the decision, for all to read."""
        if await self._line.fetch(
            "decide",
            row["id"],
            row["attempts"],
            status,
            RANKS.get(status, 0) if status != "ready" else 0,
            reason,
        ):
            self._observer.resolved(status)
            self._absent.pop(row["id"], None)
            self._woken()

    async def _story(self, row: Record, reason: str, reference: str | None) -> None:
        await self._line.ask(
            "INSERT INTO outrider.attempt (id, attempt, kind, provider, sender, segments, outcome, reason, reference)"
            " VALUES ($1, $2, 'evidence', $3, $4, $5, 'accepted', $6, $7) ON CONFLICT (id, attempt, kind) DO NOTHING",
            row["id"], row["attempts"], row["provider"], row["sender"], row["segments"], reason, reference,
        )  # fmt: skip
