"""Ctrl-C and kill -9 in every phase: the documented exit status, and nothing is left."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable

import pytest

from tests.conftest import Result, leftovers
from tests.e2e.interrupted import TerminalRun
from vmrun.settings import load_settings

pytestmark = [pytest.mark.guest, pytest.mark.timeout(400)]

PHASES = (
    "resolve",
    "verify base",
    "fetch",
    "provision",
    "boot",
    "identify",
    "connect",
    "deliver",
    "start",
)


def start(vmrun_program: list[str], busybox: str) -> TerminalRun:
    return TerminalRun([*vmrun_program, "run", busybox, "--", "sleep", "300"])


def running(run: TerminalRun) -> None:
    """Until the workload itself runs: its phase clears the line."""
    run.wait_for_phase("start")
    deadline = time.monotonic() + 60
    while not run.seen.endswith(b"\r\x1b[K"):
        assert time.monotonic() < deadline
        run._read()
    time.sleep(0.3)


@pytest.mark.parametrize("phase", PHASES)
def test_control_c_leaves_nothing(vmrun_program: list[str], busybox: str, phase: str) -> None:
    run = start(vmrun_program, busybox)
    run.wait_for_phase(phase)
    run.send(signal.SIGINT)
    assert run.end() == 130, run.seen
    assert b"interrupted by SIGINT" in run.seen
    assert b"Traceback" not in run.seen
    assert leftovers() == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_end_a_running_workload(
    vmrun_program: list[str], busybox: str, number: signal.Signals
) -> None:
    run = start(vmrun_program, busybox)
    running(run)
    run.send(number)
    assert run.end(timeout=20) == 130
    assert leftovers() == []


@pytest.mark.parametrize("phase", [*PHASES, "workload"])
def test_what_a_killed_run_left_goes_at_the_next_command(
    vmrun: Callable[..., Result], vmrun_program: list[str], busybox: str, phase: str
) -> None:
    run = start(vmrun_program, busybox)
    if phase == "workload":
        running(run)
    else:
        run.wait_for_phase(phase)
    run.send(signal.SIGKILL)
    assert run.end() == -signal.SIGKILL
    # A command that creates nothing itself: it is refused at once.
    done = vmrun("run", busybox, "--", "no-such-command")
    assert done.status == 127
    assert leftovers() == []


def test_a_guest_without_its_owner_powers_itself_off(
    vmrun: Callable[..., Result], vmrun_program: list[str], busybox: str
) -> None:
    run = start(vmrun_program, busybox)
    running(run)
    run.send(signal.SIGKILL)
    run.end()
    assert any(item.startswith("qemu ") for item in leftovers()), "the guest should still live"
    deadline = time.monotonic() + 180
    while any(item.startswith("qemu ") for item in leftovers()):
        assert time.monotonic() < deadline, "the lease did not end the guest"
        time.sleep(1)
    guests = load_settings().directories.guests
    assert [path for path in guests.iterdir() if not path.name.startswith(".")], (
        "only the next command removes the directory"
    )
    done = vmrun("run", busybox, "--", "no-such-command")
    assert "reclaimed what run" in done.err
    assert leftovers() == []
