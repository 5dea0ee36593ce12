"""Twilio's error codes, looked up: the table itself is ``twilio_errors.toml``, read once."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from daemon.core.outcome import Fault


class Case(StrEnum):
    """What a code can mean that is nobody's fault."""

    THROTTLED = "throttled"  # too fast: certainly not sent
    UNCERTAIN = "uncertain"  # it may have been sent
    EXPIRED = "expired"  # too late inside Twilio


@dataclass(frozen=True, slots=True)
class Meaning:
    """What one code means."""

    kind: Fault | Case
    words: str
    wait_s: float | None = None  # how long to rest when Twilio does not say


UNLISTED = Meaning(Fault.UNKNOWN, "not in our table")


def read(text: str) -> dict[int, Meaning]:
    """The table in *text*, ranges spelled out. A code that stands twice, or a class that is none, is a ValueError."""
    meanings: dict[int, Meaning] = {}
    for section in tomllib.loads(text).values():
        for codes, (kind, words, *wait_s) in section.items():
            first, _, last = codes.partition("-")
            meaning = Meaning(Case(kind) if kind in set(Case) else Fault(kind), words, *wait_s)
            for code in range(int(first), int(last or first) + 1):
                if meanings.setdefault(code, meaning) is not meaning:
                    raise ValueError(f"code {code} stands twice")
    return meanings


MEANINGS = read(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))


def meaning(code: int) -> Meaning:
    """What *code* means; what is not in the table is :data:`UNLISTED`."""
    return MEANINGS.get(code, UNLISTED)


def fault(code: str) -> Fault:
    """Whose fault *code* (as a receipt carries it) is: what a sender's, a route's or a person's record is charged."""
    kind = meaning(int(code)).kind if code.isascii() and code.isdigit() and len(code) < 10 else Fault.UNKNOWN
    return kind if isinstance(kind, Fault) else Fault.TRANSIENT
