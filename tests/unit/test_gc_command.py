"""``vmrun gc``: all that dead runs left and nothing else, and a dry run that touches nothing."""

from __future__ import annotations

import json
import os
import subprocess
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.runs import World, short_directory
from tests.unit.commands import Vmrun, vmrun_command
from vmrun.hypervisor import strays
from vmrun.hypervisor.strays import OLD
from vmrun.journal.journal import Journal
from vmrun.model.run_record import RunState

ENDED, GONE = "eeeeeeeeeeee", "fffffffffff0"


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[World]:
    # What is really on this host is nobody's business here.
    monkeypatch.setattr(strays, "_CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(strays, "memory_of", lambda domain: tmp_path / "shm" / domain)
    with short_directory() as root:
        monkeypatch.setenv("VMRUN_STATE_DIR", str(root))
        made = World(root)
        yield made
        made.close()


@pytest.fixture
def vmrun(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Vmrun:
    return vmrun_command(monkeypatch, capfd)


def dry(vmrun: Vmrun) -> set[tuple[str, str]]:
    done = vmrun("gc", "--dry-run", "--json")
    found = {(left["kind"], left["run_id"]) for left in json.loads(done.out)}
    assert done.status == (1 if found else 0)
    return found


def idle_qemu(guests: Path, run_id: str) -> subprocess.Popen[bytes]:
    """A QEMU without a machine, named and placed like that of a guest."""
    words = ["-name", f"guest=vmrun-{run_id},debug-threads=on", "-uuid", str(uuid.uuid4())]
    nothing = ["-machine", "none", "-nodefaults", "-display", "none", "-S"]
    place = ["-L", f"{guests}/{run_id}/r"]
    return subprocess.Popen(["qemu-system-x86_64", *nothing, *words, *place])


def visible(process: subprocess.Popen[bytes]) -> None:
    """Until its command line is its own."""
    deadline = time.monotonic() + 5
    while b"guest=" not in Path(f"/proc/{process.pid}/cmdline").read_bytes():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_nothing_to_do(world: World, vmrun: Vmrun) -> None:
    world.live("web")
    world.ended(ENDED, "job")
    assert dry(vmrun) == set()
    done = vmrun("gc")
    assert (done.status, done.out) == (0, "")
    assert world.runs.folder(ENDED).exists()


def test_a_dead_run_is_reclaimed_with_a_receipt(world: World, vmrun: Vmrun) -> None:
    alive = world.live("web")
    lost = world.live("lost")
    world.lose(lost)
    assert dry(vmrun) == {("guest", lost.run_id), ("record", lost.run_id)}
    assert (world.directories.guests / lost.guest).exists(), "a dry run removes nothing"
    assert world.runs.read(lost.run_id) == lost
    done = vmrun("gc")
    assert done.status == 0
    assert f"guest {lost.run_id}" in done.out
    assert "removed directory" in done.out
    assert f"run lost ({lost.run_id}) is recorded as dead" in done.out
    record = world.runs.read(lost.run_id)
    assert record is not None
    assert (record.state, record.exit_status) == (RunState.DEAD, 137)
    assert (world.directories.guests / alive.guest).exists()
    assert dry(vmrun) == set()
    events = [e.event for e in Journal(world.directories.journal).entries()]
    assert "guest.reclaim" in events
    assert "run.lost" in events


def test_receipts_for_programs(world: World, vmrun: Vmrun) -> None:
    lost = world.live("lost")
    world.lose(lost)
    done = json.loads(vmrun("gc", "--json").out)
    assert done["clean"] is True
    (guest,) = done["guests"]
    assert guest["run_id"] == lost.run_id
    assert all(item["gone"] for item in guest["removed"])
    assert done["runs"] == [{"run_id": lost.run_id, "name": "lost"}]


def test_folders_and_halves_that_a_crash_has_left(world: World, vmrun: Vmrun) -> None:
    world.ended(ENDED, "job")
    empty = world.directories.runs / GONE
    empty.mkdir()
    half = world.runs.folder(ENDED) / "record.json.partial"
    half.write_text("{")
    assert ("partial", ENDED) not in dry(vmrun), "it may just be written"
    os.utime(half, (1, 1))
    assert dry(vmrun) == {("folder", GONE), ("partial", ENDED)}
    assert vmrun("gc").status == 0
    assert not empty.exists()
    assert not half.exists()
    assert world.runs.read(ENDED) is not None


def test_a_qemu_whose_directory_is_gone_is_found_and_ended(world: World, vmrun: Vmrun) -> None:
    world.live("web")
    guests = world.directories.guests
    ours, others = idle_qemu(guests, GONE), idle_qemu(Path("/srv/other/guests"), "fffffffffff1")
    try:
        visible(ours)
        visible(others)
        assert dry(vmrun) == {("process", GONE)}
        assert ours.poll() is None
        done = vmrun("gc")
        assert done.status == 0
        assert f"removed process qemu {ours.pid}" in done.out
        assert ours.wait(5) == -9
        assert others.poll() is None, "it belongs to another state directory"
    finally:
        for process in (ours, others):
            process.kill()
            process.wait()


def test_cgroups_and_keys_of_nobody(world: World, vmrun: Vmrun, tmp_path: Path) -> None:
    web = world.live("web")
    cgroups, memory = tmp_path / "cgroup" / "machine", tmp_path / "shm"
    made = []
    for run_id in (GONE, "fffffffffff1", web.run_id):
        cgroup = cgroups / f"qemu-embed-584f4584-1-vmrun-{run_id}.libvirt-qemu"
        (cgroup / "emulator").mkdir(parents=True)
        keys = memory / f"vmrun-{run_id}"
        keys.mkdir(parents=True)
        made += [cgroup, keys]
    (cgroups / "qemu-embed-584f4584-1-vmrun-fffffffffff1.libvirt-qemu" / "cgroup.procs").write_text(
        "1\n"
    )
    (cgroups / "qemu-2-other.libvirt-qemu").mkdir()
    (memory / "vmrun-notes").mkdir()
    assert dry(vmrun) == set(), "they may just be being made"
    for path in made:
        os.utime(path, (1, time.time() - OLD - 1))
    found = dry(vmrun)
    assert ("cgroup", GONE) in found
    assert ("keys", GONE) in found
    assert ("cgroup", "fffffffffff1") not in found, "a process is in it"
    assert not any(run_id == web.run_id for _, run_id in found)
    assert vmrun("gc").status == 0
    assert not made[0].exists()
    assert not made[1].exists()
    assert made[4].exists()
    assert made[5].exists()
    assert (memory / "vmrun-notes").exists()


def test_what_cannot_be_removed_is_said(
    world: World, vmrun: Vmrun, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = world.live("lost")
    world.lose(lost)
    monkeypatch.setattr("vmrun.run.teardown.remains", lambda **_: ("process qemu 1",))
    done = vmrun("gc")
    assert done.status == 1
    assert "could not remove leftover process qemu 1" in done.out


def test_kept_guests_stay(world: World, vmrun: Vmrun) -> None:
    kept = world.live("kept", detached=False)
    world.owned[kept.guest].keep(3600)
    world.lose(kept)
    assert dry(vmrun) == set()
    assert vmrun("gc").status == 0
    assert (world.directories.guests / kept.guest).exists()
