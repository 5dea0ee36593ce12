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
