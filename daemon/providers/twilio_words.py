"""What stands in Twilio's answers and callbacks, taken carefully: whatever the bytes, nothing here raises."""

from __future__ import annotations

import re
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import TypeAlias

import orjson

from daemon.providers.twilio_errors import UNLISTED, meaning

Json: TypeAlias = "dict[str, object]"

SID = re.compile(r"[A-Za-z0-9_-]{1,64}", re.ASCII)
WORDS_MAX = 500  # characters of Twilio's words that we keep
_PERSONAL = re.compile(r"\+?[0-9][0-9 ()-]{4,}[0-9]|\S+@\S+", re.ASCII)  # a phone number or address


def json_object(body: bytes) -> Json:
    """The JSON object in *body*; empty when there is none."""
    try:
        said = orjson.loads(body)
    except orjson.JSONDecodeError:
        return {}
    return said if isinstance(said, dict) else {}


def error_code(code: object) -> int | None:
    """An error code: a number, or one in quotes; None if it is neither, or zero."""
    told = number(code) if isinstance(code, str) else code
    return told if type(told) is int and 0 < told < 10**9 else None


def number(text: object) -> int | None:
    """A number as Twilio writes most of them: in quotes."""
    return int(text) if isinstance(text, str) and len(text) < 10 and text.isascii() and text.isdigit() else None


def reason(code: int | None, words: object) -> str:
    """
    What a code means: in our words where we have them, else in Twilio's, without any number they quote.

    A reason is logged and shown, and Twilio's words like to repeat the recipient (DESIGN 5.18).
    """
    known = UNLISTED if code is None else meaning(code)
    if known is not UNLISTED or not isinstance(words, str) or not words:
        return known.words
    return _PERSONAL.sub("…", clean(words[:WORDS_MAX]))


def moment(text: object) -> float | None:
    """Seconds since the epoch of an RFC 2822 date."""
    if not isinstance(text, str) or not text:
        return None
    try:
        when = parsedate_to_datetime(text)
        return (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()
    except (ValueError, TypeError, IndexError, OverflowError):
        return None


def clean(text: str) -> str:
    """*text* as Postgres can store it."""
    return text.replace("\0", "\ufffd")
