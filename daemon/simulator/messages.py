"""The messages a simulator remembers. What has become of one is read off its story and the clock: no timers."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from itertools import islice
from operator import attrgetter
from typing import TYPE_CHECKING

from daemon.simulator.fate import News

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@dataclass(slots=True, kw_only=True)
class Message:
    """One accepted message. Times are seconds since the epoch."""

    number: int  # counts up; pages of a list refer to it
    sid: str
    to: str
    sender: str  # "" while a Messaging Service has not chosen one
    service: str  # the Messaging Service, or ""
    body: str
    segments: int
    media: int
    callback: str  # StatusCallback, or ""
    created: float
    story: tuple[News, ...]
    canceled: float | None = None  # when

    def now(self, clock: float) -> News:
        """Where the message is when the wall clock says *clock*."""
        here = News(0.0, "accepted" if self.service else "queued")
        for news in self.story:
            if self.created + news.after_s <= clock:
                here = news
        return here if self.canceled is None else News(self.canceled - self.created, "canceled")

    def sent_at(self, clock: float) -> float | None:
        """When it was handed to the carrier, if it has been by *clock*."""
        for news in self.story:
            if news.status == "sent" and self.canceled is None and self.created + news.after_s <= clock:
                return self.created + news.after_s
        return None


class Messages:
    """The last *keep* messages, by SID, by recipient, and in order of arrival."""

    def __init__(self, keep: int) -> None:
        self._keep = keep
        self._all: list[Message] = []
        self._by_sid: dict[str, Message] = {}
        self._by_to: dict[str, list[Message]] = {}

    def __len__(self) -> int:
        return len(self._all)

    def add(self, message: Message) -> None:
        """Remember *message*; the oldest tenth is forgotten when there are too many."""
        if len(self._all) >= self._keep:
            self._forget(max(1, self._keep // 10))
        self._all.append(message)
        self._by_sid[message.sid] = message
        self._by_to.setdefault(message.to, []).append(message)

    def get(self, sid: str) -> Message | None:
        """The message with this SID."""
        return self._by_sid.get(sid)

    def page(
        self, *, to: str | None, before: int | None, size: int, fits: Callable[[Message], bool]
    ) -> tuple[list[Message], bool]:
        """Up to *size* that fit, newest first, older than number *before*; and whether there are more."""
        found = list(islice(filter(fits, self._newest_first(to, before)), size + 1))
        return found[:size], len(found) > size

    def _newest_first(self, to: str | None, before: int | None) -> Iterator[Message]:
        pile = self._all if to is None else self._by_to.get(to, [])
        end = len(pile) if before is None else bisect_left(pile, before, key=attrgetter("number"))
        return (pile[index] for index in range(end - 1, -1, -1))

    def _forget(self, many: int) -> None:
        for message in self._all[:many]:
            del self._by_sid[message.sid]
            pile = self._by_to[message.to]
            pile.pop(0)
            if not pile:
                del self._by_to[message.to]
        del self._all[:many]
