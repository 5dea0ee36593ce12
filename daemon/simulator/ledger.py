"""
The ledger: every POST that was accepted, one line each, written before the answer.

It is the oracle of the crash tests. What stands here was sent, whatever the daemon believes; what does not, was not.
"""

from __future__ import annotations

import os
from collections import defaultdict, deque
from functools import partial
from hashlib import sha256
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

import orjson

from daemon.core.compliance import busiest_second, used
from daemon.simulator.sender import Sender

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class Entry(NamedTuple):
    """One accepted POST. A tuple, because making a frozen dataclass of this width costs five times as much."""

    sid: str
    t: float  # seconds since the epoch, when it arrived
    mono: float  # the same moment on the monotonic clock of this machine
    token: str  # last part of the path of StatusCallback: Outrider's name for the attempt
    to: str
    sender: str  # From, or the Messaging Service that was to choose one
    segments: int
    body: str  # body_hash of the text

    def line(self) -> bytes:
        """The entry as one line of JSON."""
        return orjson.dumps(self._asdict(), option=orjson.OPT_APPEND_NEWLINE)


def body_hash(text: str) -> str:
    """The first 64 bits of the SHA-256 of *text*, in hex: enough to tell bodies apart, useless for reading them."""
    return sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


class Ledger:
    """Append-only; in memory (the last *keep* entries) and, with a *path*, on disk (all of them)."""

    def __init__(self, path: Path | None = None, *, keep: int = 1_000_000) -> None:
        self.entries: deque[Entry] = deque(maxlen=keep)
        self.accepted = 0
        self.senders: defaultdict[str, Sender] = defaultdict(partial(Sender, keep))
        # One write of one line with O_APPEND cannot be torn or interleaved by another process.
        self._file = None if path is None else os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def note(self, entry: Entry) -> None:
        """Write *entry* down. When this returns, it survives the death of the process. OSError on a full disk."""
        if self._file is not None:
            line = entry.line()
            if os.write(self._file, line) != len(line):
                raise OSError("the ledger could not be written whole")
        self._remember(entry)

    def since(self, start: int) -> Iterator[Entry]:
        """The entries in memory without the first *start* ever accepted."""
        forgotten = self.accepted - len(self.entries)
        return islice(self.entries, max(0, start - forgotten), None)

    def max_in_window(self, sender: str, rate: float, window_s: float = 1.0) -> int:
        """The most segments of *sender* in any sliding window, counted as :mod:`daemon.core.compliance` says."""
        return busiest_second(self._of(sender), rate, window_s=window_s)

    def used(self, sender: str, rate: float) -> float:
        """The share of its limit that *sender* used between its first and its last segment."""
        return used(self._of(sender), rate)

    @classmethod
    def read(cls, path: Path) -> Ledger:
        """
        The ledger another process wrote to *path*.

        A last line without its end is left out: it was being written, so its POST was never answered.
        """
        lines = path.read_bytes().split(b"\n")[:-1]
        ledger = cls(keep=max(1, len(lines)))
        for line in lines:
            ledger._remember(Entry(**orjson.loads(line)))
        return ledger

    def close(self) -> None:
        """Close the file; what is in memory stays readable."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def __len__(self) -> int:
        return len(self.entries)

    def _remember(self, entry: Entry) -> None:
        self.entries.append(entry)
        self.accepted += 1
        self.senders[entry.sender].add(entry.mono, entry.segments)

    def _of(self, sender: str) -> list[tuple[float, int]]:
        return list(self.senders[sender].events) if sender in self.senders else []
