"""The gate and the verb that opens it, on the host: no container, a stand-in for the cgroup."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from .base_binaries import binaries, guest

FILES = {
    "cgroup.subtree_control": "",
    "memory.max": "max",
    "memory.swap.max": "1",
    "memory.oom.group": "1",
    "pids.max": "1",
    "cpu.max": "max 100000",
    "memory.peak": "4096",
    "memory.events": "low 0\noom 2\noom_kill 1",
    "pids.peak": "3",
    "pids.events": "max 7",
    "cpu.stat": "usage_usec 1234\nuser_usec 1",
}


@pytest.fixture
def cgroup() -> Path:
    root = binaries() / "cgroup"
    place = root / "work"
    place.mkdir(parents=True, exist_ok=True)
    (root / "cgroup.subtree_control").write_text("")
    for name, text in FILES.items():
        (place / name).write_text(text)
    return place


def start_gate(*command: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [binaries() / "gate", "--", *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def wait_until_ready(process: subprocess.Popen[bytes]) -> None:
    bit = 1 << (signal.SIGUSR1 - 1)
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        status = Path(f"/proc/{process.pid}/status").read_text()
        caught = next(line for line in status.splitlines() if line.startswith("SigCgt"))
        if int(caught.split()[1], 16) & bit:
            return
        time.sleep(0.01)
    pytest.fail("the gate was never ready")


@pytest.mark.parametrize(
    ("command", "status"),
    [
        (["true"], 0),
        (["sh", "-c", "exit 9"], 9),
        (["no-such-command"], 127),
        (["/no/such/command"], 127),
        (["/etc/passwd"], 126),
        (["/"], 126),
    ],
)
def test_becomes_the_command_on_the_signal(command: list[str], status: int) -> None:
    process = start_gate(*command)
    wait_until_ready(process)
    assert process.poll() is None
    process.send_signal(signal.SIGUSR1)
    _, errors = process.communicate(timeout=10)
    assert process.returncode == status
    assert errors.count(b"\n") == (1 if status in (126, 127) else 0)


def test_the_command_starts_with_the_signal_at_its_default() -> None:
    process = start_gate("grep", "-E", "SigBlk|SigCgt|SigIgn", "/proc/self/status")
    wait_until_ready(process)
    process.send_signal(signal.SIGUSR1)
    output, _ = process.communicate(timeout=10)
    for line in output.decode().splitlines():
        if line.startswith(("SigBlk", "SigCgt")):
            assert not int(line.split()[1], 16) & 1 << (signal.SIGUSR1 - 1), line


def run_verb(
    process: subprocess.Popen[bytes], word: bytes, *limits: str
) -> tuple[int, list[list[str]]]:
    verb = subprocess.Popen(
        [binaries() / "guest", "gate", str(process.pid), "/work", *limits],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert verb.stdin is not None
    assert verb.stdout is not None
    first = b""
    while not first.endswith(b"\n\n"):
        line = verb.stdout.readline()
        assert line, verb.communicate()
        first += line
    rest, _ = verb.communicate(word, timeout=10)
    return verb.returncode, [block.splitlines() for block in (first.decode(), rest.decode())]


def test_reports_the_confinement_and_the_usage(cgroup: Path) -> None:
    process = start_gate("sh", "-c", "exit 0")
    status, (confinement, usage) = run_verb(
        process, b"open\n", "memory=1048576", "pids=5", "cpu=50000:100000"
    )
    assert status == 0
    assert process.wait(timeout=10) == 0
    assert confinement[0] == f"pid {process.pid}"
    uid = os.getuid()
    assert f"status.Uid {uid} {uid} {uid} {uid}" in confinement
    assert "ns user shared" in confinement
    assert any(line.startswith("mount /proc proc ") for line in confinement)
    assert confinement[-5:] == [
        "cgroup.memory.max 1048576",
        "cgroup.memory.swap.max 0",
        "cgroup.pids.max 5",
        "cgroup.cpu.max 50000 100000",
        "",
    ]
    assert usage == [
        "exited",
        "cgroup.memory.peak 4096",
        "cgroup.memory.oom_kill 1",
        "cgroup.pids.peak 3",
        "cgroup.pids.refused 7",
        "cgroup.cpu.usage_usec 1234",
        "",
    ]
    assert (cgroup / "memory.oom.group").read_text().startswith("0")


@pytest.mark.parametrize("word", [b"no\n", b"", b"open", b"open \n", b"openopen\n", b"x" * 64])
def test_anything_else_kills(cgroup: Path, word: bytes, tmp_path: Path) -> None:
    process = start_gate("touch", str(tmp_path / "ran"))
    status, _ = run_verb(process, word)
    assert status == 7
    assert process.wait(timeout=10) == -signal.SIGKILL
    assert not (tmp_path / "ran").exists()


def test_gives_up_when_the_host_does(cgroup: Path, tmp_path: Path) -> None:
    assert guest("gate", tmp_path / "no-pid-file", "/work").returncode == 7


def test_another_program_is_not_the_gate(cgroup: Path) -> None:
    process = subprocess.Popen(["sleep", "0.3"])
    verb = subprocess.Popen(
        [binaries() / "guest", "gate", str(process.pid), "/work"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    process.wait()
    assert verb.wait(timeout=10) == 7
    assert verb.stdout is not None
    assert verb.stdout.read() == b""


@pytest.mark.parametrize("path", ["work", "/", "/../x", "/a//b", "/a/", ""])
def test_refuses_odd_cgroups(path: str) -> None:
    assert guest("gate", "1", path).returncode == 2


@pytest.mark.parametrize("limit", ["memory=x", "pids=-1", "cpu=1", "disk=1", "memory"])
def test_refuses_odd_limits(cgroup: Path, limit: str) -> None:
    assert guest("gate", str(os.getpid()), "/work", limit).returncode == 2
