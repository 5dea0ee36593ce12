"""
The engine: every part of a running daemon, wired once.

What may be asked of it from outside is little: what to claim next (:meth:`Engine.wishes`), to open the database, to
take up new settings, and how it is.
"""

from __future__ import annotations

import os
import socket
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING

import structlog
from aiolimiter import AsyncLimiter

from daemon import __version__, identity, migrate
from daemon.auditor import STATEMENTS as AUDITOR
from daemon.auditor import Auditor
from daemon.core.routing import Sender
from daemon.courier import Courier
from daemon.database import DOWN, DatabaseDown, Line, as_said, dial
from daemon.desk import Desk
from daemon.fleet import Fleet
from daemon.inspector import STATEMENTS as INSPECTOR
from daemon.inspector import Inspector
from daemon.janitor import STATEMENTS as JANITOR
from daemon.janitor import Janitor
from daemon.lanes import Lanes
from daemon.leases import STATEMENTS as LEASES
from daemon.leases import Leases
from daemon.ledger import STATEMENTS as LEDGER
from daemon.ledger import Ledger
from daemon.outbox import BATCH, Outbox, Wish
from daemon.outbox import STATEMENTS as OUTBOX
from daemon.receipts import ReceiptBook
from daemon.reconciler import SLOW_STATEMENTS as RECONCILER_SLOW
from daemon.reconciler import STATEMENTS as RECONCILER
from daemon.reconciler import Reconciler
from daemon.recovery import DEBT_S, Recovery
from daemon.recovery import STATEMENTS as RECOVERY
from daemon.retention import Keeper
from daemon.router import Pool, Router
from daemon.signals import STATEMENTS as SIGNALS
from daemon.signals import Signals

if TYPE_CHECKING:
    from collections.abc import Mapping
    from uuid import UUID

    from daemon.clock import Clock
    from daemon.core.groups import Group
    from daemon.core.message import Message
    from daemon.gates import Gate
    from daemon.journal import Journal, Memory
    from daemon.observer import Observer
    from daemon.settings import Sender as SenderSettings
    from daemon.settings import Settings

log = structlog.get_logger()

QUESTIONS = 10  # questions to providers a second: a leaky bucket, where exactness does not matter


