"""``vmrun run`` as its users meet it: every option, in real guests."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import images
from tests.conftest import REPOSITORY, Result, leftovers

pytestmark = [pytest.mark.guest, pytest.mark.timeout(300)]

Vmrun = Callable[..., Result]


def test_the_first_run_of_a_newcomer(vmrun: Vmrun, busybox: str) -> None:
    done = vmrun("run", busybox, "--", "sh", "-c", "id -u; echo problem >&2; exit 7")
    assert done.status == 7
    assert done.out == "65532\n"
    assert "problem\n" in done.err
    if not done.report["isolated"]:
        assert "NOT a security boundary" in done.err
    names = [phase["name"] for phase in done.report["phases"]]
    assert names == [
        "load",
        "reclaim",
        "resolve",
        "admit",
        "verify base",
        "find",
        "verify",
        "fetch",
        "scan",
        "plan",
        "provision",
        "boot",
        "identify",
        "connect",
        "deliver",
        "start",
        "workload",
        "collect",
        "teardown",
    ]
    kinds = {item["kind"] for item in done.report["receipt"]["removed"] if item["gone"]}
    assert {"domain", "process", "directory"} <= kinds
    assert leftovers() == []


def test_options_reach_the_workload(vmrun: Vmrun, busybox: str, tmp_path: Path) -> None:
    env_file = tmp_path / "env"
    env_file.write_text("# comment\nFROM_FILE=yes\nOVERRIDDEN=file\n")
    script = (
        "echo $FROM_FILE $OVERRIDDEN $PASSED; pwd; hostname; id -u; id -g;"
        "touch /data/x && echo writable; touch /x 2>/dev/null || echo read-only;"
        "cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/pids.max; nproc"
    )
    done = vmrun(
        "run",
        "--env-file",
        str(env_file),
        "--env",
        "OVERRIDDEN=flag",
        "-e",
        "PASSED",
        "--workdir",
        "/etc",
        "--user",
        "1000:1000",
        "--tmpfs",
        "/data:size=1m",
        "--memory",
        "48m",
        "--pids-limit",
        "50",
        "--name",
        "options",
        "--cpus",
        "0.5",
        busybox,
        "--",
        "sh",
        "-c",
        script,
        env={"PASSED": "host"},
    )
    assert done.status == 0, done.err
    lines = done.out.splitlines()
    assert lines[:7] == [
        "yes flag host",
        "/etc",
        "options",
        "1000",
        "1000",
        "writable",
        "read-only",
    ]
    assert done.report["usage"]["memory_peak"] <= 48 << 20
    assert done.assertion("container", "memory.max")["actual"] == str(48 << 20)
    assert done.assertion("container", "pids.max")["actual"] == "50"


def test_the_docker_engine_runs_the_same(vmrun: Vmrun, busybox: str) -> None:
    done = vmrun("run", "--engine", "docker", "-i", busybox, "--", "sh", "-c", "cat; exit 9",
                 stdin=b"through docker\n")  # fmt: skip
    assert (done.status, done.out) == (9, "through docker\n"), done.err
    assert leftovers() == []


def test_json_prints_the_report_alone(vmrun: Vmrun, busybox: str) -> None:
    done = vmrun("run", "--json", "-q", busybox, "--", "echo", "output")
    assert done.status == 0
    report = json.loads(done.out)
    assert report["exit_status"] == 0
    assert report["image_digest"].startswith("sha256:")
    assert all(set(phase) == {"name", "start", "duration"} for phase in report["phases"])
    assert done.err == "output\n"


def test_large_output_and_input_pass_unharmed(vmrun: Vmrun, busybox: str) -> None:
    data = os.urandom(3 << 20)
    finished = subprocess.run(
        [
            *[sys.executable, "-m", "vmrun", "run", "-q", "-i", busybox],
            *["--", "sh", "-c", "cat | tee /dev/stderr"],
        ],
        input=data,
        capture_output=True,
        timeout=200,
        cwd=REPOSITORY,
        check=False,
    )
    assert finished.returncode == 0
    assert finished.stdout == data
    assert finished.stderr == data


def test_a_terminal_has_a_size_that_follows(busybox: str) -> None:
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 33, 101, 0, 0))
    process = subprocess.Popen(
        [
            *[sys.executable, "-m", "vmrun", "run", "-q", "-it", busybox, "--", "sh", "-c"],
            "tty; stty size; read line; stty size; echo got $line",
        ],
        stdin=follower,
        stdout=follower,
        stderr=follower,
        cwd=REPOSITORY,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    seen = b""
    deadline = time.monotonic() + 120
    while b"33 101" not in seen:
        assert time.monotonic() < deadline, seen
        seen += os.read(leader, 4096)
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 44, 132, 0, 0))
    time.sleep(1)
    os.write(leader, b"typed\r")
    while b"got typed" not in seen:
        assert time.monotonic() < deadline, seen
        seen += os.read(leader, 4096)
    os.close(follower)
    assert process.wait(30) == 0
    assert b"/dev/pts/0" in seen
    assert b"44 132" in seen


def test_a_deadline_ends_the_workload(vmrun: Vmrun, busybox: str) -> None:
    done = vmrun("run", "--timeout", "2s", busybox, "--", "sleep", "100")
    assert done.status == 124
    assert "longer than 2 s" in done.err
    assert leftovers() == []


def test_two_runs_with_one_name(vmrun: Vmrun, busybox: str, vmrun_program: list[str]) -> None:
    first = subprocess.Popen(
        [*vmrun_program, "run", "-q", "--name", "twin", busybox, "--", "sleep", "300"],
        cwd=REPOSITORY,
    )
    try:
        deadline = time.monotonic() + 30
        while not leftovers():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        second = vmrun("run", "--name", "twin", busybox, "--", "true")
        assert second.status == 125
        assert "the name 'twin' is in use" in second.err
        assert first.poll() is None, "the first run must not be harmed"
    finally:
        first.terminate()
        assert first.wait(60) == 130
    assert leftovers() == []


def test_keep_keeps_a_failed_guest_for_a_look(vmrun: Vmrun, busybox: str) -> None:
    done = vmrun("run", "--keep", "--name", "kept", busybox, "--", "sh", "-c", "exit 3")
    assert done.status == 3
    assert "vmrun rm kept" in done.err
    command = next(line for line in done.err.splitlines() if "ssh -i" in line)
    directory = Path(done.report["receipt"]["kept"].split()[2]).parent
    assert directory.is_dir()
    # Another command leaves it alone.
    assert vmrun("run", busybox, "--", "no-such-command").status == 127
    assert any(item.startswith("qemu ") for item in leftovers())
    words = command.split("ssh -i ", 1)[1].split(" ")
    dial = f"ProxyCommand={sys.executable} -m vmrun dial {directory / 'ssh.1'}"
    looked = subprocess.run(
        ["ssh", "-i", words[0], "-o", f"UserKnownHostsFile={directory / 'known_hosts'}",
         "-o", "HostKeyAlias=vmrun-guest", "-o", dial, "root@guest", "uname -r"],
        capture_output=True, text=True, timeout=60, check=False, cwd=REPOSITORY,
    )  # fmt: skip
    assert looked.returncode == 0, looked.stderr
    assert "cloud" in looked.stdout
    assert vmrun("rm", "kept").status == 0
    assert leftovers() == []


@pytest.mark.parametrize("transport", ["oci-archive", "docker-archive"])
def test_archives_run(vmrun: Vmrun, tmp_path: Path, transport: str) -> None:
    image = images.busybox_image()
    path = tmp_path / "image.tar"
    if transport == "oci-archive":
        image.write_oci_archive(path)
    else:
        image.write_docker_archive(path)
    done = vmrun("run", f"{transport}:{path}", "--", "echo", "from", transport)
    assert (done.status, done.out) == (0, f"from {transport}\n"), done.err


def test_an_image_of_the_docker_daemon_runs(vmrun: Vmrun, tmp_path: Path, dockerd: str) -> None:
    archive = images.busybox_image().write_docker_archive(tmp_path / "image.tar")
    subprocess.run(["docker", "-H", dockerd, "load", "-i", str(archive)], check=True, timeout=60)
    done = vmrun(
        "run", "docker-daemon:demo:latest", "--", "echo", "from dockerd",
        env={"DOCKER_HOST": dockerd},
    )  # fmt: skip
    assert (done.status, done.out) == (0, "from dockerd\n"), done.err
