"""Bad input through the command line: the documented status, a hint, nothing created."""

from __future__ import annotations

import os
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests import images
from tests.conftest import Result, leftovers

pytestmark = pytest.mark.guest  # most of it needs a base, and none may start a guest

Vmrun = Callable[..., Result]


def assert_failed(done: Result, status: int, *words: str) -> None:
    assert done.status == status, done.err
    assert done.out == ""
    for word in words:
        assert word in done.err
    assert "hint: " in done.err
    assert "Traceback" not in done.err
    assert leftovers() == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--memory", "lots"], ["--memory", "'lots'"]),
        (["--memory", "1m"], ["--memory", "too little"]),
        (["--memory", "100t"], ["this host has"]),
        (["--cpus", "0"], ["--cpus", "'0'"]),
        (["--cpus", "900"], ["--cpus", "not possible"]),
        (["--pids-limit", "-4"], ["--pids-limit"]),
        (["--env", "=x"], ["--env", "'=x'"]),
        (["--env-file", "/nonexistent"], ["--env-file /nonexistent"]),
        (["--tmpfs", "relative"], ["--tmpfs", "'relative'"]),
        (["--tmpfs", "/x:bogus"], ["--tmpfs", "'bogus'"]),
        (["--workdir", "relative"], ["--workdir"]),
        (["--user", "nobody-here"], ["no user 'nobody-here'"]),
        (["--cap-add", "FLY"], ["--cap-add", "'FLY'"]),
        (["--timeout", "never"], ["--timeout", "'never'"]),
        (["--name", "a/b"], ["'a/b'"]),
        (["--connect", "bogus:///nowhere"], ["bogus:///nowhere"]),
        (["--base", "other"], ["not a base", "'other'"]),
    ],
)
def test_option_values(vmrun: Vmrun, busybox: str, options: list[str], words: list[str]) -> None:
    done = vmrun("run", *options, busybox, "--", "true")
    assert_failed(done, 123 if "this host has" in words else 125, *words)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--user", "0"], ["never runs root"]),
        (["--cap-add", "SYS_ADMIN"], ["does not allow CAP_SYS_ADMIN"]),
        (["--profile", "healthcare", "--allow-emulation", "--no-read-only"], ["read-only root"]),
    ],
)
def test_policy_refuses(vmrun: Vmrun, busybox: str, options: list[str], words: list[str]) -> None:
    assert_failed(vmrun("run", *options, busybox, "--", "true"), 123, *words)


@pytest.mark.parametrize(
    ("reference", "words"),
    [
        ("oci:/nonexistent", ["/nonexistent"]),
        ("oci-archive:/nonexistent.tar", ["/nonexistent.tar"]),
        ("docker-archive:/etc/passwd", ["/etc/passwd"]),
        ("alpine", ["alpine"]),
    ],
)
def test_images_that_are_not_there(vmrun: Vmrun, reference: str, words: list[str]) -> None:
    assert_failed(vmrun("run", reference, "--", "true"), 125, *words)


def test_a_report_that_cannot_be_written_is_said_first(vmrun: Vmrun, busybox: str) -> None:
    done = vmrun("run", busybox, "--report", "/nonexistent/report.json", "--", "true")
    assert_failed(done, 125, "--report /nonexistent/report.json")


def test_no_daemon_to_ask(vmrun: Vmrun) -> None:
    done = vmrun("run", "docker-daemon:x:y", "--", "true", env={"DOCKER_HOST": "unix:///none"})
    assert_failed(done, 125)


def test_commands_that_cannot_run(vmrun: Vmrun, busybox: str) -> None:
    assert_failed(vmrun("run", busybox, "--", "no-such"), 127, "'no-such'")
    assert_failed(vmrun("run", busybox, "--", "/etc/passwd"), 126, "'/etc/passwd'")


def test_a_truncated_archive(vmrun: Vmrun, tmp_path: Path) -> None:
    path = images.busybox_image().write_oci_archive(tmp_path / "image.tar")
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)
    assert_failed(vmrun("run", f"oci-archive:{path}", "--", "true"), 125)


def test_a_layer_that_does_not_match_its_digest(vmrun: Vmrun, tmp_path: Path) -> None:
    layout = images.busybox_image().write_layout(tmp_path / "image")
    layer = max((layout / "blobs/sha256").iterdir(), key=lambda path: path.stat().st_size)
    data = bytearray(layer.read_bytes())
    data[len(data) // 2] ^= 1
    layer.write_bytes(bytes(data))
    assert_failed(vmrun("run", f"oci:{layout}", "--", "true"), 125, layer.name[:12])


@pytest.mark.parametrize(
    "layer",
    [
        [images.file("../escape", b"x")],
        [images.symlink("out", "/etc"), images.hardlink("link", "../../etc/shadow")],
        [images.special("disk", tarfile.BLKTYPE, devmajor=8)],
        [images.file("bin/.wh..", b"")],
        images.sparse_file("bomb", 10 << 30),
    ],
    ids=["traversal", "hard-link", "device", "whiteout", "sparse-bomb"],
)
def test_hostile_layers(vmrun: Vmrun, tmp_path: Path, layer: object) -> None:
    image = images.image(layer, settings={"Cmd": ["/bin/true"]})  # type: ignore[arg-type]
    layout = image.write_layout(tmp_path / "image")
    assert_failed(vmrun("run", f"oci:{layout}", "--", "true"), 125)


def test_an_image_for_another_architecture(vmrun: Vmrun, tmp_path: Path) -> None:
    layout = images.busybox_image(architecture="s390x").write_layout(tmp_path / "image")
    assert_failed(vmrun("run", f"oci:{layout}", "--", "true"), 125, "s390x")


@pytest.fixture
def small_disk() -> Iterator[Path]:
    """A state directory on a file system of 1 MiB."""
    assert os.geteuid() == 0, "mounting needs root"
    directory = Path(tempfile.mkdtemp(prefix="v-"))
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", directory], check=True)
    yield directory
    subprocess.run(["umount", directory], check=True)
    directory.rmdir()


def test_a_full_disk(vmrun: Vmrun, busybox: str, small_disk: Path) -> None:
    done = vmrun("run", busybox, "--", "true", env={"VMRUN_STATE_DIR": str(small_disk)})
    assert_failed(done, 125, "space")
    assert [path.name for path in (small_disk / "guests").iterdir()] == [".lock"]


def test_a_plan_needs_no_state_directory(vmrun: Vmrun, busybox: str) -> None:
    done = vmrun("plan", busybox, "--", "true", env={"VMRUN_STATE_DIR": "/proc/nowhere"})
    assert done.status == 0, done.err
