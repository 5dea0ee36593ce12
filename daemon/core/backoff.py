"""How long to wait before trying again: capped exponential growth with full jitter, by intent."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Patience:
    """How often and how patiently one intent is retried. Times in seconds."""

    attempts: int  # tries in all, the first included
    base_s: float  # ceiling of the first wait
    cap_s: float  # ceiling of any wait


def delay(patience: Patience, tries: int, roll: float) -> float:
    """
    Seconds to wait after try number *tries* (from 1); *roll* is in [0, 1).

    Full jitter (AWS Builders' Library, "Timeouts, retries, and backoff with jitter"): anywhere between nothing and the
    ceiling, so that a crowd of failures does not come back as a crowd.
    """
    # 2 ** 63 is past any cap; without the bound a row of a thousand tries would overflow.
    return roll * min(patience.cap_s, patience.base_s * 2.0 ** min(tries - 1, 63))
