"""``stop``, ``kill``, ``pause``, ``wait``, ``rm``, ``exec``: what is asked of a guest's owner, and
what is made of its answer, or of none."""

from __future__ import annotations

import io
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.runs import World, short_directory
from tests.unit.commands import Vmrun, vmrun_command
from vmrun.model.errors import Refused, StateError
from vmrun.model.run_record import RunRecord, RunState
from vmrun.supervisor.protocol import Kind, Line, failure

ENDED, OTHER = "eeeeeeeeeeee", "eeeeffffffff"


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


class Owner:
    """Answers everything, and writes down what it was asked."""

    def __init__(self, world: World, record: RunRecord) -> None:
        self.asked: list[dict[str, Any]] = []
        self._world = world
        self._record = record
        names = ("signal", "pause", "unpause", "stop", "wait")
        world.answers(record, **dict.fromkeys(names, self._answer))

    def _answer(self, line: Line, request: dict[str, Any]) -> None:
        self.asked.append(request)
        if request["op"] == "stop" or request.get("signal") == 9:
            self._world.end(self._record, exit_status=137)
        line.send({"done": True, "status": 137})


# --- stop, kill, pause ------------------------------------------------------------------------


def test_what_is_asked(world: World, vmrun: Vmrun) -> None:
    web = world.live("web")
    owner = Owner(world, web)
    assert vmrun("kill", "-s", "HUP", "web").out == "web\n"
    assert vmrun("pause", web.run_id[:6]).out == f"{web.run_id[:6]}\n"
    assert vmrun("unpause", "web").status == 0
    assert vmrun("stop", "-t", "3", "web").out == "web\n"
    kept = [{k: v for k, v in asked.items() if k != "run"} for asked in owner.asked]
    assert kept == [
        {"op": "signal", "signal": 1},
        {"op": "pause"},
        {"op": "unpause"},
        {"op": "stop", "grace": 3},
    ]
    assert {asked["run"] for asked in owner.asked} == {web.run_id}


def test_stop_leaves_the_grace_to_the_run(world: World, vmrun: Vmrun) -> None:
    owner = Owner(world, world.live("web"))
    done = vmrun("stop", "--json", "web")
    assert owner.asked[0]["grace"] is None
    (fields,) = json.loads(done.out)
    assert (fields["name"], fields["exit_status"], fields["error"]) == ("web", 137, "")


def test_stop_waits_until_the_guest_is_gone(world: World, vmrun: Vmrun) -> None:
    web = world.live("web")

    def stop(line: Line, _request: dict[str, Any]) -> None:
        threading.Timer(0.5, lambda: world.end(web, exit_status=0)).start()
        line.send({"status": 0})

    world.answers(web, stop=stop)
    start = time.monotonic()
    assert vmrun("stop", "web").status == 0
    assert time.monotonic() - start >= 0.5
    assert not (world.directories.guests / web.guest).exists()


def test_what_has_ended_is_stopped_already(world: World, vmrun: Vmrun) -> None:
    world.ended(ENDED, "job")
    lost = world.live("lost")
    world.lose(lost)
    assert vmrun("stop", "job", "lost").out == "job\nlost\n"
    for command in ("kill", "pause", "unpause"):
        done = vmrun(command, "job")
        assert done.status == 1
        assert "run 'job' is not running" in done.err
        assert "is dead" in vmrun(command, "lost").err


def test_one_that_ends_before_it_answers_is_stopped(world: World, vmrun: Vmrun) -> None:
    web = world.live("web")

    def hang_up(line: Line, _request: dict[str, Any]) -> None:
        world.end(web, exit_status=0)
        line.close()

    world.answers(web, stop=hang_up)
    assert vmrun("stop", "web").out == "web\n"


def test_each_is_done_and_failures_are_collected(world: World, vmrun: Vmrun) -> None:
    owner = Owner(world, world.live("web"))
    done = vmrun("pause", "nobody", "web", "noone")
    assert (done.status, done.out) == (1, "web\n")
    assert "no such run: 'nobody'" in done.err
    assert "no such run: 'noone'" in done.err
    assert len(owner.asked) == 1
    done = vmrun("unpause", "--json", "nobody", "web")
    assert done.status == 1
    assert [bool(one["error"]) for one in json.loads(done.out)] == [True, False]


def test_an_error_of_the_owner_is_the_commands(world: World, vmrun: Vmrun) -> None:
    def refuse(_line: Line, _request: dict[str, Any]) -> None:
        raise StateError("it is paused already", hint="vmrun unpause")

    world.answers(world.live("web"), pause=refuse)
    done = vmrun("pause", "web")
    assert done.status == 1
    assert "it is paused already" in done.err
    assert "hint: vmrun unpause" in done.err


def test_wrong_usage(world: World, vmrun: Vmrun) -> None:
    world.live("web")
    assert vmrun("stop", "-t", "-1", "web").status == 2
    assert vmrun("stop", "-t", "99999", "web").status == 2
    assert vmrun("kill", "-s", "NOPE", "web").status == 2


