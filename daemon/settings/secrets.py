"""
Secrets are named in the configuration, never written there: by file, by environment variable, by systemd credential.

``auth_token_file = "…"``, ``auth_token_env = "…"`` or ``auth_token_credential = "…"`` stand for ``auth_token``. What
went wrong is told without a word of what was read, nor of what was written where a name should stand and looks like
the secret itself.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from daemon.settings.mistakes import GUARDED, WAYS, Mistake, Where, secret_keys, table_at
from daemon.settings.shapes import quoted

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from daemon.settings.table import Table

_LONGEST = 65_536  # bytes; no secret is longer, and a wrong path may lead to anything
_SECRET_LIKE = re.compile(r"(?=.*[0-9])[0-9A-Za-z+=_-]{20,}")


class _Unusable(Exception):
    """Why a secret cannot be had."""


def resolve(
    data: Mapping[str, object], *, folder: Path, environ: Mapping[str, str]
) -> tuple[dict[str, object], list[Mistake]]:
    """*data* with every secret in its place, and what could not be had. *data* itself is left alone."""
    mistakes: list[Mistake] = []
    settled = dict(data)
    for where, model in _places(data):
        holder = settled
        for step in where[:-1]:
            holder[str(step)] = holder = dict(holder[str(step)])  # type: ignore[call-overload]
        table = dict(holder[str(where[-1])])  # type: ignore[call-overload]
        for key in secret_keys(model):
            mistakes += _settle(table, where, key, _Reader(folder, environ), may_stand=key in GUARDED.get(model, ()))
        holder[str(where[-1])] = table
    return settled, mistakes


def _places(data: Mapping[str, object]) -> Iterator[tuple[Where, type[Table]]]:
    providers = data.get("providers")
    names: list[str] = list(providers) if isinstance(providers, dict) else []
    wheres: list[Where] = [("database",), ("web", "operator"), *(("providers", name) for name in names)]
    for where in wheres:
        here: object = data
        for step in where:
            here = here.get(step) if isinstance(here, dict) else None
        model = table_at(where, data)
        if isinstance(here, dict) and model is not None:
            yield where, model


class _Reader:
    def __init__(self, folder: Path, environ: Mapping[str, str]) -> None:
        self.folder = folder
        self.environ = environ

    def read(self, way: str, name: str) -> str:
        match way:
            case "env":
                found = self.environ.get(name)
                if found is None:
                    raise _Unusable(f"environment variable {_shown(name)} is not set")
            case "credential":
                found = self._credential(name)
            case _:
                found = _contents(self.folder / name, _shown(name))
        secret = found.strip()
        if not secret:
            raise _Unusable(f"{_shown(name)} is empty")
        return secret

    def _credential(self, name: str) -> str:
        folder = self.environ.get("CREDENTIALS_DIRECTORY")
        if not folder:
            raise _Unusable("$CREDENTIALS_DIRECTORY is not set; systemd sets it for units with LoadCredential=")
        if "/" in name or name in {"", ".", ".."}:
            raise _Unusable("expected the plain name of a credential, without a path")
        return _contents(Path(folder) / name, _shown(name))


def _settle(table: dict[str, object], where: Where, key: str, reader: _Reader, *, may_stand: bool) -> list[Mistake]:
    named = {f"{key}_{way}": way for way in WAYS}
    given = [name for name in named if name in table]
    said = [*([key] if key in table else []), *given]
    names = f"{key}_file, {key}_env or {key}_credential"
    values = {name: table.pop(name) for name in given}
    if key in table and not may_stand:
        table[key] = _PLACEHOLDER
        return [Mistake((*where, key), f"a secret must not stand in this file; give {names}")]
    if len(said) > 1:
        table[key] = _PLACEHOLDER
        return [Mistake((*where, key), f"is given {len(said)} times ({', '.join(said)}); give one of them")]
    for name, value in values.items():
        table[key] = _PLACEHOLDER
        if not isinstance(value, str):
            return [Mistake((*where, name), "expected a text in quotes")]
        try:
            table[key] = reader.read(named[name], value)
        except _Unusable as why:
            return [Mistake((*where, name), str(why))]
    return []


# Stands for a secret that could not be had, so that it is not reported as missing too. Passes for an address.
_PLACEHOLDER = "postgresql://"


def _contents(path: Path, shown: str) -> str:
    try:
        with path.open("rb") as file:
            found = file.read(_LONGEST + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "no usable path"
        raise _Unusable(f"cannot read {shown}: {reason}") from None
    if len(found) > _LONGEST:
        raise _Unusable(f"{shown} is longer than {_LONGEST} bytes, which no secret is")
    try:
        return found.decode()
    except UnicodeDecodeError:
        raise _Unusable(f"{shown} is not UTF-8 text") from None


def _shown(name: str) -> str:
    # A token pasted where its name should stand must not reach the screen either.
    return "(not shown: it looks like the secret itself)" if _SECRET_LIKE.fullmatch(name) else quoted(name)
