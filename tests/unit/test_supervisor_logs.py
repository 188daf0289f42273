"""Logs of detached runs: nothing is lost, nothing is changed, and the disk is bounded."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmrun.supervisor.logs import (
    LogLimits,
    LogLine,
    LogWriter,
    follow_log,
    log_files,
    parse_line,
    read_log,
)


def content(folder: Path, stream: str) -> bytes:
    return b"".join(line.data for line in read_log(folder) if line.stream == stream)


def test_lines_are_in_the_format_of_kubernetes(tmp_path: Path) -> None:
    log = LogWriter(tmp_path)
    log.stream("stdout").write(b"hello\nwithout end")
    first, second = (tmp_path / "log").read_bytes().splitlines()
    stamp, stream, tag, text = first.split(b" ", 3)
    assert (stream, tag, text) == (b"stdout", b"F", b"hello")
    assert stamp.endswith(b"Z")
    assert len(stamp) == len("2026-01-01T00:00:00.000000Z")
    assert second.endswith(b" stdout P without end")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\n",
        b"\n\n",
        b"progress 1\rprogress 2\r\n",
        b"\x0b\x0c\x1c\x1d\x85\xe2\x80\xa8 are no ends of lines\n",
        b"\x00\xff\xfe",
        b"a" * 100_000 + b"\nb",
        b"x" * (16 << 10),
        b"x" * (16 << 10) + b"\n",
    ],
)
def test_bytes_come_out_as_they_went_in(tmp_path: Path, data: bytes) -> None:
    LogWriter(tmp_path).stream("stdout").write(data)
    assert content(tmp_path, "stdout") == data
    followed = follow_log(tmp_path, lambda: True, lambda: None)
    assert b"".join(line.data for line in followed) == data


@settings(deadline=None, max_examples=40)
@given(parts=st.lists(st.tuples(st.sampled_from(["stdout", "stderr"]), st.binary(max_size=60))))
def test_streams_are_kept_apart(
    tmp_path_factory: pytest.TempPathFactory, parts: list[tuple[str, bytes]]
) -> None:
    folder = tmp_path_factory.mktemp("log")
    log = LogWriter(folder, limits=LogLimits(size=200, files=100))
    for stream, data in parts:
        log.stream(stream).write(data)
    for stream in ("stdout", "stderr"):
        assert content(folder, stream) == b"".join(d for s, d in parts if s == stream)


def test_the_disk_that_a_log_takes_is_bounded(tmp_path: Path) -> None:
    log = LogWriter(tmp_path, limits=LogLimits(size=1000, files=3))
    out = log.stream("stdout")
    for number in range(200):
        out.write(b"line %d\n" % number)
    files = log_files(tmp_path)
    assert [path.name for path in files] == ["log.2", "log.1", "log"]
    assert all(path.stat().st_size <= 1000 for path in files)
    numbers = [int(line.data.split()[1]) for line in read_log(tmp_path)]
    assert numbers == list(range(numbers[0], 200)), "the newest are kept, in order"


def test_one_file_is_possible(tmp_path: Path) -> None:
    out = LogWriter(tmp_path, limits=LogLimits(size=200, files=1)).stream("stdout")
    for number in range(20):
        out.write(b"line %d\n" % number)
    assert [path.name for path in log_files(tmp_path)] == ["log"]
    assert list(read_log(tmp_path))[-1].data == b"line 19\n"


def test_only_their_owner_can_read_them(tmp_path: Path) -> None:
    LogWriter(tmp_path).stream("stdout").write(b"x\n")
    assert (tmp_path / "log").stat().st_mode & 0o777 == 0o600


def test_a_writer_goes_on_where_another_one_ended(tmp_path: Path) -> None:
    limits = LogLimits(size=200, files=100)
    for number in range(20):
        LogWriter(tmp_path, limits=limits).stream("stdout").write(b"line %d\n" % number)
    assert len(log_files(tmp_path)) > 1
    assert content(tmp_path, "stdout") == b"".join(b"line %d\n" % n for n in range(20))


# --- following ------------------------------------------------------------------------------


def test_following_sees_all_lines_across_rotations(tmp_path: Path) -> None:
    log = LogWriter(tmp_path, limits=LogLimits(size=500, files=50))
    over = threading.Event()
    count = 600

    def write() -> None:
        out = log.stream("stdout")
        for number in range(count):
            out.write(b"%d\n" % number)
            if number % 100 == 0:
                time.sleep(0.01)
        over.set()

    writer = threading.Thread(target=write)
    writer.start()
    lines = list(follow_log(tmp_path, over.is_set, lambda: time.sleep(0.005)))
    writer.join()
    numbers = [int(line.data) for line in lines]
    assert numbers == list(range(numbers[0], count))
    assert len(log_files(tmp_path)) > 3


def test_a_reader_that_rests_loses_nothing_to_several_rotations(tmp_path: Path) -> None:
    out = LogWriter(tmp_path, limits=LogLimits(size=200, files=20)).stream("stdout")
    out.write(b"0\n")
    lines = follow_log(tmp_path, lambda: True, lambda: None)
    assert next(lines).data == b"0\n"
    for number in range(1, 40):
        out.write(b"%d\n" % number)
    assert len(log_files(tmp_path)) > 4
    assert [int(line.data) for line in lines] == list(range(1, 40))


def test_a_reader_whose_file_was_given_up_goes_on_with_the_oldest(tmp_path: Path) -> None:
    out = LogWriter(tmp_path, limits=LogLimits(size=200, files=2)).stream("stdout")
    out.write(b"0\n")
    lines = follow_log(tmp_path, lambda: True, lambda: None)
    next(lines)
    for number in range(1, 60):
        out.write(b"%d\n" % number)
    numbers = [int(line.data) for line in lines]
    assert numbers[-1] == 59
    assert numbers == sorted(set(numbers))


def test_following_waits_for_the_first_line(tmp_path: Path) -> None:
    written = []

    def pause() -> None:
        if not written:
            written.append(LogWriter(tmp_path).stream("stdout").write(b"late\n"))

    lines = list(follow_log(tmp_path, lambda: bool(written), pause))
    assert [line.data for line in lines] == [b"late\n"]


def test_half_a_line_is_not_shown_before_its_end(tmp_path: Path) -> None:
    whole = b"2026-01-01T00:00:00.000000Z stdout F hello\n"
    (tmp_path / "log").write_bytes(whole[:30])
    seen: list[LogLine] = []

    def pause() -> None:
        assert seen == []
        with (tmp_path / "log").open("ab") as file:
            file.write(whole[30:])

    for line in follow_log(tmp_path, lambda: bool((tmp_path / "log").stat().st_size > 40), pause):
        seen.append(line)
    assert [line.data for line in seen] == [b"hello\n"]


def test_what_a_crash_cut_off_is_left_out(tmp_path: Path) -> None:
    good = b"2026-01-01T00:00:00.000000Z stdout F hello\n"
    (tmp_path / "log").write_bytes(good + b"nonsense\n" + good + b"2026-01-01T0")
    assert [line.data for line in read_log(tmp_path)] == [b"hello\n"] * 2


@given(st.binary(max_size=200))
def test_any_line_is_read_or_left_out(raw: bytes) -> None:
    line = parse_line(raw)
    assert line is None or isinstance(line, LogLine)


# --- a full disk ----------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    if os.geteuid() != 0:
        pytest.skip("only root may mount")
    place = tmp_path / "disk"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", place], check=True)
    yield place
    subprocess.run(["umount", "-l", place], check=True)


def test_on_a_full_disk_the_writer_waits_and_nothing_is_lost(small_disk: Path) -> None:
    (small_disk / "filler").write_bytes(b"x" * (56 << 10))
    problems: list[str] = []
    log = LogWriter(small_disk, on_problem=problems.append)
    count = 400

    def write() -> None:
        out = log.stream("stdout")
        for number in range(count):
            out.write(b"line %d\n" % number)

    writer = threading.Thread(target=write, daemon=True)
    writer.start()
    deadline = time.monotonic() + 10
    while not problems:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert "No space left on device" in problems[0]
    writer.join(0.3)
    assert writer.is_alive(), "the workload must wait"
    (small_disk / "filler").unlink()
    writer.join(10)
    assert not writer.is_alive()
    assert problems[-1] == "", "that it can write again is told"
    numbers = [int(line.data.split()[1]) for line in read_log(small_disk)]
    assert numbers == list(range(count))


def test_a_writer_that_waits_can_be_ended(small_disk: Path) -> None:
    (small_disk / "filler").write_bytes(b"x" * (64 << 10))
    log = LogWriter(small_disk)
    writer = threading.Thread(target=log.stream("stdout").write, args=(b"x\n",), daemon=True)
    writer.start()
    time.sleep(0.1)
    assert writer.is_alive()
    log.close()
    writer.join(5)
    assert not writer.is_alive()
