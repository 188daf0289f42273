"""A base that is not what was built: refused before it starts, stopped by dm-verity if it does."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY, Result, leftovers
from vmrun.base.store import find_base
from vmrun.model.base import Base
from vmrun.settings import load_settings

pytestmark = [pytest.mark.guest, pytest.mark.timeout(300)]

Vmrun = Callable[..., Result]


@pytest.fixture
def copy() -> Iterator[Base]:
    """A copy of the minimal base, as the only one that vmrun sees first."""
    directories = load_settings().directories
    original = find_base(directories.bases, "minimal")
    target = directories.bases[0] / original.directory.name
    target.parent.mkdir(exist_ok=True)
    shutil.copytree(original.directory, target)
    yield find_base(directories.bases[:1], str(original.digest))
    shutil.rmtree(target, ignore_errors=True)


def flip(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)
        file.seek(offset)
        file.write(bytes([byte[0] ^ 1]))


@pytest.mark.parametrize("name", ["root.img", "vmlinuz", "initrd.img"])
def test_a_changed_file_is_found_before_the_start(
    vmrun: Vmrun, busybox: str, copy: Base, name: str
) -> None:
    flip(copy.directory / name, (copy.directory / name).stat().st_size // 2)
    done = vmrun("run", "--base", str(copy.digest), busybox, "--", "id")
    assert done.status == 125
    assert done.out == ""
    assert "is not what the manifest" in done.err
    assert "vmrun base build" in done.err
    assert "boot" not in [phase["name"] for phase in done.report["phases"]]
    assert leftovers() == []


def test_dm_verity_stops_a_guest_whose_root_was_changed(copy: Base) -> None:
    """The manifest is checked before every start; here somebody is quicker than that check."""
    for block in range(copy.verity.data_blocks):
        flip(copy.root, block * 4096 + 17)
    program = (
        "import sys, vmrun.run.decide as p\n"
        "p.verify_base = lambda base: None\n"
        "from vmrun.cli.main import main\n"
        "main()\n"
    )
    with tempfile.TemporaryDirectory() as scratch:
        subprocess.run(
            [sys.executable, REPOSITORY / "images/workloads/build.py", "busybox", f"{scratch}/i"],
            check=True,
            timeout=120,
        )
        report = Path(scratch) / "report.json"
        words = ["run", "--report", str(report), "--base", str(copy.digest), f"oci:{scratch}/i"]
        done = subprocess.run(
            [sys.executable, "-c", program, *words, "--", "id"],
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
            cwd=REPOSITORY,
        )
        phases = [phase["name"] for phase in json.loads(report.read_text())["phases"]]
    assert done.returncode == 125
    assert done.stdout == ""
    assert "its root is not what was built (dm-verity)" in done.stderr
    assert "is corrupted" in done.stderr, "the console's tail says which block"
    assert "vmrun base verify" in done.stderr
    assert phases[-2:] == ["boot", "teardown"]
    assert leftovers() == []


def test_base_verify_names_the_file(vmrun: Vmrun, copy: Base) -> None:
    assert vmrun("base", "verify", str(copy.digest)).status == 0
    flip(copy.root, 4096)
    done = vmrun("base", "verify", str(copy.digest))
    assert done.status == 1
    assert str(copy.root) in done.err


def test_base_rm_removes_it_and_nothing_else(vmrun: Vmrun, copy: Base) -> None:
    done = vmrun("base", "rm", str(copy.digest))
    assert (done.status, done.out.strip()) == (0, str(copy.digest))
    assert not copy.directory.exists()
    # The host's own, from which this copy was made, is still there.
    assert vmrun("base", "verify", str(copy.digest)).status == 0


def test_without_a_base_the_hint_builds_one(vmrun: Vmrun, busybox: str) -> None:
    done = vmrun("run", "--base", "0123456789abcdef", busybox, "--", "id")
    assert done.status == 125
    assert "no base begins with" in done.err
    assert leftovers() == []
