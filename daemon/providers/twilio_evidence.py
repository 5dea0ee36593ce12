"""
Whether a list of Twilio's messages holds an attempt of ours whose answer was lost.

Same sender, same text, created when we wrote. Two identical messages cannot be told apart by anything but time, so of
several the nearest is taken, and what ``attempt.known_references`` names never is. When every acceptance on record is
named there, identical messages are matched by count: each one on the list stands for one of ours, whichever. What
resembles our text without being it (redacted, prefixed by a trial account) leaves the question open.
"""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING

from daemon.provider import Absent, Unclear
from daemon.providers.twilio_words import SID, Json, moment

if TYPE_CHECKING:
    from collections.abc import Sequence

    from daemon.core.message import Attempt

# How far from our own time of writing a message may have been created: dates are whole seconds, clocks differ a
# little, and an exchange may hang for 15 s before we call it lost (facts: reliability 2.5).
BEFORE_S, AFTER_S = 2.0, 75.0


def search(attempt: Attempt, listed: Sequence[object], *, more: bool) -> Json | Absent | Unclear:
    """The entry that stands for *attempt*, or why there is none. *more*: the list has another page."""
    entries = [entry for entry in listed if isinstance(entry, dict)]
    window = [(near, entry) for entry in entries if (near := _distance(attempt, entry)) is not None]
    ours = [
        (near, sid, entry)
        for near, entry in window
        if near < inf and isinstance(sid := entry.get("sid"), str) and SID.fullmatch(sid)
        if sid not in attempt.known_references and entry.get("body") == attempt.text
    ]
    if ours:
        return min(ours, key=lambda one: one[:2])[2]
    if any(_resembles(attempt, entry) for _, entry in window):
        return Unclear("a message of that moment has a similar text")
    if len(entries) < len(listed) or (more and not _reaches_back(attempt, entries)):
        return Unclear("the list goes on, or is not as expected")
    return Absent()


def _distance(attempt: Attempt, entry: Json) -> float | None:
    """Seconds between our writing and its creation; inf if it has no date; None if it cannot be that attempt."""
    if entry.get("from") not in (attempt.sender, None) or str(entry.get("direction", "")).startswith("inbound"):
        return None
    created = _created(entry)
    if created is None:
        return inf
    late = created - attempt.sent_at
    return abs(late) if -BEFORE_S <= late <= AFTER_S else None


def _resembles(attempt: Attempt, entry: Json) -> bool:
    body = entry.get("body")
    if entry.get("sid") in attempt.known_references:
        return False
    return not isinstance(body, str) or not body or attempt.text.strip() in body


def _reaches_back(attempt: Attempt, entries: Sequence[Json]) -> bool:
    """Whether a page is in order, newest first, and ends before *attempt*: then no further page can hold it."""
    dates = [created for entry in entries if (created := _created(entry)) is not None]
    if not dates or len(dates) < len(entries):
        return False
    return dates == sorted(dates, reverse=True) and dates[-1] < attempt.sent_at - BEFORE_S


def _created(entry: Json) -> float | None:
    return moment(entry.get("date_created") or entry.get("date_sent"))
