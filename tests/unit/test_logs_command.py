"""``vmrun logs``: bytes as they were, each to its own stream, from when to when, and to the end."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.runs import World, short_directory
from tests.unit.commands import Vmrun, vmrun_command
from vmrun.cli.logs import last_lines
from vmrun.model.run_record import RunState
from vmrun.supervisor.logs import LogLimits, LogLine, LogWriter

RUN = "eeeeeeeeeeee"


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    with short_directory() as root:
        monkeypatch.setenv("VMRUN_STATE_DIR", str(root))
        made = World(root)
        yield made
        made.close()


@pytest.fixture
def vmrun(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Vmrun:
    return vmrun_command(monkeypatch, capfd)


def writes(folder: Path, *lines: tuple[str, str, str, str]) -> None:
    with (folder / "log").open("a") as file:
        for line in lines:
            file.write(" ".join(line) + "\n")


def at(minute: int) -> str:
    return f"2026-05-01T12:{minute:02}:00.000000Z"


@pytest.fixture
def job(world: World) -> Path:
    world.ended(RUN, "job")
    folder = world.runs.folder(RUN)
    writes(
        folder,
        (at(0), "stdout", "F", "one"),
        (at(1), "stderr", "F", "bad"),
        (at(2), "stdout", "P", "tw"),
        (at(3), "stderr", "F", "worse"),
        (at(4), "stdout", "F", "o"),
        (at(5), "stdout", "P", "no end"),
    )
    return folder


def test_each_stream_comes_out_where_it_belongs(job: Path, vmrun: Vmrun) -> None:
    done = vmrun("logs", "job")
    assert (done.status, done.out, done.err) == (0, "one\ntwo\nno end", "bad\nworse\n")


def test_only_the_last_lines(job: Path, vmrun: Vmrun) -> None:
    assert vmrun("logs", "--tail", "1", "job").out == "no end"
    done = vmrun("logs", "-n", "3", "job")
    assert (done.out, done.err) == ("two\nno end", "worse\n")
    assert vmrun("logs", "--tail", "0", "job").out == ""
    assert vmrun("logs", "--tail", "99", "job").out == "one\ntwo\nno end"
    assert vmrun("logs", "--tail", "-1", "job").status == 2
    assert vmrun("logs", "--tail", "some", "job").status == 2


def test_from_when_to_when(job: Path, vmrun: Vmrun) -> None:
    done = vmrun("logs", "--since", "2026-05-01T12:01:00Z", "--until", at(3), "job")
    assert (done.out, done.err) == ("tw", "bad\n")
    assert vmrun("logs", "--since", "10m", "job").out == ""
    assert vmrun("logs", "--since", "2026-05-01T14:04:00+02:00", "job").out == "o\nno end"
    for wrong in ("yesterday", "5x", "2026-13-01"):
        assert vmrun("logs", "--since", wrong, "job").status == 2


def test_times_stand_where_lines_begin(job: Path, vmrun: Vmrun) -> None:
    assert vmrun("logs", "-t", "job").out == f"{at(0)} one\n{at(2)} two\n{at(5)} no end"


def test_lines_for_programs(job: Path, vmrun: Vmrun) -> None:
    first = json.loads(vmrun("logs", "--json", "job").out.splitlines()[0])
    assert first == {"time": at(0), "stream": "stdout", "data": "one\n"}


def test_following_one_that_has_ended_ends(job: Path, vmrun: Vmrun) -> None:
    done = vmrun("logs", "-f", "--tail", "3", "job")
    assert (done.status, done.out) == (0, "two\nno end")


def test_following_goes_on_until_the_end(world: World, vmrun: Vmrun) -> None:
    web = world.live("web")
    log = LogWriter(world.runs.folder(web.run_id), limits=LogLimits(size=400, files=9))
    out = log.stream("stdout")
    out.write(b"before\n")

    def live() -> None:
        time.sleep(0.3)
        for number in range(30):
            out.write(b"%d\n" % number)
        world.end(web, exit_status=0)

    thread = threading.Thread(target=live)
    thread.start()
    done = vmrun("logs", "-f", "--tail", "0", "web")
    thread.join()
    assert done.status == 0
    assert done.out == "".join(f"{number}\n" for number in range(30))


def test_following_one_whose_supervisor_is_killed_ends(world: World, vmrun: Vmrun) -> None:
    web = world.live("web")
    LogWriter(world.runs.folder(web.run_id)).stream("stdout").write(b"here\n")
    timer = threading.Timer(0.3, lambda: world.lose(web))
    timer.start()
    done = vmrun("logs", "-f", "web")
    timer.join()
    assert done.out == "here\n"
    assert "its supervisor was killed" in done.err


def test_one_that_may_come_back_is_waited_for(world: World, vmrun: Vmrun) -> None:
    """Its guest has died; its owner makes another one."""
    web = world.live("web", state=RunState.DEAD)
    log = LogWriter(world.runs.folder(web.run_id))

    def again() -> None:
        time.sleep(1.5)
        log.stream("stdout").write(b"again\n")
        world.end(web)

    thread = threading.Thread(target=again)
    thread.start()
    assert vmrun("logs", "-f", "web").out == "again\n"
    thread.join()


def test_attended_runs_have_none(world: World, vmrun: Vmrun) -> None:
    world.live("here", detached=False)
    done = vmrun("logs", "here")
    assert done.status == 1
    assert "has no log" in done.err


def test_a_run_that_has_said_nothing(world: World, vmrun: Vmrun) -> None:
    world.ended(RUN, "quiet")
    assert vmrun("logs", "quiet").out == ""
    assert vmrun("logs", "-f", "quiet").out == ""
    assert vmrun("logs", "nobody").status == 1


@given(
    st.lists(st.tuples(st.sampled_from(["stdout", "stderr"]), st.booleans())),
    st.integers(0, 8),
)
def test_the_last_lines_are_whole(parts: list[tuple[str, bool]], count: int) -> None:
    lines = [
        LogLine(str(number), stream, b"x\n" if full else b"x")
        for number, (stream, full) in enumerate(parts)
    ]
    kept = list(last_lines(lines, count))
    ends = sum(line.data.endswith(b"\n") for line in kept)
    open_ends = len({line.stream for line in kept}) if kept else 0
    assert ends <= count <= max(count, ends + open_ends)
    assert {line.time for line in kept} <= {line.time for line in lines}
    for stream in ("stdout", "stderr"):
        of_stream = [line.time for line in lines if line.stream == stream]
        of_kept = [line.time for line in kept if line.stream == stream]
        assert of_stream[len(of_stream) - len(of_kept) :] == of_kept, "an end, without gaps"
