"""A journal of several files: one chain, whatever crashes, crowds or vandals do between them."""

from __future__ import annotations

import contextlib
import errno
import multiprocessing
import os
import random
import resource
import signal
import stat
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.test_state import in_child
from vmrun.journal import files
from vmrun.journal import journal as module
from vmrun.journal.entry import line_hash
from vmrun.journal.files import segments
from vmrun.journal.journal import CONTINUES, SEGMENT, Head, Journal
from vmrun.model.errors import StateError

FORK = multiprocessing.get_context("fork")
SMALL = 2000


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "journal", segment=SMALL)


def fill(journal: Journal, number: int = 40) -> None:
    for at in range(number):
        journal.append("run.start", {"run": f"{at:012}", "reference": "registry.example.com/a"})


def parts(journal: Journal) -> list[Path]:
    return [segment.path for segment in segments(journal.path.parent)]


# --- how it grows --------------------------------------------------------------------------------


def test_a_full_file_is_put_aside_and_continued(journal: Journal) -> None:
    fill(journal)
    aside = parts(journal)
    assert len(aside) >= 4
    for path in aside:
        lines = path.read_bytes().splitlines()
        assert SMALL <= path.stat().st_size < 2 * SMALL
        assert path.name == f"journal-{journal_seq(lines[-1]):012}.jsonl"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    entries = list(journal.entries())
    assert [entry.seq for entry in entries] == list(range(1, len(entries) + 1))
    assert [entry.fields["run"] for entry in entries if entry.event == "run.start"] == [
        f"{at:012}" for at in range(40)
    ]
    assert journal.verify().seq == len(entries) == 40 + len(aside)


def journal_seq(line: bytes) -> int:
    return int(line.partition(b":")[2].partition(b",")[0])


def test_the_first_entry_of_a_file_says_what_it_continues(journal: Journal) -> None:
    fill(journal)
    aside = parts(journal)
    continues = [entry for entry in journal.entries() if entry.event == CONTINUES]
    assert [entry.fields["segment"] for entry in continues] == [path.name for path in aside]
    for entry, path in zip(continues, aside, strict=True):
        last = path.read_bytes().splitlines()[-1]
        assert entry.fields["head"] == f"{entry.seq - 1}:{line_hash(last)}"
        assert entry.previous == line_hash(last)
    first = journal.path.read_bytes().splitlines()[0]
    assert journal_seq(first) == continues[-1].seq


def test_a_segment_is_never_touched_again(journal: Journal) -> None:
    fill(journal, 10)
    (first, *_) = parts(journal)
    before = (first.read_bytes(), first.stat().st_mtime_ns, first.stat().st_ino)
    fill(journal, 30)
    assert (first.read_bytes(), first.stat().st_mtime_ns, first.stat().st_ino) == before


def test_an_ordinary_journal_is_one_file(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal")
    fill(journal, 5)
    assert parts(journal) == []
    assert SEGMENT >= 16 << 20


def test_a_copy_is_the_whole_chain(journal: Journal, tmp_path: Path) -> None:
    fill(journal)
    copied: list[bytes] = []
    head = journal.verify(copy=copied.append)
    whole = Journal(tmp_path / "copy")
    whole.path.parent.mkdir()
    whole.path.write_bytes(b"".join(copied))
    assert whole.verify() == head


def test_an_older_head_is_found_in_whichever_file_it_is(journal: Journal) -> None:
    heads = []
    for _ in range(20):
        fill(journal, 2)
        heads.append(journal.verify())
    assert parts(journal)
    for head in heads:
        assert journal.verify(head) == heads[-1]
    assert journal.verify(*heads) == heads[-1]
    wrong = Head(heads[3].seq, "0" * 64)
    with pytest.raises(StateError, match="is not the expected one"):
        journal.verify(*heads, wrong)


# --- what is done to it --------------------------------------------------------------------------


def cut(path: Path, lines: int) -> None:
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-lines]))


