"""From a file to :class:`Settings`, or to a list of everything that is wrong with it."""

from __future__ import annotations

import json
import os
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from daemon.core.message import Intent
from daemon.settings import references, secrets
from daemon.settings.intents import INTENTS
from daemon.settings.mistakes import Mistake, explain
from daemon.settings.model import Settings
from daemon.settings.shapes import EMBEDDED

if TYPE_CHECKING:
    from collections.abc import Mapping

PLACES = (Path("config.toml"), Path("/etc/outrider/config.toml"))


class SettingsError(Exception):
    """The configuration cannot be used. ``mistakes`` holds all of them, one line each; exit code 78."""

    def __init__(self, source: str, mistakes: list[str]) -> None:
        self.source = source
        self.mistakes = tuple(mistakes)
        super().__init__("\n".join([f"{source}: {_many(len(mistakes))}", *(f"  {line}" for line in mistakes)]))


def load(path: Path | None = None, *, environ: Mapping[str, str] = os.environ) -> Settings:
    """The configuration at *path*, or at the first of ``PLACES`` that exists; SettingsError with every mistake."""
    path = path or next((place for place in PLACES if place.is_file()), None)
    if path is None:
        raise SettingsError("no configuration", [f"found none at {' or '.join(map(str, PLACES))}; give --config"])
    try:
        text = path.read_bytes().decode()
    except OSError as error:
        raise SettingsError(str(path), [f"cannot be read: {error.strerror}"]) from None
    except UnicodeDecodeError as error:
        raise SettingsError(str(path), [f"is not UTF-8 text (at byte {error.start})"]) from None
    return parse(read(text, source=str(path)), source=str(path), folder=path.parent, environ=environ)


def read(text: str, *, source: str = "config.toml") -> dict[str, object]:
    """*text* as TOML; SettingsError with line and column where it is none."""
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        lines = text.split("\n")
        end = f"at line {len(lines)}, column {len(lines[-1]) + 1}, the end of the file"
        raise SettingsError(source, [f"not TOML: {str(error).replace('at end of document', end)}"]) from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, brackets a thousand deep
        raise SettingsError(source, [f"cannot be read: {error}"]) from None


def parse(
    data: Mapping[str, object],
    *,
    source: str = "config.toml",
    folder: Path = Path(),
    environ: Mapping[str, str] = os.environ,
) -> Settings:
    """*data*, as read from TOML, as settings. Relative paths begin at *folder*."""
    settled, mistakes = secrets.resolve(_placed(data, environ), folder=folder, environ=environ)
    settings: Settings | None = None
    try:
        # By way of JSON: strict there means exactly what TOML can say, lists for tuples and words for enums included.
        text = json.dumps(_completed(settled), default=str)
        settings = Settings.model_validate_json(text, context={"folder": folder.absolute()})
    except RecursionError:
        raise SettingsError(source, ["lists or tables stand too deep in one another"]) from None
    except ValidationError as found:
        mistakes += [
            explain(error, settled)
            for error in found.errors(include_url=False)
            if error["type"] != "default_factory_not_called"  # the echo of another mistake in the same table
        ]
    mistakes += references.check(data)
    if settings is not None and settings.database.embedded and not settings.database.trial and _under_systemd(environ):
        said = f'"{EMBEDDED}" is for trials; give the address of a Postgres, or trial = true to insist'
        mistakes.append(Mistake(("database", "url"), said))
    if mistakes or settings is None:
        raise SettingsError(source, _lines(mistakes, list(data)))
    return settings


def _placed(data: Mapping[str, object], environ: Mapping[str, str]) -> dict[str, object]:
    # systemd knows best where a unit may write (StateDirectory=); the first of several is ours.
    granted = environ.get("STATE_DIRECTORY", "").split(":")[0]
    daemon = data.get("daemon", {})
    if not isinstance(daemon, dict):
        return dict(data)
    state = granted or daemon.get("state", "state")
    return {**data, "daemon": {**daemon, "state": state}}


def _completed(data: Mapping[str, object]) -> dict[str, object]:
    # What is said of an intent is said on top of that intent's own defaults.
    said = data.get("intents", {})
    if not isinstance(said, dict):
        return dict(data)
    intents: dict[str, object] = {word.value: INTENTS[word].model_dump(mode="json") for word in Intent}
    for word, table in said.items():
        base = intents.get(word)
        intents[word] = {**base, **table} if isinstance(base, dict) and isinstance(table, dict) else table
    return {**data, "intents": intents}


def _under_systemd(environ: Mapping[str, str]) -> bool:
    # Not INVOCATION_ID: every terminal of a desktop session inherits one.
    return "NOTIFY_SOCKET" in environ


def _lines(mistakes: list[Mistake], tables: list[str]) -> list[str]:
    # In the order of the file, as far as it is known; what concerns one table stands together.
    def order(mistake: Mistake) -> tuple[int, str]:
        first, *rest = mistake.where or ("",)
        second = next((f"{step:09}" if isinstance(step, int) else step for step in rest), "")
        return (tables.index(str(first)) if first in tables else len(tables), second)

    return list(dict.fromkeys(str(mistake) for mistake in sorted(mistakes, key=order)))


def _many(count: int) -> str:
    return "1 mistake" if count == 1 else f"{count} mistakes"
