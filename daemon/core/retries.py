"""
The retry budget of one provider: a fifth of what it is given may be retries, and ten a second whatever it is given.

Without it half of what a provider is given are second helpings, when it fails nearly half of everything: too few to
open its breaker. What exceeds the budget is put back unspent; first tries never ask. The figures are Finagle's (facts:
reliability, 1.6; decision 0016): ten a second, so that little traffic can be retried too, and a backlog of nothing but
retries ends. The last half of what is saved up is level 1's: login codes do not wait for a campaign's retries.

``now`` is a monotonic clock in seconds.
"""

from __future__ import annotations

from dataclasses import dataclass

SHARE = 0.2  # of all that the provider is given, retries included
FLOOR = 10.0  # a second, beside that
MOST = 20.0  # retries saved up: what may come at once
RESERVED = MOST / 2  # of those, for level 1
WAIT_MIN_S = 1.0
WAIT_MAX_S = 300.0


@dataclass(frozen=True, slots=True)
class Budget:
    """What is left, as reckoned at *at*."""

    at: float
    left: float = MOST
    requests: int = 0  # of all time, counted in so far
    promised: float = 0.0  # the moment given to the last who was put back


def ask(budget: Budget, *, level: int, requests: int, now: float) -> tuple[Budget, float]:
    """
    May a retry of *level* go, when the provider has been given so many *requests* in all? The budget as it now stands,
    and the seconds to wait: none when it may.

    Whoever waits is given a moment of their own, a tenth of a second after the last: a crowd that is put back together
    would come back together, and be put back again.
    """
    earned = SHARE * (requests - budget.requests) + FLOOR * max(now - budget.at, 0.0)
    left, at = min(budget.left + earned, MOST), max(now, budget.at)
    if left >= (1.0 if level == 1 else 1.0 + RESERVED):
        return Budget(at, left - 1.0, requests, budget.promised), 0.0
    if level == 1:
        return Budget(at, left, requests, budget.promised), WAIT_MIN_S
    promised = min(max(budget.promised, now + WAIT_MIN_S) + 1 / FLOOR, now + WAIT_MAX_S)
    return Budget(at, left, requests, promised), promised - now
