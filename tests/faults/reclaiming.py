"""gc itself is killed, and done twice at once; orphans that are not what they seem."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator

from tests.faults.decoys import orphan_that_names
from tests.faults.fault import Act, Fault, Field, unwell
from tests.faults.kills import BETWEEN_WITH_QEMU, KILL, must
from tests.faults.world import World, signal_to, until

_STATE = "vmrun.run.state"
WHILE_RECLAIMING = (
    ("orphans found", "vmrun.hypervisor.remains:remove_remains:before"),
    ("QEMU killed", "vmrun.hypervisor.process:kill_guest_process:after"),
    ("remains removed", "vmrun.hypervisor.remains:remove_remains:after"),
    ("directory cleared", f"{_STATE}:GuestDirectory.clear:after"),
    ("journal told", "vmrun.journal.journal:Journal.append:after:guest.reclaim"),
    ("directory removed", f"{_STATE}:GuestDirectory.remove:after"),
    ("record asked about", "vmrun.journal.journal:Journal.append:before:run.lost"),
    ("record about to change", "vmrun.supervisor.records:Runs.update:before"),
    ("record half written", "vmrun.supervisor.records:Runs._write:before"),
)


def reclaiming() -> Iterator[Fault]:
    """Orphans with a QEMU of their own, and a gc that does not get far."""
    for what, where in WHILE_RECLAIMING:
        yield Fault(f"gc killed: {what}", _gc_dies(where), quick=True)
    yield Fault("gc killed at some moment", _gc_dies_sometime, quick=True)
    yield Fault("two gc at once", _two_at_once, quick=True)
    yield Fault("pid of a dead owner is somebody else's", _pid_reused, quick=True)
    yield Fault("intent damaged while QEMU runs", _intent_damaged, quick=True)
    yield Fault("locks and folders of the dead", _stale_things, quick=True)
    yield Fault("probe of QEMU's capabilities killed", _probe_dies, quick=True)


def reboots() -> Iterator[Fault]:
    """Everything is gone at once."""
    yield Fault("reboot of the host", _reboot, total=True)


def orphan(world: World) -> str:
    """A dead detached run with a QEMU that stands still."""
    before = {i.name for i in world.directories.guests.iterdir()}
    _, where = BETWEEN_WITH_QEMU[0]
    run = world.start(
        *("run", "-d", world.image, "--", "sleep", "600"), fault=f"supervisor at {where}"
    )
    # The command would reclaim what its supervisor leaves.
    run.wait_for_phase("provision")
    run.send(KILL)
    run.end(timeout=120)
    until(lambda: not world.others(), "the fault did not strike", 60)
    made = {i.name for i in world.directories.guests.iterdir()} - before
    (run_id,) = (name for name in made if not name.startswith("."))
    must(bool(world.qemu(run_id)), "the orphan has no QEMU")
    return run_id


def _gc_dies(where: str) -> Act:
    def act(place: Field) -> None:
        run_id = orphan(place.world)
        place.decoys.like(run_id)
        done = place.world.start("gc", fault=f"command at {where}")
        must(done.end() == -KILL, f"the fault did not strike: {done.seen[-200:]!r}")

    return act


def _gc_dies_sometime(place: Field) -> None:
    place.decoys.like(orphan(place.world))
    done = place.world.start("gc")
    time.sleep(place.chance.uniform(0.2, 1.5))
    done.send(signal.SIGKILL)
    done.end()


def _two_at_once(place: Field) -> None:
    world = place.world
    place.decoys.like(orphan(world))
    orphan_that_names(world, f"{place.chance.getrandbits(48):012x}", os.getpid())
    before = len([e for e in world.entries() if e.event == "guest.reclaim"])
    threads = [threading.Thread(target=world.gc, daemon=True) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    told = [e.fields["guest"] for e in world.entries() if e.event == "guest.reclaim"][before:]
    must(len(told) == len(set(told)) == 2, f"reclaimed other than once each: {told}")


def _pid_reused(place: Field) -> None:
    pid = place.decoys.process(f"pid of a dead owner {time.monotonic()}", "-uuid", "none")
    orphan_that_names(place.world, f"{place.chance.getrandbits(48):012x}", pid)


def _intent_damaged(place: Field) -> None:
    run_id = orphan(place.world)
    path = place.world.directories.guests / run_id / "intent.json"
    path.write_text(path.read_text()[: place.chance.randrange(40)])


def _stale_things(place: Field) -> None:
    world = place.world
    guests, runs = world.directories.guests, world.directories.runs
    ids = [f"{place.chance.getrandbits(48):012x}" for _ in range(4)]
    (guests / ids[0]).mkdir()
    (guests / ids[1]).mkdir()
    (guests / ids[1] / "owner").touch()
    (guests / ids[1] / "intent.json.partial").write_text("{")
    (runs / ids[2]).mkdir(parents=True)
    (runs / ids[2] / "record.json.partial").write_text("{")
    (runs / ids[3]).mkdir()
    (runs / ids[3] / "log").write_text("x\n")


def _probe_dies(place: Field) -> None:
    """On a host whose capabilities nobody has probed yet."""
    world = place.world
    cache = world.directories.cache / "capabilities"
    for path in cache.iterdir():
        if path.is_dir():
            path.rename(path.with_name("outdated"))
    done = world.run("true")
    scratch = until(lambda: next(iter(cache.glob("partial.*")), None), "no probe", 60, pause=0.01)
    until(lambda: _named(str(scratch)), "nothing probes", 60, pause=0.01)
    time.sleep(place.chance.uniform(0, 1))
    done.send(signal.SIGKILL)
    done.end()


def _named(text: str) -> list[int]:
    found = []
    for name in os.listdir("/proc"):
        try:
            with open(f"/proc/{name}/cmdline", "rb") as file:
                found += [int(name)] if text.encode() in file.read() else []
        except (OSError, ValueError):
            continue
    return found


def _reboot(place: Field) -> None:
    world = place.world
    must(not unwell(world), "the bystander was not well before")
    victims = [world.bystander, world.detached()]
    pids = [pid for run_id in victims for pid in (world.owner(run_id), world.qemu(run_id))]
    for pid in pids:
        signal_to(pid, KILL)
    world.bystander = ""
    until(lambda: not world.others(), "an owner is alive after a reboot")
