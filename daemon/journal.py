"""
The dispatch log: what may have left this machine, written just before it leaves.

Local, append-only, memory-mapped: a record costs 0.5 µs. After a crash only dispatches without a result are ambiguous.
It also remembers how fast each sender spoke (pacing debt), and results that Postgres has not seen yet.

**Nothing is ever synced to the disk.** What is written is in the page cache, which does not die with us: a ``kill -9``
loses no record. A power cut may, and then the kernel's boot id, which stands in each file, is another one: such a log
tells nothing, all that was in hand is in doubt, and no ``fsync`` before each departure (1 ms and more) would make that
fewer than what was on the wire.

**Of what a log can tell.** Each lease is written down before the first claim under it. Of an attempt the log can say
"not sent" only if it knows the lease under which it was claimed, and is whole: a deleted folder, a missing file, the
log of another machine or daemon do not know the lease, or are seen to lack something. Whole: each file says which
others of its run are still needed, and that there is a next one; what was removed on purpose is named.

A record is ``crc32 | length | kind | payload``, its checksum written last: a record without one was cut short by a
kill before anything left, and may only be the last. Any other damage is never read as "not sent": it makes every open
attempt ambiguous.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
import zlib
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from uuid import UUID

import orjson
import structlog

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

log = structlog.get_logger()

FILE_BYTES = 8 << 20  # one file: about 22,000 messages; reserved on the disk when it is made
RECORD_BYTES_MAX = 1024  # no record is longer, so more than this after the end is damage
MAGIC = b"outrider dispatch log 2\n"
_END = struct.Struct("<Q")  # after MAGIC: up to where records have been written, so that a missing tail is seen
_WORKS = struct.Struct("<16sI")  # after that: id and attempt of the message in the works, or noughts
_END_AT, _WORKS_AT = len(MAGIC), len(MAGIC) + _END.size
_BEGIN = _WORKS_AT + _WORKS.size
_IDLE = bytes(_WORKS.size)
_HEAD = struct.Struct("<IHB")  # crc32 of all that follows, payload length, kind
_CRC, _KIND = struct.Struct("<I"), struct.Struct("<HB")  # the two parts of it
_DISPATCH = struct.Struct("<16sIHHd")  # id, attempt, sender index, segments, seconds on the boot clock
_RESULT = struct.Struct("<16sI")  # id, attempt; then JSON
# Both behind their kind: each is packed at one go, for every message.
_KIND_DISPATCH, _KIND_RESULT = struct.Struct(_KIND.format + "16sIHHd"), struct.Struct(_KIND.format + "16sI")
_LEASE = struct.Struct("<Q")  # epoch; then the group
_FILE = struct.Struct("<Q")  # number
_DISPATCHED, _ANSWERED, _SENDER, _IDENTITY, _LEASED, _GONE, _NEXT = range(1, 8)
_KEPT_FREE = _HEAD.size + _FILE.size  # at the end of a file, to name the next one
_crc_into, _end_into = _CRC.pack_into, _END.pack_into  # twice for every message


class StateFolderInUse(Exception):
    """Another daemon holds this state folder."""


@dataclass(frozen=True, slots=True)
class Dispatch:
    """Bytes of this attempt left, or were about to."""

    sender: str
    segments: int
    tick: float  # on the boot clock


@dataclass(slots=True)
class Memory:
    """What the log of earlier runs says."""

    dispatched: dict[tuple[UUID, int], Dispatch] = field(default_factory=dict)
    answered: dict[tuple[UUID, int], Mapping[str, object]] = field(default_factory=dict)
    leases: set[tuple[str, int]] = field(default_factory=set)  # group and epoch
    in_the_works: set[tuple[UUID, int]] = field(default_factory=set)  # what was being prepared when a run ended
    damaged: bool = False  # something is missing or could not be read: nothing may be taken for unsent

    def unsent(self, key: tuple[UUID, int], grp: str, epoch: int) -> bool:
        """Whether that attempt, claimed under that lease, certainly never left this machine."""
        return not self.damaged and (grp, epoch) in self.leases and key not in self.dispatched


class Journal:
    """The dispatch log of one state folder. One daemon at a time: the folder is locked."""

    def __init__(self, folder: Path, *, boot_id: str, owner: str = "") -> None:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._folder = folder
        self._boot_id = boot_id
        self._owner = owner  # the daemon whose folder it is: another's log says nothing about ours
        self._lock = _lock(folder / "lock")
        self.full: str | None = None  # why it cannot be written, while it cannot: said once, and nothing leaves
        self._map: mmap.mmap | None = None
        self._at = self._full = 0  # where the next record goes in it, and where none may
        self._number = self._first = 0  # the present file; the first of this run
        self._senders: dict[str, int] = {}
        self._leases: dict[str, int] = {}  # group -> epoch
        self._open: dict[int, int] = {}  # file number -> attempts dispatched there and not settled yet
        self._where: dict[tuple[UUID, int], int] = {}  # attempt -> file number

    def recall(self) -> Memory:
        """Read what earlier runs left. Call before :meth:`open`."""
        memory = Memory()
        read: dict[int, _File] = {}
        for path in self._files():
            number = _number(path)
            told = read[number] = _read(path, memory)
            if told.first and (told.boot_id != self._boot_id or not told.boot_id):
                memory.damaged = True  # the machine went down: pages that were never written back may be missing
            if told.first and told.owner != self._owner:
                memory.damaged = True
            self._number = max(self._number, number)
        memory.damaged |= _incomplete(read)
        return memory

    def open(self) -> None:
        """Start a new file; older ones stay until :meth:`forget_old`. Raises OSError when the disk is full."""
        self._roll()

    def mend(self) -> None:
        """If it could not be written: perhaps there is room now."""
        if self.full is not None:
            with suppress(OSError):
                self._roll()

    def forget_old(self) -> None:
        """Remove the files of earlier runs, once everything they say has been reconciled."""
        for path in self._files():
            if _number(path) < self._first:
                self._remove(_number(path))

    def leased(self, grp: str, epoch: int) -> None:
        """From here on claims of *grp* are made under *epoch*. Raises OSError on a full disk: then none may be made."""
        self._append(_LEASED, _LEASE.pack(epoch) + grp.encode())
        self._leases[grp] = epoch

    def in_the_works(self, id: UUID, attempt: int) -> None:
        """That attempt is being prepared, until :meth:`prepared`: should we die of it, it is known of what."""
        if self._map is not None:
            _WORKS.pack_into(self._map, _WORKS_AT, id.bytes, attempt)

    def prepared(self) -> None:
        """It did not kill us."""
        if self._map is not None:
            self._map[_WORKS_AT:_BEGIN] = _IDLE

    def dispatched(self, id: UUID, attempt: int, sender: str, segments: int, tick: float) -> None:
        """Attempt *attempt* of message *id* is about to leave. Raises OSError on a full disk: then it must not."""
        index = self._senders.get(sender)
        if index is None:
            index = len(self._senders)
            self._append(_SENDER, struct.pack("<H", index) + sender.encode())
            self._senders[sender] = index
        self._put(_KIND_DISPATCH.pack(_DISPATCH.size, _DISPATCHED, id.bytes, attempt, index, segments, tick))
        self._where[id, attempt] = self._number
        self._open[self._number] += 1

    def answered(self, id: UUID, attempt: int, said: bytes) -> None:
        """What became of it, as JSON: kept until :meth:`settled`, lest it be sent again for want of a database."""
        if len(said) > RECORD_BYTES_MAX - 64:
            said = orjson.dumps({**orjson.loads(said), "reason": "(too long for the dispatch log)"})
        self._put(_KIND_RESULT.pack(_RESULT.size + len(said), _ANSWERED, id.bytes, attempt) + said)

    def settled(self, id: UUID, attempt: int) -> None:
        """Postgres has it: this attempt needs no memory any more."""
        number = self._where.pop((id, attempt), None)
        if number is None:
            return
        self._open[number] -= 1
        if not self._open[number] and number < self._number - 1:
            self._tidy()

    def knows(self, id: UUID, attempt: int) -> bool:
        """Whether that attempt was dispatched by this run and is not settled."""
        return (id, attempt) in self._where

    @property
    def bytes_used(self) -> int:
        """Bytes written to the present file."""
        return self._at

    def close(self) -> None:
        """Let go of the folder. The files stay: the next run reads them."""
        if self._map is not None:
            self._map.close()
            self._map = None
        os.close(self._lock)

    def _append(self, kind: int, payload: bytes) -> None:
        self._put(_KIND.pack(len(payload), kind) + payload)

    def _put(self, body: bytes) -> None:
        if self._map is None or self._at + _CRC.size + len(body) > self._full:
            self._roll()
        assert self._map is not None
        self._at = _write(self._map, self._at, body)

    def _roll(self) -> None:
        try:
            fresh = self._reserve()
        except OSError as full:
            if self.full is None:
                log.error("journal.failed", error=str(full), hint="nothing leaves until it can be written")
            self.full = str(full)
            raise
        if self.full is not None:
            log.info("journal.mended")
            self.full = None
        before, end = self._map, self._at
        self._map, self._at, self._full = fresh, _BEGIN, len(fresh) - _KEPT_FREE
        self._number += 1
        self._first = self._first or self._number
        self._open[self._number] = 0
        fresh[: len(MAGIC)] = MAGIC
        identity = {"boot_id": self._boot_id, "owner": self._owner, "first": self._first, "files": list(self._open)}
        self._append(_IDENTITY, orjson.dumps(identity))
        for sender, index in self._senders.items():
            self._append(_SENDER, struct.pack("<H", index) + sender.encode())
        for grp, epoch in self._leases.items():
            self._append(_LEASED, _LEASE.pack(epoch) + grp.encode())
        if before is not None:
            _write(before, end, _KIND.pack(_FILE.size, _NEXT) + _FILE.pack(self._number))
            before.close()
        self._tidy()

    def _reserve(self) -> mmap.mmap:
        path = self._path(self._number + 1)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            # Reserved, not sparse: on a full disk this fails here, where it can be told, and not as a SIGBUS later.
            os.posix_fallocate(descriptor, 0, FILE_BYTES)
            return mmap.mmap(descriptor, FILE_BYTES)
        except OSError:
            path.unlink()
            raise
        finally:
            os.close(descriptor)

    def _tidy(self) -> None:
        # The file before the present one stays, settled or not: it knows how fast senders spoke a moment ago.
        for number in [old for old, count in self._open.items() if not count and old < self._number - 1]:
            if self._remove(number):
                del self._open[number]

    def _remove(self, number: int) -> bool:
        """Remove a file and say so first, for a missing one is damage. False while there is no room to say it."""
        if self._at + _KEPT_FREE > self._full:
            return False
        self._append(_GONE, _FILE.pack(number))
        self._path(number).unlink(missing_ok=True)
        return True

    def _files(self) -> list[Path]:
        return sorted(self._folder.glob("dispatch-*.log"), key=_number)

    def _path(self, number: int) -> Path:
        return self._folder / f"dispatch-{number:06}.log"


def _number(path: Path) -> int:
    return int(path.stem.removeprefix("dispatch-"))


def _lock(path: Path) -> int:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise StateFolderInUse(f"{path.parent} is in use by another daemon") from None
    return descriptor


@dataclass(slots=True)
class _File:
    """What one file says of itself and of others."""

    boot_id: str = ""
    owner: str = ""
    first: int = 0  # number of the first file of its run; nought in one that does not say who it is
    needed: frozenset[int] = frozenset()  # files of its run that still mattered when it began, itself among them
    following: int | None = None  # the file that was begun after it
    gone: set[int] = field(default_factory=set)  # files removed on purpose while it was the present one


def _incomplete(files: Mapping[int, _File]) -> bool:
    """Whether something is missing from the files of any run, as the newest of that run knows them."""
    present = {number for number, told in files.items() if told.first}
    gone = set().union(*(told.gone for told in files.values()))
    newest = {files[number].first: files[number] for number in sorted(present)}
    return any(
        told.needed - present - gone or (told.following is not None and told.following not in gone)
        for told in newest.values()
    )


def _read(path: Path, memory: Memory) -> _File:
    log, told = path.read_bytes(), _File()
    if not log.startswith(MAGIC) or len(log) < _BEGIN:
        memory.damaged = memory.damaged or any(log)
        return told
    works, attempt = _WORKS.unpack_from(log, _WORKS_AT)
    if attempt:
        memory.in_the_works.add((UUID(bytes=works), attempt))
    senders: dict[int, str] = {}
    for record in _records(log):
        if record is None:
            memory.damaged = True
            return told
        kind, payload = record
        if kind == _DISPATCHED:
            id, attempt, index, segments, tick = _DISPATCH.unpack(payload)
            memory.dispatched[UUID(bytes=id), attempt] = Dispatch(senders.get(index, ""), segments, tick)
        elif kind == _ANSWERED:
            id, attempt = _RESULT.unpack_from(payload)
            memory.answered[UUID(bytes=id), attempt] = orjson.loads(payload[_RESULT.size :])
        elif kind == _SENDER:
            senders[int.from_bytes(payload[:2], "little")] = payload[2:].decode()
        elif kind == _LEASED:
            memory.leases.add((payload[_LEASE.size :].decode(), *_LEASE.unpack_from(payload)))
        else:
            _tell(told, kind, payload)
    return told


def _tell(told: _File, kind: int, payload: bytes) -> None:
    if kind == _IDENTITY:
        said = orjson.loads(payload)
        told.boot_id, told.owner, told.first = str(said["boot_id"]), str(said["owner"]), int(said["first"])
        told.needed = frozenset(said["files"])
    elif kind == _GONE:
        told.gone.add(*_FILE.unpack(payload))
    elif kind == _NEXT:
        (told.following,) = _FILE.unpack(payload)


def _write(log: mmap.mmap, at: int, body: bytes) -> int:
    """Append a record to *log* at *at*, its checksum last; where the next one goes."""
    begin = at + _CRC.size
    end = begin + len(body)
    log[begin:end] = body
    _crc_into(log, at, zlib.crc32(body) or 1)  # as _checksum
    _end_into(log, _END_AT, end)
    return end


def _records(log: bytes) -> Iterable[tuple[int, bytes] | None]:
    """Every valid record; a last None when what follows is neither untouched nor one record cut short."""
    at, (written,) = _BEGIN, _END.unpack_from(log, len(MAGIC))
    while at + _HEAD.size <= len(log):
        crc, length, kind = _HEAD.unpack_from(log, at)
        end = at + _HEAD.size + length
        if not crc or end > len(log) or _checksum(log[at + 4 : end]) != crc:
            break
        yield kind, log[at + _HEAD.size : end]
        at = end
    rest = log[at:].rstrip(b"\0")
    if at < written or rest[:4].strip(b"\0") or len(rest) > RECORD_BYTES_MAX:
        yield None


def _checksum(body: bytes) -> int:
    return zlib.crc32(body) or 1  # nought means "not written yet"
