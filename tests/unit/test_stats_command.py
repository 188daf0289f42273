"""``vmrun stats``: two readings make a rate; who does not answer keeps nobody waiting."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from tests.runs import World, short_directory
from tests.unit.commands import Vmrun, vmrun_command
from vmrun.cli.stats import cpu_percent
from vmrun.model.run_record import RunRecord, RunState
from vmrun.model.stats import Stats
from vmrun.model.wire import encode
from vmrun.supervisor.protocol import Line

STATS = Stats(
    memory=32 << 20, memory_limit=128 << 20, pids=3, pids_limit=128, cpu_seconds=10.0, cpus=1.0,
    guest_memory=232 << 20, qemu_memory=150 << 20, qemu_cpu_seconds=20.0, read_at=1000.0,
)  # fmt: skip


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.setattr("vmrun.cli.stats._APART", 0.05)
    with short_directory() as root:
        monkeypatch.setenv("VMRUN_STATE_DIR", str(root))
        made = World(root)
        yield made
        made.close()


@pytest.fixture
def vmrun(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Vmrun:
    return vmrun_command(monkeypatch, capfd)


def busy(world: World, record: RunRecord, share: float, delay: float = 0.0) -> None:
    """It uses that share of a processor."""
    asked = 0

    def stats(line: Line, _request: dict[str, Any]) -> None:
        nonlocal asked
        time.sleep(delay)
        now = replace(STATS, cpu_seconds=10 + share * asked, read_at=1000.0 + asked)
        asked += 1
        line.send({"stats": encode(now)})

    world.answers(record, stats=stats)


@pytest.mark.parametrize(
    ("later", "percent"),
    [
        ({"cpu_seconds": 10.5, "read_at": 1001.0}, 50.0),
        ({"cpu_seconds": 13.0, "read_at": 1002.0}, 150.0),
        ({"cpu_seconds": 10.0, "read_at": 1001.0}, 0.0),
        ({"cpu_seconds": 0.1, "read_at": 1001.0}, None),
        ({"cpu_seconds": 10.5, "read_at": 1000.0}, None),
        ({"cpu_seconds": 10.5, "read_at": 999.0}, None),
    ],
)
def test_processor_time_between_two_readings(
    later: dict[str, float], percent: float | None
) -> None:
    assert cpu_percent(STATS, replace(STATS, **later)) == percent  # type: ignore[arg-type]
    assert cpu_percent(None, STATS) is None
    assert cpu_percent(STATS, None) is None


def test_a_table(world: World, vmrun: Vmrun) -> None:
    busy(world, world.live("web"), 0.25)
    done = vmrun("stats", "--no-stream")
    assert done.status == 0
    line = done.out.splitlines()[1]
    for text in ("web", "25.00%", "32.0 MiB / 128 MiB", "3 / 128", "232 MiB", "150 MiB"):
        assert text in line


def test_for_programs(world: World, vmrun: Vmrun) -> None:
    busy(world, world.live("web"), 0.5)
    (run,) = json.loads(vmrun("stats", "--json", "web").out)
    assert run["cpu_percent"] == 50.0
    assert set(Stats.__dataclass_fields__) <= run.keys()
    assert run["error"] == ""


def test_all_are_asked_at_the_same_time(world: World, vmrun: Vmrun) -> None:
    for number in range(10):
        busy(world, world.live(f"web-{number}"), 0.1, delay=0.3)
    start = time.monotonic()
    assert len(json.loads(vmrun("stats", "--json").out)) == 10
    assert time.monotonic() - start < 4


def test_one_that_does_not_answer_is_unknown(world: World, vmrun: Vmrun) -> None:
    busy(world, world.live("web"), 0.25)
    world.live("mute")
    world.live("paused", state=RunState.PAUSED)
    done = vmrun("stats")
    assert done.status == 0
    mute = next(line for line in done.out.splitlines() if "mute" in line)
    assert mute.split()[2:] == ["--"] * 6
    assert "25.00%" in done.out
    done = vmrun("stats", "mute")
    assert done.status == 1
    assert "nobody answers" in done.err


def test_an_answer_that_is_none(world: World, vmrun: Vmrun) -> None:
    def stats(line: Line, _request: dict[str, Any]) -> None:
        line.send({"stats": {"memory": "much"}})

    world.answers(world.live("web"), stats=stats)
    done = vmrun("stats", "web")
    assert done.status == 1
    assert "Traceback" not in done.err


def test_on_a_terminal_it_is_refreshed_until_control_c(
    world: World, vmrun: Vmrun, monkeypatch: pytest.MonkeyPatch
) -> None:
    busy(world, world.live("web"), 0.25)
    naps = iter(range(3))

    def nap(_seconds: float) -> None:
        if next(naps, None) is None:
            raise KeyboardInterrupt

    monkeypatch.setattr("vmrun.cli.stats.time", SimpleNamespace(sleep=nap))
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    done = vmrun("stats")
    assert done.status == 130
    assert done.out.count("\x1b[H\x1b[J") == 3
    assert sum("web" in line for line in done.out.splitlines()) == 3
    assert done.err == ""


def test_what_does_not_run_has_none(world: World, vmrun: Vmrun) -> None:
    world.ended("eeeeeeeeeeee", "job")
    assert len(vmrun("stats").out.splitlines()) == 1
    done = vmrun("stats", "job")
    assert done.status == 1
    assert "is not running" in done.err