def swap(one: Path, other: Path) -> None:
    texts = one.read_bytes(), other.read_bytes()
    other.write_bytes(texts[0])
    one.write_bytes(texts[1])


def change(path: Path) -> None:
    path.write_bytes(
        path.read_bytes().replace(b"registry.example.com/a", b"registry.example.com/b", 1)
    )


VANDALS: dict[str, Callable[[list[Path], Path], object]] = {
    "the first segment is gone": lambda aside, active: aside[0].unlink(),
    "a middle segment is gone": lambda aside, active: aside[1].unlink(),
    "the last segment is gone": lambda aside, active: aside[-1].unlink(),
    "a segment is empty": lambda aside, active: aside[1].write_bytes(b""),
    "a segment is cut": lambda aside, active: cut(aside[1], 1),
    "the last segment is cut": lambda aside, active: cut(aside[-1], 1),
    "the last segment is cut and nothing follows": lambda aside, active: (
        cut(aside[-1], 1), active.unlink()
    ),
    "two are swapped": lambda aside, active: swap(aside[0], aside[1]),
    "a segment has another name": lambda aside, active: aside[0].rename(
        aside[0].with_name("journal-000000000001.jsonl")
    ),
    "a segment is there twice": lambda aside, active: aside[1].with_name(
        "journal-000000000999.jsonl"
    ).write_bytes(aside[1].read_bytes()),
    "a line is changed in a segment": lambda aside, active: change(aside[1]),
    "a line is added to a segment": lambda aside, active: aside[1].write_bytes(
        aside[1].read_bytes() + b"more\n"
    ),
    "a segment is a link": lambda aside, active: (
        aside[1].rename(aside[1].with_name("x")), aside[1].symlink_to("x")
    ),
    "a segment is a directory": lambda aside, active: (aside[1].unlink(), aside[1].mkdir()),
    "the active file begins anew": lambda aside, active: active.write_bytes(
        aside[0].read_bytes()
    ),
}  # fmt: skip


@pytest.mark.parametrize("how", VANDALS)
def test_vandals_are_found(journal: Journal, how: str) -> None:
    fill(journal)
    VANDALS[how](parts(journal), journal.path)
    with pytest.raises(StateError) as caught:
        journal.verify()
    assert "journal" in caught.value.message
    with pytest.raises(StateError):
        list(journal.entries())


def test_a_missing_active_file_is_found_by_the_head(journal: Journal) -> None:
    fill(journal)
    head = journal.verify()
    journal.path.unlink()
    with pytest.raises(StateError, match="was cut off"):
        journal.verify(head)
    journal.append("x", {})
    with pytest.raises(StateError, match=r"cut off|not the expected"):
        journal.verify(head)


def test_nothing_is_appended_to_a_segment_that_was_cut(journal: Journal) -> None:
    fill(journal)
    journal.path.unlink()
    cut(parts(journal)[-1], 1)
    with pytest.raises(StateError, match="does not end with entry"):
        journal.append("x", {})


def test_a_name_that_is_taken_is_not_overwritten(journal: Journal) -> None:
    while not journal.path.exists() or journal.path.stat().st_size < SMALL:
        fill(journal, 1)
    last = list(journal.entries())[-1].seq
    taken = journal.path.with_name(f"journal-{last:012}.jsonl")
    taken.write_bytes(b"somebody's")
    with pytest.raises(StateError, match="is there already"):
        journal.append("x", {})
    assert taken.read_bytes() == b"somebody's"


def test_no_changed_byte_of_a_segment_is_overlooked(journal: Journal) -> None:
    fill(journal, 12)
    chance = random.Random(7)
    for path in parts(journal):
        whole = path.read_bytes()
        # The last byte is the newline: without it the line is the same.
        for at in chance.sample(range(len(whole) - 1), 150):
            path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
            with pytest.raises(StateError):
                journal.verify()
        path.write_bytes(whole)
    journal.verify()


