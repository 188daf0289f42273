"""``vmrun doctor`` on the host that runs the tests."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from vmrun.base.store import find_base
from vmrun.host.accelerator import obstacle
from vmrun.model.base import Flavour
from vmrun.model.errors import BaseError
from vmrun.run.directories import StateDirectories
from vmrun.run.state import claim
from vmrun.settings import load_settings


@pytest.fixture
def state() -> Iterator[Path]:
    """An empty state directory; pytest's own are too long for sockets."""
    with tempfile.TemporaryDirectory(prefix="vmrun-test.") as directory:
        yield Path(directory, "s")


def doctor(*options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "vmrun", "doctor", *options],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )


def examination(*options: str, **environment: str) -> tuple[int, dict[str, Any], dict[str, Any]]:
    """Exit status, the checks by id, and the verdict."""
    done = doctor("--json", *options, **environment)
    document = json.loads(done.stdout)
    return done.returncode, {each["id"]: each for each in document["checks"]}, document["verdict"]


def with_bases(state: Path) -> None:
    """Copy the current minimal base, so that a test may damage it."""
    try:
        base = find_base(load_settings().directories.bases, Flavour.MINIMAL)
    except BaseError as error:
        pytest.skip(error.message)
    bases = state / "bases"
    bases.mkdir(parents=True)
    state.parent.chmod(0o711)
    shutil.copytree(base.directory, bases / base.directory.name)
    (bases / "minimal").symlink_to(base.directory.name)


@pytest.mark.guest
def test_kvm_is_tried_for_real_and_the_verdict_remembered(state: Path) -> None:
    with_bases(state)
    environment = {"VMRUN_STATE_DIR": str(state)}
    status, checks, verdict = examination(**environment)
    assert status == 0, checks
    assert verdict["usable"]
    assert verdict["isolated"] is (verdict["accelerator"] == "kvm")
    assert not [path for path in (state / "guests").iterdir() if path.is_dir()]
    remembered = list((state / "cache" / "accelerator").glob("*.json"))
    if obstacle():
        assert remembered == []
        assert obstacle() in checks["accelerator"]["found"]
        return
    (file,) = remembered
    assert json.loads(file.read_text())["accelerator"] == verdict["accelerator"]
    assert examination("--no-trial", **environment)[1]["accelerator"] == checks["accelerator"]
    before = file.stat().st_mtime_ns
    assert examination(**environment)[2] == verdict
    assert file.stat().st_mtime_ns > before, "a trial is always a fresh one"


@pytest.mark.guest
def test_the_hosts_own_state_is_examined_quickly() -> None:
    doctor("--no-trial")  # QEMU's capabilities may have to be probed once
    started = time.monotonic()
    done = doctor("--no-trial")
    # A second on an idle host; tests share theirs.
    assert time.monotonic() - started < 10
    *checks, verdict = done.stdout.splitlines()
    assert verdict.startswith("vmrun can")
    assert "\x1b" not in done.stdout
    assert all(line.startswith(("ok ", "advice ", "fault ", " ")) for line in checks)
    assert done.returncode == (1 if "cannot" in verdict else 0)


def test_a_damaged_base_is_found_by_hashing(state: Path) -> None:
    with_bases(state)
    root = next((state / "bases").glob("*/root.img"))
    with root.open("r+b") as file:
        file.seek(4096)
        byte = file.read(1)
        file.seek(4096)
        file.write(bytes([byte[0] ^ 1]))
    status, checks, verdict = examination("--no-trial", VMRUN_STATE_DIR=str(state))
    assert status == 1
    assert checks["base-minimal"]["state"] == "fault"
    assert "damaged" in checks["base-minimal"]["found"]
    assert checks["base-minimal"]["remedy"].startswith("vmrun base build")
    assert "base-minimal" in verdict["text"]


def test_what_a_dead_run_left_is_reclaimed_and_said(state: Path) -> None:
    directories = StateDirectories(state / "guests", state / "cache", (state / "bases",))
    dead = claim(directories, name="dead", tenant="default", connect="embedded")
    dead.release()
    kept = claim(directories, name="kept", tenant="default", connect="embedded")
    kept.keep(60)
    kept.release()
    _, checks, _ = examination("--no-trial", VMRUN_STATE_DIR=str(state))
    assert not dead.path.exists()
    assert dead.intent.run_id in checks["leftovers"]["found"]
    assert checks["kept-guests"]["remedy"] == "vmrun rm kept"
    assert kept.path.exists()


def test_a_state_directory_that_is_too_long_a_path_is_a_fault(state: Path) -> None:
    status, checks, verdict = examination("--no-trial", VMRUN_STATE_DIR=str(state / ("x" * 80)))
    assert status == 1
    assert not verdict["usable"]
    assert checks["state"]["state"] == "fault"
    assert "VMRUN_STATE_DIR" in checks["state"]["remedy"]


def test_a_libvirt_that_does_not_open_is_a_fault(state: Path) -> None:
    uri = f"qemu+unix:///system?socket={state}/none"
    status, checks, _ = examination("--no-trial", VMRUN_STATE_DIR=str(state), VMRUN_CONNECT=uri)
    assert status == 1
    assert checks["libvirt"]["state"] == "fault"
    assert uri in checks["libvirt"]["found"]


def test_without_qemu_on_the_path_qemu_is_at_fault(state: Path, tmp_path: Path) -> None:
    status, checks, _ = examination("--no-trial", VMRUN_STATE_DIR=str(state), PATH=str(tmp_path))
    assert status == 1
    assert checks["qemu"]["state"] == "fault"
    assert "seccomp" not in checks
    assert checks["build-tools"]["state"] == "advice"


def test_a_qemu_without_seccomp_is_told_from_none(state: Path, tmp_path: Path) -> None:
    qemu = tmp_path / "qemu-system-x86_64"
    qemu.write_text(
        '#!/bin/sh\n[ "$1" = -sandbox ] && exit 1\necho "QEMU emulator version 7.2.1 (some)"\n'
    )
    qemu.chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    _, checks, _ = examination("--no-trial", VMRUN_STATE_DIR=str(state), PATH=path)
    assert checks["qemu"]["found"] == "7.2.1"
    assert checks["seccomp"]["state"] == "fault"


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
def test_a_plain_user_is_told_what_root_would_have(state: Path) -> None:
    nobody = 65534
    state.mkdir()
    state.parent.chmod(0o711)
    os.chown(state, nobody, nobody)
    done = subprocess.run(
        [sys.executable, "-m", "vmrun", "doctor", "--no-trial", "--json"],
        env={**os.environ, "VMRUN_STATE_DIR": str(state), "HOME": str(state)},
        user=nobody,
        group=nobody,
        extra_groups=[],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    if "PermissionError" in done.stderr or "No module named" in done.stderr:
        pytest.skip("this checkout cannot be read by other users")
    checks = {each["id"]: each for each in json.loads(done.stdout)["checks"]}
    assert checks["state"]["state"] == "ok"
    assert "libvirt-user" not in checks
    assert "user-namespaces" in checks
    assert checks["cgroups"]["state"] == "advice"
