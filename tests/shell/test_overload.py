"""
Five minutes of five times too much, in virtual time: the real lanes, places, gate and permission, on a clock wound by
hand; around them a queue and a provider of a few lines.
"""

from __future__ import annotations

from collections import deque
from statistics import quantiles
from typing import TYPE_CHECKING

from daemon.core.outcome import Accepted
from daemon.core.permission import Refuse, ask
from daemon.core.routing import Sender
from daemon.gates import Gate
from daemon.lanes import Lanes
from daemon.metrics import Metrics
from daemon.observer import Observer
from daemon.transport import Transport
from tests.shell.parts import Wound, dialect, message, settings

if TYPE_CHECKING:
    from daemon.core.message import Message
    from daemon.gates import Flight
    from daemon.lanes import Turn

RATE, STEP_S, ANSWER_S, CLAIM_S = 20, 0.01, 0.05, 0.05
VALIDITY_S, OVERLOAD_S = 30.0, 300.0


class Crowd:
    """One sender of RATE a second; codes at a tenth of that, all the while; a campaign of *offered* times as much."""

    def __init__(self, clock: Wound, gate: Gate) -> None:
        self.clock, self.gate = clock, gate
        self.lanes = Lanes(tick=clock.tick, places={"sim": gate.places})
        self.lanes.reload([Sender(address="a", provider="sim", kind="long_code", country="US", rate=RATE)])
        self.queue: dict[int, deque[Message]] = {1: deque(), 3: deque()}
        self.turns: list[tuple[Turn, Message]] = []  # in hand
        self.wire: deque[tuple[float, Turn, Flight]] = deque()
        self.sent: list[tuple[float, Message]] = []
        self.expired = self.most_in_hand = 0
        self.owed = {1: 0.0, 3: 0.0}

    def go(self, seconds: float, offered: float) -> None:
        for step in range(round(seconds / STEP_S)):
            self.ask(1, RATE / 10)
            self.ask(3, RATE * (offered - 0.1))
            if step % round(CLAIM_S / STEP_S) == 0:
                self.claim()
            self.send()
            self.clock.go(STEP_S)
            self.lanes["a"].look()

    def ask(self, level: int, per_second: float) -> None:
        self.owed[level] += per_second * STEP_S
        while self.owed[level] >= 1:
            self.owed[level] -= 1
            now = self.clock.now()
            useless_at = now + VALIDITY_S if level == 3 else None
            self.queue[level].append(message(level=level, first_due=now, due_at=now, expires_at=useless_at))

    def claim(self) -> None:
        for level, waiting in self.queue.items():
            for _ in range(self.lanes.room(["a"], level, most=500)):
                # What is too late is ended where it stands, and makes no room less.
                while waiting and isinstance(ask(waiting[0], now=self.clock.now()), Refuse):
                    waiting.popleft()
                    self.expired += 1
                if waiting:
                    one = waiting.popleft()
                    self.turns.append((self.lanes["a"].join(level, 1), one))
        self.most_in_hand = max(self.most_in_hand, len(self.turns))

    def send(self) -> None:
        now = self.clock.tick()
        while self.wire and self.wire[0][0] <= now:
            _, turn, landed = self.wire.popleft()
            self.gate.learn(landed, Accepted("SM1"))
            turn.back()
        while going := [waiting for waiting in self.turns if waiting[0].granted]:
            turn, one = going[0]
            self.turns.remove((turn, one))
            if isinstance(ask(one, now=self.clock.now()), Refuse):
                self.expired += 1
                turn.back()
                continue
            flight = self.gate.knock(one.level)
            assert flight is not None
            turn.left(now)
            self.sent.append((self.clock.now(), one))
            self.wire.append((now + ANSWER_S, turn, flight))


async def test_five_minutes_of_five_times_too_much() -> None:
    clock = Wound()
    async with Transport.open(connections=10) as transport:
        observer = Observer(Metrics(), clock, settings())
        crowd = Crowd(
            clock,
            Gate(dialect(), transport, connections=10, timeout_s=15, tick=clock.tick, observer=observer),
        )
        crowd.go(10, offered=0.5)
        began = clock.now()
        crowd.go(OVERLOAD_S, offered=5)
        ended, backlog = clock.now(), sum(map(len, crowd.queue.values()))
        while len(crowd.queue[3]) > RATE:
            crowd.go(0.5, offered=0.5)
        recovered = clock.now() - ended
        crowd.go(10, offered=0.5)
        crowd.lanes.close()
    spans = [sum(began + 5 * k <= at < began + 5 * (k + 1) for at, _ in crowd.sent) for k in range(60)]
    waits = [at - one.due_at for at, one in crowd.sent if one.level == 1]
    p99 = quantiles(waits, n=100)[98]
    assert min(spans) >= 0.9 * max(spans), spans
    assert max(spans) >= 0.95 * 5 * RATE
    assert all(one.expires_at is None or at < one.expires_at for at, one in crowd.sent)
    assert p99 <= 0.25
    assert recovered < 2 * backlog / RATE
    assert crowd.most_in_hand <= 0.4 * RATE + 2
    assert not crowd.turns
    assert crowd.expired > 0.7 * OVERLOAD_S * RATE * 4
