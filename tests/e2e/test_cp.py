"""``vmrun cp`` with containers in real guests: one in a guest of its own, run by docker, and two
that share a tenant's guest, run by crun. They exchange links while files are copied."""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY, leftovers

pytestmark = [pytest.mark.guest, pytest.mark.timeout(300)]

# `x` leads, by turns, to a directory and to where the guest has what the container does not.
SWAPPER = """
mkdir -p /data/t/u /data/x
echo hello >/data/t/a
chmod 640 /data/t/a
ln -s a /data/t/l
mkfifo /data/t/f
while true; do
  for to in ../../../usr/lib/vmrun /proc/1/root/usr/lib/vmrun /proc/self/root/usr/lib/vmrun; do
    rm -rf /data/x; ln -s $to /data/x; usleep 20000
    rm /data/x; mkdir /data/x; usleep 20000
  done
done
"""
KEPT = {b"conf", b"kept", b"sent"}
RUNS = {"crun": "cp-crun", "docker": "cp-docker"}

Call = Callable[..., subprocess.CompletedProcess[bytes]]


@pytest.fixture(scope="module")
def call(vmrun_program: list[str]) -> Call:
    """A vmrun command, run to its end."""

    def run(*words: str, stdin: bytes = b"", ok: bool = True) -> subprocess.CompletedProcess[bytes]:
        done = subprocess.run(
            [*vmrun_program, *words],
            input=stdin,
            capture_output=True,
            timeout=240,
            check=False,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        )
        assert not ok or done.returncode == 0, (words, done.returncode, done.stderr)
        return done

    return run


@pytest.fixture(scope="module", params=RUNS)
def web(request: pytest.FixtureRequest, call: Call, busybox: str) -> Iterator[str]:
    """The name of a run."""
    engine: str = request.param
    name = RUNS[engine]
    words = ["run", "-q", "-d", "--tmpfs", "/data:size=72m", "-m", "128m", "--name", name]
    command = [busybox, "--", "sh", "-c", SWAPPER]
    try:
        if engine == "crun":
            call("tenant", "create", "--cpus", "2", "--memory", "512m", "--engine", "crun", "cp")
            call(*words, "--tenant", "cp", *command)
            other = ("--tenant", "cp", "-m", "32m", "--tmpfs", "/data:size=200m")
            call("run", "-q", "-d", *other, "--name", "other", busybox, "--", "sleep", "600")
        else:
            call(*words, "--engine", engine, *command)
        yield name
    finally:
        call("rm", "-f", name, ok=False)
        call("tenant", "rm", "--force", "cp", ok=False)
    assert leftovers() == []


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_out_of_it(call: Call, web: str, here: Path) -> None:
    call("cp", f"{web}:/etc/passwd", "here")
    assert (here / "here").read_bytes() == call("exec", web, "cat", "/etc/passwd").stdout
    said = call("cp", f"{web}:/data/t", ".").stderr
    assert b"t/f is left out: it is no file, directory or link" in said
    assert sorted(os.listdir("t")) == ["a", "l", "u"]
    assert (here / "t/a").read_text() == "hello\n"
    assert (here / "t/a").stat().st_mode & 0o777 == 0o640
    assert os.readlink("t/l") == "a"
    with tarfile.open(fileobj=io.BytesIO(call("cp", f"{web}:/data/t", "-").stdout)) as tar:
        assert tar.getmember("t/a").uid == 65532
    assert call("cp", f"{web}:/none", ".", ok=False).returncode == 1
    assert b"the kernel's own" in call("cp", f"{web}:/proc/1/status", ".", ok=False).stderr


