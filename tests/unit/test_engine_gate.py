"""The guest tool's text is untrusted: what fits is read, anything else is a GuestError."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.engine_fakes import READING, USAGE
from vmrun.engine.gate import MAX_LINE, MAX_LINES, Blocks, parse_reading, parse_usage
from vmrun.model.errors import GuestError
from vmrun.model.report import Usage

LINES = READING.decode().splitlines()[:-1]


def test_reading() -> None:
    reading = parse_reading(LINES)
    assert reading.pid == 123
    assert reading.root_read_only
    assert reading.status["CapEff"] == "0000000000000000"
    assert reading.mounts["/a b"] == ("tmpfs", frozenset({"rw", "nosuid"}))
    assert reading.namespaces["pid"]
    assert not reading.namespaces["user"]
    assert reading.open_files == ("256", "256")
    assert reading.cgroup["cpu.max"] == "50000 100000"


def test_what_is_mounted_last_is_on_top() -> None:
    reading = parse_reading([*LINES, "mount / overlay rw"])
    assert reading.mounts["/"] == ("overlay", frozenset({"rw"}))


@pytest.mark.parametrize("missing", [line for line in LINES if not line.startswith("mount")])
def test_a_line_left_out(missing: str) -> None:
    if missing.startswith("cgroup."):
        return  # which of a cgroup's files there are is the kernel's business; the plan compares
    with pytest.raises(GuestError):
        parse_reading([line for line in LINES if line != missing])


@pytest.mark.parametrize(
    "extra",
    [
        "pid 124",
        "status.Uid 0 0 0 0",
        "ns pid private",
        "ns time private",
        "ns pid perhaps",
        "rlimit nofile 1 1",
        "rlimit core 0 0",
        "mount relative tmpfs rw",
        "mount / tmpfs",
        "cgroup.memory.max 1",
        "cgroup.../etc/passwd 1",
        "surprise",
        "root rw",
    ],
)
def test_a_line_too_many(extra: str) -> None:
    with pytest.raises(GuestError):
        parse_reading([*LINES, extra])


@pytest.mark.parametrize("pid", ["", "-1", "0x10", "1 2", "9" * 30, "١"])
def test_a_pid_that_is_none(pid: str) -> None:
    with pytest.raises(GuestError):
        parse_reading([f"pid {pid}", *LINES[1:]])


def test_usage() -> None:
    assert parse_usage(USAGE.decode().splitlines()[:-1]) == Usage(1048576, 0, 2, 0, 2.5)
    assert parse_usage(["exited"]) == Usage()


@pytest.mark.parametrize(
    "lines",
    [[], ["ended"], ["exited", "cgroup.memory.peak -1"], ["exited", "cgroup.memory.max 1"],
     ["exited", "cgroup.pids.peak 1", "cgroup.pids.peak 1"]],
)  # fmt: skip
def test_usage_that_does_not_fit(lines: list[str]) -> None:
    with pytest.raises(GuestError):
        parse_usage(lines)


@given(st.data())
def test_blocks_do_not_depend_on_how_the_bytes_arrive(data: st.DataObject) -> None:
    text = READING + USAGE
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=20)))
    blocks, found = Blocks(), []
    for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
        found += blocks.feed(text[start:end])
    assert found == [LINES, USAGE.decode().splitlines()[:-1]]


@given(st.binary(max_size=4000))
def test_hostile_bytes_end_in_blocks_or_a_guest_error(data: bytes) -> None:
    try:
        for block in Blocks().feed(data):
            parse_reading(block)
    except GuestError:
        pass


@given(st.lists(st.text(max_size=60), max_size=30))
def test_hostile_lines_end_in_a_value_or_a_guest_error(lines: list[str]) -> None:
    for parse in (parse_reading, parse_usage):
        with contextlib.suppress(GuestError):
            parse(lines)


@pytest.mark.parametrize(
    "flood",
    [b"x" * (MAX_LINE + 1), b"x\n" * (MAX_LINES + 1), (b"x" * MAX_LINE + b"\n") * 20,
     b"pid \x1b[2J\n", b"\xff\n"],
)  # fmt: skip
def test_caps(flood: bytes) -> None:
    with pytest.raises(GuestError):
        Blocks().feed(flood)
