"""
What may be said aloud: the last step before a log line is written.

Numbers of people are masked, texts of messages replaced by their length, secrets hidden; in fields, in nested values
and in the texts of exceptions. Objects are named by their type only, because a ``repr`` shows what it holds. What it
cannot see is a message's text *outside* quotation marks in the text of an exception: none of ours carries one there.
"""

from __future__ import annotations

import re
import traceback
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from datetime import date, timedelta
from enum import Enum
from itertools import islice
from os import PathLike, fspath
from typing import TypeAlias
from uuid import UUID

from daemon.core.address import mask

Plain: TypeAlias = "str | int | float | bool | list[Plain] | dict[str, Plain] | None"

TEXTS = frozenset({"body", "text", "subject", "variables", "media", "content", "html", "template_text"})
_SECRETS = re.compile(r"token|secret|authorization|password|cookie|signature|dsn|api_key|credential", re.IGNORECASE)
_NUMBERS = re.compile(r"(count|bytes|seq|pid|epoch|_s|_ms|_ns|_at)$")  # keys whose large integers are no phone numbers

_LONGEST = 512  # characters of any one text; what providers say is not ours to bound otherwise
_WIDEST = 32  # entries of any one collection
_DEEPEST = 4  # levels of nesting

# Left alone before anything is taken for a phone number: a UUID, an id of Twilio's, a date. Everything else with seven
# digits or more in a row, single separators between them, is taken for one, wherever it stands.
_SPOKEN = re.compile(
    r"""(?P<userinfo>(?<=://)[^\s:/@]*:[^\s/]*(?=@))
      | (?P<plain>
          (?<![0-9A-Za-z])[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}(?![0-9A-Za-z])
        | (?<![0-9A-Za-z])[A-Z]{2}[0-9a-f]{32}(?![0-9A-Za-z])
        | (?<![0-9+])(?:19|20)[0-9]{2}-[01][0-9]-[0-3][0-9](?![0-9-])
        )
      | (?P<number>\+?\(?[0-9](?:[\s().\-/\u00a0\u2010-\u2015]{0,3}[0-9]){6,})""",
    re.VERBOSE,
)
_QUOTED = re.compile(r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|`[^`]*`|=\([^)]*\)""", re.DOTALL)
_DETAIL = re.compile(r"(DETAIL|CONTEXT|HINT):.*", re.DOTALL)  # Postgres quotes whole rows there
_CONTROL = {code: f"\\x{code:02x}" for code in (*range(9), 11, 12, 13, *range(14, 32), *range(127, 160))}

# What these quote are names out of the code, or paths and hosts: worth seeing.
_QUOTE_NAMES = (AttributeError, NameError, ImportError, OSError)


class Redaction:
    """Makes values fit to be said. *known* are our own addresses, the senders of the configuration: shown whole."""

    def __init__(self, known: AbstractSet[str] = frozenset()) -> None:
        self.known = frozenset(known)

    def field(self, key: str, value: object) -> Plain:
        """*value* as it may stand under *key*."""
        if key in TEXTS:
            return (
                None
                if value is None
                else f"[{len(value)} long]"
                if isinstance(value, str | list | dict)
                else "[hidden]"
            )
        if _SECRETS.search(key):
            return None if value is None else "[hidden]"
        if isinstance(value, int) and _NUMBERS.search(key):
            return value
        return self.value(value)

    def value(self, value: object, depth: int = 0) -> Plain:
        """*value* as it may be said, in what JSON knows."""
        match value:
            case None | bool() | float():
                return value
            case int():
                return value if abs(value) < 10_000_000 else self.text(str(value))
            case Enum():
                return self.value(value.value, depth)
            case str():
                return self.text(value)
            case UUID() | date() | timedelta():
                return str(value)
            case PathLike():
                return self.text(str(fspath(value)))
            case BaseException():
                return self.error(value)
            case _ if depth >= _DEEPEST:
                return f"<{type(value).__name__}>"
            case Mapping():
                return {self.text(str(key)): self._entry(str(key), value[key], depth) for key in islice(value, _WIDEST)}
            case Sequence() | AbstractSet() if not isinstance(value, bytes | bytearray | memoryview):
                return [self.value(item, depth + 1) for item in islice(value, _WIDEST)]
            case _:
                return f"<{type(value).__name__}>"

    def text(self, text: str) -> str:
        """*text* without anybody's number, without passwords, without control characters, and not too long."""
        if text in self.known:
            return text
        said = _SPOKEN.sub(self._spoken, text).translate(_CONTROL)
        return said if len(said) <= _LONGEST else f"{said[:_LONGEST]}…"

    def error(self, error: BaseException) -> str:
        """The type of *error* and what it says, without what it quotes."""
        said = str(error)
        if not isinstance(error, _QUOTE_NAMES):
            said = _QUOTED.sub("'…'", _DETAIL.sub(r"\1: …", said))
        return f"{type(error).__name__}: {self.text(said)}" if said else type(error).__name__

    def trace(self, error: BaseException) -> list[Plain]:
        """*error* and what led to it: each with its frames, the last called last. Never the values in them."""
        lines: list[Plain] = []
        seen: set[int] = set()
        here: BaseException | None = error
        while here is not None and id(here) not in seen and len(seen) < _WIDEST:
            seen.add(id(here))
            lines.append(self.error(here))
            frames = traceback.extract_tb(here.__traceback__)
            lines += [f"  {frame.filename}:{frame.lineno} in {frame.name}" for frame in frames[-_WIDEST:]]
            if isinstance(here, BaseExceptionGroup):
                lines += [self.trace(inner) for inner in here.exceptions[:_WIDEST]]
            here = here.__cause__ or (None if here.__suppress_context__ else here.__context__)
        return lines

    def _entry(self, key: str, value: object, depth: int) -> Plain:
        return self.field(key, value) if key in TEXTS or _SECRETS.search(key) else self.value(value, depth + 1)

    def _spoken(self, found: re.Match[str]) -> str:
        said = found[0]
        if found["plain"] is not None or said in self.known:
            return said
        return "***" if found["userinfo"] is not None else mask(said)
