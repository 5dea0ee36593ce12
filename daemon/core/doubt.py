"""
Doubt: when to look for evidence again, and when and how to decide without any.

Evidence first (facts: reliability 2.5): a receipt with our token, then the provider's own list, which lags, so that
one empty answer proves nothing and two a minute apart are taken for "not sent". Only then the policy of the message's
intent.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from daemon.core.lifecycle import Status
from daemon.core.message import OnAmbiguous

if TYPE_CHECKING:
    from collections.abc import Sequence

LOOKS_S: Sequence[float] = (5.0, 20.0, 60.0, 120.0)  # after so long it is asked for; then every PACE_S
PACE_S = 120.0
ABSENT_S = 60.0  # so long must a provider have known nothing of it


@dataclass(frozen=True, slots=True)
class Look:
    """Look again at *at* (wall clock)."""

    at: float


@dataclass(frozen=True, slots=True)
class Decide:
    """Decide now: *status* is ``ready`` (send it again) or a final one."""

    status: str
    reason: str


Step: TypeAlias = Look | Decide


def next_step(
    *,
    now: float,
    since: float,
    absent_since: float | None,
    askable: bool,
    dispatched: bool,
    policy: str,
    resolve_for_s: float,
    expires_at: float | None,
    canceled: bool,
) -> Step:
    """
    What to do about a message that has been in doubt *since*, after a look that brought no acceptance.

    *absent_since*: since when its provider has said it knows nothing of it. *dispatched*: whether we know that it left;
    without that ``drop`` does not apply, because it may well never have been sent. Times on the wall clock.
    """
    if absent_since is not None and now - absent_since >= ABSENT_S:
        return _unsent(expires_at, now, canceled=canceled)
    deadline = since + resolve_for_s
    if now < deadline:
        looks = [since + after for after in LOOKS_S if since + after > now]
        return Look(min([*looks, now + PACE_S, deadline]))
    match policy:
        case OnAmbiguous.RESEND if not canceled and (expires_at is None or now < expires_at):
            return Decide("ready", "in doubt for too long: sent again, it may arrive twice")
        case OnAmbiguous.DROP if dispatched:
            return Decide(Status.DEAD, "in doubt for too long: dropped, it may have arrived")
        case _ if absent_since is not None:
            return Look(absent_since + ABSENT_S)  # about to be known
        case _:
            why = "no evidence came" if askable else "its provider cannot be asked"
            return Decide(Status.DEAD, f"parked in doubt: {why}; it may have arrived")


def _unsent(expires_at: float | None, now: float, *, canceled: bool) -> Decide:
    if canceled:
        return Decide(Status.CANCELED, "canceled by the application; its provider never had it")
    if expires_at is not None and now >= expires_at:
        return Decide(Status.EXPIRED, "too late: when it was known not to have been sent, it was of no more use")
    return Decide("ready", "its provider, asked twice, never had it: sent again")
