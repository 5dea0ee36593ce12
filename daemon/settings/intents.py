"""
What each of Twilio's eleven intents asks of us: its level, its patience, and what to do in doubt.

Levels are Twilio's (``core.message.LEVELS``), and so is which of them are essential, that is exempt from quiet hours.
The policy in doubt follows the harm: a login code that comes twice is harmless and one that never comes locks a person
out; "payment made" twice alarms; an advertisement twice annoys and costs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from daemon.core.backoff import Patience
from daemon.core.message import LEVELS, Intent, OnAmbiguous
from daemon.settings.duration import MINUTE, Duration
from daemon.settings.table import Table

if TYPE_CHECKING:
    from collections.abc import Mapping


class IntentSettings(Table):
    """How messages of one intent are treated."""

    level: int = Field(default=3, ge=1, le=3)  # 1 the most urgent
    attempts: int = Field(default=8, ge=1, le=100)  # tries in all, the first included
    retry_base: Duration = Duration(2)  # ceiling of the first wait; each further one doubles it
    retry_cap: Duration = Duration(10 * MINUTE)  # ceiling of any wait
    on_ambiguous: OnAmbiguous = OnAmbiguous.RESOLVE
    resolve_for: Duration = Duration(10 * MINUTE)  # how long evidence is looked for before the policy speaks
    essential: bool = False  # exempt from quiet hours

    @property
    def patience(self) -> Patience:
        """The same, in the words of the judge."""
        return Patience(attempts=self.attempts, base_s=float(self.retry_base), cap_s=float(self.retry_cap))


# A row without an intent is level 3 (Twilio, Traffic Shaping) and otherwise treated with the most care.
UNTOLD = IntentSettings()


def _code(retry_cap: float) -> IntentSettings:
    # Worth little after a minute or two: few tries, close together, and a second copy rather than none.
    return IntentSettings(
        level=1,
        attempts=5,
        retry_base=Duration(1),
        retry_cap=Duration(retry_cap),
        on_ambiguous=OnAmbiguous.RESEND,
        resolve_for=Duration(8),
        essential=True,
    )


def _care(intent: Intent, *, essential: bool) -> IntentSettings:
    return IntentSettings(level=LEVELS[intent], essential=essential)


def _bulk() -> IntentSettings:
    # Nobody waits for it: patient, and never at the price of a second copy.
    return IntentSettings(
        level=3, retry_base=Duration(10), retry_cap=Duration(30 * MINUTE), on_ambiguous=OnAmbiguous.DROP
    )


INTENTS: Mapping[Intent, IntentSettings] = {
    Intent.OTP: _code(8),
    Intent.NOTIFICATIONS: _care(Intent.NOTIFICATIONS, essential=True),
    Intent.FRAUD: _code(60),
    Intent.SECURITY: _code(60),
    Intent.CUSTOMERCARE: _care(Intent.CUSTOMERCARE, essential=True),
    Intent.DELIVERY: _care(Intent.DELIVERY, essential=True),
    Intent.EDUCATION: _care(Intent.EDUCATION, essential=False),
    Intent.EVENTS: _care(Intent.EVENTS, essential=False),
    Intent.POLLING: _bulk(),
    Intent.ANNOUNCEMENTS: _bulk(),
    Intent.MARKETING: _bulk(),
}
