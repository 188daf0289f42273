"""``--connect qemu:///system``: the same run against a libvirt daemon, started by hand."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import Result, leftovers
from tests.e2e.interrupted import TerminalRun

pytestmark = [pytest.mark.guest, pytest.mark.timeout(300)]

Vmrun = Callable[..., Result]

URI = "qemu:///system"


@pytest.fixture(scope="module")
def libvirtd() -> Iterator[str]:
    """A libvirtd with its virtlogd; one that already runs is used as it is."""
    if _answers():
        yield URI
        return
    assert os.geteuid() == 0, "starting libvirtd needs root"
    Path("/run/libvirt").mkdir(exist_ok=True)
    daemons = [
        subprocess.Popen([shutil.which(name) or f"/usr/sbin/{name}"], stderr=subprocess.DEVNULL)
        for name in ("virtlogd", "libvirtd")
    ]
    try:
        deadline = time.monotonic() + 60
        while not _answers():
            assert time.monotonic() < deadline, "libvirtd does not answer"
            assert all(daemon.poll() is None for daemon in daemons)
            time.sleep(0.2)
        yield URI
    finally:
        for daemon in reversed(daemons):
            daemon.send_signal(signal.SIGTERM)
            daemon.wait(30)


def _answers() -> bool:
    done = subprocess.run(
        ["virsh", "-c", URI, "version"], capture_output=True, timeout=120, check=False
    )
    return done.returncode == 0


def _domains() -> str:
    return subprocess.run(
        ["virsh", "-c", URI, "list", "--all", "--name"],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    ).stdout.strip()


def test_a_run_through_the_daemon(vmrun: Vmrun, busybox: str, libvirtd: str) -> None:
    done = vmrun("run", "--connect", libvirtd, busybox, "--", "sh", "-c", "id -u; exit 5")
    assert (done.status, done.out) == (5, "65532\n"), done.err
    assert all(item["ok"] for item in done.report["assertions"])
    assert int(done.assertion("qemu", "uid")["actual"]) == pwd.getpwnam("libvirt-qemu").pw_uid
    assert _domains() == ""
    assert leftovers() == []


def test_a_killed_run_is_reclaimed_through_the_daemon(
    vmrun: Vmrun, vmrun_program: list[str], busybox: str, libvirtd: str
) -> None:
    run = TerminalRun([*vmrun_program, "run", "--connect", libvirtd, busybox, "--", "sleep", "300"])
    run.wait_for_phase("identify")
    run.send(signal.SIGKILL)
    run.end()
    assert "vmrun-" in _domains()
    assert vmrun("run", busybox, "--", "no-such-command").status == 127
    deadline = time.monotonic() + 30
    while _domains():
        assert time.monotonic() < deadline, "the daemon still has the domain"
        time.sleep(0.2)
    assert leftovers() == []
