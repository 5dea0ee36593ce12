"""What a reload changes, line by line, for the log and for the person who sent SIGHUP."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, TypeAlias

from daemon.settings.mistakes import secret_keys
from daemon.settings.model import Sender, Settings
from daemon.settings.table import Table

if TYPE_CHECKING:
    from collections.abc import Iterator

_Path: TypeAlias = tuple[str, ...]


def describe_difference(old: Settings, new: Settings) -> list[str]:
    """
    Lines such as ``senders +15550100 rate: 10 -> 20``; none when nothing changed.

    Of secrets, of the addresses of databases and of templates (they are the text of messages) only that they changed.
    """
    return list(_compare((), old, new))


def _compare(path: _Path, old: object, new: object) -> Iterator[str]:
    if old == new:
        return
    match old, new:
        case Table(), Table() if type(old) is type(new):
            yield from _compare_tables(path, old, new)
        case Mapping(), Mapping():
            yield from _compare_entries(path, old, new)
        case tuple(), tuple() if path == ("senders",):
            yield from _compare_entries(path, _by_address(old), _by_address(new))
        case _:
            yield f"{' '.join(path)}: {_shown(old)} -> {_shown(new)}"


def _compare_tables(path: _Path, old: Table, new: Table) -> Iterator[str]:
    hidden = secret_keys(type(old))
    for key in type(old).model_fields:
        before, after = getattr(old, key), getattr(new, key)
        if key not in hidden:
            yield from _compare((*path, key), before, after)
        elif before != after:
            yield f"{' '.join((*path, key))}: changed"


def _compare_entries(path: _Path, old: Mapping[str, object], new: Mapping[str, object]) -> Iterator[str]:
    for key in sorted(old.keys() | new.keys()):
        name = " ".join((*path, key))
        if key not in old:
            yield f"{name}: added"
        elif key not in new:
            yield f"{name}: removed"
        elif path == ("templates",) and old[key] != new[key]:
            yield f"{name}: changed"
        else:
            yield from _compare((*path, key), old[key], new[key])


def _by_address(senders: tuple[object, ...]) -> dict[str, object]:
    return {sender.address: sender for sender in senders if isinstance(sender, Sender)}


def _shown(value: object) -> str:
    match value:
        case None:
            return "none"
        case bool():
            return str(value).lower()
        case tuple():
            return f"[{', '.join(map(_shown, value))}]"
        case Table():
            return str(getattr(value, "kind", "other"))
        case float() if type(value) is float:
            return f"{value:g}"
    return str(value)
