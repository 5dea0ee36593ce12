"""
Leases: this daemon alone speaks for a group of senders, and knows when it must fall silent.

A lease is 25 s in one row per group, judged by the database clock and renewed every 5 s. The holder starts no write
later than its own deadline, counted from *before* the renewal was sent on a clock that counts suspension, minus what
one exchange may take. Whoever takes a group over first reconciles the claims its last holder left open
(``recovery.py``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog

from daemon.database import DatabaseDown, sleep_unless

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Awaitable, Callable, Iterable, Mapping
    from uuid import UUID

    from daemon.database import Line

log = structlog.get_logger()

LEASE_S = 25.0  # at least: where exchanges may take longer than 15 s, the lease is longer too
RENEW_S = 5.0
SPEAK_S = 8.0  # how long after a renewal a write may start: one renewal and the next one late
MARGIN_S = 2.0  # between the last byte an exchange may write and the end of the lease
STATEMENTS = ("lease_take", "lease_renew", "lease_drop", "abandoned")


class Leases:
    """The groups this daemon holds, under which epoch and until when."""

    name = "leases"

    def __init__(
        self,
        line: Line,
        *,
        owner: UUID,
        groups: Callable[[], Iterable[str]],
        reconcile: Callable[[str, int], Awaitable[None]],
        tick: Callable[[], float],
        exchange_s: float,
        in_hand: Callable[[str], bool],
    ) -> None:
        self._line = line
        self._owner = owner
        self._groups = groups
        self._reconcile = reconcile
        self._tick = tick
        self._in_hand = in_hand
        self._lease_s = max(LEASE_S, SPEAK_S + exchange_s + MARGIN_S)
        self._speak_s = self._lease_s - exchange_s - MARGIN_S
        self._epochs: dict[str, int] = {}
        self._deadlines: dict[str, float] = {}

    @property
    def held(self) -> Mapping[str, int]:
        """The epoch under which each group is held."""
        return self._epochs

    def may_write(self, grp: str) -> bool:
        """Whether a send that starts now ends within the lease."""
        return self._tick() < self._deadlines.get(grp, 0.0)

    async def run(self, stop: asyncio.Event) -> None:
        """Take and renew until *stop*. The leases are dropped later, by :meth:`drop`, when nothing is in hand."""
        while not stop.is_set():
            try:
                await self._renew()
                await self._take()
                await self._leave()
            except DatabaseDown:
                await sleep_unless(stop, 0.5)
                continue
            await sleep_unless(stop, RENEW_S if set(self._groups()) <= set(self._epochs) else 1.0)

    def renounce(self) -> None:
        """Hold nothing any more, as far as we are concerned: each group is taken anew, and reconciled before that."""
        self._epochs.clear()
        self._deadlines.clear()

    async def drop(self) -> None:
        """Give back whatever has nothing in hand. The rest runs out: our own next run, whose log can tell, is first."""
        await self._drop([grp for grp in self._epochs if not self._in_hand(grp)])

    async def _drop(self, groups: list[str]) -> None:
        if groups:
            await self._line.fetch("lease_drop", self._owner, groups, [self._epochs[grp] for grp in groups])
            for grp in groups:
                del self._epochs[grp], self._deadlines[grp]

    async def _take(self) -> None:
        wanted = self._groups()
        # Groups nobody wants any more may have been left with open claims: settings changed, then a crash. Those first,
        # because their rows may stand in the lanes of another group now.
        left = [row["grp"] for row in await self._line.fetch("abandoned", list(wanted))] if wanted else []
        for grp in [*left, *sorted(wanted)]:
            if grp in self._epochs or self._in_hand(grp):
                continue
            before = self._tick()
            rows = await self._line.fetch("lease_take", grp, self._owner, self._lease_s)
            if not rows:
                continue  # somebody else speaks for it
            epoch = rows[0]["epoch"]
            await self._reconcile(grp, epoch)
            self._epochs[grp] = epoch
            self._deadlines[grp] = before + self._speak_s
            log.info("lease.taken", group=grp, epoch=epoch)

    async def _leave(self) -> None:
        """Give back what a reload has taken from us, once nothing of it is in hand."""
        wanted = set(self._groups())
        await self._drop([grp for grp in self._epochs if grp not in wanted and not self._in_hand(grp)])

    async def _renew(self) -> None:
        if not self._epochs:
            return
        before = self._tick()
        rows = await self._line.fetch(
            "lease_renew", self._owner, list(self._epochs), list(self._epochs.values()), self._lease_s
        )
        kept = {row["grp"] for row in rows}
        for grp in set(self._epochs) - kept:
            log.error("lease.lost", group=grp, epoch=self._epochs[grp])
            del self._epochs[grp], self._deadlines[grp]
        for grp in kept:
            self._deadlines[grp] = before + self._speak_s
