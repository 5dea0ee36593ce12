"""What one table says of another must be true: services name senders, senders name providers."""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING

from daemon.settings.mistakes import Mistake, nearest
from daemon.settings.shapes import quoted

if TYPE_CHECKING:
    from collections.abc import Mapping

# A lane "@address" is a pinned sender, so no service may look like one.
_NAME = re.compile(r"[a-z0-9_][a-z0-9_.-]*")


def check(data: Mapping[str, object]) -> list[Mistake]:
    """
    What does not fit together in *data*, the configuration as it was written.

    Works on what was written and not on the finished values, so that a mistake elsewhere hides none of these.
    """
    providers, services = _table(data, "providers"), _table(data, "services")
    listed = data.get("senders")
    senders = listed if isinstance(listed, list) else []
    addresses = [_text(sender, "address") for sender in senders]
    mistakes = [
        Mistake((kind, name), "expected a name of small letters, digits and _ . - that begins with none of . -")
        for kind, names in (("providers", providers), ("services", services))
        for name in names
        if not _NAME.fullmatch(name)
    ]
    mistakes += _senders(senders, addresses, providers)
    known = [address for address in addresses if address is not None]
    for name, service in services.items():
        mistakes += _pool(name, service, known)
    if "senders" not in data or listed == []:
        mistakes.append(Mistake(("senders",), "there is none; give at least one [[senders]]"))
    return mistakes


def _senders(senders: list[object], addresses: list[str | None], providers: Mapping[str, object]) -> list[Mistake]:
    mistakes: list[Mistake] = []
    for index, (sender, address) in enumerate(zip(senders, addresses, strict=True)):
        if address is not None and address in addresses[:index]:
            first = addresses.index(address)
            mistakes.append(
                Mistake(("senders", index, "address"), f"{quoted(address)} is also that of senders[{first}]")
            )
        provider = _text(sender, "provider")
        if provider is not None and provider not in providers:
            said = f"{quoted(provider)} is not a provider{nearest(provider, providers)}"
            mistakes.append(Mistake(("senders", index, "provider"), said))
    return mistakes


def _pool(name: str, service: object, known: list[str]) -> list[Mistake]:
    pool = service.get("senders") if isinstance(service, dict) else None
    if not isinstance(pool, list):
        return []
    words = [(index, word) for index, word in enumerate(pool) if isinstance(word, str)]
    mistakes = [
        Mistake(("services", name, "senders", index), f"{quoted(word)} is not a sender{nearest(word, known)}")
        for index, word in words
        if word not in known
    ]
    twice = [word for word, times in Counter(word for _, word in words).items() if times > 1]
    mistakes += [Mistake(("services", name, "senders"), f"{quoted(word)} is listed more than once") for word in twice]
    return mistakes


def _table(data: Mapping[str, object], key: str) -> dict[str, object]:
    found = data.get(key)
    return found if isinstance(found, dict) else {}


def _text(table: object, key: str) -> str | None:
    found = table.get(key) if isinstance(table, dict) else None
    return found if isinstance(found, str) else None
