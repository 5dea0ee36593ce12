"""
A provider of the world: accepts, refuses, hangs, breaks and tells, and keeps count of what it has taken.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from daemon.core.lifecycle import Status
from daemon.core.outcome import Accepted, Fault, Outcome, Rejected, Throttled, Uncertain
from tests.simulation.boat import ABSENT, EXCHANGE_S, UNCLEAR
from tests.simulation.laws import broken

if TYPE_CHECKING:
    from tests.simulation.laws import Life
    from tests.simulation.world import World

S = Status
FAULTS = (Fault.RECIPIENT, Fault.CONTENT, Fault.OPTED_OUT, Fault.ROUTE, Fault.SENDER, Fault.TRANSIENT, Fault.UNKNOWN)


class Provider:
    """One provider. ``mode`` is how it is now."""

    def __init__(self, world: World, name: str, *, askable: bool = False, idempotent: bool = False) -> None:
        self.world = world
        self.name = name
        self.askable = askable
        self.idempotent = idempotent
        self.mode = "well"
        self._has: dict[tuple[int, int], float] = {}  # what it accepted: message and attempt -> when it lists it
        self._knows: set[int] = set()

    def refuses(self) -> bool:
        """Whether it does not even open a connection now."""
        return self.mode == "refusing" or self.world.dice() < 0.01

    def take(self, row: Life, attempt: int) -> tuple[float, Outcome]:
        """A request arrives: after so many seconds its sender knows this of it."""
        world, dice = self.world, self.world.dice
        world.sent.append((row, attempt))
        roll, mode = dice(), self.mode
        wait = 0.03 + (0.4 if mode != "slow" else world.luck.slow_s) * dice() ** 2
        fate = world.nemesis.says(row, attempt)
        if fate is not None:
            if isinstance(fate[1], Accepted):
                self._accept(row, attempt)
            return fate
        if mode == "hanging" and roll < 0.9:
            if dice() < 0.4:
                self._accept(row, attempt)
            return EXCHANGE_S, Uncertain("no answer in time")
        if mode == "broken" and roll < 0.8:
            if dice() < 0.4:
                self._accept(row, attempt)
            return wait, Uncertain("HTTP 503", "503")
        if mode == "throttling" and roll < 0.7:
            return wait, Throttled(None if dice() < 0.5 else 5.0 * dice(), "429", "too fast")
        if mode == "account" and roll < 0.7:
            return wait, Rejected(Fault.ACCOUNT, "20003", "unauthorised")
        luck = world.luck
        if roll < 1.0 - luck.refusals - luck.silence:
            self._accept(row, attempt)
            if dice() < luck.deafness:
                return wait, Uncertain("reset after the request")  # the answer is lost
            return wait, Accepted(None if dice() < 0.01 else "SM", "sent" if dice() < 0.2 else "accepted")
        if roll < 1.0 - luck.refusals:
            return EXCHANGE_S if dice() < 0.3 else wait, Uncertain("reset after the request")
        return wait, Rejected(FAULTS[int(7 * dice())], "30000", "refused")

    def find(self, row: Life, attempt: int) -> object:
        """Asked whether it has that attempt."""
        if not self.askable:
            return None
        if self.mode != "well" or self.world.dice() < 0.05:
            return UNCLEAR
        listed = self._has.get((row.id, attempt))
        return Accepted("SM") if listed is not None and listed <= self.world.now else ABSENT

    def _explained(self, row: Life) -> bool:
        """Whether the store, or what it knew before it was rolled back, names why there is a second copy."""
        return row.excused or any(what in {"resend", "replayed"} for _, what in row.story)

    def _accept(self, row: Life, attempt: int) -> None:
        world, dice = self.world, self.world.dice
        self._has[row.id, attempt] = world.now + world.luck.listed_s * dice() ** 3
        if self.idempotent and row.id in self._knows:
            return  # its own: no second copy
        self._knows.add(row.id)
        if row.accepted and not self._explained(row):
            broken("I6", f"{row.id} is a duplicate that nothing explains")
        world.laws.copied(row)
        roll, wait = dice(), (0.02 + 2.0 * dice() ** 2) * world.luck.rush
        words = [(wait, S.SENT), (wait + 20.0 * dice() ** 2, S.DELIVERED if roll < 0.85 else S.UNDELIVERED)]
        if roll > 0.93:
            words[-1] = (words[-1][0], S.FAILED)
        if roll < 0.05:
            words.append((words[-1][0] + 30.0 * dice(), S.READ))
        for usual, word in words:
            if dice() < world.luck.unheard:
                continue  # lost
            after = usual * 20.0 if dice() < 0.05 else usual
            world.at(after, world.RECEIPT, None, (row, attempt, word, 0))
            if dice() < 0.05:
                world.at(after * (1.0 + dice()), world.RECEIPT, None, (row, attempt, word, 0))