def test_an_owner_that_does_not_answer_is_sent_a_signal(world: World, vmrun: Vmrun) -> None:
    """It is only making the guest, or making it anew, and has no socket then."""
    web = world.live("web")  # whose owner is this process
    before = signal.signal(signal.SIGTERM, lambda *_: world.end(web, exit_status=0))
    try:
        assert vmrun("stop", "web").out == "web\n"
    finally:
        signal.signal(signal.SIGTERM, before)


# --- wait -------------------------------------------------------------------------------------


def test_wait_prints_the_status(world: World, vmrun: Vmrun) -> None:
    world.ended(ENDED, "job", exit_status=3)
    web = world.live("web")

    def wait(line: Line, _request: dict[str, Any]) -> None:
        time.sleep(0.3)
        world.end(web, exit_status=7)
        line.send({"status": 7})

    world.answers(web, wait=wait)
    assert vmrun("wait", "job", "web").out == "3\n7\n"


def test_wait_of_one_that_is_killed_with_its_supervisor(world: World, vmrun: Vmrun) -> None:
    web = world.live("web")

    def vanish(line: Line, _request: dict[str, Any]) -> None:
        world.lose(web)
        line.close()

    world.answers(web, wait=vanish)
    assert vmrun("wait", "web").out == "137\n"


def test_wait_of_one_whose_record_goes_with_it(world: World, vmrun: Vmrun) -> None:
    web = world.live("web", remove=True)

    def wait(line: Line, _request: dict[str, Any]) -> None:
        line.send({"status": 5})
        world.end(web)
        world.runs.remove(web.run_id)

    world.answers(web, wait=wait)
    assert vmrun("wait", "web").out == "5\n"


def test_wait_for_one_that_is_just_being_started(world: World, vmrun: Vmrun) -> None:
    web = world.live("web", state=RunState.CREATED)
    timer = threading.Timer(0.5, lambda: world.end(web, exit_status=4))
    timer.start()
    assert vmrun("wait", "web").out == "4\n"


# --- rm ---------------------------------------------------------------------------------------


def test_rm_removes_what_has_ended(world: World, vmrun: Vmrun) -> None:
    world.ended(ENDED, "job")
    world.ended(OTHER, "other")
    (world.runs.folder(ENDED) / "log").write_text("x")
    assert vmrun("rm", "job").out == "job\n"
    assert not world.runs.folder(ENDED).exists()
    assert world.runs.folder(OTHER).exists()


def test_rm_leaves_what_lives(world: World, vmrun: Vmrun) -> None:
    web = world.live("web")
    done = vmrun("rm", "web")
    assert done.status == 1
    assert "run 'web' is running" in done.err
    assert "vmrun stop web" in done.err
    assert world.runs.read(web.run_id) == web


def test_rm_with_force_ends_it_first(world: World, vmrun: Vmrun) -> None:
    web = world.live("web")
    owner = Owner(world, web)
    assert vmrun("rm", "-f", "web").status == 0
    assert owner.asked[0]["signal"] == 9
    assert not world.runs.folder(web.run_id).exists()
    assert not (world.directories.guests / web.guest).exists()


def test_rm_with_force_does_not_forget_what_it_cannot_end(world: World, vmrun: Vmrun) -> None:
    web = world.live("web")
    done = vmrun("rm", "-f", "web")
    assert done.status == 1
    assert "nobody answers" in done.err
    assert world.runs.read(web.run_id) == web


def test_rm_of_a_dead_run_takes_its_guest_along(world: World, vmrun: Vmrun) -> None:
    lost = world.live("lost")
    world.lose(lost)
    assert vmrun("rm", "lost").status == 0
    assert not (world.directories.guests / lost.guest).exists()
    assert not world.runs.folder(lost.run_id).exists()


def test_rm_of_a_kept_guest(world: World, vmrun: Vmrun) -> None:
    for name in ("kept", "older"):
        kept = world.live(name, detached=False)
        world.owned[kept.guest].keep(3600)
        world.lose(kept)
        if name == "older":
            world.runs.remove(kept.run_id)
        assert vmrun("rm", name).status == 0
        assert not (world.directories.guests / kept.guest).exists()
        assert not world.runs.folder(kept.run_id).exists()


def test_rm_of_a_damaged_record(world: World, vmrun: Vmrun) -> None:
    world.ended(ENDED, "job")
    (world.runs.folder(ENDED) / "record.json").write_text("{")
    assert vmrun("rm", "job").status == 1, "what it was called is not known"
    assert vmrun("rm", ENDED).status == 0
    assert not world.runs.folder(ENDED).exists()


@pytest.mark.parametrize("selector", ["../guests", ".", "", "/etc", "nobody", "eeeeeeeeeeee"])
def test_rm_removes_nothing_else(world: World, vmrun: Vmrun, selector: str) -> None:
    world.ended(OTHER, "job")
    done = vmrun("rm", "-f", selector)
    assert done.status == 1
    assert "no such run" in done.err
    assert world.runs.folder(OTHER).exists()


