"""
One daemon of the world: what the shell of ``daemon/`` does between the decisions, and nothing it decides itself.

Courier, lanes, gates, ledger, journal, leases, recovery and janitor, without waiting: each handler is one moment of
virtual time. Every decision is the real ``core/``. The dispatch log outlives the process; everything else dies with it.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING
from uuid import UUID

from daemon.core import breaker, doubt, permission, routing, verdict
from daemon.core.lifecycle import RANKS, Status
from daemon.core.message import Message
from daemon.core.outcome import Accepted, Fault, Outcome, Rejected, Throttled, Uncertain, Unreachable
from daemon.core.pacing import Pace, Turns
from daemon.core.permission import Hold, Refuse
from daemon.core.routing import Candidate, Choice
from daemon.core.verdict import Again, Doubt, Ended, Handed
from tests.simulation import laws
from tests.simulation.laws import broken

if TYPE_CHECKING:
    from daemon.core.breaker import Breaker, Permit
    from daemon.core.routing import Sender
    from daemon.core.verdict import Verdict
    from tests.simulation.laws import Life
    from tests.simulation.store import Claim
    from tests.simulation.world import World

LEASE_S, SPEAK_S, RENEW_S, EXCHANGE_S = 25.0, 8.0, 5.0, 15.0
IN_HAND_MAX = 40
NAP_S, FIRST_LOOK_S, NEXT_LOOK_S, SENDER_REST_S, ACCOUNT_REST_S = 1.0, 5.0, 20.0, 30.0, 30.0
SLOW_S = 2.0
DEBT_S = 60.0  # how far back the dispatch log is read for debt
TEMPER = breaker.Temper()
ABSENT, UNCLEAR = "absent", "unclear"


class Killed(Exception):
    """The process is gone, between two instructions."""


class Down(Exception):
    """Postgres did not answer: a statement may have taken effect, or not."""


@dataclass(slots=True)
class Dispatch:
    """A record of the dispatch log."""

    row: Life
    attempt: int
    sender: str
    segments: int
    tick: float
    word: Word | None = None  # what became of it, once it is known
    settled: bool = False  # and the store has it


@dataclass(slots=True)
class Word:
    """A verdict on its way to the store."""

    row: Life
    attempt: int
    grp: str
    status: str
    due_at: float = 0.0
    charge: int = 0
    code: str = ""
    why: str = ""
    at: float = 0.0
    sender: str | None = None  # when there was an exchange


class Flight:
    """One message between its turn and its answer."""

    __slots__ = ("called_slow", "lane", "message", "permit", "row", "since", "write_late")

    def __init__(self, row: Life, message: Message, lane: Lane) -> None:
        self.row = row
        self.message = message
        self.lane = lane
        self.permit: Permit | None = None
        self.since = 0.0
        self.write_late = False


class Lane:
    """The queue in front of one sender."""

    __slots__ = ("alarm", "granted", "pace", "queues", "resting", "sender", "turns")

    def __init__(self, sender: Sender) -> None:
        self.sender = sender
        self.pace = Pace(sender.rate)
        self.turns = Turns()
        self.queues: tuple[deque[Flight], ...] = (deque(), deque(), deque())
        self.granted: Flight | None = None
        self.resting = 0.0
        self.alarm = float("inf")


class Boat:
    """One daemon, its process and its state folder."""

    def __init__(self, world: World, owner: int) -> None:
        self.world = world
        self.owner = owner
        self.group_of = world.group_of
        self.run = 0  # which process: an event of an older one finds nobody
        self.up = self.held = False
        self.frozen_until = self.up_at = 0.0
        self.put_off: list[tuple[int, int, object]] = []  # what happened to it while it stood still
        self.error = 0.0  # of its wall clock against the database's, since it last asked
        self.log: dict[tuple[int, int], Dispatch] = {}
        self.log_lost = False  # the machine went down, not only the process
        self.log_lost_at = 0.0
        self._begin()

    def _begin(self) -> None:
        self.epochs: dict[str, int] = {}
        self.deadlines: dict[str, float] = {}
        self.reconciled: set[str] = set()
        self.lanes = {sender.address: Lane(sender) for sender in self.world.senders}
        self.breakers: dict[str, Breaker] = {name: breaker.closed() for name in self.world.providers}
        self.hand: dict[int, Message] = {}
        self.claims: dict[int, list[object]] = {}  # claim id -> the claim, and how many of it are in hand
        self.words: deque[Word] = deque()
        self.flushing = self.stopping = self.untidy = self.testified = False
        self.absent: dict[int, float] = {}
        self.heard = 0  # signals read
        self.canceled: set[int] = set()
        self.opted_out: set[str] = set()
        self.paused: set[str] = set()
        self.looked_at = -1.0

    # The process.

    def boot(self, _: object = None) -> None:
        """A new process in the old state folder."""
        self._begin()
        world = self.world
        self.up, self.run, self.held, self.error = True, self.run + 1, world.held, 0.0
        # What stands is read, cancellations of what is still to do among it.
        self.heard = len(world.signals)
        self.canceled = {row.id for row in world.cancellations if row.state is not None}
        self.opted_out = set(world.opted_out)
        self.paused = set(world.paused)
        now = world.now
        for lane in self.lanes.values():
            if self.log_lost:
                lane.pace.start_full(now)
            else:
                lane.pace.restore(
                    (said.tick, said.segments)
                    for said in self.log.values()
                    if said.sender == lane.sender.address and now - DEBT_S < said.tick <= now
                )
        self.memory = {} if self.log_lost else dict(self.log)
        dice = world.dice
        world.at(dice() * 0.2, world.RENEW, self)
        world.at(0.2 + dice() * 0.5, world.LOOK, self)
        world.at(1.0 + dice(), world.RESOLVE, self)

    def die(self) -> None:
        """``kill -9``."""
        self.up = False
        self.run += 1
        self.frozen_until = 0.0
        self.put_off.clear()

    def now(self) -> float:
        """What time it believes it is."""
        return self.world.now + self.error

    def may_write(self, grp: str) -> bool:
        return self.world.now < self.deadlines.get(grp, 0.0)

    def may_take(self, grp: str) -> bool:
        """Whether there is time to send what is claimed now."""
        return self.may_write(grp)

    def _ask(self) -> None:
        """Before a statement."""
        if self.world.now < self.world.down_until:
            self.untidy = True
            raise Down

    def _answered(self) -> None:
        """After one that wrote: its answer may be lost, or we may be gone."""
        world = self.world
        world.cut()
        world.leak -= 1
        if world.leak <= 0:
            world.spring()
            self.untidy = True
            raise Down

    # Leases (leases.py) and recovery (recovery.py).

    def renew(self, _: object) -> None:
        world, now = self.world, self.world.now
        world.at(RENEW_S if len(self.epochs) == len(world.groups) else 1.0, world.RENEW, self)
        try:
            self._ask()
            for grp, epoch in list(self.epochs.items()):
                if world.store.lease_renew(grp, self.owner, epoch, now + LEASE_S):
                    self.deadlines[grp] = now + SPEAK_S
                else:
                    del self.epochs[grp], self.deadlines[grp]
            self.error = 0.0
            if not self.testified:
                self._testify()
            if self.held or self.stopping:
                return
            for grp in world.groups:
                if grp not in self.epochs and not any(one.group == grp for one in self.hand.values()):
                    self._take(grp, now)
        except Down:
            pass

    def _testify(self) -> None:
        """Acceptances that the store never heard of, although another has judged our claims since."""
        for said in self.memory.values():
            row: Life = said.row
            if said.settled or said.word is None or said.word.status not in {"accepted", "sent"} or row.lost:
                continue
            if row.state is not None or RANKS[row.where()] < RANKS[Status.ACCEPTED]:
                before = row.where()
                self.world.store.late(row, said.attempt, Status(said.word.status))
                self.world.laws.step(row, laws.FENCED, before)
        self.testified = True

    def _take(self, grp: str, now: float) -> None:
        world = self.world
        epoch = world.store.lease_take(grp, self.owner, LEASE_S, now)
        if epoch is None:
            return
        world.laws.leased(grp, epoch, self.owner)
        if world.last_owner.get(grp, self.owner) != self.owner:
            for address in world.senders_of[grp]:  # nobody here knows how fast they spoke a moment ago
                self.lanes[address].pace.start_full(now)
        self._answered()
        self._reconcile(grp, epoch)
        world.last_owner[grp] = self.owner
        self.epochs[grp], self.deadlines[grp] = epoch, now + SPEAK_S

    def _reconcile(self, grp: str, epoch: int) -> None:
        world = self.world
        claims = world.store.open_claims(grp, epoch)
        judged: set[int] = set()
        for claim in claims:
            for row, attempt in claim.rows:
                if row.id not in judged and row.state == "ready" and row.attempts == attempt - 1:
                    judged.add(row.id)
                    self._judge(claim, row, attempt, grp, epoch)  # type: ignore[arg-type]
        self._answered()
        for claim in claims:
            self._close(claim)
        self.reconciled.add(grp)

    def _judge(self, claim: Claim, row: Life, attempt: int, grp: str, epoch: int) -> None:
        ours = claim.owner == self.owner and grp not in self.reconciled
        said = self.memory.get((row.id, attempt)) if ours else None
        if said is not None and said.word is not None:
            self._write(said.word, grp, epoch)
            return
        if ours and not self.log_lost and said is None:
            return  # it never left: simply free
        before = row.where()
        # Ours: when the log says it left. Another's: by when it had been taken, and by nobody known.
        row.since = (said.sender, said.tick) if said is not None else (None, claim.taken_at)
        self.world.store.give_back(
            self.owner, grp, epoch, row, attempt, "unknown", self.now() + FIRST_LOOK_S, 0, "its daemon died"
        )
        self.world.laws.step(row, laws.TAKE_OVER, before)

    def _close(self, claim: Claim) -> None:
        """A claim is closed without a verdict on what is left of it."""
        before = [(row, row.where()) for row, _ in claim.rows if row.in_flight]
        self.world.store.close(claim)
        for row, was in before:
            self.world.laws.step(row, laws.FREE, was)  # type: ignore[arg-type]

    # Signals, and the claim (outbox.py).

    def look(self, _: object) -> None:
        world = self.world
        world.at(0.25 + world.dice() * 0.6, world.LOOK, self)
        try:
            self._ask()
            self._listen()
            if self.stopping:
                self._leave()
                return
            if self.untidy:
                self._tidy()
            if self.held or "all" in self.paused:
                return
            for grp, epoch in list(self.epochs.items()):
                if self.may_take(grp):
                    self._claim(grp, epoch)
        except Down:
            pass

    def _listen(self) -> None:
        world = self.world
        for kind, what in world.signals[self.heard :]:
            if kind == "cancel":
                self.canceled.add(what)  # type: ignore[arg-type]
            elif kind == "opt_out":
                self.opted_out.add(what)  # type: ignore[arg-type]
            elif kind == "replay":
                self.canceled.discard(what)
            else:
                self.paused = set(world.paused)
        self.heard = len(world.signals)
        self.looked_at = world.now

    def _tidy(self) -> None:
        """Claims of ours that we know nothing of: their COMMIT came through after all."""
        for claim in list(self.world.store.claims.values()):
            if claim.owner == self.owner and self.epochs.get(claim.grp) == claim.epoch and claim.id not in self.claims:
                self._close(claim)
        self.untidy = False

    def _wishes(self, grp: str) -> list[tuple[str, int, int]]:
        """What the senders of *grp* can use soon, by lane and level."""
        now, wishes = self.world.now, []
        for name, addresses in self.world.lanes_of[grp]:
            if name in self.paused:
                continue
            free = 0
            for address in addresses:
                lane = self.lanes[address]
                one, two, three = lane.queues
                room = max(2, int(lane.sender.rate * 0.4)) - len(one) - len(two) - len(three)
                quota = breaker.quota(self.breakers[lane.sender.provider], now=now, temper=TEMPER)
                if quota is not None:
                    room = min(room, quota)
                if room > 0 and lane.resting <= now:
                    free += room
            if free:
                wishes += [(name, level, free) for level in (1, 2, 3)]
        room = IN_HAND_MAX - len(self.hand)
        return [(name, level, min(many, room // len(wishes))) for name, level, many in wishes]

    def _claim(self, grp: str, epoch: int) -> None:
        world, now = self.world, self.world.now
        wishes = self._wishes(grp)
        if not wishes or not wishes[0][2]:
            return
        claim = world.store.claim(self.owner, grp, epoch, wishes, now, self.hand)
        if claim is None:
            return
        for row, _ in claim.rows:
            world.laws.claimed(self, row, grp, epoch)  # type: ignore[arg-type]
            if row.posts:  # type: ignore[attr-defined]
                world.nemesis.again(row)  # type: ignore[arg-type]
        self._answered()
        if len(self.hand) + len(claim.rows) > IN_HAND_MAX:
            broken("I12", f"{len(self.hand) + len(claim.rows)} messages in hand, at most {IN_HAND_MAX}")
        self.claims[claim.id] = [claim, len(claim.rows)]
        for row, attempt in claim.rows:
            self._start(claim, row, attempt)  # type: ignore[arg-type]

    # The courier and the lanes.

    def _start(self, claim: Claim, row: Life, attempt: int) -> None:
        template = row.message
        assert template is not None
        message = Message(
            template.id, attempt, row.spent, row.lane, row.level, UUID(int=claim.id), "", row.recipient, "sms",
            row.service, None, "hello", None, None, (), row.intent, row.due_at, row.due_at, row.expires_at, row.key,
            row.policy, claim.grp, self.world.now, "hello", row.segments,
        )  # fmt: skip
        self.hand[row.id] = message
        lane = self._route(message)
        if isinstance(lane, str):
            self._verdict(row, message, Again(self.now() + NAP_S, lane, spent=False))
            return
        lane.queues[row.level - 1].append(Flight(row, message, lane))
        self.grant(lane)

    def _route(self, message: Message) -> Lane | str:
        now, world = self.world.now, self.world
        candidates = []
        for address in world.pools[message.lane]:
            lane = self.lanes[address]
            blocked = None
            if lane.resting > now:
                blocked = "sender refused"
            elif breaker.quota(self.breakers[lane.sender.provider], now=now, temper=TEMPER) == 0:
                blocked = "provider does not answer"
            one, two, three = lane.queues
            wait = lane.pace.earliest(1, now) - now + (len(one) + len(two) + len(three)) / lane.sender.rate
            candidates.append(Candidate(lane.sender, wait, blocked))
        choice = routing.choose(candidates, recipient=message.recipient, recipient_region="US")
        return self.lanes[choice.sender.address] if isinstance(choice, Choice) else choice.reason

    def grant(self, lane: Lane) -> None:
        """Let go who may; one at a time is told to go and has not left yet."""
        world, now = self.world, self.world.now
        while lane.granted is None:
            one, two, three = lane.queues
            level = lane.turns.choose((bool(one), bool(two), bool(three)), now)
            if not level:
                return
            flight = lane.queues[level - 1][0]
            moment = lane.pace.earliest(flight.message.segments, now)
            if moment > now:
                if moment < lane.alarm:
                    lane.alarm = moment
                    world.at(moment - now + 0.002 * world.dice(), world.TURN, self, lane)
                return
            lane.queues[level - 1].popleft()
            self._knock(flight)

    def turn(self, lane: Lane) -> None:
        lane.alarm = float("inf")
        self.grant(lane)

    def _knock(self, flight: Flight) -> None:
        world, provider = self.world, flight.lane.sender.provider
        before = self.breakers[provider]
        after, permit = breaker.knock(
            before, level=flight.message.level, now=world.now, temper=TEMPER, roll=world.dice()
        )
        self.breakers[provider] = after
        if permit is None:
            self._verdict(flight.row, flight.message, Again(self.now() + NAP_S, "its provider is resting", spent=False))
            return
        if type(before) is breaker.Open and world.now < before.until:
            broken("I12", f"{provider} is left alone until {before.until:.1f}, and was asked at {world.now:.1f}")
        if type(after) is breaker.HalfOpen and after.out > (3 if after.good < 3 else 5 if after.good < 8 else 10):
            broken("I12", f"{after.out} probes are out at {provider}, {after.good} came back well")
        flight.permit, flight.since, flight.lane.granted = permit, world.now, flight
        world.at(0.001 + 0.01 * world.dice(), world.LEAVE, self, flight)

    def leave(self, flight: Flight) -> None:
        """The last moment before the first byte."""
        world, row, message, lane = self.world, flight.row, flight.message, flight.lane
        if world.providers[lane.sender.provider].refuses():
            lane.granted = None
            self.answer((flight, Unreachable("connection refused")))
            self.grant(lane)
            return
        if not self.may_write(message.group):
            answer: object = Hold(self.now(), "the lease of its senders is running out")
        else:
            answer = permission.ask(
                message,
                now=max(self.now(), message.due_at),
                opted_out=message.recipient in self.opted_out,
                canceled=row.id in self.canceled,
                paused="held"
                if self.held
                else "paused"
                if "all" in self.paused or row.service in self.paused
                else None,
            )
        if isinstance(answer, Refuse | Hold):
            self._back(flight)
            if isinstance(answer, Refuse):
                self._verdict(row, message, Ended(answer.status, answer.reason))
            else:
                self._verdict(row, message, Again(answer.until, answer.reason, spent=False))
            return
        self.write_down(flight)
        world.cut()
        lane.pace.take(message.segments, world.now)
        lane.turns.charge(message.level, message.segments, world.now)
        lane.granted = None
        world.stall -= 1
        if world.stall <= 0:  # stopped between the last look and the write: no fence reaches that
            world.unstall()
            world.freeze(self, world.now + 60.0 * world.dice())
            flight.write_late = True
            world.at(0.0, world.WRITE, self, flight)
            return
        self.write(flight)
        self.grant(lane)

    def write_down(self, flight: Flight) -> None:
        """The dispatch log."""
        message = flight.message
        self.log[flight.row.id, message.attempt] = Dispatch(
            flight.row, message.attempt, flight.lane.sender.address, message.segments, self.world.now
        )

    def write(self, flight: Flight) -> None:
        """The bytes leave."""
        world, row, message, sender = self.world, flight.row, flight.message, flight.lane.sender
        world.laws.posted(self, row, message.attempt, sender.address, sender.provider, late=flight.write_late)
        if not flight.write_late:
            world.laws.arrived(sender.address, sender.rate, world.now + 0.02 * world.dice(), message.segments)
        wait, outcome = world.providers[sender.provider].take(row, message.attempt)
        world.cut()
        world.at(wait, world.ANSWER, self, (flight, outcome))

    def write_late(self, flight: Flight) -> None:
        """The process goes on, where it stood still."""
        self.write(flight)
        self.grant(flight.lane)

    def _back(self, flight: Flight) -> None:
        """Its turn, given back unused."""
        lane, provider = flight.lane, flight.lane.sender.provider
        lane.granted = None
        assert flight.permit is not None
        self.breakers[provider] = breaker.learn(
            self.breakers[provider], flight.permit, breaker.Sign.IRRELEVANT, now=self.world.now, temper=TEMPER,
            roll=self.world.dice(),
        )  # fmt: skip
        self.grant(lane)

    def answer(self, said: tuple[Flight, Outcome]) -> None:
        """An answer, or the end of the wait for one."""
        flight, outcome = said
        world, row, message, lane = self.world, flight.row, flight.message, flight.lane
        provider, now = lane.sender.provider, world.now
        sign = breaker.sign_of(outcome, now - flight.since, SLOW_S)
        assert flight.permit is not None
        self.breakers[provider] = breaker.learn(
            self.breakers[provider], flight.permit, sign, now=now, temper=TEMPER, roll=world.dice()
        )
        match outcome:
            case Throttled():
                lane.pace.slow(now=now)
            case Rejected(Fault.SENDER):
                lane.resting = now + SENDER_REST_S
            case Rejected(Fault.ACCOUNT):
                self.breakers[provider] = breaker.force_open(self.breakers[provider], now + ACCOUNT_REST_S)
        if isinstance(outcome, Rejected | Throttled):
            row.licences += 1  # certainly not sent
        idempotent = world.providers[provider].idempotent
        if idempotent and isinstance(outcome, Uncertain):
            row.licences += 1  # its provider knows its own
        decided = verdict.judge(
            message, outcome, patience=world.patience, now=self.now(), roll=world.dice(), idempotent=idempotent
        )
        if isinstance(decided, Again) and row.expires_at is not None and decided.due_at >= row.expires_at:
            broken("I11", f"{row.id} is to be tried again after it expires")
        world.cut()
        self._verdict(row, message, decided, flight)

    # The ledger.

    def _verdict(self, row: Life, message: Message, decided: Verdict, flight: Flight | None = None) -> None:
        word = Word(row, message.attempt, message.group, "")
        if flight is not None:
            word.sender, word.at = flight.lane.sender.address, flight.since
        match decided:
            case Handed(outcome):
                word.status = outcome.status
            case Ended(status, reason, code):
                word.status, word.why, word.code = status, reason, code
            case Again(due_at, reason, spent):
                word.status, word.due_at, word.charge, word.why = "ready", due_at, int(spent), reason
            case Doubt(reason):
                word.status, word.due_at, word.why = "unknown", self.now() + FIRST_LOOK_S, reason
        if flight is not None:
            record = self.log.get((row.id, message.attempt))
            if record is not None:
                record.word = word
            if isinstance(decided, Handed):
                row.yes = True
            self.world.cut()
        self.words.append(word)
        if not self.flushing:
            self.flushing = True
            self.world.at(0.01 + 0.05 * self.world.dice(), self.world.FLUSH, self)

    def flush(self, _: object) -> None:
        """Write what has come together; what cannot be written waits."""
        try:
            self._ask()
            while self.words:
                word = self.words[0]
                self._write(word, word.grp, self.epochs.get(word.grp, 0))
                self._answered()
                self.words.popleft()
                record = self.log.get((word.row.id, word.attempt))
                if record is not None:
                    record.settled = True
                self._release(word)
            self.flushing = False
        except Down:
            self.world.at(0.2 + self.world.dice(), self.world.FLUSH, self)

    def _write(self, word: Word, grp: str, epoch: int) -> None:
        row, store = word.row, self.world.store
        if row.lost:
            return
        before = row.where()
        if word.status in {"ready", "unknown"}:
            event = laws.RETRY if word.status == "ready" else laws.DOUBT
            if store.fence(self.owner, grp, epoch) and row.attempts == word.attempt - 1 and word.sender is not None:
                row.since = (word.sender, word.at)
            done = store.give_back(
                self.owner, grp, epoch, row, word.attempt, word.status, word.due_at, word.charge, word.why
            )
        else:
            status = Status(word.status)
            event = laws.ACCEPT if RANKS[status] in {10, 30} else laws.END
            done = store.settle(self.owner, grp, epoch, row, word.attempt, status, word.code, word.why)
            if not done and event == laws.ACCEPT:  # the truth is never thrown away
                store.late(row, word.attempt, status)
        self.world.laws.step(row, event if done else laws.FENCED, before)
        if not done and row.in_flight:
            self.world.nemesis.spite(row)

    def _release(self, word: Word) -> None:
        message = self.hand.get(word.row.id)
        if message is None or message.attempt != word.attempt:
            return
        del self.hand[word.row.id]
        held = self.claims.get(message.claim.int)
        if held is not None:
            held[1] -= 1  # type: ignore[operator]
            if not held[1]:
                del self.claims[message.claim.int]
                claim: Claim = held[0]  # type: ignore[assignment]
                if self.world.store.fence(self.owner, claim.grp, self.epochs.get(claim.grp, 0)):
                    self._close(claim)

    def stop(self) -> None:
        """SIGTERM: nothing more is taken, what waits goes back, what is on the wire is awaited."""
        self.stopping = True
        for lane in self.lanes.values():
            for queue in lane.queues:
                while queue:
                    flight = queue.popleft()
                    self._verdict(flight.row, flight.message, Again(self.now(), "its daemon was stopping", spent=False))

    def _leave(self) -> None:
        """Leases go back when nothing is in hand and no sender owes anything: their next holder cannot know."""
        now = self.world.now
        if self.hand or self.words or any(lane.pace.earliest(1, now) > now for lane in self.lanes.values()):
            return
        for grp, epoch in self.epochs.items():
            self.world.store.lease_renew(grp, self.owner, epoch, now)
        self.die()
        self.world.at(1.0 + 20.0 * self.world.dice(), self.world.BOOT, None, self)

    # The janitor.

    def resolve(self, _: object) -> None:
        world = self.world
        world.at(1.0 + 2.0 * world.dice(), world.RESOLVE, self)
        try:
            self._ask()
            lanes = {name for grp in self.epochs for name, _ in world.lanes_of[grp]}
            for row in world.store.doubts(lanes, 10, world.now, NEXT_LOOK_S):
                self._doubt(row)  # type: ignore[arg-type]
        except Down:
            pass

    def _doubt(self, row: Life) -> None:
        world, attempt, now = self.world, row.attempts, self.now()
        sender, since = row.since or (None, now)
        finding: object = None
        if row.status is None and sender is not None:
            finding = world.providers[self.lanes[sender].sender.provider].find(row, attempt)
        if isinstance(finding, Accepted):
            before = row.where()
            world.store.late(row, attempt, Status.ACCEPTED)
            row.yes = True
            world.laws.step(row, laws.FOUND, before)
            self._answered()
            return
        if finding == ABSENT:
            self.absent.setdefault(row.id, now)
        else:
            self.absent.pop(row.id, None)
        policy, resolve_for = world.policies[row.intent]
        step = doubt.next_step(
            now=now, since=since, absent_since=self.absent.get(row.id), askable=finding is not None,
            dispatched=sender is not None, policy=row.policy or policy, resolve_for_s=resolve_for,
            expires_at=row.expires_at, canceled=row.id in self.canceled,
        )  # fmt: skip
        if isinstance(step, doubt.Look):
            row.due_at = min(step.at, world.now + 600.0)
            return
        if step.status == "ready":
            world.nemesis.poised()
        before = row.where()
        if world.store.decide(row, attempt, step.status, step.reason, world.now):
            if step.status == "ready":
                row.licences += 1
            world.laws.step(row, laws.RESEND if step.status == "ready" else laws.GIVE_UP, before)
            self.absent.pop(row.id, None)
        self._answered()

    def reconcile_log(self, since: float) -> None:
        """A standby was promoted: what the log says has left, and the store has forgotten, is in doubt."""
        world = self.world
        for said in list(self.log.values()):
            row: Life = said.row
            if said.tick < since or row.lost:
                continue
            row.tried = max(row.tried, said.attempt)
            if row.state is not None and row.attempts < said.attempt and row.status is None:
                before, row.since = row.where(), (said.sender, said.tick)
                world.store.reappear(row, said.attempt, self.now() + FIRST_LOOK_S)
                world.laws.step(row, laws.REAPPEAR, before)
            if said.word is not None and said.word.status in {"accepted", "sent"}:
                before = row.where()
                world.store.late(row, said.attempt, Status(said.word.status))
                world.laws.step(row, laws.FENCED, before)
