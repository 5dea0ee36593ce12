"""
The luck of one world: how often each kind of trouble comes, and how bad its moments are.

Even bad luck is dull: what is rare stays rare, however long one waits. So each world is dealt its own (the swizzle of
facts: reliability, 1.3): in about a third of them a trouble comes many times as often, and independently of the others.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

HOT = 0.35  # of all worlds, for each trouble
BAD = 0.28  # for those that leave little else in the world
PLOT = 0.1  # for each of PLOTS, which leave nothing else


@dataclass(frozen=True, slots=True)
class Luck:
    """How much of everything. The plain figures are those of a quiet world."""

    kills: float = 1.0  # how much sooner a process dies at a crash point
    leaks: float = 1.0  # how much sooner the answer to a statement is lost
    sleeps: bool = False  # processes stand still for longer than a lease, and wake when what they had is taken again
    lags: bool = False  # standbys lag by many seconds, and are promoted when what was in doubt is taken again
    grudge: float = 0.0  # how often a process dies right then
    refusals: float = 0.08  # of the requests a provider answers
    silence: float = 0.06  # of them that get no answer, nor reach anybody
    deafness: float = 0.09  # of its acceptances that are never heard of
    haste: bool = False  # doubt is soon over, and mostly ends with another try
    slow_s: float = 4.0  # the longest answer of a slow provider
    rush: float = 1.0  # how much sooner receipts come: they overtake answers
    unheard: float = 0.04  # of the receipts, for ever
    tattle: bool = True  # whether providers gossip about what is still open
    every_s: float = 0.3  # between two messages
    gossip_s: float = 0.08  # between two words of providers that nobody waits for
    fleeting: float = 0.03  # of the messages that are too late after four seconds
    wilful: float = 0.3  # of the messages that say themselves what is to be done in doubt
    plot: str | None = None  # what the nemesis does all the time: sleeper, standby or liar
    listed_s: float = 20.0  # so long a message may be missing from its provider's list

    @classmethod
    def drawn(cls, dice: Callable[[], float]) -> Luck:
        """As *dice* have it."""
        plot = int(dice() / PLOT)
        if plot < len(PLOTS):
            return PLOTS[plot]
        kills, leaks, grudge, answers, haste, rush, mute = (dice() < HOT for _ in range(7))
        sleeps, lags = dice() < BAD, dice() < BAD
        return cls(
            kills=8.0 if kills else 1.0,
            leaks=8.0 if leaks else 1.0,
            sleeps=sleeps,
            lags=lags,
            grudge=0.4 if grudge else 0.0,
            refusals=0.25 if answers else 0.08,
            silence=0.15 if answers else 0.06,
            deafness=0.3 if answers else 0.09,
            slow_s=12.0 if sleeps or lags else 4.0,
            haste=haste or sleeps or lags,  # else nothing is ever taken again in time
            rush=0.1 if rush else 1.0,
            unheard=0.7 if mute or sleeps or lags else 0.04,
            tattle=not (sleeps or lags),
            listed_s=200.0 if mute or sleeps or lags else 20.0,
        )


SLY = Luck(haste=True, slow_s=15.0, unheard=1.0, tattle=False, listed_s=200.0, every_s=0.12, gossip_s=2.0, wilful=0.0)
SLEEPER = replace(SLY, plot="sleeper", sleeps=True, grudge=0.02)
STANDBY = replace(SLY, plot="standby", lags=True)
LIAR = replace(SLY, plot="liar", every_s=0.3, leaks=20.0, kills=8.0, unheard=0.3, fleeting=0.2)
PLOTS = (SLEEPER, SLEEPER, SLEEPER, STANDBY, STANDBY, LIAR)  # as often as here
