"""The dispatch log: what was written is read again, and damage is never read as "not sent"."""

from __future__ import annotations

import errno
import os
import random
import shutil
from typing import TYPE_CHECKING, NoReturn
from uuid import UUID, uuid4

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon import journal
from daemon.journal import Dispatch, Journal, Memory, StateFolderInUse

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PAGE = 4096


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "state"


@pytest.fixture(autouse=True)
def small_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "FILE_BYTES", 16 * PAGE)


def begun(folder: Path, boot_id: str = "boot") -> Journal:
    log = Journal(folder, boot_id=boot_id)
    log.recall()
    log.open()
    return log


def recalled(folder: Path, boot_id: str = "boot") -> Memory:
    log = Journal(folder, boot_id=boot_id)
    try:
        return log.recall()
    finally:
        log.close()


def recalled_beside(folder: Path) -> Memory:
    """What a next run would recall, were this one to end now."""
    copy = folder.with_name("copy")
    shutil.copytree(folder, copy)
    try:
        return recalled(copy)
    finally:
        shutil.rmtree(copy)


def fill(log: Journal, many: int) -> None:
    """*many* messages sent, answered and settled."""
    for number in range(many):
        id = uuid4()
        log.dispatched(id, 1, f"sender {number % 3}", 1, float(number))
        log.answered(id, 1, orjson.dumps({"status": "accepted"}))
        log.settled(id, 1)


