"""
The world: a clock that jumps from event to event, an application, providers, several daemons, and a nemesis.

Everything that happens comes out of one heap of (when, what), and every throw of dice out of one seed: the same seed is
the same world to the last bit, whatever it holds. Nothing here waits, and nothing asks what time it really is.
"""

from __future__ import annotations

import random
from heapq import heappop, heappush
from typing import TYPE_CHECKING, Any
from uuid import UUID

from daemon.core.backoff import Patience
from daemon.core.groups import groups
from daemon.core.lifecycle import REPLAYABLE, Status
from daemon.core.message import Message
from daemon.core.routing import Sender
from tests.simulation import laws
from tests.simulation.boat import Boat, Down, Killed
from tests.simulation.laws import FINAL, Laws, Life, broken
from tests.simulation.luck import Luck
from tests.simulation.nemesis import Nemesis
from tests.simulation.provider import Provider
from tests.simulation.store import Store

if TYPE_CHECKING:
    from collections.abc import Callable

S = Status
SENDERS = (("s0", "p0", 3), ("s1", "p1", 10), ("s2", "p2", 20), ("s3", "p1", 1))  # address, provider, segments a second
POOLS = {"alpha": ("s0", "s1"), "beta": ("s1",), "gamma": ("s2",), "@s3": ("s3",)}
LANES = ("alpha", "alpha", "alpha", "beta", "gamma", "gamma", "gamma", "gamma", "alpha", "@s3")  # as often as here
SEGMENTS = (1, 1, 1, 1, 1, 1, 1, 2, 3, 5)
INTENTS = (("otp", 1), ("delivery", 2), ("marketing", 3), ("marketing", 3), ("marketing", 3))
POLICIES = {"otp": ("resend", 8.0), "delivery": ("resolve", 75.0), "marketing": ("drop", 20.0)}
HASTY = {"otp": ("resend", 3.0), "delivery": ("resend", 20.0), "marketing": ("resend", 6.0)}
LIVELY_S = 3 * 3600.0  # within this, without faults, everything must have come to rest

KINDS = (
    "insert", "receipt", "gossip", "trouble", "chore", "failover", "reconcile", "thaw", "blow", "boot", "renew", "look", "resolve", "turn",
    "leave", "write", "answer", "flush", "clear",
)  # fmt: skip


