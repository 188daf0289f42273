"""The embedded driver as a plain user: no root, no daemon, no group."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests import images
from tests.conftest import REPOSITORY

pytestmark = [pytest.mark.guest, pytest.mark.timeout(300)]

USER = 65534  # nobody


@dataclass(frozen=True, slots=True)
class PlainUser:
    """Runs vmrun as nobody, with a home of its own."""

    home: Path
    program: tuple[str, ...]
    environment: dict[str, str]

    def vmrun(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        drop = ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups"]
        return subprocess.run(
            [*(drop if os.geteuid() == 0 else ()), *self.program, *arguments],
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
            env=self.environment,
            cwd=self.home,
        )


@pytest.fixture(scope="module")
def user() -> Iterator[PlainUser]:
    # Short: Unix sockets lie deep below it.
    home = Path(tempfile.mkdtemp(prefix="u-"))
    environment = {"HOME": str(home), "PATH": "/usr/bin:/bin:/usr/sbin"}
    try:
        program: tuple[str, ...] = (sys.executable, "-m", "vmrun")
        environment["PYTHONPATH"] = str(REPOSITORY)
        if not _readable(REPOSITORY) or not _readable(Path(sys.executable).resolve()):
            # A checkout in somebody's home: nobody gets a copy.
            packages = sysconfig.get_paths()["purelib"]
            shutil.copytree(packages, home / "packages", symlinks=True)
            shutil.copytree(REPOSITORY / "vmrun", home / "packages" / "vmrun")
            program = ("/usr/bin/python3", "-m", "vmrun")
            environment["PYTHONPATH"] = str(home / "packages")
        images.busybox_image().write_layout(home / "image")
        if os.geteuid() == 0:
            for path in (home, *home.rglob("*")):
                os.chown(path, USER, USER, follow_symlinks=False)
        user = PlainUser(home, program, {**environment, "VMRUN_KEY_PASSWORD": "secret"})
        _allow_own_image(user)
        yield user
    finally:
        shutil.rmtree(home, ignore_errors=True)


def _allow_own_image(user: PlainUser) -> None:
    """A plain user's own key and policy, in that user's own folders."""
    layout, name, key = f"{user.home}/image", "registry.example.com/busybox", f"{user.home}/key"
    for words in (
        ("key", "generate", "--out", key),
        ("image", "sign", "--key", f"{key}.key", "--identity", f"{name}:1", f"oci:{layout}"),
        ("policy", "allow", layout, "--transport", "oci", "--key", f"{key}.pub",
         "--identity-repository", name),
    ):  # fmt: skip
        done = user.vmrun(*words)
        assert done.returncode == 0, done.stderr


def _readable(path: Path) -> bool:
    return all(part.stat().st_mode & 0o005 == 0o005 for part in (path, *path.parents))


def test_a_plain_user_runs_a_container(user: PlainUser) -> None:
    report = user.home / "report.json"
    done = user.vmrun(
        "run", "--report", str(report), f"oci:{user.home}/image", "--", "sh", "-c", "id -u; exit 4"
    )
    assert (done.returncode, done.stdout) == (4, "65532\n"), done.stderr
    text = report.read_text()
    assert '"ok": false' not in text
    assert "QEMU's own memory is not limited" in done.stderr
    guests = user.home / ".local/state/vmrun/guests"
    assert [path.name for path in guests.iterdir() if path.name != ".lock"] == []


def test_a_plain_user_gets_a_plan(user: PlainUser) -> None:
    done = user.vmrun("plan", f"oci:{user.home}/image", "--", "id")
    assert done.returncode == 0, done.stderr
    assert "NOT enforced" in done.stdout
    assert "yours" in done.stdout


def test_a_state_directory_of_somebody_else_is_named(user: PlainUser) -> None:
    other = PlainUser(
        user.home, user.program, {**user.environment, "VMRUN_STATE_DIR": "/root-owned"}
    )
    done = other.vmrun("run", f"oci:{user.home}/image", "--", "id")
    assert done.returncode == 125
    assert "cannot write /root-owned/guests" in done.stderr
    assert "VMRUN_STATE_DIR" in done.stderr
    assert "Traceback" not in done.stderr
