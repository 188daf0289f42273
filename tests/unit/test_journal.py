"""The journal: whatever is done to its lines is found, and no crash or crowd breaks its chain."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import resource
import signal
import stat
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.test_state import in_child
from vmrun.journal import journal as module
from vmrun.journal.entry import GENESIS, LONGEST_LINE, Entry, line_hash, parse_entry
from vmrun.journal.journal import Head, Journal
from vmrun.model.errors import StateError

FORK = multiprocessing.get_context("fork")


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "state" / "journal")


def filled(journal: Journal, number: int = 5) -> list[bytes]:
    for at in range(number):
        journal.append("run.start", {"run": f"{at:012}", "reference": f"oci:/srv/{at}"})
    return journal.path.read_bytes().splitlines() if number else []


def write(journal: Journal, lines: list[bytes]) -> None:
    journal.path.write_bytes(b"".join(line + b"\n" for line in lines))


# --- what is written -----------------------------------------------------------------------------


def test_entries_come_back_in_order(journal: Journal) -> None:
    written = [journal.append("image.pull", {"digest": f"sha256:{n}"}) for n in range(3)]
    assert list(journal.entries()) == written
    assert [entry.seq for entry in written] == [1, 2, 3]
    assert written[0].previous == GENESIS
    lines = journal.path.read_bytes().splitlines()
    assert [entry.previous for entry in written[1:]] == [line_hash(line) for line in lines[:2]]
    assert journal.verify() == Head(3, line_hash(lines[2]))


def test_the_form_of_a_line(journal: Journal) -> None:
    journal.append("run.start", {"run": "0123456789ab"})
    document = json.loads(journal.path.read_bytes())
    assert list(document) == ["seq", "time", "user", "event", "fields", "previous"]
    assert document["time"].endswith("Z")
    assert f"({os.getuid()})" in document["user"]


def test_an_empty_journal(journal: Journal) -> None:
    assert journal.verify() == Head(0, GENESIS)
    assert list(journal.entries()) == []
    journal.path.parent.mkdir(parents=True)
    journal.path.touch()
    assert journal.verify(Head.parse(f"0:{GENESIS}")) == Head(0, GENESIS)
    assert journal.append("x", {}).seq == 1


def test_only_its_owner_may_read_it(journal: Journal) -> None:
    journal.append("x", {})
    assert stat.S_IMODE(journal.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(journal.path.parent.stat().st_mode) == 0o700


def test_who_logged_in_is_named(
    journal: Journal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    login = tmp_path / "loginuid"
    monkeypatch.setattr(module, "_LOGIN", login)
    for text, ends in (("54321", " for (54321)"), ("4294967295", ")"), ("x", ")")):
        login.write_text(text)
        user = journal.append("x", {}).user
        assert user.endswith(ends)
        assert (" for " in user) == (text == "54321")


def test_it_is_on_the_disk_when_append_returns(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[bytes | None] = []
    fsync = os.fsync

    def watched(descriptor: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        synced.append(path.read_bytes() if path.is_file() else None)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", watched)
    journal.append("x", {})
    assert synced == [journal.path.read_bytes(), None]  # the file, then its new name


@pytest.mark.parametrize("text", ["x" * 100_000, "\U0001f512" * 100_000, '"\\\n\0' * 9000])
def test_values_are_capped_and_never_too_long_to_be_read(journal: Journal, text: str) -> None:
    entry = journal.append("run.end", {f"field{n}": text for n in range(12)})
    assert entry.fields["field0"].endswith("…")
    assert list(journal.entries()) == [entry]
    assert len(journal.path.read_bytes()) <= LONGEST_LINE + 1


def test_too_many_fields_are_refused_and_leave_nothing(journal: Journal) -> None:
    filled(journal, 1)
    before = journal.path.read_bytes()
    with pytest.raises(StateError, match="too long"):
        journal.append("x", {f"{n:0100}": "x" for n in range(1000)})
    assert journal.path.read_bytes() == before


def test_no_value_can_forge_a_line(journal: Journal) -> None:
    evil = 'x"}\n{"seq":2,"event":"run.start"}\r\udcff\u2028'
    journal.append("run.refused", {"error": evil})
    journal.append("x", {})
    assert len(journal.path.read_bytes().splitlines()) == 2
    assert journal.verify().seq == 2


@given(st.dictionaries(st.text(max_size=20), st.text(max_size=200), max_size=5))
def test_any_text_is_read_as_it_was_written(fields: dict[str, str]) -> None:
    entry = Entry(1, "t", "u", "e", fields, GENESIS)
    assert parse_entry(entry.line()) == entry


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_not(data: bytes) -> None:
    entry = parse_entry(data)
    assert entry is None or entry.line() == data


@pytest.mark.parametrize(
    "change",
    [
        lambda line: line.replace(b'"seq":1', b'"seq":true'),
        lambda line: line.replace(b'"seq":1', b'"seq":1.0'),
        lambda line: line.replace(b'"seq":1', b'"seq":0'),
        lambda line: line.replace(b'"event":"e"', b'"event":null'),
        lambda line: line.replace(b'"fields":{"a":"b"}', b'"fields":{"a":1}'),
        lambda line: line.replace(b'"fields":{"a":"b"}', b'"fields":[]'),
        lambda line: line.replace(b'"a":"b"', b'"a":"c","a":"b"'),
        lambda line: line.replace(b",", b", ", 1),
        lambda line: line + b" ",
        lambda line: b"[" * 50_000,
        lambda line: b'{"seq":' + b"9" * 5000 + b"}",
        lambda line: b"null",
    ],
)
def test_what_is_no_entry(change: Callable[[bytes], bytes]) -> None:
    line = Entry(1, "t", "u", "e", {"a": "b"}, GENESIS).line()
    assert parse_entry(line) is not None
    assert parse_entry(change(line)) is None


# --- what is done to it --------------------------------------------------------------------------


def renumbered(lines: list[bytes]) -> list[bytes]:
    return [line.replace(b'{"seq":%d' % n, b'{"seq":%d' % (n + 1)) for n, line in enumerate(lines)]


TAMPERED: dict[str, Callable[[list[bytes]], list[bytes]]] = {
    "changed": lambda lines: [
        *lines[:2],
        lines[2].replace(b"oci:/srv/2", b"oci:/srv/9"),
        *lines[3:],
    ],
    "first changed": lambda lines: [lines[0].replace(b"srv/0", b"srv/9"), *lines[1:]],
    "no JSON": lambda lines: [*lines[:2], lines[2][:-1], *lines[3:]],
    "removed": lambda lines: [*lines[:2], *lines[3:]],
    "first removed": lambda lines: lines[1:],
    "first removed and renumbered": lambda lines: renumbered(lines[1:]),
    "inserted": lambda lines: [*lines[:2], lines[1], *lines[2:]],
    "made up": lambda lines: [*lines, Entry(6, "t", "u", "e", {}, GENESIS).line()],
    "blank line": lambda lines: [*lines[:2], b"", *lines[2:]],
    "blank first line": lambda lines: [b"", *lines],
    "noise inserted": lambda lines: [*lines[:2], b"noise", *lines[2:]],
    "swapped": lambda lines: [lines[0], lines[2], lines[1], *lines[3:]],
    "joined": lambda lines: [lines[0] + lines[1], *lines[2:]],
    "too long": lambda lines: [*lines[:2], b"x" * (LONGEST_LINE + 10), *lines[2:]],
    "much noise": lambda lines: [*lines, *[b"x" * 60_000] * 3],
}


@pytest.mark.parametrize("how", TAMPERED)
def test_tampering_is_found(journal: Journal, how: str) -> None:
    lines = filled(journal)
    write(journal, TAMPERED[how](lines))
    with pytest.raises(StateError, match="journal") as caught:
        journal.verify()
    assert "changed the journal" in caught.value.hint
    with pytest.raises(StateError):
        list(journal.entries())


def test_every_changed_byte_but_those_of_the_last_line_is_found(journal: Journal) -> None:
    lines = filled(journal, 3)
    whole = journal.path.read_bytes()
    for at in range(len(lines[0]) + 1):
        journal.path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(StateError):
            journal.verify()


def test_a_cut_end_and_a_changed_last_line_are_found_by_the_head(journal: Journal) -> None:
    lines = filled(journal)
    head = Head.parse(str(journal.verify()))
    for changed in (
        lines[:3],
        [],
        [*lines[:4], lines[4].replace(b"srv/4", b"srv/9")],
        [*lines[:4], lines[4][:20]],
    ):
        write(journal, changed)
        with pytest.raises(StateError, match=r"cut off|not the expected"):
            journal.verify(head)
    write(journal, lines)
    journal.append("x", {})
    assert journal.verify(head).seq == 6
    journal.path.unlink()
    with pytest.raises(StateError, match="cut off"):
        journal.verify(head)


@pytest.mark.parametrize(
    "text", ["", "1", "1:", "x:" + GENESIS, "-1:" + GENESIS, "1:" + "G" * 64, "0:" + "1" * 64]
)
def test_what_is_no_head(text: str) -> None:
    with pytest.raises(StateError, match="not a head"):
        Head.parse(text)


# --- crashes -------------------------------------------------------------------------------------


def test_half_a_line_is_kept_visible_and_chained(journal: Journal) -> None:
    """At every place where a crash can cut the last line."""
    lines = filled(journal, 3)
    whole = journal.path.read_bytes()
    start = len(whole) - len(lines[2]) - 1
    for cut in range(start + 1, len(whole)):
        journal.path.write_bytes(whole[:cut])
        complete = cut == len(whole) - 1  # all but the newline: nothing is lost
        assert journal.verify() == Head(
            3 if complete else 2, line_hash(lines[2 if complete else 1]), torn=not complete
        )
        entry = journal.append("x", {})
        assert entry.seq == (4 if complete else 3)
        assert ("torn" in entry.fields) is not complete
        assert not journal.verify().torn
        if not complete:
            text = journal.path.read_bytes()
            assert whole[start:cut] in text
            journal.path.write_bytes(text[:start] + b"#" + text[start + 1 :])
            with pytest.raises(StateError, match="what stands before entry 3 was changed"):
                journal.verify()


def test_an_entry_before_half_a_line_is_still_in_the_chain(journal: Journal) -> None:
    lines = filled(journal, 2)
    with journal.path.open("ab") as file:
        file.write(b'{"seq":3,"ti')
    journal.append("x", {})
    text = journal.path.read_bytes()
    journal.path.write_bytes(text.replace(lines[1], lines[1].replace(b"srv/1", b"srv/9")))
    with pytest.raises(StateError, match="chain is broken"):
        journal.verify()


@pytest.mark.parametrize("left", [b"half\n", b"half\nhalf", b"\0" * 4000, b"{}\n{}", b"\n"])
def test_several_crashes_in_a_row(journal: Journal, left: bytes) -> None:
    for before in (0, 2):
        journal.path.unlink(missing_ok=True)
        filled(journal, before)
        journal.path.parent.mkdir(parents=True, exist_ok=True)
        with journal.path.open("ab") as file:
            file.write(left)
        assert journal.verify().torn
        assert journal.append("x", {}).seq == before + 1
        assert journal.append("x", {}).seq == before + 2
        assert journal.verify().seq == before + 2


def test_the_last_line_is_found_whatever_its_length(journal: Journal) -> None:
    for _ in range(6):
        journal.append("x", {f"f{n}": "x" * 4000 for n in range(15)})
    with journal.path.open("ab") as file:
        file.write(b'{"seq":7' + b"x" * (LONGEST_LINE - 100))
    assert journal.append("x", {}).seq == 7
    assert journal.verify().seq == 7


def test_nothing_is_appended_to_what_is_no_journal(journal: Journal) -> None:
    filled(journal, 1)
    with journal.path.open("ab") as file:
        file.write(b"x" * (5 * LONGEST_LINE))
    before = journal.path.stat().st_size
    with pytest.raises(StateError, match="no entry"):
        journal.append("x", {})
    assert journal.path.stat().st_size == before


def test_a_killed_writer_breaks_nothing(journal: Journal) -> None:
    chance = random.Random(3)

    def many() -> None:
        while True:
            journal.append("run.start", {"reference": "x" * 2000})

    for _ in range(15):
        child = FORK.Process(target=many)
        child.start()
        time.sleep(chance.uniform(0.01, 0.05))
        child.kill()
        child.join(10)
        assert child.exitcode == -signal.SIGKILL
        seq = journal.verify().seq
        assert journal.append("x", {}).seq == seq + 1
    assert journal.verify().seq > 15


# --- a crowd -------------------------------------------------------------------------------------


def test_processes_and_threads_append_side_by_side(journal: Journal) -> None:
    def many() -> None:
        for _ in range(25):
            journal.append("x", {"pid": str(os.getpid())})

    def both() -> None:
        thread = threading.Thread(target=many)
        thread.start()
        many()
        thread.join()

    children = [FORK.Process(target=both) for _ in range(4)]
    for child in children:
        child.start()
    while any(child.is_alive() for child in children):
        assert not journal.verify().torn  # a reader never meets half a line
    assert [child.exitcode for child in children] == [0] * 4
    assert journal.verify().seq == 200


# --- what cannot be written or read --------------------------------------------------------------


def test_a_full_disk_is_said_and_leaves_the_journal_as_it_was(journal: Journal) -> None:
    filled(journal, 3)
    before = journal.path.read_bytes()

    def full() -> str:
        # Room for half of an entry.
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 50, len(before) + 50))
        try:
            journal.append("run.start", {"run": "x"})
        except StateError as error:
            return f"{error.message}; {error.hint}"
        return "written"

    said = in_child(full)
    assert "cannot write the journal" in said
    assert "free disk space" in said
    assert journal.path.read_bytes() == before


def test_a_directory_of_somebody_else_is_said(journal: Journal) -> None:
    filled(journal, 1)

    def as_nobody() -> list[str]:
        os.setgroups([])
        os.setresgid(65534, 65534, 65534)
        os.setresuid(65534, 65534, 65534)
        said = []
        for work in (lambda: journal.append("x", {}), journal.verify):
            try:
                work()
            except StateError as error:
                said.append(error.message)
        return said

    if os.geteuid() == 0:
        assert len(in_child(as_nobody)) == 2


@pytest.mark.parametrize("kind", ["pipe", "link", "directory"])
def test_what_is_no_file_is_refused_at_once(journal: Journal, tmp_path: Path, kind: str) -> None:
    journal.path.parent.mkdir(parents=True)
    if kind == "pipe":
        os.mkfifo(journal.path)
    elif kind == "link":
        (tmp_path / "other").touch()
        journal.path.symlink_to(tmp_path / "other")
    else:
        journal.path.mkdir()
    for work in (lambda: journal.append("x", {}), journal.verify):
        with pytest.raises(StateError, match="cannot"):
            work()


# --- large ones ----------------------------------------------------------------------------------


def test_appending_to_a_large_journal_reads_its_end_only(journal: Journal) -> None:
    journal = Journal(journal.path.parent, segment=1 << 30)
    filled(journal, 1)
    last = journal.path.read_bytes()
    with journal.path.open("r+b") as file:
        file.truncate(100 << 20)  # a hole: nothing that would have to be read
        file.seek(0, os.SEEK_END)
        file.write(b"\n" + last)

    def read() -> int:
        return int(Path("/proc/self/io").read_text().partition("rchar: ")[2].split()[0])

    before = read()
    assert journal.append("x", {}).seq == 2
    assert read() - before < 1 << 20


def test_verify_does_not_hold_the_journal_in_memory(journal: Journal) -> None:
    previous, line = GENESIS, b""
    journal.path.parent.mkdir(parents=True)
    with journal.path.open("wb") as file:
        for seq in range(1, 1001):
            line = Entry(seq, "t", "u", "e", {"a": "x" * 30_000}, previous).line()
            previous = line_hash(line)
            file.write(line + b"\n")

    def small() -> int:
        used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        assert journal.verify().seq == 1000
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - used

    assert in_child(small) < 8 << 10  # KiB, of 30 MB


def test_a_copy_is_what_was_checked(journal: Journal) -> None:
    filled(journal)
    copied: list[bytes] = []
    journal.verify(copy=copied.append)
    assert b"".join(copied) == journal.path.read_bytes()