class World:
    """One seed's world. :meth:`live` until it has taken so many steps, then :meth:`rest`."""

    (INSERT, RECEIPT, GOSSIP, TROUBLE, CHORE, FAILOVER, RECONCILE, THAW, BLOW, BOOT, RENEW, LOOK, RESOLVE, TURN, LEAVE, WRITE,
     ANSWER, FLUSH, CLEAR) = range(len(KINDS))  # fmt: skip

    def __init__(self, seed: int, *, tell: Callable[[str], None] | None = None) -> None:
        self.seed = seed
        self.random = random.Random(seed)
        self.dice = self.random.random
        self.tell = tell
        self.luck = luck = Luck.drawn(self.dice)
        self.now = 1_000_000.0
        self.steps = self.crashes = self.failovers = 0
        self.store, self.laws, self.nemesis = Store(), Laws(), Nemesis(self)
        self.senders = [
            Sender(address=address, provider=provider, kind="long_code", country="US", rate=rate)
            for address, provider, rate in SENDERS
        ]
        self.providers = {
            "p0": Provider(self, "p0"),
            "p1": Provider(self, "p1", askable=True),
            "p2": Provider(self, "p2", askable=True, idempotent=True),
        }
        self.pools, self.policies = POOLS, HASTY if luck.haste else POLICIES
        services = {name: pool for name, pool in POOLS.items() if not name.startswith("@")}
        found = groups(services, senders=[address for address, _, _ in SENDERS])
        self.groups = [group.name for group in found]
        self.senders_of = {group.name: group.senders for group in found}
        self.group_of = {name: group.name for group in found for name in POOLS if POOLS[name][0] in group.senders}
        self.lanes_of = {
            grp: [(name, POOLS[name]) for name in POOLS if self.group_of[name] == grp] for grp in self.groups
        }
        self.patience = Patience(3, 2.0, 30.0)
        self.last_owner: dict[str, int] = {}
        self.signals: list[tuple[str, object]] = []
        self.cancellations: list[Life] = []
        self.opted_out: dict[str, float] = {}
        self.paused: set[str] = set()
        self.held = False
        self.snapshot: tuple[float, object] | None = None
        self.down_until = 0.0
        self.faults = True
        self.lives: list[Life] = []
        self.lost = 0
        self.sent: list[tuple[Life, int]] = []  # what left lately: somebody may still gossip about it
        self.heads: dict[tuple[str, str], Life] = {}
        self._heap: list[tuple[float, int, int, Boat | None, int, object]] = []
        self._number = 0
        self.light()
        self.spring()
        self.unstall()
        self.boats = [Boat(self, owner) for owner in range(3)]
        for boat in self.boats:
            self.at(self.dice(), self.BOOT, None, boat)
        for kind in (self.INSERT, self.GOSSIP, self.TROUBLE, self.CHORE):
            self.at(1.0, kind)

    # Time.

    def at(self, wait: float, kind: int, boat: Boat | None = None, what: object = None) -> None:
        """*kind* happens in *wait* seconds; to *boat*, if its process still lives then."""
        self._number += 1
        heappush(self._heap, (self.now + wait, self._number, kind, boat, boat.run if boat is not None else 0, what))

    def live(self, steps: int) -> None:
        """Take so many steps."""
        self._run(self.steps + steps, float("inf"))

    def rest(self) -> None:
        """Without faults and new messages, everything comes to rest in time; then nothing may be amiss."""
        self.faults = False
        self.paused.clear()
        self.signals.append(("pause", None))
        for provider in self.providers.values():
            provider.mode = "well"
        self.down_until = 0.0
        self.snapshot = None
        end = self.now + LIVELY_S
        while any(row.state is not None for row in self.store.rows.values()) and self.now < end:
            self._run(self.steps + 1000, end)
        self._judge()

    def _run(self, upto: int, until: float) -> None:
        heap, hash_, laws_ = self._heap, hash, self.laws
        insert, receipt, gossip, trouble = self.insert, self.receipt, self.gossip, self.trouble
        own = (
            insert,
            receipt,
            gossip,
            trouble,
            self.chore,
            self.failover,
            self.reconcile,
            self.thaw,
            self.blow,
            self.boot,
        )
        while self.steps < upto and heap:
            at, _, kind, boat, run, what = heappop(heap)
            if boat is not None:
                if boat.run != run:
                    continue
                if boat.frozen_until > at:
                    boat.put_off.append((kind, run, what))
                    continue
            if at > until:
                self.now = until
                break
            self.now = at
            self.steps += 1
            laws_.trace = hash_((laws_.trace, at, kind))
            if self.tell is not None:
                self.tell(f"{at - 1e6:10.3f} {KINDS[kind]}{f' boat {boat.owner}' if boat else ''} {_named(what)}")
            if boat is None:
                if kind == self.CLEAR:
                    self.clear(what)
                else:
                    own[kind](what)
                continue
            try:
                _DOES[kind](boat, what)
            except Killed:
                self.kill(boat)
            except Down:  # in the middle of a handler that has nothing to make good
                pass

    # The fuses: each counts down to the next fault of its kind.

    def light(self) -> None:
        self.fuse = 1 + int(6000 / self.luck.kills * self.dice()) if self.faults else 1 << 60

    def spring(self) -> None:
        self.leak = 1 + int(800 / self.luck.leaks * self.dice()) if self.faults else 1 << 60

    def unstall(self) -> None:
        self.stall = 1 + int(1500 * self.dice()) if self.faults else 1 << 60

    def cut(self) -> None:
        """A named crash point: here a process may be gone."""
        self.fuse -= 1
        if self.fuse <= 0:
            self.light()
            if self.faults:
                raise Killed

    def kill(self, boat: Boat) -> None:
        self.crashes += 1
        if self.tell is not None:
            self.tell(f"           boat {boat.owner} is killed")
        boat.die()
        # What another machine's memory cannot tell stays in doubt until it has been judged, however often we are killed.
        unjudged = boat.log_lost and any(
            claim.owner == boat.owner and claim.taken_at <= boat.log_lost_at for claim in self.store.claims.values()
        )
        boat.log_lost = self.snapshot is None and not self.held and self.dice() < 0.1
        if boat.log_lost:
            for said in boat.log.values():  # a yes that stood there alone is gone with it
                if said.word is not None and not said.settled:
                    said.row.yes = said.row.status is not None and laws.RANK[said.row.status] >= 10
            boat.log.clear()
            boat.log_lost_at = self.now
        boat.log_lost = boat.log_lost or unjudged
        # A machine takes longer to come back than a process, and than the longest message its sender.
        wait = (10.0 if boat.log_lost else 0.5) + 30.0 * self.dice() ** 3
        boat.up_at = self.now + wait
        self.at(wait, self.BOOT, None, boat)

    def boot(self, boat: object) -> None:
        assert isinstance(boat, Boat)
        if not boat.up and self.now >= boat.up_at:
            boat.boot()

    # The application.

    def insert(self, _: object) -> None:
        if not self.faults:
            return
        dice, id = self.dice, len(self.lives) + 1
        self.at(self.luck.every_s * 2 * dice(), self.INSERT)
        if self.nemesis.quiet:
            return
        lane = LANES[int(10 * dice())]
        intent, level = INTENTS[int(5 * dice())]
        key = f"k{int(3 * dice())}" if dice() < 0.15 else None
        life = dice() - self.luck.fleeting
        expires_at = self.now + (4.0 if life < 0 else 20.0 if life < 0.1 else 90.0) if life < 0.27 else None
        row = Life(id, lane, level, key=key, expires_at=expires_at)
        row.service, row.recipient, row.intent = lane, f"+1202555{int(10_000 * dice() ** 3):04}", intent
        row.policy = ("resolve", "resend", "drop")[int(3 * dice())] if dice() < self.luck.wilful else None
        row.segments = SEGMENTS[int(10 * dice())]
        row.message = Message(
            UUID(int=id), 0, 0, lane, level, UUID(int=0), "", "", "sms", lane, None, None, None, None, (), intent, 0.0, 0.0,
            None, key, None,
        )  # fmt: skip
        if key is not None:
            row.previous = self.heads.get((lane, key))
            self.heads[lane, key] = row
        self.lives.append(row)
        self.store.insert(row, self.now)
        if dice() < 0.02:  # the inspector finds it unfit before anybody takes it
            status = (S.FAILED, S.SUPPRESSED, S.EXPIRED)[int(3 * dice())]
            if self.store.refuse(row, 0, status, "unfit"):
                self.laws.step(row, laws.REFUSE, S.QUEUED)

    def chore(self, _: object) -> None:
        """What people do, and duty: cancel, replay, opt out, pause, free what waits behind nobody."""
        if self.now < self.down_until:
            self.at(1.0, self.CHORE)
            return
        dice, lives = self.dice, self.lives
        self.at(0.5 + dice(), self.CHORE)
        self.store.free_order(self.now, 60.0)
        if not self.faults:
            return
        for _ in range(3):
            row = lives[max(0, len(lives) - 1 - int(60 * dice() ** 2))] if lives else None
            if row is not None and not row.lost and dice() < 0.12:
                self._cancel(row)
        pick = self.laws.odd[laws.ODD[int(len(laws.ODD) * dice())]]
        if pick and not pick[-1][0].lost:
            self._cancel(pick[-1][0])
        ended = [row for row in lives[-400:] if row.status in REPLAYABLE and not row.lost]
        if ended and dice() < 0.5:
            self._replay(self.random.choice(ended))
        if lives and dice() < 0.1:
            who = self.random.choice(lives[-50:]).recipient
            if who not in self.opted_out:
                self.opted_out[who] = self.now
                self.signals.append(("opt_out", who))
        if self.paused or dice() < 0.01:
            if self.paused and dice() < 0.3:
                self.paused.clear()
            else:
                self.paused.add(self.random.choice(("all", "alpha", "gamma", "beta")))
            self.signals.append(("pause", None))

    def _cancel(self, row: Life) -> None:
        before = row.where()
        said = self.store.cancel(row)
        if said != "too_late":
            row.canceled_at = self.now
            if said == "requested":
                self.cancellations.append(row)
                self.signals.append(("cancel", row.id))
        self.laws.step(row, laws.CANCEL, before)

    def _replay(self, row: Life) -> None:
        before = row.where()
        # Not while its last attempt is still on the wire: its answer would be taken for that of the next.
        if row.state is None and self.store.replay(row, self.now):
            row.licences += 1
            row.top, row.yes, row.canceled_at = 0, False, None
            if row in self.cancellations:
                self.cancellations.remove(row)
                self.signals.append(("replay", row.id))
            self.laws.step(row, laws.REPLAY, before)

    # Receipts.

    def receipt(self, what: Any) -> None:
        """A provider calls; when nobody can write it down it comes again, a few times."""
        row, attempt, word, tries = what
        if row.lost:
            return
        if self.now < self.down_until or not any(boat.up and boat.frozen_until <= self.now for boat in self.boats):
            if tries < 4:
                self.at(5.0 * 2**tries, self.RECEIPT, None, (row, attempt, word, tries + 1))
            return
        before = row.where()
        bad = word is S.UNDELIVERED or word is S.FAILED
        self.store.receive(row, attempt, word, "30003" if bad else "", final=laws.RANK[word] >= 40)
        if laws.RANK[word] >= 50:
            row.arrived = True
        row.yes = row.yes or (row.status is not None and laws.RANK[row.status] >= 10)
        self.laws.step(row, laws.TOLD[word], before)

    def gossip(self, _: object) -> None:
        """A provider says something again, or out of turn, or against what it said before."""
        if not self.faults:
            return
        dice = self.dice
        self.at(self.luck.gossip_s * 2 * dice(), self.GOSSIP)
        roll, sent = dice(), self.sent
        if roll < 0.4:
            here = laws.ODD[int(len(laws.ODD) * dice())]
            pick = self.laws.odd[here]
            while pick and pick[-1][0].where() is not here:  # it has moved on
                pick.pop()
            if here in laws.OPEN and (dice() < 0.8 or not self.luck.tattle):  # else no doubt would ever end otherwise
                pick = []
        elif self.luck.tattle:
            pick = sent[-8:] if roll < 0.8 else sent  # the newest are still on the wire
        else:
            pick = []
        if pick:
            row, attempt = pick[-1] if roll < 0.4 else pick[int(len(pick) * dice())]
            word = tuple(laws.TOLD)[int(6 * dice() ** 1.5)]
            self.receipt((row, attempt, word, 9))
        if len(sent) > 300:
            del sent[:150]

    # Trouble: when it comes, the nemesis says.

    def trouble(self, _: object) -> None:
        if self.faults:
            self.nemesis.strike()

    def blow(self, _: object) -> None:
        if self.faults:
            self.nemesis.blow()

    def freeze(self, boat: Boat, until: float) -> None:
        """Its process stands still: what happens to it happens when it goes on."""
        boat.frozen_until = until
        self.at(until - self.now, self.THAW, None, boat)

    def thaw(self, boat: object) -> None:
        assert isinstance(boat, Boat)
        if boat.frozen_until <= self.now:
            for kind, run, what in boat.put_off:
                self._number += 1
                heappush(self._heap, (self.now, self._number, kind, boat, run, what))
            boat.put_off.clear()

    def clear(self, provider: object) -> None:
        assert isinstance(provider, Provider)
        provider.mode = "well"

    def failover(self, _: object) -> None:
        """It is promoted: what was committed since is undone. Whoever connects again finds another timeline, and holds."""
        if self.snapshot is None:
            return
        since, snapshot = self.snapshot
        self.snapshot = None
        self.failovers += 1
        for row in self.store.rows.values():
            assert isinstance(row, Life)
            row.excused = row.excused or any(what in {"resend", "replayed"} for _, what in row.story)
            row.overtook = row.overtook or row.skipped
        for row in self.store.restore(snapshot):
            assert isinstance(row, Life)
            row.lost = True
            self.lost += 1
        for row in self.store.rows.values():
            assert isinstance(row, Life)
            row.top, row.arrived = 0, row.status in {S.DELIVERED, S.READ}
            row.yes = row.status is not None and laws.RANK[row.status] >= 10
            if row.state is not None:
                row.canceled_at = None  # the cancellation is undone as well
        self.laws.epochs = {grp: (lease.epoch, lease.owner) for grp, lease in self.store.leases.items()}
        self.held = True
        for boat in self.boats:
            boat.held = boat.untidy = True
            if boat.frozen_until > self.now + 3.0:  # the operator sees to it that all are up
                self.freeze(boat, self.now + 3.0)
            if not boat.log_lost:
                boat.up_at = self.now
                self.at(2.0 * self.dice(), self.BOOT, None, boat)
        self.nemesis.promoted()
        # Not only what left since: what left long before may have been settled since.
        self.at(3.0 + 3.0 * self.dice(), self.RECONCILE, None, since - 600.0)

    def reconcile(self, since: object) -> None:
        """The operator: every daemon is up and has compared its dispatch log, nobody has anything in hand; go on."""
        assert isinstance(since, float)
        ready = all(boat.up and boat.frozen_until <= self.now and not boat.hand for boat in self.boats)
        if not ready or self.now < self.down_until:
            self.at(1.0, self.RECONCILE, None, since)
            return
        for boat in self.boats:
            boat.reconcile_log(since)
            boat.held = False
        self.held = False

    # The end.

    def _judge(self) -> None:
        """Everything is at rest: nothing is lost, and nothing that was found out has been forgotten."""
        for row in self.store.rows.values():
            assert isinstance(row, Life)
            where = row.where()
            if row.state is not None:
                broken("liveness", f"{row.id} is still {where} ({row.reason}) after {LIVELY_S:.0f} s without faults")
            if row.status is None:
                broken("I1", f"{row.id} is lost")
            if row.yes and laws.RANK[where] < laws.RANK[S.ACCEPTED]:
                broken("I8", f"{row.id} is {where}, though a provider's yes was written down")
            if row.accepted == 0 and where in {S.ACCEPTED, S.SENT} and not row.posts:
                broken("I1", f"{row.id} is {where} and never left")
            if where not in FINAL and where not in {S.ACCEPTED, S.SENT}:
                broken("I1", f"{row.id} is {where} at the end")


_DOES: tuple[Callable[..., None], ...] = (
    *(Boat.boot,) * 10, Boat.renew, Boat.look, Boat.resolve, Boat.turn, Boat.leave, Boat.write_late, Boat.answer, Boat.flush,
    Boat.boot,
)  # fmt: skip


def _named(what: object) -> str:
    """Which message an event is about, for a reader."""
    one = what[0] if isinstance(what, tuple) else what
    row = one if isinstance(one, Life) else getattr(one, "row", None)
    rest = "" if not isinstance(what, tuple) else " ".join(str(more) for more in what[1:])
    return f"{row.id} ({row.where()}) {rest}" if isinstance(row, Life) else ""
