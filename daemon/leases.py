"""
Leases: this daemon alone speaks for a group of senders, and knows when it must fall silent.

A lease is 25 s in one row per group, judged by the database clock and renewed every 5 s. The holder starts no write
later than its own deadline, counted from *before* the renewal was sent on a clock that counts suspension, minus what
one exchange may take. Whoever takes a group over first reconciles the claims its last holder left open
(``recovery.py``).

Daemons of the same settings share the groups (decided in ``core/spread.py``). Of what is to go to another nothing more
is claimed; when what is in hand has come home its lease is given back, and the other takes it at its next look. So does
a group that a reload has changed: a lease names the senders and services it is for, and is for no others.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import structlog

from daemon.core.groups import Group
from daemon.core.spread import ours
from daemon.database import DatabaseDown, sleep_unless

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Awaitable, Callable, Mapping, Sequence
    from uuid import UUID

    from daemon.database import Line
    from daemon.journal import Journal

log = structlog.get_logger()

LEASE_S = 25.0  # at least: where exchanges may take longer than 15 s, the lease is longer too
RENEW_S = 5.0
SPEAK_S = 8.0  # how long after a renewal a write may start: one renewal and the next one late
MARGIN_S = 2.0  # between the last byte an exchange may write and the end of the lease
LOOK_S, LEAVING_S = 0.5, 0.1  # how often one looks what is free; and whether what is to go has come home
ALIVE_S = 15.0  # a daemon that has not been seen for longer shares in nothing: it describes itself every 5 s
MUTE_S = 10.0  # how long nothing is taken after the dispatch log could not be written
STATEMENTS = ("lease_take", "lease_renew", "lease_drop", "lease_look", "peers", "abandoned")


class Taken(NamedTuple):
    """A lease just taken, and what is known of its last holder."""

    grp: str
    epoch: int
    senders: Sequence[str]  # who goes on; nobody, when it is taken only to be judged
    last_owner: UUID | None = None  # None: nobody ever held it
    last_epoch: int | None = None
    silent_s: float | None = None  # for how long its last holder has written nothing; less than nought: it might have
    last_senders: Sequence[str] | None = None  # for whom its last holder spoke


class Leases:
    """The groups this daemon holds, under which epoch and until when."""

    name = "leases"

    def __init__(
        self,
        line: Line,
        *,
        owner: UUID,
        groups: Callable[[], Mapping[str, Group]],
        digest: Callable[[], str],
        journal: Journal,
        reconcile: Callable[[Taken], Awaitable[None]],
        tick: Callable[[], float],
        exchange_s: float,
        in_hand: Callable[[str], bool],
        release: Callable[[Sequence[str]], None],
        taken: Callable[[], Awaitable[None]],
    ) -> None:
        self._line = line
        self._owner = owner
        self._groups = groups  # of our settings, by name
        self._digest = digest
        self._journal = journal
        self._reconcile = reconcile
        self._tick = tick
        self._in_hand = in_hand
        self._release = release
        self._taken = taken  # told at once: what earlier runs have left may be of no more use
        self._lease_s = max(LEASE_S, SPEAK_S + exchange_s + MARGIN_S)
        self._speak_s = self._lease_s - exchange_s - MARGIN_S
        self._epochs: dict[str, int] = {}
        self._deadlines: dict[str, float] = {}
        self._named: dict[str, Group] = {}  # for whom we speak, and what we carry, under each
        self._voices: dict[str, frozenset[str]] = {}  # of those the senders
        self._parting: set[str] = set()  # held, and to go to another daemon, or to be taken anew
        self._renew_at = 0.0
        self._mute_until = 0.0

    @property
    def held(self) -> Mapping[str, int]:
        """The epoch under which each group is held."""
        return self._epochs

    def may_write(self, grp: str) -> bool:
        """Whether a send that starts now ends within the lease."""
        return self._tick() < self._deadlines.get(grp, 0.0)

    def speaks_for(self, grp: str, sender: str) -> bool:
        """Whether a send of *sender* under the lease of *grp* may start now: the lease names it, and lasts."""
        return self.may_write(grp) and sender in self._voices[grp]

    def may_claim(self, grp: str) -> bool:
        """Whether more of *grp* may be taken in hand."""
        return self.may_write(grp) and grp not in self._parting

    async def run(self, stop: asyncio.Event) -> None:
        """Take, renew and give back until *stop*. Whatever has something in hand then is dropped by :meth:`drop`."""
        while not stop.is_set():
            before = set(self._epochs)
            try:
                await self._renew_if_due()
                await self._take()
                if self._epochs.keys() - before:
                    await self._taken()
                await self._leave()
            except DatabaseDown:
                self._renew_at = 0.0
                await sleep_unless(stop, 0.5)
                continue
            await sleep_unless(stop, LEAVING_S if self._epochs.keys() - self._kept() else LOOK_S)

    def reload(self) -> None:
        """Our settings have changed: of groups that are others now nothing is claimed until they are taken anew."""
        self._parting |= self._regrouped(self._groups())

    def renounce(self) -> None:
        """Hold nothing any more, as far as we are concerned: each group is taken anew, and reconciled before that."""
        self._epochs.clear()
        self._deadlines.clear()
        self._named.clear()

    async def drop(self) -> None:
        """Give back whatever has nothing in hand. The rest runs out: our own next run, whose log can tell, is first."""
        await self._drop([grp for grp in self._epochs if not self._in_hand(grp)])

    async def _drop(self, groups: list[str]) -> None:
        if groups:
            await self._line.fetch("lease_drop", self._owner, groups, [self._epochs[grp] for grp in groups])
            for grp in groups:
                log.info("lease.given", group=grp, epoch=self._epochs[grp])
                self._lose(grp)

    async def _take(self) -> None:
        wanted = self._groups()
        if not wanted or self._tick() < self._mute_until:
            return
        mine = await self._mine(wanted)
        self._parting = self._epochs.keys() & (wanted.keys() - mine) | self._regrouped(wanted)
        for group in [*await self._left(wanted), *(wanted[grp] for grp in sorted(mine))]:
            grp = group.name
            if grp not in self._epochs and not self._in_hand(grp) and self._tick() >= self._mute_until:
                await self._take_one(group, heirs=wanted[grp].senders if grp in wanted else ())
                await self._renew_if_due()  # what a dead daemon left may take long to judge

    def _regrouped(self, wanted: Mapping[str, Group]) -> set[str]:
        return {grp for grp, named in self._named.items() if grp in wanted and named != wanted[grp]}

    async def _left(self, wanted: Mapping[str, Group]) -> list[Group]:
        """
        Groups nobody wants any more may have been left with open claims: settings changed, then a crash. Those are
        taken first, because their rows may stand in the lanes of another group now, and by the names they were held by:
        nobody else takes those until all is judged, and they are given back.
        """
        rows = await self._line.fetch("abandoned", list(wanted), self._owner)
        if rows:  # as hardly ever
            voices = {sender for group in wanted.values() for sender in group.senders}
            carried = {service for group in wanted.values() for service in group.services}
        return [
            Group(name=row["grp"], services=tuple(row["services"]), senders=tuple(row["senders"]))
            for row in rows
            if row["ours"] or voices.intersection(row["senders"]) or carried.intersection(row["services"])
        ]

    async def _mine(self, wanted: Mapping[str, Group]) -> set[str]:
        """Those of *wanted* that are ours to speak for, as things stand."""
        rows = await self._line.fetch("lease_look", list(wanted))
        peers = await self._line.fetch("peers", self._digest(), ALIVE_S)
        return ours(
            wanted,
            me=self._owner,
            peers=[row["id"] for row in peers],
            holders={row["grp"]: row["owner"] for row in rows if row["held"]},
            idle_s={row["grp"]: row["idle_s"] for row in rows},
        )

    async def _take_one(self, group: Group, *, heirs: Sequence[str]) -> None:
        grp, before = group.name, self._tick()
        rows = await self._line.fetch(
            "lease_take", grp, self._owner, self._lease_s, self._speak_s, group.senders, group.services, self._digest(),
            ALIVE_S,
        )  # fmt: skip
        if not rows:
            return  # somebody else speaks for it
        epoch, *last = rows[0]
        taken = Taken(grp, epoch, heirs, *last)
        try:
            self._journal.leased(grp, taken.epoch)
        except OSError:  # of claims under a lease it does not know the log could not tell
            self._mute_until = before + MUTE_S  # and another has a chance
            await self._line.fetch("lease_drop", self._owner, [grp], [taken.epoch])
            return
        await self._reconcile(taken)
        self._epochs[grp] = taken.epoch
        self._named[grp], self._voices[grp] = group, frozenset(group.senders)
        self._deadlines[grp] = before + self._speak_s
        log.info("lease.taken", group=grp, epoch=taken.epoch)

    def _kept(self) -> set[str]:
        return set(self._groups()) - self._parting

    async def _leave(self) -> None:
        """Give back what is not ours any more (other settings, another's share, the end), once nothing is in hand."""
        leaving = self._epochs.keys() - self._kept()
        for grp in leaving & self._parting:
            for group in (self._named[grp], self._groups().get(grp)):
                if group is not None:
                    self._release(group.senders)  # who waits for a turn may as well wait for it there
        await self._drop([grp for grp in leaving if not self._in_hand(grp)])

    async def _renew_if_due(self) -> None:
        before = self._tick()
        if before >= self._renew_at:
            await self._renew()
            self._renew_at = before + RENEW_S

    async def _renew(self) -> None:
        if not self._epochs:
            return
        before = self._tick()
        rows = await self._line.fetch(
            "lease_renew", self._owner, list(self._epochs), list(self._epochs.values()), self._lease_s, self._speak_s
        )
        kept = {row["grp"] for row in rows}
        for grp in set(self._epochs) - kept:
            log.error("lease.lost", group=grp, epoch=self._epochs[grp])
            self._lose(grp)
        for grp in kept & self._epochs.keys():  # unless renounced meanwhile
            self._deadlines[grp] = before + self._speak_s

    def _lose(self, grp: str) -> None:
        self._epochs.pop(grp, None)
        self._deadlines.pop(grp, None)
        self._named.pop(grp, None)
        self._parting.discard(grp)
