"""One mistake, one line: where it is, what stands there, what was expected. Values that may be secrets never stand."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from pydantic import SecretStr

from daemon.core.message import Intent
from daemon.settings.intents import IntentSettings
from daemon.settings.model import (
    PROVIDERS,
    Daemon,
    Database,
    Operator,
    Public,
    Retention,
    Sender,
    Service,
    Settings,
    Web,
)
from daemon.settings.shapes import quoted

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from pydantic_core import ErrorDetails

    from daemon.settings.table import Table

Where: TypeAlias = tuple[str | int, ...]

WAYS = ("file", "env", "credential")  # how a secret is named in the file, instead of standing there

# May stand in the file, and may also be named like a secret, because it may hold a password.
GUARDED: Mapping[type[Table], tuple[str, ...]] = {Database: ("url", "listen_url")}

_TABLES: Mapping[Where, type[Table]] = {
    (): Settings,
    ("database",): Database,
    ("daemon",): Daemon,
    ("web",): Web,
    ("web", "public"): Public,
    ("web", "operator"): Operator,
    ("retention",): Retention,
}
_KINDS = {"model_type": "a table", "dict_type": "a table", "mapping_type": "a table", "tuple_type": "a list"}
_KINDS |= {"model_attributes_type": "a table", "list_type": "a list"}


@dataclass(frozen=True, slots=True)
class Mistake:
    """Something wrong at one place of the configuration."""

    where: Where
    said: str

    def __str__(self) -> str:
        return f"{place(self.where)}: {self.said}" if self.where else self.said


def place(where: Where) -> str:
    """*where* as people write it: ``services.otp.senders[1]``."""
    steps = (f"[{step}]" if isinstance(step, int) else f".{_key(step)}" for step in where)
    return "".join(steps).removeprefix(".")


def nearest(word: str, known: Iterable[str]) -> str:
    """``; did you mean "…"?`` when one of *known* is near *word*, else what there is to choose from."""
    choices = sorted(known)
    near = difflib.get_close_matches(word, choices, n=1, cutoff=0.6)
    if near:
        return f"; did you mean {quoted(near[0])}?"
    return f"; known: {', '.join(choices)}" if 0 < len(choices) <= 12 else ""


def table_at(where: Where, data: Mapping[str, object]) -> type[Table] | None:
    """The model of the table at *where*, as far as *data* tells."""
    match where:
        case ("providers", str(name)):
            return PROVIDERS.get(str(_down(data, ("providers", name, "kind"))))
        case ("senders", int()):
            return Sender
        case ("services", str()):
            return Service
        case ("intents", str()):
            return IntentSettings
        case _:
            return _TABLES.get(where)


def secret_keys(model: type[Table]) -> tuple[str, ...]:
    """The keys of *model* whose values must not stand in the file, or (database addresses) need not."""
    held = tuple(name for name, field in model.model_fields.items() if SecretStr in _alternatives(field.annotation))
    return (*held, *GUARDED.get(model, ()))


def known_keys(model: type[Table]) -> list[str]:
    """What may be written in a table of *model*."""
    secrets, guarded = secret_keys(model), GUARDED.get(model, ())
    plain = [name for name in model.model_fields if name not in secrets or name in guarded]
    return plain + [f"{name}_{way}" for name in secrets for way in WAYS]


def explain(error: ErrorDetails, data: Mapping[str, object]) -> Mistake:
    """What pydantic found, in our words."""
    where = _where(error)
    if error["type"] in {"union_tag_not_found", "union_tag_invalid"}:
        where = (*where, "kind")
    model = table_at(where[:-1], data) if where else None
    return Mistake(where, _said(error, model, where))


def _said(error: ErrorDetails, model: type[Table] | None, where: Where) -> str:
    key, secrets = str(where[-1]) if where else "", secret_keys(model) if model else ()
    match error["type"]:
        case "extra_forbidden":
            return "no such key" + (nearest(key, known_keys(model)) if model else "")
        case "missing":
            *ways, last = (f"{key}_{way}" for way in WAYS)
            return f"is missing; give {', '.join(ways)} or {last}" if key in secrets else "is missing"
        case "union_tag_not_found":
            return "is missing" + nearest("", PROVIDERS)
        case "union_tag_invalid":
            tag = str(error["ctx"]["tag"])
            return f"{quoted(tag)} is no kind of provider{nearest(tag, PROVIDERS)}"
        case "enum" | "literal_error" if where[:-1] == ("intents",):
            return f"{quoted(key)} is no intent{nearest(key, Intent)}"
        case "enum" | "literal_error":
            words = str(error["ctx"]["expected"]).replace("' or '", "', '").strip("'").split("', '")
            return f"{quoted(error['input'])} is not among the words{nearest(str(error['input']), words)}"
        case "too_short":
            return "expected at least one"
        case "value_error":
            return str(error["ctx"]["error"])
        case kind if kind in _KINDS:
            return f"expected {_KINDS[kind]}"
        case _:
            # What stands where a list or table was not expected may hold anything, and so may a place we do not know.
            shown = model is not None and key not in secrets and not isinstance(error["input"], dict | list)
            expected = error["msg"].removeprefix("Input ")
            return f"{quoted(error['input'])} {expected}" if shown else expected


def _where(error: ErrorDetails) -> Where:
    where = tuple(step for step in error["loc"] if step != "[key]")
    # pydantic puts the kind of a provider behind its name; in the file there is no such step.
    return where[:2] + where[3:] if where[:1] == ("providers",) else where


def _alternatives(annotation: object) -> tuple[object, ...]:
    return getattr(annotation, "__args__", None) or (annotation,)


def _down(data: object, where: Where) -> object:
    for step in where:
        data = data.get(step) if isinstance(data, dict) else None
    return data


def _key(step: str) -> str:
    return step if step.replace("_", "").replace("-", "").isalnum() and step.isascii() else quoted(step)