class Engine:
    """All the parts, and how they hang together."""

    def __init__(
        self,
        settings: Settings,
        clock: Clock,
        *,
        dsn: str,
        journal: Journal,
        memory: Memory,
        owner: UUID,
        observer: Observer,
        gates: Mapping[str, Gate],
    ) -> None:
        self.settings = settings
        self.owner = owner
        self.started = clock.now()
        self._clock = clock
        self._dsn = dsn
        self.journal = journal
        self._memory = memory
        self.claims, self.settlements, self.receipts, self.chores, self.looks, self.books = _lines(dsn, settings)
        self.gates = gates
        self.lanes = Lanes(tick=clock.tick, places={name: gate.places for name, gate in gates.items()})
        self.desk = desk = Desk(settings, clock, observer=observer)
        self.router = Router(self.lanes, gates, desk=desk)
        self.outbox = Outbox(
            self.claims, owner=owner, wishes=self.wishes, fences=lambda: self.leases.held, deliver=self._deliver,
            look_home=self.look_home, observer=observer, in_hand_max=settings.hands, tick=clock.tick,
            deaf=settings.database.deaf,
        )  # fmt: skip
        self.ledger = Ledger(self.settlements, journal, self.outbox, owner=owner, observer=observer)
        self.recovery = Recovery(
            self.chores, self.ledger, memory, self.lanes, owner=owner, now=desk.now, tick=clock.tick,
            provider_of=desk.provider_of, group_of=desk.group_of, cost=desk.cost,
        )  # fmt: skip
        self.withdrawn = False  # whether it takes no share of the groups any more: it is stopping
        self.leases = Leases(
            self.chores, owner=owner, groups=self._groups, digest=self._digest, journal=journal,
            reconcile=self.recovery.reconcile, tick=clock.tick, in_hand=self.outbox.holds, release=self.lanes.release,
            taken=self.announce, exchange_s=max((gate.timeout_s for gate in gates.values()), default=0.0),
        )  # fmt: skip
        desk.leases = self.leases
        self.courier = Courier(desk, self.router, journal, self.ledger)
        self.fleet = Fleet(self.courier, self.lanes)
        self.signals = Signals(self.chores, desk, owner=owner, woken=self.outbox.wake, observer=observer)
        self.inspector = Inspector(self.looks, self.outbox, desk, observer)
        self._look_after(desk, observer)
        self.reload(settings)

    def _look_after(self, desk: Desk, observer: Observer) -> None:
        """Whoever asks providers afterwards shares one limit; the receipt book hears what they answer."""
        questions = AsyncLimiter(QUESTIONS, 1)
        self.janitor = Janitor(
            self.looks, desk, self.leases, self.gates, observer, questions=questions, woken=self.outbox.wake
        )
        self.keeper = Keeper(self._dsn, desk, pooled=self.settings.database.pooled)
        self.book = ReceiptBook(self.receipts, observer)
        self.reconciler = Reconciler(
            self.looks, self.books, desk, self.gates, book=self.book, questions=questions, observer=observer
        )
        self.auditor = Auditor(self.books, observer)

    def _deliver(self, message: Message) -> None:
        self.fleet.take(message)

    def reload(self, settings: Settings) -> None:
        """Take up *settings*: debt and logs are kept, and judged by the new rates."""
        self.settings = settings
        self._settled_groups = settings.groups()  # 150 µs for 200 senders, and asked for with every claim
        self._groups_of = {group.name: group for group in self._settled_groups}
        self._hash = settings.digest()
        self.desk.reload(settings)
        self.lanes.reload([_sender(sender) for sender in settings.senders])
        self.router.reload(
            {
                name: Pool(service.senders, sticky=service.sticky, default_region=service.default_region)
                for name, service in settings.services.items()
            }
        )
        self.leases.reload()
        self._levels_published = False
        self.outbox.in_hand_max = settings.hands
        self.outbox.wake()

    async def open(self, *, embedded: bool) -> None:
        """
        Everything that must be true before the first claim.

        Raises DatabaseDown (ask again), SchemaError, or TransactionPooler.
        """
        database = self.settings.database
        await as_said(self._dsn, pooled=database.pooled, listen=database.listen_url)
        connection = await dial(self._dsn, pooled=database.pooled)
        try:
            if embedded:
                await migrate.migrate(connection, report=lambda step: log.info("schema.migrated", step=step))
            else:
                await migrate.check(connection)
        except DOWN as trouble:
            raise DatabaseDown(str(trouble)) from trouble
        finally:
            connection.terminate()
        await self.look_home()
        await self.announce()
        await self.signals.begin()
        self.desk.warm()
        now = self._clock.tick()
        recent = [dispatch for dispatch in self._memory.dispatched.values() if now - DEBT_S < dispatch.tick <= now]
        self.lanes.remember(recent)
        await self.recovery.testify()
        self.journal.open()

    async def look_home(self) -> None:
        """Is this our database, and not a copy of it? Raises DatabaseDown."""
        home = await identity.at_home(self.claims)  # where rows are taken: other lines may still lead elsewhere
        if home.stranger != self.desk.held:
            if home.stranger:
                log.error("database.strange", reason=home.stranger)
            else:
                log.info("database.confirmed")
                # It may be older than what was sent: nothing leaves before the dispatch log has been held against it.
                told = self.journal.recall()
                told.in_the_works.clear()  # nobody has died of it
                self.recovery.remember(told)
                self.leases.renounce()
                await self.signals.begin()  # transaction numbers may have gone back
        self.desk.key, self.desk.held = home.token_key, home.stranger

    async def announce(self) -> None:
        """Tell other daemons, and whoever looks, that we are here. Raises DatabaseDown."""
        said = await self.chores.fetch(
            "announce", self.owner, socket.gethostname(), os.getpid(), __version__,
            datetime.fromtimestamp(self.started, UTC), self._hash, sorted(self.settings.services),
            list(self._groups_of), list(self.leases.held), list(self.leases.held.values()), bool(self._groups()),
        )  # fmt: skip
        if not self._levels_published:
            await self._publish_levels()
        self.desk.told_the_time(said[0]["now"])
        if self.leases.held and not said[0]["unreconciled"]:
            self.journal.forget_old()

    async def withdraw(self) -> None:
        """Take no share any more: others take what we let go of, as it comes home. Raises DatabaseDown."""
        self.withdrawn = True
        await self.announce()

    async def opt_out(self, recipient: str) -> None:
        """A person said stop: in force here before this returns, elsewhere within a second. Raises DatabaseDown."""
        await self.chores.ask("SELECT outrider.opt_out($1, '', 'said stop')", recipient)
        self.desk.opted_out.add(("", recipient))

    async def close(self) -> None:
        """Give the leases back, hang up, let go of the state folder."""
        try:
            await self.leases.drop()
        finally:
            for line in (self.claims, self.settlements, self.receipts, self.chores, self.looks, self.books):
                await line.close()
            self.journal.close()

    @property
    def full(self) -> Mapping[str, str | None]:
        """What has no room, and why."""
        lines = (self.claims, self.settlements, self.receipts, self.chores)
        state = self.journal.full and f"the dispatch log cannot be written: {self.journal.full}"
        return {"state": state, "database": "Postgres's disk is full" if any(one.full for one in lines) else None}

    def wishes(self, levels: frozenset[int]) -> list[Wish]:
        """What the senders can use soon, by lane and level."""
        now = self._clock.tick()
        if self.desk.held or self.desk.paused("all") or self.journal.full:
            return []
        return [
            Wish(group.name, lane, level, room)
            for group in self._settled_groups
            if self.leases.may_claim(group.name)
            for lane, senders in self._lanes_of(group.services, group.senders)
            if (free := self._free(senders, now))
            for level in sorted(levels)
            if (room := self._room(free, level))
        ]

    def _lanes_of(self, services: tuple[str, ...], senders: tuple[str, ...]) -> list[tuple[str, tuple[str, ...]]]:
        lanes = [
            (name, self.settings.services[name].senders) for name in services if not self.desk.paused(f"service:{name}")
        ]
        # Lanes of pinned senders are many and mostly empty: only those in which the inspector saw rows are asked for.
        pinned = {lane[1:] for lane in self.inspector.lanes_seen if lane.startswith("@")}
        if pinned:
            lanes += [(f"@{address}", (address,)) for address in senders if address in pinned]
        return lanes

    def _free(self, senders: tuple[str, ...], now: float) -> list[str]:
        if not self.router.hindered():
            return list(senders)
        return [address for address in senders if self.router.blocked(self.lanes[address].sender, now) is None]

    def _room(self, senders: list[str], level: int) -> int:
        room = self.lanes.room(senders, level, most=BATCH)
        if all(gate.quota() is None for gate in self.gates.values()):  # as nearly always
            return room
        quotas = {
            gate.name: gate.quota() for gate in {self.gates[self.lanes[address].sender.provider] for address in senders}
        }
        if None not in quotas.values():
            room = min(room, sum(quota for quota in quotas.values() if quota is not None))
        return room

    def _groups(self) -> Mapping[str, Group]:
        return {} if self.desk.held or self.withdrawn else self._groups_of

    def _digest(self) -> str:
        return self._hash

    async def _publish_levels(self) -> None:
        levels = {word.value: intent.level for word, intent in self.settings.intents.items()}
        await self.chores.ask(
            "UPDATE outrider.intent i SET level = w.level FROM unnest($1::text[], $2::smallint[]) AS w (word, level)"
            " WHERE i.word = w.word AND i.level <> w.level",
            list(levels), list(levels.values()),
        )  # fmt: skip
        self._levels_published = True


def _lines(dsn: str, settings: Settings) -> tuple[Line, ...]:
    line = partial(Line, dsn=dsn, pooled=settings.database.pooled)
    return (
        # Wary: what answers now may be another database than a moment ago (outbox.py looks home before it claims).
        line("claims", statements=OUTBOX, hot=True, wary=True),
        line("settlements", statements=LEDGER, hot=True),
        line("receipts", statements=("receive", "inbound"), hot=True),
        line("chores", statements=(*LEASES, *RECOVERY, *SIGNALS, "announce")),
        line("looks", statements=(*INSPECTOR, *JANITOR, *RECONCILER), hot=True),
        line("books", statements=(*RECONCILER_SLOW, *AUDITOR)),
    )


def _sender(sender: SenderSettings) -> Sender:
    return Sender(
        address=sender.address,
        provider=sender.provider,
        kind=sender.type.value,
        country=sender.country,
        rate=sender.rate,
    )
