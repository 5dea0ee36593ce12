"""
The observer: hears what happens, counts it for Prometheus, and can say at any moment how the daemon is.

The engine tells it in passing, and what comes with every message is counted by the handful; it answers for
``/healthz``, ``/readyz``, ``/metrics`` and the page without asking anybody. Nothing it keeps holds a number or a text.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from typing import TYPE_CHECKING

from daemon import __version__
from daemon.anomalies import Anomalies
from daemon.core.lifecycle import RANKS, Status
from daemon.ledger import told
from daemon.watch import (
    Backlog,
    Balance,
    BreakerState,
    Health,
    Held,
    History,
    Pace,
    Pause,
    ProviderNow,
    Rates,
    SenderNow,
    SenderState,
    Spread,
    Stage,
    State,
    Trouble,
    Window,
)
from daemon.watch import Status as Everything

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from asyncpg import Record

    from daemon.callbacks import Kind, Result
    from daemon.clock import Clock
    from daemon.core.message import Message
    from daemon.core.verdict import Verdict
    from daemon.engine import Engine
    from daemon.horizon import Culprit
    from daemon.ledger import Exchange
    from daemon.metrics import Count, Metrics
    from daemon.receipts import News
    from daemon.settings import Settings

STUCK_S = 20.0  # an outbox that has not looked for so long, or a ledger that has not written, is not progressing
TROUBLES = 20
FORGED_S = 60.0  # callbacks with a bad signature that are told of together
HISTORY_S = 120
HANDFUL = 64  # messages counted together: half the bytecodes of counting each by itself
_STATES = ("closed", "half_open", "open")  # as the metric counts them
_LEVELS = ("0", "1", "2", "3")  # as its labels spell them


class Observer:
    """Counts, and answers."""

    def __init__(self, metrics: Metrics, clock: Clock, settings: Settings) -> None:
        self.engine: Engine | None = None  # set once, by app.py
        self._metrics = metrics
        self._clock = clock
        self._settings = settings
        self._started = clock.tick()
        self._state = State.STARTING
        self._totals: Counter[str] = Counter()
        self._claimed, self._sent, self._delivered = Window(), Window(), Window()
        self._segments: dict[str, tuple[Window, Count]] = {}  # of each sender: for the page, and for Prometheus
        self._errors: dict[tuple[str, str], Window] = {}
        self._spreads = {stage: Spread() for stage in Stage}
        self._queue: tuple[Backlog, ...] = ()
        self._in_doubt: int | None = None
        self.vacuum_held: Culprit | None = None
        self._troubles: deque[Trouble] = deque(maxlen=TROUBLES)
        self._forged: dict[str, tuple[float, int]] = {}  # by provider: since when, and how many
        self.anomalies = Anomalies(metrics, tick=clock.tick, trouble=self.trouble)
        self._books: tuple[Balance, ...] = ()
        self._looked_at = self._written_at = clock.tick()
        # Not counted yet: when it left, the message, its provider and its sender.
        self._departures: list[tuple[float, Message, str, str]] = []
        self._arrivals: list[tuple[float, Exchange]] = []

    # Told by the engine, in the order in which a message passes.

    def looked(self) -> None:
        """The outbox has looked for work."""
        self._looked_at = self._clock.tick()

    def claimed(self, messages: Sequence[Message], took_s: float) -> None:
        """A claim brought *messages*, or none."""
        self._metrics.claim.observe(took_s)
        if not messages:
            return
        tick, now, spread = self._clock.tick(), self._clock.now(), self._spreads[Stage.QUEUE]
        self._claimed.add(tick, len(messages))
        self._metrics.claims.inc()
        for (service, level), many in Counter((one.service, one.level) for one in messages).items():
            self._metrics.messages_claimed(service, _LEVELS[level]).inc(many)
        for level in {one.level for one in messages}:
            waits = [max(now - one.due_at, 0.0) for one in messages if one.level == level]
            spread.add(tick, *waits)
            self._metrics.queue_wait(_LEVELS[level]).observe(*waits)

    def left(self, message: Message, provider: str, sender: str, tick: float) -> None:
        """Its first byte is leaving, at *tick*."""
        self._departures.append((tick, message, provider, sender))
        if len(self._departures) >= HANDFUL:
            self._tally()

    def judged(self, message: Message, verdict: Verdict, exchange: Exchange | None) -> None:
        """An exchange, or none, ended in *verdict*."""
        if exchange is not None:
            self._arrivals.append((self._clock.tick(), exchange))

    def _tally(self) -> None:
        """Count what has left and what has come back."""
        departures, self._departures = self._departures, []
        arrivals, self._arrivals = self._arrivals, []
        now, metrics, spreads = self._clock.tick(), self._metrics, self._spreads
        zero = self._clock.now() - now
        for tick, message, provider, sender in departures:
            try:
                window, count = self._segments[sender]
            except KeyError:
                window, count = self._segments[sender] = Window(), metrics.segments_sent(provider, sender)
            window.add(tick, message.segments)
            count.value += message.segments
        for level in {message.level for _, message, _, _ in departures}:
            left = [(tick, one) for tick, one, _, _ in departures if one.level == level]
            turns = [tick - one.claimed_at for tick, one in left]
            ages = [max(zero + tick - one.due_at, 0.0) for tick, one in left]  # two machines, two clocks
            spreads[Stage.TURN].add(now, *turns)
            spreads[Stage.COMMIT_TO_PROVIDER].add(now, *ages)
            metrics.turn_wait(_LEVELS[level]).observe(*turns)
            metrics.commit_to_provider(_LEVELS[level]).observe(*ages)
        alike: dict[tuple[str, str], list[tuple[float, float]]] = {}
        for tick, exchange in arrivals:
            alike.setdefault((exchange.provider, told(exchange.outcome)), []).append((tick, exchange.took_s))
        for (provider, word), ended in alike.items():
            took = [took_s for _, took_s in ended]
            metrics.exchanges(provider, word).inc(len(ended))
            metrics.exchange(provider).observe(*took)
            spreads[Stage.EXCHANGE].add(now, *took)
            window = self._sent if word == "accepted" else self._errors.setdefault((provider, word), Window())
            for second, many in Counter([int(tick) for tick, _ in ended]).items():
                window.add(second, many)

    def removed(self, sender: str) -> None:
        """*sender* is not configured any more."""
        self._tally()
        self._segments.pop(sender, None)
        self._metrics.forget("sender", sender)

    def unwritten(self) -> None:
        """The first verdict waits for Postgres: from now on it may be late."""
        self._written_at = self._clock.tick()

    def wrote(self, took_s: float) -> None:
        """A batch of verdicts has been written, *took_s* after the first of them was known."""
        self._metrics.settle.observe(took_s)

    def settled(self, statuses: Iterable[str]) -> None:
        """Verdicts are in Postgres."""
        self._written_at = self._clock.tick()
        for status, many in Counter(statuses).items():
            self._totals[status] += many
            self._metrics.verdicts(status).inc(many)

    def fenced(self, count: int) -> None:
        """Verdicts that were not ours to write, or had been written before."""
        self._metrics.verdicts_fenced.inc(count)

    def refused(self, status: str) -> None:
        """The inspector has ended a row."""
        self._totals[status] += 1
        self._metrics.inspector_refused(status).inc()

    def resolved(self, status: str) -> None:
        """A doubt has ended."""
        self._totals[f"resolved_{status}"] += 1
        self._metrics.doubts_resolved(status).inc()

    def signal(self, kind: str) -> None:
        """A signal took effect."""
        self._metrics.signals(kind).inc()

    def breaker(self, provider: str, state: str) -> None:
        """A gate has changed."""
        self._metrics.breaker_state(provider).set(_STATES.index(state))
        self.trouble(f"provider {provider}: its gate is {state}")

    def heard(self, news: Sequence[News], delays: Sequence[tuple[str, float]]) -> None:
        """Receipts are committed; *delays* are seconds since acceptance, of those that said something new."""
        tick = self._clock.tick()
        for provider, delay_s in delays:
            self._spreads[Stage.RECEIPT].add(tick, delay_s)
            self._metrics.receipt_delay(provider).observe(delay_s)
        for one in news:
            status = one.receipt.status
            self._metrics.receipts(one.provider, status.value).inc()
            if one.receipt.final and RANKS[status] >= RANKS[Status.FAILED]:
                self._totals[status.value] += 1
                if status in {Status.DELIVERED, Status.READ}:
                    self._delivered.add(tick)

    def callback(self, provider: str, kind: Kind, result: Result) -> None:
        """A callback ended as *result* (callbacks.Tally)."""
        if result not in {"kept", "stray", "empty"}:
            self._metrics.callbacks_refused(provider, result).inc()
        if result == "forged":
            since, many = self._forged.get(provider, (0.0, 0))
            now = self._clock.now()
            self._forged[provider] = (since, many + 1) if since <= now < since + FORGED_S else (now, 1)

    def trouble(self, what: str) -> None:
        """Something an operator should see."""
        self._troubles.appendleft(Trouble(at=self._clock.now(), what=what))

    def backlog(self, rows: Sequence[Record]) -> None:
        """A sample of the queue."""
        now = self._clock.now()
        waiting: dict[tuple[str, int], tuple[int, float | None]] = {}
        for row in rows:
            many, age = waiting.get((row["lane"], row["level"]), (0, None))
            if row["oldest_due"] is not None:
                age = max(now - row["oldest_due"].timestamp(), age or 0.0)
            waiting[row["lane"], row["level"]] = (many + row["messages"], age)
        self._in_doubt = sum(row["messages"] for row in rows if row["state"] == "unknown")
        self._queue = tuple(
            Backlog(service=lane, level=level, messages=many, oldest_due_age_s=age)
            for (lane, level), (many, age) in sorted(waiting.items())
        )
        self._metrics.sampled(
            {(one.service, str(one.level)): (one.messages, one.oldest_due_age_s or 0.0) for one in self._queue}
        )

    def asked(self, provider: str, result: str) -> None:
        """A provider was asked for a receipt that had not come."""
        self._metrics.overdue_asked(provider, result).inc()

    def unconfirmed(self, many: int) -> None:
        """*many* messages are final without a receipt."""
        self._metrics.unconfirmed.inc(many)

    def parked(self, many: int) -> None:
        """So *many* receipts wait for their message."""
        self._metrics.receipts_parked.set(many)

    def balanced(self, books: Sequence[Balance], difference: int) -> None:
        """The books of the last days, and how many messages are in no place."""
        self._books = tuple(books)
        self._metrics.conservation_difference.set(difference)

    def beat(self, *, lag_s: float) -> None:
        """A second has passed; the loop was *lag_s* late."""
        self._tally()
        self._metrics.loop_lag.observe(lag_s)

    # Stages of the process.

    @property
    def is_open(self) -> bool:
        """Whether the database has been opened."""
        return self._state is not State.STARTING

    def serving(self) -> None:
        """The database is open and work goes on."""
        self._state = State.SERVING
        self._looked_at = self._written_at = self._clock.tick()

    def draining(self) -> None:
        """Told to stop."""
        self._state = State.DRAINING

    def stopped(self) -> None:
        """All is done."""
        self._state = State.STOPPED

    # Asked by the web (watch.Watch).

    def health(self) -> Health:
        """Whether it is alive and progressing."""
        engine, tick = self._running(), self._clock.tick()
        detail: dict[str, object] = {
            "in_hand": engine.outbox.in_hand,
            "unwritten": engine.ledger.pending,
            "database": engine.claims.up,
            "vacuum_held": str(self.vacuum_held) if self.vacuum_held else None,
            "full": [why for why in engine.full.values() if why],
        }
        stuck = self._state is State.SERVING and engine.claims.up and tick - self._looked_at > STUCK_S
        unwritten = engine.settlements.up and engine.ledger.pending > 0 and tick - self._written_at > STUCK_S
        return Health(alive=True, progressing=not (stuck or unwritten), state=self._now(), detail=detail)

    def ready(self) -> tuple[bool, str]:
        """Whether it does its work, and what is missing when it does not."""
        engine = self._running()
        if full := [why for why in engine.full.values() if why]:
            return False, "; ".join(full)
        if self._state is State.STARTING:
            return False, "the database does not answer yet"
        if engine.desk.held:
            return False, engine.desk.held
        if self._state is not State.SERVING:
            return False, f"it is {self._state}"
        if not (engine.claims.up and engine.chores.up):
            return False, "the database does not answer"
        if not engine.leases.held:
            return False, "another daemon holds all the leases"
        return True, "serving"

    def metrics(self) -> tuple[bytes, str]:
        """The metrics as Prometheus reads them."""
        self._tally()
        engine = self._running()
        for level, many in engine.outbox.in_hand_by_level().items():
            self._metrics.in_hand(str(level)).set(many)
        for name, gate in engine.gates.items():
            self._metrics.in_flight(name).set(gate.in_flight)
        self._metrics.database_up.set(engine.claims.up)
        self._metrics.holding(self.vacuum_held)
        for where, why in engine.full.items():
            self._metrics.disk_full(where).set(why is not None)
        self._metrics.tasks.set(len(asyncio.all_tasks()) - engine.fleet.at_rest)
        self._metrics.dispatch_log_size.set(engine.journal.bytes_used)
        return self._metrics.render()

    def status(self) -> Everything:
        """Everything worth knowing now."""
        self._tally()
        engine, tick = self._running(), self._clock.tick()
        latency = (spread.latency(tick, stage) for stage, spread in self._spreads.items())
        return Everything(
            at=self._clock.now(), version=__version__, instance=str(engine.owner), state=self._now(),
            uptime_s=tick - self._started, held=engine.desk.held, totals=dict(self._totals),
            rates=Rates(
                claimed=_pace(self._claimed, tick), sent=_pace(self._sent, tick), delivered=_pace(self._delivered, tick)
            ),
            history=History(sent=self._sent.series(tick, HISTORY_S), delivered=self._delivered.series(tick, HISTORY_S)),
            latency=tuple(found for found in latency if found is not None),
            queue=self._queue,
            in_doubt=self._in_doubt,
            senders=tuple(self._sender(address, tick) for address in engine.lanes.addresses),
            providers=tuple(self._provider(name, tick) for name in engine.gates),
            groups=tuple(Held(group=group, epoch=epoch) for group, epoch in engine.leases.held.items()),
            pauses=tuple(Pause(what=what, reason=reason) for what, reason in engine.desk.pauses.items()),
            books=self._books,
            troubles=self._recent(),
        )  # fmt: skip

    def _recent(self) -> tuple[Trouble, ...]:
        """The newest first. A provider's forgeries are one line, of its latest minute: anybody can send thousands."""
        forged = [
            Trouble(at=since, what=f"callbacks in the name of {provider} with a bad signature: {many} within a minute")
            for provider, (since, many) in self._forged.items()
        ]
        return tuple(sorted((*forged, *self._troubles), key=lambda one: one.at, reverse=True)[:TROUBLES])

    def _sender(self, address: str, tick: float) -> SenderNow:
        engine = self._running()
        lane = engine.lanes[address]
        used = self._segments[address][0].per_second(tick, 60) / lane.sender.rate if address in self._segments else 0.0
        paused = engine.desk.paused(f"sender:{address}") or engine.desk.paused("all")
        blocked = engine.router.blocked(lane.sender, tick)
        state = SenderState.PAUSED if paused else SenderState.BLOCKED if blocked else SenderState.OPEN
        return SenderNow(
            address=address, provider=lane.sender.provider, rate=lane.sender.rate * lane.pace.share,
            used=min(used, 1.0), waiting=lane.backlog, state=state, reason=paused or blocked or "",
        )  # fmt: skip

    def _provider(self, name: str, tick: float) -> ProviderNow:
        gate = self._running().gates[name]
        errors = {
            kind: round(60 * window.per_second(tick, 60))
            for (provider, kind), window in self._errors.items()
            if provider == name
        }
        return ProviderNow(
            name=name, breaker=BreakerState(gate.state), in_flight=gate.in_flight,
            errors={kind: many for kind, many in errors.items() if many},
        )  # fmt: skip

    def _now(self) -> State:
        return State.HOLDING if self._state is State.SERVING and self._running().desk.held else self._state

    def _running(self) -> Engine:
        assert self.engine is not None  # app.py sets it before anything runs
        return self.engine


def _pace(window: Window, tick: float) -> Pace:
    return Pace(last_10_s=window.per_second(tick, 10), last_60_s=window.per_second(tick, 60))
