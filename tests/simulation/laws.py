"""
What must hold, checked at every step: the invariants I1 to I12 (facts: reliability, 5) and what they leave unsaid.

The laws judge by what really happened (who posted what, and what the provider did with it), which no daemon of the world
can see. Their tables are their own, so that a wrong table in ``core/`` cannot excuse itself.
"""

from __future__ import annotations

from bisect import insort
from typing import TYPE_CHECKING, NoReturn

from daemon.core.lifecycle import STEPS, Status
from tests.simulation.store import Row

if TYPE_CHECKING:
    from daemon.core.message import Message
    from tests.simulation.boat import Boat

S = Status
STATUSES = tuple(S)
ORDER = {status: number for number, status in enumerate(STATUSES)}
RANK = {S.CANCELED: 5, S.SUPPRESSED: 5, S.EXPIRED: 5, S.DEAD: 5, S.ACCEPTED: 10, S.SENT: 30, S.FAILED: 40,
        S.UNDELIVERED: 40, S.DELIVERED: 50, S.READ: 60}  # fmt: skip
FINAL = frozenset(RANK) - {S.ACCEPTED, S.SENT}
ODD = (S.QUEUED, S.UNKNOWN, S.EXPIRED, S.EXPIRED, S.CANCELED, S.SUPPRESSED, S.DEAD, S.DEAD, S.DEAD)
OPEN = (S.QUEUED, S.UNKNOWN)
REASONED = frozenset({S.FAILED, S.UNDELIVERED, S.EXPIRED, S.CANCELED, S.SUPPRESSED, S.DEAD})

# Everything that can happen to a message.
EVENTS = (
    "claim", "accept", "retry", "doubt", "end", "fenced", "free", "take over", "cancel", "refuse", "found", "resend",
    "give up", "replay", "reappear", "told accepted", "told sent", "told undelivered", "told failed", "told delivered",
    "told read",
)  # fmt: skip
(CLAIM, ACCEPT, RETRY, DOUBT, END, FENCED, FREE, TAKE_OVER, CANCEL, REFUSE, FOUND, RESEND, GIVE_UP, REPLAY, REAPPEAR,
 TOLD_ACCEPTED, TOLD_SENT, TOLD_UNDELIVERED, TOLD_FAILED, TOLD_DELIVERED, TOLD_READ) = range(len(EVENTS))  # fmt: skip
TOLD = {S.ACCEPTED: TOLD_ACCEPTED, S.SENT: TOLD_SENT, S.UNDELIVERED: TOLD_UNDELIVERED, S.FAILED: TOLD_FAILED,
        S.DELIVERED: TOLD_DELIVERED, S.READ: TOLD_READ}  # fmt: skip
LAWS = {
    "I1": "a message is in one place, and nowhere without a reason",
    "I2": "a lease is taken under a higher epoch than ever before",
    "I3": "who takes a message holds its lease",
    "I4": "nothing leaves under a lease that is gone",
    "I5": "what leaves has been written down",
    "I6": "nothing leaves again unless something allows it, and says so",
    "I7": "no news takes back heavier news",
    "I8": "what has ended moves by evidence or by hand alone, and a yes is never forgotten",
    "I9": "no sender is faster than its rate",
    "I10": "what has one order_key goes in order",
    "I11": "nothing leaves that is canceled, too late or unwanted",
    "I12": "a resting provider is left alone, and hands hold no more than they may",
    "liveness": "everything comes to rest",
}

# These alone move a message that has ended: evidence, and an operator.
MOVERS = frozenset({FOUND, FENCED, REPLAY, *TOLD.values()})


class Broken(AssertionError):
    """A law is broken: which, and how."""

    def __init__(self, law: str, how: str) -> None:
        super().__init__(f"{law}: {how}")
        self.law = law


class Life(Row):
    """A message, and what really became of it."""

    __slots__ = (
        "accepted", "arrived", "canceled_at", "done_once", "excused", "intent", "licences", "lost", "message", "overtook", "policy", "posts",
        "previous", "recipient", "segments", "service", "top", "yes",
    )  # fmt: skip

    def __init__(self, id: int, lane: str, level: int, *, key: str | None, expires_at: float | None) -> None:
        super().__init__(id, lane, level, key=key, expires_at=expires_at)
        self.licences = 1  # how often it may be posted
        self.posts: dict[int, str] = {}  # attempt -> at which provider
        self.accepted = 0  # how many copies a provider has
        self.yes = False  # an acceptance was read and written down, since the last replay
        self.arrived = False  # a receipt said so, and it was committed
        self.canceled_at: float | None = None
        self.excused = False  # a second copy was named in the store, before that was rolled back
        self.overtook = False  # it was let past one that was held, before that was rolled back
        self.done_once = False  # it has been out of the queue
        self.lost = False  # undone altogether by a promoted standby
        self.previous: Life | None = None  # of its order_key
        self.top = 0  # the heaviest word so far, since the last replay
        self.service = self.recipient = self.intent = ""
        self.policy: str | None = None
        self.segments = 1
        self.message: Message | None = None


