"""
Filling in templates: ``{name}`` and nothing else.

No attributes, no indexes, no formats and no code: a template is written by people who may not be asked to be careful.
``{{`` and ``}}`` are braces. What is filled in is not looked at again, so a variable cannot hold a template.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

CHARACTERS_MAX = 1600  # of one message: Twilio error 21617 beyond it


@dataclass(frozen=True, slots=True)
class Unfit:
    """It cannot be filled in. The reason names variables, never their values."""

    reason: str


@dataclass(frozen=True, slots=True)
class Missing(Unfit):
    """Variables the template needs and nobody gave."""

    names: tuple[str, ...]


_token = re.compile(r"\{\{|\}\}|\{([A-Za-z_][A-Za-z0-9_]*)\}|[{}]")


def names(template: str) -> frozenset[str]:
    """The variables *template* asks for."""
    return frozenset(match[1] for match in _token.finditer(template) if match[1] is not None)


def fault(template: str) -> str | None:
    """What is wrong with *template* itself; None when nothing is."""
    for match in _token.finditer(template):
        if len(match[0]) == 1:
            return f"a stray {match[0]} at character {match.start() + 1} (write {match[0] * 2} for a brace)"
    return None


def render(template: str, variables: Mapping[str, object]) -> str | Unfit:
    """*template* with its variables filled in: texts, numbers, ``true`` and ``false``."""
    if (stray := fault(template)) is not None:
        return Unfit(f"the template has {stray}")
    wanted = names(template)
    missing = sorted(name for name in wanted if variables.get(name) is None)
    if missing:
        return Missing(f"missing template variables: {', '.join(missing)}", tuple(missing))
    unfit = sorted(name for name in wanted if not isinstance(variables[name], str | int | float))
    if unfit:
        return Unfit(f"template variables that are neither text nor number: {', '.join(unfit)}")
    text = _token.sub(lambda match: match[0][0] if match[1] is None else _written(variables[match[1]]), template)
    if len(text) > CHARACTERS_MAX:
        return Unfit(f"the filled template has {len(text)} characters, at most {CHARACTERS_MAX} are allowed")
    return text


def _written(value: object) -> str:
    # As JSON writes it: the application gave it as JSON.
    return str(value).lower() if isinstance(value, bool) else str(value)
