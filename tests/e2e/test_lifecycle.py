"""Runs that outlive their command, in real guests: looked at, talked to, stopped, lost, removed."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.conftest import REPOSITORY, leftovers
from vmrun.settings import load_settings

pytestmark = [pytest.mark.guest, pytest.mark.timeout(300)]

SERVICE = """
trap 'echo got USR1' USR1
trap '' TERM
echo to stdout
echo to stderr >&2
n=0
while true; do n=$((n+1)); echo tick $n; sleep 1; done
"""

Call = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def call(vmrun_program: list[str]) -> Call:
    """A vmrun command, run to its end."""

    def run(*words: str, stdin: str = "", ok: bool = True) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [*vmrun_program, *words],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
            cwd=REPOSITORY,
        )
        assert not ok or done.returncode == 0, (words, done.returncode, done.stdout, done.stderr)
        return done

    return run


@pytest.fixture(scope="module")
def service(call: Call, busybox: str) -> str:
    """The id of a service called ``web``, which is shared by the tests up to its stop."""
    started = call(
        "run", "-q", "-d", "--name", "web", "--label", "tier=front", "--stop-timeout", "1",
        "--health-cmd", "test -e /tmp/well", "--health-interval", "500ms",
        "--health-retries", "2", busybox, "--", "sh", "-c", SERVICE,
    )  # fmt: skip
    return started.stdout.strip()


@pytest.fixture(scope="module", autouse=True)
def nothing_is_left(call: Call) -> Iterator[None]:
    yield
    for run in shown(call):
        call("rm", "-f", run["run_id"], ok=False)
    call("gc")
    assert leftovers() == []


def shown(call: Call, *words: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(call("ps", "-a", "--json", *words).stdout)
    return found


def until(what: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_ps_and_inspect_tell_of_it(call: Call, service: str) -> None:
    (run,) = shown(call, "--filter", "label=tier=front")
    assert (run["run_id"], run["name"], run["state"]) == (service, "web", "running")
    assert run["health"] in ("starting", "unhealthy")
    text = call("ps").stdout
    assert "web" in text
    assert "Up " in text
    (known,) = json.loads(call("inspect", "web").stdout)
    assert known["verdict"]["trust"]["insecure"] is True
    assert known["live"]["pids"] >= 1
    assert all(a["ok"] for a in known["assertions"])


def test_a_name_is_taken_once(call: Call, service: str, busybox: str) -> None:
    again = call("run", "-d", "--name", "web", busybox, "--", "true", ok=False)
    assert again.returncode == 125
    assert "in use" in again.stderr
    assert [run["run_id"] for run in shown(call)] == [service]


def test_exec_has_the_commands_own_status_and_streams(call: Call, service: str) -> None:
    done = call("exec", service[:4], "sh", "-c", "echo out; echo err >&2; exit 7", ok=False)
    assert (done.returncode, done.stdout, done.stderr) == (7, "out\n", "err\n")
    assert call("exec", "web", "no-such-command", ok=False).returncode == 127
    assert call("exec", "web", "/etc", ok=False).returncode == 126
    assert call("exec", "no-such-run", "true", ok=False).returncode == 125
    done = call("exec", "-u", "1000:1001", "-w", "/tmp", "-e", "A=b c", "web", "--", "sh", "-c",
                'echo "$(id -u) $(id -g) $PWD $A"')  # fmt: skip
    assert done.stdout == "1000 1001 /tmp b c\n"


def test_exec_takes_stdin_only_when_asked(call: Call, service: str) -> None:
    data = "x" * 300_000 + "\n"
    assert call("exec", "-i", "web", "cat", stdin=data).stdout == data
    assert call("exec", "web", "cat", stdin=data).stdout == ""


def test_exec_is_no_way_to_root(call: Call, service: str) -> None:
    done = call("exec", "-u", "0", "web", "id", ok=False)
    assert done.returncode == 123
    assert "root is refused" in done.stderr
    status = call("exec", "web", "cat", "/proc/self/status").stdout
    assert "CapBnd:\t0000000000000000" in status
    assert "NoNewPrivs:\t1" in status
    assert "Seccomp:\t2" in status


def test_exec_ends_with_its_reader_and_with_control_c(
    call: Call, vmrun_program: list[str], service: str
) -> None:
    def pids() -> int:
        (stats,) = json.loads(call("stats", "--json", "web").stdout)
        found: int = stats["pids"]
        return found

    endless = subprocess.Popen(
        [*vmrun_program, "exec", "web", "yes"], stdout=subprocess.PIPE, cwd=REPOSITORY
    )
    assert endless.stdout is not None
    assert endless.stdout.readline() == b"y\n"
    endless.stdout.close()
    assert endless.wait(20) == 141
    sleeper = subprocess.Popen(
        [*vmrun_program, "exec", "web", "sh", "-c", "echo begun; exec sleep 300"],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=REPOSITORY,
    )  # fmt: skip
    assert sleeper.stdout is not None
    assert sleeper.stdout.readline() == b"begun\n"
    sleeper.send_signal(signal.SIGINT)
    assert sleeper.wait(20) == 130
    sleeper.stdout.close()
    until(lambda: pids() <= 4)
    assert shown(call)[0]["state"] == "running"


def test_exec_with_a_terminal(vmrun_program: list[str], service: str) -> None:
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 33, 77, 0, 0))
    script = "stty size; read x; stty size; echo got $x; exit 5"
    process = subprocess.Popen(
        [*vmrun_program, "exec", "-it", "web", "sh", "-c", script],
        stdin=slave, stdout=slave, stderr=slave, cwd=REPOSITORY,
    )  # fmt: skip
    os.close(slave)
    seen = b""

    def read_until(text: bytes) -> None:
        nonlocal seen
        deadline = time.monotonic() + 30
        while text not in seen:
            assert time.monotonic() < deadline, seen
            if select.select([master], [], [], 0.2)[0]:
                seen += os.read(master, 4096)

    read_until(b"33 77")
    fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", 44, 88, 0, 0))
    process.send_signal(signal.SIGWINCH)
    time.sleep(1)
    os.write(master, b"word\r")
    read_until(b"44 88")
    read_until(b"got word")
    assert process.wait(20) == 5
    os.close(master)


def test_logs_are_there_while_it_lives(call: Call, vmrun_program: list[str], service: str) -> None:
    done = call("logs", "web")
    assert done.stdout.startswith("to stdout\ntick 1\n")
    assert done.stderr == "to stderr\n"
    done = call("logs", "--tail", "1", "-t", "web")
    assert done.stdout.split(" ", 1)[1].startswith("tick ")
    follow = subprocess.Popen(
        [*vmrun_program, "logs", "-f", "--tail", "0", "web"],
        stdout=subprocess.PIPE, cwd=REPOSITORY,
    )  # fmt: skip
    assert follow.stdout is not None
    lines = [follow.stdout.readline() for _ in range(2)]
    follow.send_signal(signal.SIGINT)
    assert follow.wait(10) == 130
    follow.stdout.close()
    numbers = [int(line.split()[1]) for line in lines]
    assert numbers[1] == numbers[0] + 1


def test_signals_reach_it(call: Call, service: str) -> None:
    call("kill", "-s", "SIGUSR1", "web")
    until(lambda: "got USR1" in call("logs", "web").stdout)
    assert shown(call, "--filter", "status=running")


def test_health_follows_the_check(call: Call, service: str) -> None:
    until(lambda: bool(shown(call, "--filter", "health=unhealthy")))
    call("exec", "web", "touch", "/tmp/well")
    until(lambda: bool(shown(call, "--filter", "health=healthy")))
    assert "(healthy)" in call("ps").stdout


def test_pause_stands_still(call: Call, service: str) -> None:
    call("pause", "web")
    assert "(Paused)" in call("ps").stdout
    before = call("logs", "web").stdout
    assert call("exec", "web", "true", ok=False).returncode == 125
    assert call("pause", "web", ok=False).returncode == 1
    time.sleep(2)
    assert call("logs", "web").stdout == before
    call("unpause", "web")
    until(lambda: call("logs", "web").stdout != before)


def test_stats_are_read_live(call: Call, service: str) -> None:
    (stats,) = json.loads(call("stats", "--json", "web").stdout)
    assert 0 < stats["memory"] < stats["memory_limit"] == 128 << 20
    assert stats["pids"] >= 1
    assert stats["cpu_percent"] is not None
    assert stats["qemu_memory"] > 50 << 20
    assert "web" in call("stats", "--no-stream").stdout


def test_stop_ends_it_though_it_ignores_term(
    call: Call, vmrun_program: list[str], service: str
) -> None:
    assert call("rm", "web", ok=False).returncode == 1, "it lives"
    waiting = subprocess.Popen(
        [*vmrun_program, "wait", "web"], stdout=subprocess.PIPE, text=True, cwd=REPOSITORY
    )
    following = subprocess.Popen(
        [*vmrun_program, "logs", "-f", "web"],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=REPOSITORY,
    )  # fmt: skip
    time.sleep(1)
    assert call("stop", "web").stdout == "web\n"
    assert leftovers() == [], "when stop has ended its guest is gone"
    assert waiting.communicate(timeout=20)[0] == "137\n"
    assert following.communicate(timeout=20)[0] == call("logs", "web").stdout
    (run,) = shown(call)
    assert (run["state"], run["exit_status"]) == ("exited", 137)
    assert all(item["gone"] for item in run["receipt"]["removed"])
    assert "Exited (137)" in call("ps", "-a").stdout
    assert call("ps", "-q").stdout == ""
    assert call("wait", "web").stdout == "137\n"
    assert call("stop", "web").returncode == 0
    assert call("kill", "web", ok=False).returncode == 1
    done = call("rm", "web", "no-such-run", ok=False)
    assert (done.returncode, done.stdout) == (1, "web\n")
    assert "no such run: 'no-such-run'" in done.stderr
    assert shown(call) == []
    assert not list(load_settings().directories.runs.glob("*/*"))


def test_a_failing_service_is_started_again_until_it_is_removed(call: Call, busybox: str) -> None:
    call("run", "-q", "-d", "--name", "flaky", "--restart", "on-failure", busybox, "--",
         "sh", "-c", "echo begun; exit 3")  # fmt: skip
    until(lambda: call("logs", "flaky").stdout.startswith("begun\n" * 3))
    (run,) = shown(call)
    assert run["state"] in ("restarting", "running")
    assert run["restarts"] >= 2
    events = call("events", "--filter", f"run={run['run_id']}").stdout
    assert events.count(" run.restart ") >= 2
    call("rm", "--force", "flaky")
    assert shown(call) == []
    assert leftovers() == []


def test_what_a_killed_supervisor_leaves_is_dead_and_is_removed(
    call: Call, vmrun_program: list[str], busybox: str
) -> None:
    call("run", "-q", "-d", "--name", "lost", busybox, "--", "sh", "-c", "echo here; sleep 300")
    (run,) = shown(call)
    following = subprocess.Popen(
        [*vmrun_program, "logs", "-f", "lost"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=REPOSITORY,
    )  # fmt: skip
    time.sleep(1)
    os.kill(run["owner"], signal.SIGKILL)
    out, err = following.communicate(timeout=20)
    assert (out, following.returncode) == ("here\n", 0)
    assert "its supervisor was killed" in err
    assert call("ps", "-q").stdout == ""
    (run,) = shown(call)
    assert (run["state"], run["exit_status"]) == ("dead", 137)
    assert call("exec", "lost", "true", ok=False).returncode == 125
    assert call("wait", "lost").stdout == "137\n"

    found = call("gc", "--dry-run", "--json", ok=False)
    assert found.returncode == 1
    kinds = {left["kind"] for left in json.loads(found.stdout)}
    assert {"guest", "process", "record"} <= kinds
    assert leftovers() != [], "a dry run removes nothing"
    done = json.loads(call("gc", "--json").stdout)
    assert done["clean"]
    removed = {item["kind"] for item in done["guests"][0]["removed"]}
    assert {"process", "directory"} <= removed
    assert leftovers() == []
    assert call("gc", "--dry-run").stdout == ""
    assert call("logs", "lost").stdout == "here\n", "its log outlives it"
    call("rm", "lost")
    assert shown(call) == []


def test_attended_runs_are_seen_and_stopped(
    call: Call, vmrun_program: list[str], busybox: str
) -> None:
    attended = subprocess.Popen(
        [*vmrun_program, "run", "-q", "--name", "here", busybox, "--", "sleep", "300"],
        cwd=REPOSITORY,
    )
    until(lambda: bool(shown(call, "--filter", "status=running")), 60)
    assert call("exec", "here", "echo", "hello").stdout == "hello\n"
    assert call("logs", "here", ok=False).returncode == 1
    call("stop", "-t", "0", "here")
    assert attended.wait(20) == 137
    assert shown(call) == []
    assert leftovers() == []