class Laws:
    """Counts what happens and breaks off when it may not."""

    def __init__(self) -> None:
        self.seen = [[0] * len(EVENTS) for _ in STATUSES]  # by status before, and event
        self.trodden = [[0] * len(STATUSES) for _ in STATUSES]  # steps of core/lifecycle.py
        self.trace = 0
        self.epochs: dict[str, tuple[int, int]] = {}  # group -> epoch, owner: the highest so far
        self.windows: dict[str, list[float]] = {}  # sender -> where its last segments stand, at the provider
        # What left, and then came to stand where few do: worth gossip, and a cancellation.
        self.odd: dict[Status, list[tuple[Life, int]]] = {status: [] for status in ODD}
        self.posts = self.copies = 0

    def step(self, row: Life, event: int, before: Status) -> None:
        """*event* has happened to *row*, which stood at *before*."""
        after = row.where()
        number = ORDER[before]
        self.seen[number][event] += 1
        self.trace = hash((self.trace, row.id, event, ORDER[after], row.attempts))
        status, state = row.status, row.state
        if status is not None:
            if state is not None and not row.in_flight:
                broken("I1", f"{row.id} is in the queue ({state}) and in outcome ({status}) after {EVENTS[event]}")
            if status in REASONED and not (row.why or row.code):
                broken("I1", f"{row.id} ended as {status} without a reason")
            if RANK[status] < row.top:
                broken("I7", f"{row.id} went down to {status} by {EVENTS[event]}")
            row.top = RANK[status]
        elif state is None:
            broken("I1", f"{row.id} is nowhere after {EVENTS[event]}")
        if state is None:
            row.done_once = True
        if after is before:
            return
        self.trodden[number][ORDER[after]] += 1
        if row.posts and after in ODD:
            known = self.odd[after]
            known.append((row, max(row.posts)))
            if len(known) > 24:
                del known[:8]
        if before in FINAL and event not in MOVERS:
            broken("I8", f"{row.id} left {before} for {after} by {EVENTS[event]}")
        if after not in STEPS[before]:
            broken("I8", f"{row.id} went from {before} to {after} by {EVENTS[event]}")

    def leased(self, grp: str, epoch: int, owner: int) -> None:
        """A lease has been taken."""
        last, _ = self.epochs.get(grp, (0, 0))
        if epoch <= last:
            broken("I2", f"{grp} was taken under epoch {epoch}, after {last}")
        self.epochs[grp] = (epoch, owner)

    def claimed(self, boat: Boat, row: Life, grp: str, epoch: int) -> None:
        """*boat* has taken *row*."""
        if self.epochs[grp] != (epoch, boat.owner):
            broken("I3", f"{row.id} was taken under {grp}/{epoch} by {boat.owner}; its holder is {self.epochs[grp]}")
        # Nobody but us can have it in flight, or its claim was closed without a look at what had been heard of it.
        self.step(
            row, CLAIM, S.QUEUED if row.status is None and row.flights.count(row.attempts + 1) == 1 else row.where()
        )
        if row.arrived:
            broken("I8", f"{row.id} has arrived and was taken again")
        before = row.previous
        while before is not None and before.lost:
            before = before.previous
        if before is not None and not (before.done_once or row.skipped or row.overtook or row.done_once):
            broken("I10", f"{row.id} was taken before {before.id} of the same order_key")

    def posted(self, boat: Boat, row: Life, attempt: int, sender: str, provider: str, *, late: bool) -> None:
        """The bytes of *attempt* leave. *late*: the process stood still between its last look and the write."""
        self.posts += 1
        if (row.id, attempt) not in boat.log:
            broken("I5", f"{row.id}/{attempt} left and was not written down")
        if attempt in row.posts:
            broken("I6", f"{row.id}/{attempt} left twice")
        row.licences -= 1
        if row.licences < 0:
            broken("I6", f"{row.id} left for the {len(row.posts) + 1}th time, and nothing allowed it")
        row.posts[attempt] = provider
        if late:  # no fence reaches it: facts, reliability 2.8
            return
        now = boat.world.now
        grp = boat.group_of[row.lane]
        lease = boat.world.store.leases.get(grp)
        if lease is None or lease.owner != boat.owner or lease.until <= now:
            broken("I4", f"{row.id} left under a lease of {grp} that is gone")
        if row.expires_at is not None and now + boat.error >= row.expires_at:
            broken("I11", f"{row.id} left after it had expired")
        if row.canceled_at is not None and row.canceled_at < boat.looked_at:
            broken("I11", f"{row.id} left after it had been canceled")
        if boat.world.opted_out.get(row.recipient, now) < boat.looked_at:
            broken("I11", f"{row.id} left to somebody who had opted out")

    def arrived(self, sender: str, rate: float, at: float, segments: int) -> None:
        """A message is at its provider, at *at* on its clock: segment j counts at ``at + j / rate``."""
        window = self.windows.setdefault(sender, [])
        many = max(1, int(rate))
        length = 1.0 if rate >= 1 else 1 / rate
        for j in range(segments):
            insort(window, at + j / rate)
        for k in range(max(many, len(window) - 2 * segments - 2), len(window)):
            if segments <= many and window[k] - window[k - many] < length - 1e-6:
                broken("I9", f"{sender}: {many + 1} segments within {window[k] - window[k - many]:.4f} s")
        if len(window) > 64 + 4 * many:
            del window[: -32 - 2 * many]

    def copied(self, row: Life) -> None:
        """A provider has taken a copy."""
        row.accepted += 1
        self.copies += 1


def broken(law: str, how: str) -> NoReturn:
    raise Broken(law, how)