def logs(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.log"))


def test_what_was_written_is_recalled(folder: Path) -> None:
    log = begun(folder)
    first, second = uuid4(), uuid4()
    log.leased("group", 7)
    log.dispatched(first, 1, "+15550100", 3, 17.5)
    log.dispatched(second, 2, "72345", 1, 18.0)
    log.answered(first, 1, orjson.dumps({"status": "accepted", "reference": "SM1"}))
    log.close()
    memory = recalled(folder)
    assert memory.dispatched == {
        (first, 1): Dispatch("+15550100", 3, 17.5),
        (second, 2): Dispatch("72345", 1, 18.0),
    }
    assert memory.answered == {(first, 1): {"status": "accepted", "reference": "SM1"}}
    assert not memory.damaged
    assert not memory.unsent((second, 2), "group", 7)
    assert memory.unsent((second, 3), "group", 7)
    assert not memory.unsent((second, 3), "group", 8)  # claimed under a lease of which it knows nothing
    assert not memory.unsent((second, 3), "other", 7)


def test_a_new_folder_has_no_memory_and_no_damage(folder: Path) -> None:
    assert recalled(folder) == Memory()


def test_two_daemons_never_share_a_folder(folder: Path) -> None:
    log = begun(folder)
    with pytest.raises(StateFolderInUse):
        Journal(folder, boot_id="boot")
    log.close()
    Journal(folder, boot_id="boot").close()


def test_another_boot_makes_everything_doubtful(folder: Path) -> None:
    begun(folder, "one").close()
    assert recalled(folder, "other").damaged
    assert recalled(folder, "").damaged  # a machine that does not tell its boots apart
    assert not recalled(folder, "one").damaged


def test_a_later_run_does_not_hide_that_an_earlier_one_lost_its_machine(folder: Path) -> None:
    begun(folder, "one").close()
    begun(folder, "two").close()  # died before it had reconciled what the first one left
    assert recalled(folder, "two").damaged


def test_files_of_earlier_runs_stay_until_they_are_forgotten(folder: Path) -> None:
    first = uuid4()
    log = begun(folder)
    log.dispatched(first, 1, "a", 1, 1.0)
    log.close()
    log = begun(folder)
    log.dispatched(uuid4(), 1, "a", 1, 2.0)
    assert len(logs(folder)) == 2
    log.forget_old()
    log.close()
    assert (first, 1) not in recalled(folder).dispatched
    assert len(recalled(folder).dispatched) == 1


def test_rotation_keeps_what_is_open_and_the_names_of_senders(folder: Path) -> None:
    log = begun(folder)
    kept = uuid4()
    log.dispatched(kept, 1, "the first sender", 1, 0.5)
    fill(log, 6_000)
    # The first, which is open; the present one; the one before it, for the debt of senders. And no more.
    assert len(logs(folder)) == 3
    log.close()
    memory = recalled(folder)
    assert memory.dispatched[kept, 1].sender == "the first sender"
    assert {one.sender for key, one in memory.dispatched.items() if key != (kept, 1)} == {
        "sender 0",
        "sender 1",
        "sender 2",
    }
    assert max(one.tick for one in memory.dispatched.values()) == 5_999.0
    assert not memory.damaged


def test_what_is_settled_late_takes_its_file_along(folder: Path) -> None:
    log = begun(folder)
    kept = uuid4()
    log.dispatched(kept, 1, "a", 1, 0.5)
    while len(logs(folder)) < 4:
        id = uuid4()
        log.dispatched(id, 1, "a", 1, 1.0)
        if len(logs(folder)) < 3:
            continue
        log.settled(id, 1)
    before = logs(folder)
    assert log.knows(kept, 1)
    log.settled(kept, 1)
    assert not log.knows(kept, 1)
    assert before[0] in logs(folder)  # others are still open there
    log.close()


def test_a_full_disk_is_told_before_anything_leaves(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = begun(folder)

    def full(*_args: object) -> NoReturn:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    written = 0

    def fill() -> NoReturn:
        nonlocal written
        while True:
            log.dispatched(uuid4(), 1, f"sender {written}", 1, 1.0)
            written += 1

    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", full)
        with pytest.raises(OSError, match="No space"):
            fill()
        log.mend()  # not yet
        assert "No space" in str(log.full)
        files = len(logs(folder))
    log.mend()
    assert log.full is None  # there is room again
    assert len(logs(folder)) == files + 1
    log.mend()  # and nothing to mend
    assert len(logs(folder)) == files + 1
    log.dispatched(uuid4(), 1, "a sender of later", 1, 2.0)
    log.close()
    memory = recalled(folder)
    assert len(memory.dispatched) == written + 1
    assert not memory.damaged
    assert "" not in {one.sender for one in memory.dispatched.values()}


def test_an_answer_too_long_for_a_record_loses_its_reason_and_nothing_else(folder: Path) -> None:
    log = begun(folder)
    id = uuid4()
    log.answered(id, 1, orjson.dumps({"status": "failed", "reason": "x" * 5_000}))
    log.close()
    assert recalled(folder).answered[id, 1]["status"] == "failed"


@pytest.mark.parametrize("cut", range(1, 60))
def test_a_last_record_cut_short_was_never_sent(folder: Path, cut: int) -> None:
    """A kill may come between any two bytes; the checksum of a record is written last, and then its end."""
    log = begun(folder)
    log.dispatched(uuid4(), 1, "a", 1, 1.0)
    whole = log.bytes_used
    log.dispatched(uuid4(), 1, "a", 1, 2.0)
    end = log.bytes_used
    log.close()
    if cut > end - whole - 4:
        return
    path = logs(folder)[0]
    raw = bytearray(path.read_bytes())
    raw[whole : whole + 4] = bytes(4)  # no checksum yet
    raw[end - cut : end] = bytes(cut)
    raw[len(journal.MAGIC) : len(journal.MAGIC) + 8] = whole.to_bytes(8, "little")
    path.write_bytes(raw)
    memory = recalled(folder)
    assert len(memory.dispatched) == 1
    assert not memory.damaged


class Story:
    """A log of a few hundred records, and what it truly says."""

    def __init__(self, folder: Path) -> None:
        log = begun(folder)
        for number in range(150):
            log.dispatched(UUID(int=number), 1, f"sender {number % 7}", 1, float(number))
            if number % 3 == 0:
                log.answered(UUID(int=number), 1, orjson.dumps({"status": "accepted", "reference": f"SM{number}"}))
        self.end = log.bytes_used
        log.close()
        (self.path,) = logs(folder)
        self.raw = self.path.read_bytes()
        self.truth = set(recalled(folder).dispatched)
        self.folder = folder
        assert len(self.truth) == 150

    def believed(self, raw: bytes | bytearray) -> None:
        """Read *raw* in place of the log: what truly was dispatched must be taken for it."""
        memory = Memory()
        self.path.write_bytes(raw)
        journal._read(self.path, memory)
        assert memory.damaged or self.truth <= set(memory.dispatched)


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(journal, "FILE_BYTES", 4 * PAGE)
        yield Story(tmp_path_factory.mktemp("story") / "state")


@pytest.mark.timeout(300)
@pytest.mark.parametrize("step", [13, pytest.param(1, marks=pytest.mark.long)])
def test_no_flipped_bit_is_read_as_not_sent(story: Story, step: int) -> None:
    for at in range(0, (story.end + 64) * 8, step):
        raw = bytearray(story.raw)
        raw[at // 8] ^= 1 << at % 8
        story.believed(raw)


def test_no_page_of_zeros_is_read_as_not_sent(story: Story) -> None:
    for size in (64, 512, PAGE):
        for at in range(0, story.end, size):
            raw = bytearray(story.raw)
            raw[at : at + size] = bytes(size)
            story.believed(raw)


def test_no_missing_tail_is_read_as_not_sent(story: Story) -> None:
    for length in range(0, story.end, 13):
        raw = story.raw[:length]
        if any(raw):
            story.believed(raw)


@given(st.lists(st.tuples(st.integers(0, 2**14), st.binary(min_size=1, max_size=40)), min_size=1, max_size=3))
def test_no_scribble_is_read_as_not_sent(story: Story, scribbles: list[tuple[int, bytes]]) -> None:
    raw = bytearray(story.raw)
    for at, ink in scribbles:
        raw[at % story.end : at % story.end + len(ink)] = ink
    story.believed(raw)


def test_a_log_that_is_missing_tells_nothing_of_what_it_knew(folder: Path) -> None:
    log = begun(folder)
    log.leased("group", 3)
    log.dispatched(UUID(int=1), 1, "a", 1, 1.0)
    log.close()
    assert recalled(folder).unsent((UUID(int=2), 1), "group", 3)
    logs(folder)[0].unlink()
    assert not recalled(folder).unsent((UUID(int=1), 1), "group", 3)


def test_another_daemons_log_tells_nothing(folder: Path) -> None:
    log = Journal(folder, boot_id="boot", owner="another")
    log.open()
    log.leased("group", 3)
    log.close()
    assert recalled(folder).damaged


def test_files_removed_on_purpose_are_not_missed_and_others_are(folder: Path) -> None:
    begun(folder).close()  # an earlier run
    log = begun(folder)
    log.leased("group", 3)
    kept = uuid4()
    log.dispatched(kept, 1, "a", 1, 0.5)
    fill(log, 6_000)
    log.forget_old()
    log.close()
    whole = recalled(folder)
    assert not whole.damaged
    assert whole.unsent((uuid4(), 1), "group", 3)
    assert len(logs(folder)) == 3
    for path in logs(folder):
        raw = path.read_bytes()
        path.unlink()
        assert recalled(folder).damaged, path.name
        path.write_bytes(b"")
        assert recalled(folder).damaged, path.name
        path.write_bytes(bytes(len(raw)))
        assert recalled(folder).damaged, path.name
        path.write_bytes(raw)


def test_a_run_that_lost_its_last_file_is_not_healed_by_the_next_run(folder: Path) -> None:
    log = begun(folder)
    fill(log, 1_500)
    log.close()
    logs(folder)[-1].unlink()
    begun(folder).close()  # takes the number that has become free
    assert recalled(folder).damaged


def test_what_was_in_the_works_is_known(folder: Path) -> None:
    log = begun(folder)
    log.in_the_works(UUID(int=7), 3)
    assert recalled_beside(folder).in_the_works == {(UUID(int=7), 3)}
    log.prepared()
    assert recalled_beside(folder).in_the_works == set()
    log.close()


class Past:
    """What truly happened in two runs, several files each, some removed on purpose; and ways to do the log harm."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.rng = random.Random(seed)
        self.folder = folder
        self.open: dict[tuple[UUID, int], tuple[str, int]] = {}  # dispatched and not settled -> its lease
        self.epoch = 0
        for _ in range(2):
            log = Journal(folder, boot_id="boot", owner="me")
            log.recall()
            log.open()
            self.live(log)
            log.close()

    def live(self, log: Journal) -> None:
        self.epoch += 1
        log.leased("group", self.epoch)
        for number in range(self.rng.randrange(200, 1_200)):
            id = UUID(int=self.rng.getrandbits(128))
            log.dispatched(id, 1, f"sender {number % 5}", 1, float(number))
            if self.rng.random() < 0.98:
                log.answered(id, 1, orjson.dumps({"status": "accepted"}))
                log.settled(id, 1)
            else:
                self.open[id, 1] = "group", self.epoch

    def harm(self) -> str:
        path = self.rng.choice(logs(self.folder))
        raw = bytearray(path.read_bytes())
        used = len(raw.rstrip(b"\0"))
        at = self.rng.randrange(used)
        match kind := self.rng.randrange(9):
            case 0:
                path.unlink()
            case 1:
                path.write_bytes(raw[:at])
            case 2:
                path.write_bytes(b"")
            case 3:
                raw[at] ^= 1 << self.rng.randrange(8)
            case 4:
                raw[at : at + PAGE] = bytes(PAGE)
            case 5:
                raw[at:used] = bytes(used - at)  # a torn tail
            case 6:
                raw[at : at + 40] = self.rng.randbytes(40)
            case 7:
                for each in logs(self.folder):
                    each.unlink()
            case _:
                other = Journal(self.folder / "other", boot_id="boot", owner="another")
                other.open()
                other.leased("group", self.epoch)
                other.close()
                for each in logs(self.folder):
                    each.unlink()
                (self.folder / "other" / "dispatch-000001.log").rename(path)
                return "another daemon's"
        if kind in {3, 4, 5, 6}:
            path.write_bytes(raw)
        return f"{kind} at {at} of {path.name}"

    def lied_about(self, *, boot_id: str = "boot") -> list[UUID]:
        """What was sent, and is taken for unsent."""
        log = Journal(self.folder, boot_id=boot_id, owner="me")
        memory = log.recall()
        log.close()
        return [key[0] for key, lease in self.open.items() if memory.unsent(key, *lease)]


@pytest.mark.timeout(600)
@pytest.mark.parametrize("seeds", [range(60), pytest.param(range(1_000), marks=pytest.mark.long)], ids=len)
def test_no_harm_makes_a_log_say_not_sent_of_what_was(tmp_path: Path, seeds: range) -> None:
    for seed in seeds:
        folder = tmp_path / str(seed)
        past = Past(folder, seed)
        assert past.lied_about() == past.lied_about(boot_id="another machine") == []
        harm = past.harm()
        assert past.lied_about() == [], (seed, harm)
        shutil.rmtree(folder)


def test_a_log_of_another_kind_is_damage_and_an_empty_one_is_none(folder: Path) -> None:
    folder.mkdir()
    (folder / "dispatch-000001.log").write_bytes(bytes(PAGE))
    assert not recalled(folder).damaged
    (folder / "dispatch-000002.log").write_bytes(b"another log")
    assert recalled(folder).damaged
