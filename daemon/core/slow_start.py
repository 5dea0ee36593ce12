"""
How many messages of low priority may be on the wire to a provider that has not been heard of for a while.

After a stop, its own or ours, nobody knows whether it answers, and a backlog waits: a few are risked, and each good
answer lets one more go, so that they double with each round of answers until all places are open (four rounds for 64
connections). A bad answer halves them. The rate is not ramped: it is the sender's limit however much waits, and level 1
waits for none of this (decision 0016).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from daemon.core.breaker import Sign
from daemon.core.outcome import Throttled

if TYPE_CHECKING:
    from daemon.core.outcome import Outcome

FIRST = 4


def first(full: int) -> int:
    """The places to begin with, of *full* that there are."""
    return min(FIRST, full)


def after(opened: int, full: int, *, sign: Sign, outcome: Outcome) -> int:
    """The places open after an answer, when there were *opened*."""
    match sign:
        case Sign.GOOD:
            return min(opened + 1, full)
        case Sign.IRRELEVANT:  # it refuses this one, and is well; "too fast" is no reason to go faster
            return opened if isinstance(outcome, Throttled) else min(opened + 1, full)
        case _:
            return max(opened // 2, first(full))
