"""May this message leave, now, to this person? Asked last, because the wait for a turn may have been long."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias

from daemon.core.lifecycle import Status

if TYPE_CHECKING:
    from daemon.core.message import Message

PAUSED_S = 5.0  # how soon a paused message is looked at again


@dataclass(frozen=True, slots=True)
class Go:
    """Yes."""


@dataclass(frozen=True, slots=True)
class Hold:
    """Not yet: ask again at *until* (wall clock). Not held against the message."""

    until: float
    reason: str


@dataclass(frozen=True, slots=True)
class Refuse:
    """Never: it ends here, in *status*."""

    status: Status
    reason: str


Permission: TypeAlias = Go | Hold | Refuse

GO: Final = Go()  # one for all: it holds nothing


def ask(
    message: Message, *, now: float, opted_out: bool = False, canceled: bool = False, paused: str | None = None
) -> Permission:
    """
    Whether *message* may leave at *now* (wall clock). *paused* says why its service, sender or provider is paused.

    What ends a message comes before what holds it, and what a person wants comes before the clock.
    """
    if canceled:
        return Refuse(Status.CANCELED, "canceled by the application")
    if opted_out:
        return Refuse(Status.SUPPRESSED, "opted out")
    if message.expires_at is not None and now >= message.expires_at:
        return Refuse(Status.EXPIRED, f"too late: expired {now - message.expires_at:.0f} s ago")
    if now < message.due_at:
        return Hold(message.due_at, "not yet due")
    if paused is not None:
        return Hold(now + PAUSED_S, f"paused: {paused}")
    # Quiet hours belong here, after the pause: they hold what is not essential until the recipient's morning.
    return GO


def in_time(message: Message, *, now: float, wait_s: float) -> bool:
    """
    Whether *message* will still be of use at *now* (wall clock) and *wait_s* seconds on, when its turn comes.

    Asked before it queues up. When there is too much to send, the oldest is always about to expire: if it waited in
    front of its sender for no more than a moment, all that waits there would expire there, and nothing would be sent.
    """
    return message.expires_at is None or now + wait_s < message.expires_at