def test_into_it(call: Call, web: str, here: Path) -> None:
    (here / "conf").mkdir()
    (here / "conf" / "f").write_text("new")
    call("cp", "conf", f"{web}:/data/")
    call("cp", "-a", "conf/f", f"{web}:/data/kept")
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        info = tarfile.TarInfo("sent/f")
        info.size, info.uid = 3, 7
        tar.addfile(info, io.BytesIO(b"tar"))
    call("cp", "-", f"{web}:/data", stdin=stream.getvalue())
    owners = call(
        "exec", web, "stat", "-c", "%n %u:%g", "/data/conf/f", "/data/kept", "/data/sent/f"
    ).stdout.decode()
    mine = f"{os.getuid()}:{os.getgid()}"
    assert owners.splitlines() == [
        "/data/conf/f 65532:65532",
        f"/data/kept {mine}",
        "/data/sent/f 65532:65532",
    ]


def test_what_cannot_be_written_to(call: Call, web: str, here: Path) -> None:
    (here / "f").write_text("new")
    for options in ((), ("-a",)):
        done = call("cp", *options, "f", f"{web}:/etc/f", ok=False)
        assert done.returncode == 1
        assert b"Read-only file system" in done.stderr
        assert b"hint: the container's root is read-only; copy to a tmpfs" in done.stderr
    assert b"the kernel's own" in call("cp", "-a", "f", f"{web}:/proc/1/", ok=False).stderr


def test_a_race_leads_nowhere_else(call: Call, web: str, here: Path) -> None:
    (here / "canary").write_text("canary")
    statuses = []
    for attempt in range(4):
        out = call("cp", "-L", f"{web}:/data/x/guest", "-", ok=False)
        assert out.returncode == 1, "a file of the guest came out"
        options = ("-a",) if attempt % 2 else ()
        statuses.append(call("cp", *options, "canary", f"{web}:/data/x/", ok=False).returncode)
    assert set(statuses) <= {0, 1}


def test_a_large_file(call: Call, web: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if web != RUNS["crun"]:
        pytest.skip("the engine makes no difference")
    size = 64
    (here / "big").write_bytes(os.urandom(size << 20))
    started = time.monotonic()
    call("cp", "big", f"{web}:/data/big")
    there = time.monotonic()
    call("cp", f"{web}:/data/big", "back")
    back = time.monotonic()
    assert (here / "back").read_bytes() == (here / "big").read_bytes()
    with capsys.disabled():
        print(
            f"\ncp of {size} MiB: in {size / (there - started):.1f} MiB/s, "
            f"out {size / (back - there):.1f} MiB/s"
        )
    # More than the tmpfs has room for leaves nothing half written.
    (here / "more").write_bytes(bytes(12 << 20))
    done = call("cp", "more", f"{web}:/data/more", ok=False)
    assert done.returncode == 1
    assert b"No space left on device" in done.stderr
    assert set(call("exec", web, "ls", "-A", "/data").stdout.split()) <= {b"big", b"t", b"x"} | KEPT


def test_more_than_the_container_has_memory_for(call: Call, web: str, here: Path) -> None:
    if web != RUNS["crun"]:
        pytest.skip("the engine makes no difference")
    (here / "big").write_bytes(bytes(40 << 20))
    done = call("cp", "big", "other:/data/", ok=False)
    assert done.returncode == 1
    assert b"the container has no memory left" in done.stderr
    # The copy was ended, not the container, and what it took is free again.
    assert call("exec", "other", "ls", "-A", "/data").stdout == b""
    call("cp", "other:/etc/passwd", ".")


def test_containers_are_not_taken_for_each_other(call: Call, web: str) -> None:
    if web != RUNS["crun"]:
        pytest.skip("it has a guest of its own")
    assert call("cp", "other:/data/t", ".", ok=False).returncode == 1
    call("cp", f"{web}:/data/t/a", ".")


def test_one_that_is_paused_or_has_ended(call: Call, web: str) -> None:
    call("pause", web)
    done = call("cp", f"{web}:/etc/passwd", ".", ok=False)
    call("unpause", web)
    assert done.returncode == 1
    assert f"run '{web}' is paused".encode() in done.stderr
    call("cp", f"{web}:/etc/passwd", ".")
    call("stop", "-t", "0", web)
    done = call("cp", f"{web}:/etc/passwd", ".", ok=False)
    assert done.returncode == 1
    assert b"is not running" in done.stderr