# --- crashes -------------------------------------------------------------------------------------


class Crash(BaseException):
    pass


def full(journal: Journal) -> None:
    while not journal.path.exists() or journal.path.stat().st_size < SMALL:
        fill(journal, 1)


@pytest.mark.parametrize("where", ["rename", "sync", "open", "write"])
def test_a_crash_while_a_file_is_put_aside(
    journal: Journal, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    full(journal)
    before = journal.verify()

    def crash(*_arguments: object) -> None:
        raise Crash

    with monkeypatch.context() as patch:
        if where == "rename":
            patch.setattr(os, "rename", crash)
        elif where == "sync":
            patch.setattr(module, "sync_directory", crash)
        elif where == "write":
            patch.setattr(module, "write_all", crash)
        else:
            opened = files.open_for_append
            calls = iter([opened])
            patch.setattr(
                module,
                "open_for_append",
                lambda path: next(calls, crash)(path),  # type: ignore[operator]
            )
        with pytest.raises(Crash):
            journal.append("x", {})
    assert journal.verify(before).seq == before.seq
    entry = journal.append("y", {})
    assert entry.seq == before.seq + 2
    assert len(parts(journal)) == 1
    assert journal.verify(before).seq == entry.seq


def test_half_of_the_first_lines_of_a_file(journal: Journal) -> None:
    full(journal)
    before = journal.verify()
    journal.append("x", {})
    whole = journal.path.read_bytes()
    first = whole.index(b"\n") + 1
    for at in (0, 1, first - 2, first - 1, first, first + 1, len(whole) - 2, len(whole) - 1):
        journal.path.write_bytes(whole[:at])
        journal.verify(before)
        entry = journal.append("y", {})
        kept = at >= first - 1
        assert entry.seq == before.seq + (3 if at == len(whole) - 1 else 2), at
        assert journal.verify(before).seq == entry.seq
        continued = [e for e in journal.entries() if e.event == CONTINUES]
        assert len(continued) == 1
        assert ("torn" in continued[0].fields) is (not kept and at > 0)


def test_half_a_line_at_the_end_of_a_segment_stays_in_the_chain(journal: Journal) -> None:
    full(journal)
    with journal.path.open("ab") as file:
        file.write(b'{"seq":99,"ti')
    assert journal.verify().torn
    entry = journal.append("x", {})
    assert not journal.verify().torn
    (aside,) = parts(journal)
    text = aside.read_bytes()
    assert text.endswith(b'"ti')
    aside.write_bytes(text[:-1] + b"o")
    with pytest.raises(StateError, match="what stands before entry"):
        journal.verify()
    aside.write_bytes(text)
    assert journal.verify().seq == entry.seq


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("append"), st.integers(0, 900)),
        st.tuples(st.just("half"), st.integers(1, 200)),
        st.tuples(st.just("noise"), st.integers(1, 200)),
    ),
    max_size=25,
)


@settings(deadline=None, max_examples=60)
@given(STEPS)
def test_any_mixture_of_appends_and_crashes(steps: list[tuple[str, int]]) -> None:
    """``half``: the last append was cut short by so many bytes; ``noise``: a crash left bytes."""
    with tempfile.TemporaryDirectory() as directory:
        journal = Journal(Path(directory) / "journal", segment=1200)
        kept = journal.verify()
        for step, size in steps:
            if step == "append":
                kept = journal.verify()
                journal.append("x", {"text": "t" * size})
            elif step == "half" and journal.path.exists():
                whole = journal.path.read_bytes()
                last = whole.rstrip(b"\n").rpartition(b"\n")[0]
                journal.path.write_bytes(whole[: max(len(last) + 1, len(whole) - size)])
            elif step == "noise" and journal.path.exists():
                with journal.path.open("ab") as file:
                    file.write(b"#" * size)
            head = journal.verify(kept)
            assert head.seq >= kept.seq
        entry = journal.append("end", {})
        assert journal.verify(kept).seq == entry.seq
        assert [e.seq for e in journal.entries()] == list(range(1, entry.seq + 1))