# --- exec -------------------------------------------------------------------------------------


def processes(*frames: tuple[Kind, bytes], asked: list[dict[str, Any]]) -> Any:
    def execute(line: Line, request: dict[str, Any]) -> None:
        asked.append(request)
        line.send({"started": True})
        for kind, data in frames:
            line.send_frame(kind, data)

    return execute


def test_exec_passes_streams_and_status(world: World, vmrun: Vmrun) -> None:
    asked: list[dict[str, Any]] = []
    frames = [(Kind.STDOUT, b"out\n"), (Kind.STDERR, b"err\n"), (Kind.EXIT, b"42")]
    world.answers(world.live("web"), exec=processes(*frames, asked=asked))
    done = vmrun("exec", "-u", "7", "-w", "/srv", "-e", "A=b=c", "web", "ls", "-l", "--", "x")
    assert (done.status, done.out, done.err) == (42, "out\n", "err\n")
    (request,) = asked
    assert request["argv"] == ["ls", "-l", "--", "x"]
    assert (request["user"], request["workdir"], request["env"]) == ([7, 7], "/srv", ["A=b=c"])
    assert (request["interactive"], request["terminal"]) == (False, None)
    done = vmrun("exec", "--json", "web", "--", "ls")
    assert asked[1]["argv"] == ["ls"]
    assert json.loads(done.out)["exit_status"] == 42
    assert done.err == "out\nerr\n"


def test_exec_takes_the_hosts_variable(
    world: World, vmrun: Vmrun, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []
    world.answers(world.live("web"), exec=processes((Kind.EXIT, b"0"), asked=asked))
    monkeypatch.setenv("THERE", "x")
    monkeypatch.delenv("ABSENT", raising=False)
    assert vmrun("exec", "-e", "THERE", "-e", "ABSENT", "web", "env").status == 0
    assert asked[0]["env"] == ["THERE=x"]


def test_exec_passes_stdin(world: World, vmrun: Vmrun, monkeypatch: pytest.MonkeyPatch) -> None:
    def cat(line: Line, _request: dict[str, Any]) -> None:
        line.send({"started": True})
        while (frame := line.receive_frame())[0] is Kind.STDIN:
            line.send_frame(Kind.STDOUT, frame[1])
        line.send_frame(Kind.EXIT, b"0" if frame[0] is Kind.END else b"1")

    world.answers(world.live("web"), exec=cat)
    reading, writing = os.pipe()
    os.write(writing, b"hello\n")
    os.close(writing)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(os.fdopen(reading, "rb")))
    done = vmrun("exec", "-i", "web", "cat")
    assert (done.status, done.out) == (0, "hello\n")


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("-u", "root", "web", "id"), "not a uid"),
        (("-u", "99999999999", "web", "id"), "not a uid"),
        (("-w", "srv", "web", "id"), "not absolute"),
        (("-e", "=x", "web", "id"), "not KEY=VALUE"),
        (("-t", "web", "id"), "needs a terminal"),
        (("web",), ""),
        (("web", "--"), "no command"),
        (("nobody", "id"), "no such run"),
        (("job", "id"), "is not running"),
        (("web", "id"), "nobody answers"),
    ],
)
def test_what_vmrun_cannot_do_is_125(
    world: World, vmrun: Vmrun, words: tuple[str, ...], why: str
) -> None:
    world.live("web")
    world.ended(ENDED, "job")
    done = vmrun("exec", *words)
    assert done.status == 125
    assert why in done.err


def test_what_the_owner_refuses_has_its_own_status(world: World, vmrun: Vmrun) -> None:
    def refuse(_line: Line, _request: dict[str, Any]) -> None:
        raise Refused("root is refused")

    world.answers(world.live("web"), exec=refuse)
    assert vmrun("exec", "-u", "0", "web", "id").status == 123


def test_an_end_without_a_status_is_an_error(world: World, vmrun: Vmrun) -> None:
    asked: list[dict[str, Any]] = []
    why = json.dumps(failure(StateError("the guest has ended", hint="look"))).encode()
    for frames, said in (
        ([(Kind.STDOUT, b"x")], "ended before the process did"),
        ([(Kind.FAILURE, why)], "the guest has ended"),
        ([(Kind.FAILURE, b"nonsense")], "it was not said why"),
        ([(Kind.FAILURE, why), (Kind.EXIT, b"0")], "the guest has ended"),
        ([(Kind.EXIT, b"-1")], "not an exit status"),
        ([(Kind.EXIT, b"")], "not an exit status"),
    ):
        world.answers(world.live(f"web-{len(asked)}"), exec=processes(*frames, asked=asked))
        done = vmrun("exec", f"web-{len(asked)}", "true")
        assert done.status == 125
        assert said in done.err
