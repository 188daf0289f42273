"""``make demo`` as it is seen: the program runs for real, and what it prints must be true."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

_DEMO = REPOSITORY / "images" / "workloads" / "demo.py"
_DEADLINE = 400  # 40 seconds on an idle host


def demo(directory: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONUTF8": "1", "COLUMNS": "120", **variables}
    return subprocess.run(
        [sys.executable, str(_DEMO), "--directory", str(directory)],
        capture_output=True,
        text=True,
        timeout=_DEADLINE,
        check=False,
        env=environment,
    )


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What one run of the demo printed."""
    directory = tmp_path_factory.mktemp("demo")
    finished = demo(directory)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert {path.name for path in directory.iterdir()} == {"oci", "docker", "vulnerable"}
    return finished.stdout


def cells(shown: str, what: str) -> list[str]:
    """The columns of the comparison's row on ``what``."""
    row = re.search(rf"^  [ *] {re.escape(what)}  +(.*)$", shown, flags=re.MULTILINE)
    assert row is not None, what
    return re.split(r" {2,}", row[1].strip())


@pytest.mark.guest
def test_guest_column_shows_a_hardened_container(shown: str) -> None:
    for what, expected in (
        ("the host's kernel is shared", "no"),
        ("processes it can see", "1"),
        ("uid", "65532"),
        ("effective capabilities", "0x0"),
        ("seccomp", "filter"),
        ("no_new_privs", "yes"),
        ("root mount", "read-only"),
        ("network interfaces", "lo"),
        ("host name", "demo-guest"),
    ):
        assert cells(shown, what)[-1] == expected, what
    assert cells(shown, "kernel")[-1] != os.uname().release


@pytest.mark.guest
def test_bare_column_shows_the_host(shown: str) -> None:
    if "no comparison:" in shown:
        pytest.skip("no container runtime of this host runs here")
    assert cells(shown, "the host's kernel is shared")[0] == "yes"
    assert cells(shown, "kernel")[0] == os.uname().release


@pytest.mark.guest
def test_every_attack_is_refused(shown: str) -> None:
    for what, answer in (
        ("write a file to /", "Read-only file system"),
        ("mount a file system", "permission denied"),
        ("open a packet socket", "Operation not permitted"),
        ("make a user namespace", "Operation not permitted"),
        ("read kernel memory (/proc/kcore)", "0 bytes"),
    ):
        assert cells(shown, what)[-1].startswith(answer), what


@pytest.mark.guest
def test_phases_assertions_and_receipts_are_shown(shown: str) -> None:
    for phase in ("provision", "boot", "identify", "deliver", "workload", "teardown"):
        assert re.search(rf"^    {phase} +\d+\.\d{{3}} s", shown, flags=re.MULTILINE), phase
    for subject in ("qemu", "container"):
        held = re.search(rf"ok  {subject}: (\d+) of (\d+) assertions hold", shown)
        assert held is not None
        assert held[1] == held[2] != "0"
    assert shown.count("this host has no process, directory or cgroup of that run") == 2
    assert re.search(r"^    ok  process qemu \d+ \(gone\)$", shown, flags=re.MULTILINE)
    assert "NOT" not in re.sub(r"NO SECURITY BOUNDARY", "", shown.partition("In short")[2])
    for directory in re.findall(r"ok  directory (\S+) \(gone\)", shown):
        assert not Path(directory).exists()


@pytest.mark.guest
def test_emulation_is_never_called_isolation(shown: str) -> None:
    if "hardware isolation" in shown:
        assert "EMULATED" not in shown
        return
    assert "Emulation is NO SECURITY BOUNDARY" in " ".join(shown.replace("!!", "").split())
    assert not re.search(r"isolat", shown, flags=re.IGNORECASE)


@pytest.mark.guest
def test_no_colour_in_a_pipe(shown: str) -> None:
    assert "\x1b" not in shown


def test_says_where_it_cannot_write(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    finished = demo(tmp_path / "file" / "demo")
    assert finished.returncode == 1
    assert "--directory" in finished.stderr
    assert "Traceback" not in finished.stderr


def test_fails_when_vmrun_does(tmp_path: Path) -> None:
    finished = demo(tmp_path, VMRUN_CPUS="none")
    assert finished.returncode == 1
    assert "vmrun run ended with status 125" in finished.stderr
    assert "In short" not in finished.stdout
    assert {path.name for path in tmp_path.iterdir()} == {"oci", "docker", "vulnerable"}


def test_does_not_take_other_answers_for_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """The script's output comes out of a container: strictly what is expected, or nothing."""
    monkeypatch.syspath_prepend(str(_DEMO.parent))
    import inspection

    answers = "\n".join(f"{name}=refused" for name in inspection._ATTACKS)
    assert not any(attack.contained for attack in inspection.parse_attacks(answers))
    for bad in (
        answers + "\nmount=permission denied",
        answers.replace("mount=", "mounts="),
        answers.replace("mount=refused\n", ""),
        answers + "\nno key",
        answers.replace("mount=refused", "mount=\x1b[2J"),
        answers.replace("mount=refused", "mount=" + "a" * 5000),
    ):
        with pytest.raises(inspection.BadAnswer):
            inspection.parse_attacks(bad)
    silent = answers.replace("write_root=refused", "write_root=")
    assert not inspection.parse_attacks(silent)[0].contained
    with pytest.raises(inspection.BadAnswer):
        inspection.parse_view("uid=0\n")
