"""
The early judgement of a row: can it be sent at all?

Asked by the inspector ahead of the claims, so that a bad row ends with a reason within seconds, and once more by the
courier. What only time can tell (opt-outs, pauses, the last moment) is asked in permission.py.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import TYPE_CHECKING, TypeAlias

from daemon.core import address, template
from daemon.core.lifecycle import Status
from daemon.core.message import Channel, Intent, OnAmbiguous
from daemon.core.template import CHARACTERS_MAX

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from daemon.core.message import Message


MEDIA_MAX = 10  # of one message (facts: twilio 1.2)
_ADDRESS = re.compile(r"[^\s\x00-\x1f\x7f]{8,2000}")


@dataclass(slots=True, kw_only=True)
class Row:
    """What an application asked for, before anybody has it in hand. Times are seconds since the epoch."""

    recipient: str | None
    channel: str
    service: str
    sender: str | None
    body: str | None
    template: str | None
    variables: object  # whatever JSON it was
    media: Sequence[str]
    intent: str | None
    first_due: float  # when it is first of use: inserted, or send_at if that is later
    expires_at: float | None  # the validity of the row and of its service counted in
    on_ambiguous: str | None


Asked: TypeAlias = "Row | Message"  # a message in hand answers to the same names, and is not copied to be looked at


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What this installation knows: of all live daemons, not of this one alone (one more may carry a new service)."""

    services: frozenset[str]
    senders: frozenset[str]
    templates: Mapping[str, str]
    channels: frozenset[str] = frozenset({Channel.SMS})  # carried by some configured provider
    regions: Mapping[str, str | None] = field(default_factory=dict)  # default region of each service that has one


@dataclass(frozen=True, slots=True)
class Refusal:
    """It ends here, in *status*."""

    status: Status
    reason: str

    @classmethod
    def failed(cls, reason: str) -> Refusal:
        """The application's mistake: repeating will not help."""
        return cls(Status.FAILED, reason)


def inspect(row: Asked, known: Known, now: float) -> Refusal | None:
    """Why *row* cannot be sent, at *now* (wall clock); None when it can."""
    # The words say how to read the rest, and the costliest look comes last.
    return (
        _words(row, known)
        or _content(row, known)
        or outdated(row.first_due, row.expires_at, now)
        or _recipient(row, known)
    )


def outdated(first_due: float, expires_at: float | None, now: float) -> Refusal | None:
    """Why what is of use from *first_due* to *expires_at* is too late at *now*; None when it is not."""
    if expires_at is None:
        return None
    if expires_at <= first_due:
        return Refusal(Status.EXPIRED, "it expires before it is due")
    if expires_at <= now:
        return Refusal(Status.EXPIRED, f"too late: expired {now - expires_at:.0f} s ago")
    return None


def _words(row: Asked, known: Known) -> Refusal | None:
    if row.channel not in _CHANNELS:
        return _unknown("channel", row.channel, _CHANNELS)
    if row.channel not in known.channels:
        return Refusal.failed(f"channel {row.channel} is not carried by any configured provider")
    if row.intent is not None and row.intent not in _INTENTS:
        return _unknown("intent", row.intent, _INTENTS)
    if row.on_ambiguous is not None and row.on_ambiguous not in _POLICIES:
        return _unknown("on_ambiguous", row.on_ambiguous, _POLICIES)
    if row.sender is None:
        return None if row.service in known.services else _unknown("service", row.service, known.services)
    return None if row.sender in known.senders else _unknown("sender", row.sender, known.senders)


def _content(row: Asked, known: Known) -> Refusal | None:
    if row.media and (refusal := _pictured(row.media)) is not None:
        return refusal
    if row.template is not None:
        return _templated(row, row.template, known)
    body = row.body
    if body is None or not body.strip():
        return None if row.media else Refusal.failed("empty body")
    if len(body) > CHARACTERS_MAX:
        return Refusal.failed(f"the body has {len(body)} characters, at most {CHARACTERS_MAX} are allowed")
    return None


def _pictured(media: Sequence[object]) -> Refusal | None:
    # Whatever a text[] may hold: NULL, an array within the array, any text.
    if len(media) > MEDIA_MAX:
        return Refusal.failed(f"{len(media)} media, at most {MEDIA_MAX} are allowed")
    for number, url in enumerate(media, 1):
        if not isinstance(url, str) or not url.startswith(("https://", "http://")) or not _ADDRESS.fullmatch(url):
            return Refusal.failed(f"media {number} is no web address: give https://...")
    return None


def _templated(row: Asked, name: str, known: Known) -> Refusal | None:
    if row.body is not None:
        return Refusal.failed("both a body and a template: give one of the two")
    if name not in known.templates:
        return _unknown("template", name, known.templates)
    variables = {} if row.variables is None else row.variables
    if not isinstance(variables, Mapping):
        return Refusal.failed('variables are not an object: give {"name": "value", ...}')
    filled = template.render(known.templates[name], variables)
    if isinstance(filled, template.Unfit):
        return Refusal.failed(filled.reason)
    return None if filled.strip() or row.media else Refusal.failed("empty body: the template came out blank")


def _recipient(row: Asked, known: Known) -> Refusal | None:
    if not row.recipient:
        return Refusal(Status.SUPPRESSED, "bad number: there is none")
    if row.channel not in address.PHONE_CHANNELS or address.plausible(row.recipient):
        return None
    found = address.read(row.recipient, row.channel, known.regions.get(row.service))
    return Refusal(Status.SUPPRESSED, f"bad number: {found.reason}") if isinstance(found, address.Unreadable) else None


def _unknown(what: str, word: str, known: Iterable[str]) -> Refusal:
    # Any word may come, of any length: it is shown cut, and compared cut.
    shown = word[:40]
    close = get_close_matches(shown, sorted(known), n=1)
    return Refusal.failed(f"unknown {what} {shown!r}" + (f"; did you mean {close[0]!r}?" if close else ""))


_CHANNELS = frozenset(str(word) for word in Channel)
_INTENTS = frozenset(str(word) for word in Intent)
_POLICIES = frozenset(str(word) for word in OnAmbiguous)
