"""What a supervisor reports to the command that started it, and what it does when that has died."""

from __future__ import annotations

import json
import os

import pytest

from vmrun.model.errors import HypervisorError, Interrupted
from vmrun.supervisor.again import NOBODY
from vmrun.supervisor.launch import StartReport


def lines(descriptor: int) -> list[dict[str, object]]:
    with os.fdopen(descriptor, "rb") as file:
        return [json.loads(line) for line in file]


def test_phases_then_that_it_runs_and_nothing_after() -> None:
    reading, writing = os.pipe()
    report = StartReport(writing)
    report.phase("boot")
    report.started()
    report.phase("teardown")
    report.failed(HypervisorError("too late"))
    assert lines(reading) == [{"phase": "boot"}, {"started": True}]


def test_why_it_does_not_run() -> None:
    reading, writing = os.pipe()
    StartReport(writing).failed(HypervisorError("no QEMU", hint="make setup"))
    (line,) = lines(reading)
    assert line["error"] == {
        "kind": "HypervisorError", "message": "no QEMU", "hint": "make setup", "details": ""
    }  # fmt: skip


def test_a_dead_command_interrupts_once_and_teardown_goes_on() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    report = StartReport(writing)
    with pytest.raises(Interrupted):
        report.phase("boot")
    report.phase("teardown")
    report.failed(Interrupted("the command has died"))


def test_one_that_starts_over_reports_to_nobody() -> None:
    report = StartReport(NOBODY)
    report.phase("boot")
    report.started()