def test_killed_writers_break_nothing(journal: Journal) -> None:
    chance = random.Random(5)

    def many() -> None:
        while True:
            journal.append("run.start", {"reference": "x" * 300})

    for _ in range(12):
        children = [FORK.Process(target=many) for _ in range(2)]
        for child in children:
            child.start()
        time.sleep(chance.uniform(0.01, 0.05))
        for child in children:
            child.kill()
        for child in children:
            child.join(10)
            assert child.exitcode == -signal.SIGKILL
        seq = journal.verify().seq
        journal.append("x", {})
        assert journal.verify().seq > seq
    assert len(parts(journal)) > 2


# --- a crowd -------------------------------------------------------------------------------------


def test_twenty_writers_and_a_reader(journal: Journal) -> None:
    def many() -> None:
        for at in range(12):
            journal.append("x", {"pid": str(os.getpid()), "at": str(at)})

    children = [FORK.Process(target=many) for _ in range(20)]
    for child in children:
        child.start()
    seen = 0
    while any(child.is_alive() for child in children):
        head = journal.verify()
        assert not head.torn
        assert head.seq >= seen
        seen = head.seq
    assert [child.exitcode for child in children] == [0] * 20
    entries = list(journal.entries())
    written: dict[str, list[str]] = {}
    for entry in entries:
        if entry.event == "x":
            written.setdefault(entry.fields["pid"], []).append(entry.fields["at"])
    assert len(written) == 20
    assert set(map(tuple, written.values())) == {tuple(str(at) for at in range(12))}
    assert journal.verify().seq == len(entries) == 240 + len(parts(journal))


# --- full disks ----------------------------------------------------------------------------------


def test_a_full_disk_at_the_start_of_a_file(journal: Journal) -> None:
    full(journal)
    before = journal.verify()

    def work() -> str:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
        with pytest.raises(StateError) as caught:
            journal.append("x", {})
        return caught.value.message

    assert "cannot write the journal" in in_child(work)
    assert journal.verify(before).seq == before.seq
    assert journal.append("x", {}).seq == before.seq + 2
    assert journal.verify(before).seq == before.seq + 2


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "disk"
    path.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k,mode=700", "none", str(path)],
        capture_output=True,
        timeout=10,
        check=False,
    )
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.decode().strip()}")
    yield path
    subprocess.run(["umount", str(path)], check=True, timeout=10)


def test_a_disk_that_fills_up(small_disk: Path) -> None:
    """At whatever entry it happens: nothing is half written, and all goes on afterwards."""
    journal = Journal(small_disk / "journal", segment=8000)
    ballast = small_disk / "ballast"
    ballast.write_bytes(b"x" * (20 << 10))
    written, failures = 0, []
    while len(failures) < 5:
        try:
            journal.append("run.start", {"reference": "r" * 700})
            written += 1
        except StateError as error:
            failures.append(f"{error.message}; {error.hint}")
        head = journal.verify()
        assert not head.torn
    assert all(os.strerror(errno.ENOSPC) in failure for failure in failures)
    assert all("free disk space" in failure for failure in failures)
    assert written > 10
    ballast.unlink()
    assert journal.append("x", {}).seq in (head.seq + 1, head.seq + 2)
    assert journal.verify(head).seq > head.seq
    runs = [entry for entry in journal.entries() if entry.event == "run.start"]
    assert len(runs) == written


def test_a_reader_that_stops_early_leaves_nothing_open(journal: Journal) -> None:
    fill(journal)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        with contextlib.closing(journal.entries()) as entries:  # type: ignore[type-var]
            next(entries)
    assert len(os.listdir("/proc/self/fd")) == before
