"""
Overdue receipts: when a provider that has said nothing is asked, and when nobody waits any longer.

Callbacks get lost: a provider tries once or a few times and then never again (facts: reliability 2.2, twilio 4.4). What
has been silent for an hour is asked for hourly on its first day, then once a night, and after 72 hours it is final as
``unconfirmed``. A receipt that comes later still counts.
"""

from __future__ import annotations

QUIET_S = 3_600.0  # nobody is asked before so long without news; sql/overdue.sql has it as an index range
RECENT_S = 86_400.0
UNCONFIRMED_S = 259_200.0  # 72 hours: no provider reports later (facts: reliability 2.2)
DAY_S, NIGHT_S = 86_400.0, 3 * 3_600.0  # the night's look: 03:00 UTC


def next_look(now: float, accepted_at: float) -> float | None:
    """When a message accepted at *accepted_at* is asked for after *now*; None: never again. Wall clock, seconds."""
    end = accepted_at + UNCONFIRMED_S
    if now >= end:
        return None
    if now - accepted_at < RECENT_S:
        return min(now + QUIET_S, end)
    night = now - now % DAY_S + NIGHT_S
    return min(night if night > now else night + DAY_S, end)
