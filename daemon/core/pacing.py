"""
One sender's pace, and whose turn it is on it.

The law: segment *j* of a message sent at *t* counts at ``t + j / rate``; so counted, no sliding second holds more
segments than the rate, on the provider's clock too, as long as the ways there differ by no more than 20 ms.

Clocks are monotonic, in seconds. Everything here is in one daemon's memory: a sender belongs to one lease.
"""

# ruff: noqa: FURB136, PLR1730 (a call of max() costs a third of what a whole turn may cost)

from __future__ import annotations

import math
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

# Exactly 1.000 s on our clock let 16 and 17 through at 15/s on the provider's; 1.02 s never did (facts: performance,
# H.4). It costs 2 % of the rate, all the slack there is.
WINDOW_S = 1.02
BURST_S = 0.02  # debt forgiven at the start of a message: a timer that rings late is caught up with
SLOWER = 0.7  # what a throttle leaves of the pace, at most once in SLOW_EVERY_S
SLOW_EVERY_S = 1.0
SLOWEST = 0.05  # of the rate: however often throttled, the lane keeps asking
RECOVERY = 0.01  # of the rate, won back each second


class Pace:
    """
    When the next message of a sender may leave. Mutable: asked and told for every message.

    Two rules, and the later moment holds. *Debt* (GCRA): n segments put the next message off by n / rate. *Log*: the
    times of the last ``floor(rate)`` segments are kept; one more may come only when the oldest is a window ago. The
    debt spreads messages out, the log makes the law exact.

    A message longer than the rate passes when its sender is free, and the next waits for all of it. Of a rate between
    two whole numbers the log admits the lower (1.25 becomes 1 in each window): a second cannot hold a fraction, and
    what a provider counts decides. Below one a second, the window is the time of one segment and 2 % more.
    """

    __slots__ = ("_log", "_owed_until", "_rate", "_share", "_slowed_at", "_step", "_window")

    def __init__(self, rate: float) -> None:
        self._owed_until = -math.inf  # when all debt is paid
        self._share = 1.0  # of the rate, less than all after a throttle
        self._slowed_at = -math.inf
        self._log: deque[float] = deque((-math.inf,))  # ascending, always full
        self._judge_by(rate)

    @property
    def rate(self) -> float:
        """Segments per second, as configured. Setting it keeps log and debt, judged by the new rate."""
        return self._rate

    @rate.setter
    def rate(self, rate: float) -> None:
        if rate != self._rate:
            self._judge_by(rate)

    @property
    def share(self) -> float:
        """How much of the rate is in use, 0.05 to 1: less than 1 after a throttle."""
        return self._share

    def earliest(self, segments: int, now: float) -> float:
        """The first moment at which a message of *segments* may leave: *now*, or later."""
        log = self._log
        moment = self._owed_until - BURST_S
        if moment < now:
            moment = now
        if (free := log[0] + self._window) > moment:
            moment = free
        if log[-1] > moment:
            moment = log[-1]
        if segments > 1:
            # Its second segment stands where the second oldest must be out of the window, and so on.
            for j in range(1, min(segments, len(log))):
                moment = max(moment, log[j] + self._window - j * self._step)
        return moment

    def take(self, segments: int, now: float) -> None:
        """A message of *segments* leaves at this very moment (*now*), whether it was asked for or not."""
        log, step = self._log, self._step
        owed = self._owed_until
        self._owed_until = (owed if owed > now else now) + segments * step / self._share
        # The log stays in order even if somebody sends too early; the debt holds the others back then.
        start = log[-1] if log[-1] > now else now
        log.append(start)
        if segments > 1:
            log.extend(start + j * step for j in range(1, segments))

    def room(self, now: float, horizon_s: float) -> float:
        """How many segments could still start within *horizon_s*: an upper bound, for claims."""
        end = now + horizon_s
        if self.earliest(1, now) > end:
            return 0.0
        return (end - max(self._owed_until, now) + BURST_S) * self._rate * self._share + 1

    def restore(self, events: Iterable[tuple[float, int]]) -> None:
        """Take over the debt of ``(time, segments)`` of messages sent by a predecessor, on this clock."""
        for time, segments in sorted(events):
            self.take(segments, time)

    def start_full(self, now: float) -> None:
        """Begin as if a whole window had just been used: nobody knows what was sent, so the first waits 1.02 s."""
        self._log.extend([max(now, self._log[-1])] * len(self._log))
        self._owed_until = max(self._owed_until, now + self._window)

    def slow(self, factor: float = SLOWER, *, now: float) -> None:
        """A provider said "too fast". Heard once a second: one burst is one piece of news."""
        if now >= self._slowed_at + SLOW_EVERY_S:
            self._slowed_at = now
            self._share = max(self._share * factor, SLOWEST)

    def recover(self, dt_s: float) -> None:
        """*dt_s* have passed: a little of the pace comes back."""
        self._share = min(self._share + RECOVERY * dt_s, 1.0)

    def _judge_by(self, rate: float) -> None:
        if not 0 < rate < math.inf:
            raise ValueError(f"a sender's rate is a positive number of segments per second, not {rate}")
        self._rate = rate
        self._step = 1 / rate
        self._window = max(WINDOW_S, WINDOW_S / rate)
        known, length = self._log, max(1, int(rate))
        # A window never held more than the old log did, so nothing is missing when the new one is longer.
        self._log = deque([-math.inf] * (length - len(known)), maxlen=length)
        self._log.extend(known)


