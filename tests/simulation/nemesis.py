"""
The nemesis of the world: what goes wrong, and when. It sees everything, and picks the worst moments.

What takes three accidents in a row hardly ever comes of bad luck. So some worlds are left to a plot, which does one thing
again and again (``Luck.plot``):

- sleeper: a daemon stands still while another sends again what it has sent, and wakes before that is answered;
- standby: one is promoted that knows nothing of the second copy, before that is answered;
- liar: providers say how a message ended before they answer, and then something else; and answers of Postgres get lost.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from daemon.core.outcome import Accepted, Fault, Outcome, Rejected, Throttled, Uncertain
from tests.simulation import laws

if TYPE_CHECKING:
    from tests.simulation.laws import Life
    from tests.simulation.world import World

MODES = ("refusing", "hanging", "broken", "throttling", "account", "slow")
FATES: tuple[Outcome, ...] = (
    Accepted("SM"),
    Throttled(None, "429", "too fast"),
    Uncertain("reset after the request"),
    Uncertain("reset after the request"),
    Rejected(Fault.RECIPIENT, "30000", "refused"),
    Rejected(Fault.RECIPIENT, "30000", "refused"),
)


class Nemesis:
    """Of one world."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.luck = world.luck
        self._doubted: set[int] = set()  # what was in doubt when the standby fell behind
        # Of a plot: until when it is at it, from when on applications keep still, when the standby is promoted, whether
        # whoever has a message again dies as soon as its first is told of; and of messages, when their next copy is told.
        self._busy_until = self._quiet_from = self._promoted_at = 0.0
        self._spiteful = False
        self._fates: dict[int, float] = {}

    def strike(self) -> None:
        """One more trouble, and the next in some seconds."""
        world, dice = self.world, self.world.dice
        world.at(8.0 * dice(), world.TROUBLE)
        if self.luck.plot is not None:
            self._plot(self.luck.plot)
            return
        boat = world.boats[int(3 * dice())]
        which = int(12 * dice())
        if which < 2 and boat.up:
            world.kill(boat)
        elif which == 2 and boat.up:
            world.freeze(boat, max(boat.frozen_until, world.now + 45.0 * dice() ** 2))
        elif which == 3:
            boat.error = (dice() - 0.5) * 7200.0 if dice() < 0.2 else (dice() - 0.5) * 20.0
        elif which == 4 and boat.up and not boat.stopping and boat.frozen_until <= world.now:
            boat.stop()
        elif which == 5 and world.down_until < world.now:
            world.down_until = world.now + 20.0 * dice() ** 3
        elif which in {6, 7, 8}:
            provider = world.random.choice(list(world.providers.values()))
            provider.mode = world.random.choice(MODES)
            world.at(15.0 * dice(), world.CLEAR, None, provider)
        elif which == 9 and (self.luck.lags or dice() < 0.3):
            self._lag()
        elif which == 10 and self.luck.sleeps:
            self._all("slow", 20.0 + 20.0 * dice())
            world.at(2.0 + 2.0 * dice(), world.BLOW)
        elif which == 11 and self.luck.lags:
            self._all("slow", 20.0 + 20.0 * dice())

    def _plot(self, plot: str) -> None:
        world = self.world
        if world.now < self._busy_until or world.held or world.snapshot is not None:
            return
        self._quiet_from = world.now + 6.0
        if plot == "sleeper":
            self._all("slow", 8.0)
            world.at(6.0, world.BLOW)
            self._busy_until = world.now + 55.0
        elif plot == "standby":
            self._busy_until = world.now + 20.0
            if world.dice() < 0.7:
                self._all("broken", 4.0)
            else:
                world.at(3.0, world.BLOW)

    @property
    def quiet(self) -> bool:
        """Whether applications keep still: what is sent again would wait behind what is new."""
        return self.luck.plot is not None and self.world.now > self._quiet_from

    def _all(self, mode: str, seconds: float) -> None:
        """Every provider is like that for so long."""
        for provider in self.world.providers.values():
            provider.mode = mode
            self.world.at(seconds, self.world.CLEAR, None, provider)

    def blow(self) -> None:
        """What was prepared, when the time has come."""
        if self.luck.plot == "standby":
            self._forget()
        else:
            self._sleep()

    def _forget(self) -> None:
        """A standby falls behind, and is promoted before what is on the wire is answered."""
        self._lag()
        self._promoted_at = self.world.now + 1.5
        self.world.at(1.5, self.world.FAILOVER)

    def _sleep(self) -> None:
        """Whoever has most in hand stands still until another has its leases; of what is on the wire it hears later."""
        world = self.world
        boat = max(world.boats, key=lambda one: len(one.hand))
        if boat.up and all(other.frozen_until <= world.now for other in world.boats):
            longest = 32.0 + 26.0 * world.dice() if self.luck.plot is None else 100.0
            world.freeze(boat, world.now + longest)

    def promoted(self) -> None:
        """What was on its way when a standby fell behind is on its way again: now providers say how it ended."""
        if self.luck.plot == "standby":
            world, dice = self.world, self.world.dice
            for row in self.world.store.rows.values():
                assert isinstance(row, laws.Life)
                if row.in_flight and row.attempts + 1 in row.posts:
                    word = tuple(laws.TOLD)[2 + int(4 * dice())]
                    world.at(0.2 * dice(), world.RECEIPT, None, (row, row.attempts + 1, word, 9))

    def again(self, row: Life) -> None:
        """What has left before is taken again: what could be a worse moment?"""
        world, dice = self.world, self.world.dice
        now = world.now
        if self.luck.sleeps:
            for boat in world.boats:
                if boat.frozen_until > now and row.id in boat.hand:
                    world.freeze(boat, min(boat.frozen_until, now + self._draw_patience()))
                    self._doom(row, boat.frozen_until)
        if world.snapshot is not None and self.luck.lags and row.id in self._doubted:
            if self._promoted_at <= now:
                self._promoted_at = now + self._draw_patience()
                world.at(self._promoted_at - now, world.FAILOVER)
            self._doom(row, self._promoted_at)
        if self.luck.rush < 1.0 and dice() < 0.5:
            word = tuple(laws.TOLD)[int(6 * dice())]
            world.at(0.4 * dice(), world.RECEIPT, None, (row, max(row.posts), word, 9))

    def _draw_patience(self) -> float:
        """
        How a plot goes on: it waits until more are taken again, or strikes before they have left, and then kills whoever
        has the copy (:meth:`spite`).
        """
        if self.luck.plot is None:
            return 0.05 * self.world.dice()
        self._spiteful = self.luck.plot == "sleeper" and self.world.dice() < 0.3
        return 0.2 if self._spiteful else 8.0

    def _doom(self, row: Life, at: float) -> None:
        """Of the copy nothing is heard before *at*, and seldom a yes; by then its first may be known to have been sent."""
        world, dice = self.world, self.world.dice
        self._fates[row.id] = at + 0.1 + 0.5 * dice()
        if dice() < 0.4:
            world.at(at - world.now + 0.05, world.RECEIPT, None, (row, max(row.posts), laws.S.SENT, 9))

    def says(self, row: Life, attempt: int) -> tuple[float, Outcome] | None:
        """After how long a provider answers to *row* and what, if that is not left to it."""
        world, dice = self.world, self.world.dice
        at = self._fates.pop(row.id, None)
        if at is None and self.luck.plot == "standby" and self._promoted_at > world.now and dice() < 0.5:
            at = self._promoted_at + 0.05 + 0.5 * dice()
        if self.luck.plot == "liar" and dice() < 0.7:
            at = world.now + 0.1 + 0.9 * dice()
            world.at(0.05, world.RECEIPT, None, (row, attempt, tuple(laws.TOLD)[int(6 * dice())], 9))
        return None if at is None else (max(0.03, at - world.now), FATES[int(len(FATES) * dice())])

    def poised(self) -> None:
        """Something in doubt is about to be sent again."""
        if self.world.faults and self.luck.lags and self.world.dice() < 0.5:
            self._lag()

    def spite(self, row: Life) -> None:
        """A yes to an older attempt has come while somebody has the message in hand again."""
        world = self.world
        for boat in world.boats:
            if world.faults and boat.up and row.id in boat.hand and (self._spiteful or world.dice() < self.luck.grudge):
                world.kill(boat)

    def _lag(self) -> None:
        """A standby falls behind; soon it will be promoted."""
        world = self.world
        if (
            world.snapshot is None
            and not world.held
            and all(boat.log_lost_at < world.now - 60.0 for boat in world.boats)
        ):
            world.snapshot = (world.now, world.store.snapshot())
            self._doubted = set(world.store.unknown)
            if self.luck.plot is None:
                world.at((25.0 if self.luck.lags else 5.0) * world.dice(), world.FAILOVER)