LEVEL_1_SHARE = 0.8  # above this for STARVED_S the others keep the rest
STARVED_S = 60.0
BREAK_S = 1.0  # others who are gone for less have been waiting on: their hands were empty for the time of a claim
# What one segment of level 1 earns for the others. (1 - 0.8) / 0.8 is a hair less than a quarter: they had every sixth.
OTHERS_PER_SEGMENT = 1 / LEVEL_1_SHARE - 1
SHARE_OF_2, SHARE_OF_3 = 3, 2  # Twilio's 30 and 20 % (Traffic Shaping)


class Turns:
    """
    Which level goes next on one sender. Mutable: asked and told for every message.

    Level 1 always, except that others who have waited for a minute while it took over 80 % of the lane get every fifth
    segment. Below it levels 2 and 3 share 3:2, in segments; what one does not use the other has. So whoever waits at
    level 3 is served, at the latest, after a minute and then once in about 13 of the segments that leave.
    """

    __slots__ = ("_credit", "_first", "_gone_at", "_lead", "_others", "_told_at", "_waiting_since")

    def __init__(self) -> None:
        self._first = 0.0  # segments of level 1, of the last minute or so (they fade with that time constant)
        self._others = 0.0
        self._told_at = 0.0
        self._waiting_since = math.inf  # since when others have been waiting without a break
        self._gone_at = -math.inf  # since when they have not; infinite while they do
        self._credit = 0.0  # segments the others have earned, at most one: never a burst in front of a login code
        self._lead = 0.0  # by how much level 2 is ahead of its share; negative: level 3

    def choose(self, waiting: tuple[bool, bool, bool], now: float) -> int:
        """The level that goes next, among those with somebody *waiting*; 0 when there is nobody."""
        first, second, third = waiting
        if not (second or third):
            self._gone_at = min(self._gone_at, now)
            return 1 if first else 0
        if now - self._gone_at > BREAK_S:
            self._waiting_since = now
        self._gone_at = math.inf
        if first and not self._starved(now):
            return 1
        if not second or not third:
            # Who was absent saves nothing up.
            self._lead = max(self._lead, 0.0) if third else min(self._lead, 0.0)
            return 2 if second else 3
        return 2 if self._lead <= 0 else 3

    def alone(self, level: int) -> None:
        """Somebody of *level* goes, and nobody waits."""
        self._gone_at = -math.inf
        if (level == 2 and self._lead > 0.0) or (level == 3 and self._lead < 0.0):
            self._lead = 0.0

    def charge(self, level: int, segments: int, now: float) -> None:
        """A message of *level* has left."""
        if now > self._told_at:
            fade = math.exp((self._told_at - now) / STARVED_S)
            self._told_at = now
            self._first *= fade
            self._others *= fade
        if level == 1:
            self._first += segments
            self._credit = min(self._credit + segments * OTHERS_PER_SEGMENT, 1.0)
            return
        self._others += segments
        self._credit = (self._credit if self._credit > 0.0 else 0.0) - segments
        self._lead += segments / SHARE_OF_2 if level == 2 else -segments / SHARE_OF_3

    def _starved(self, now: float) -> bool:
        share = LEVEL_1_SHARE * (self._first + self._others)
        return self._credit >= 1 and now - self._waiting_since >= STARVED_S and self._first > share
