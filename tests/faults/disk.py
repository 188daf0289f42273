"""The disk that vmrun keeps its state on becomes full."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator

from tests.faults.fault import Act, Fault, Field
from tests.faults.kills import must
from tests.faults.reclaiming import orphan
from tests.faults.world import World, until
from vmrun.supervisor.logs import read_log

SIZE = "40m"
_LINES = 4000
_FILLER = "filler"
_REASONS = (b"disk space", b"No space", b"cannot write")


def full() -> Iterator[Fault]:
    """Full at some phase; there is room again before gc."""
    yield Fault("disk full before run", _full_before("run"), quick=True, small=True)
    yield Fault("disk full before run -d", _full_before("run", "-d"), quick=True, small=True)
    for phase in ("fetch", "plan", "provision"):
        yield Fault(f"disk full from {phase} on: run", _full_at(phase), small=True)
    for phase in ("plan", "provision", "boot", "start"):
        yield Fault(f"disk full from {phase} on: run -d", _full_at(phase, "-d"), small=True)
    yield Fault("disk full while a log is written", _full_log, small=True)
    yield Fault("disk full during stop", _full_during_stop, small=True)
    yield Fault("disk full during gc", _full_during_gc, quick=True, small=True)


@contextlib.contextmanager
def filled(world: World) -> Iterator[None]:
    """Not a byte of room for the length of the block."""
    fill(world)
    try:
        yield
    finally:
        (world.root / _FILLER).unlink()


def fill(world: World) -> None:
    """Take all the room there is."""
    descriptor = os.open(world.root / _FILLER, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        for size in (1 << 20, 4096, 1):
            with contextlib.suppress(OSError):
                while True:
                    os.write(descriptor, bytes(size))
    finally:
        os.close(descriptor)


def _explained(status: int, said: bytes) -> None:
    """Whether a command that failed says that it was for the disk."""
    must(b"Traceback" not in said, f"a traceback: {said[-800:]!r}")
    must(
        status == 0 or any(reason in said for reason in _REASONS),
        f"status {status}, and it does not say that the disk is full: {said[-400:]!r}",
    )


def _full_before(*words: str) -> Act:
    def act(place: Field) -> None:
        world = place.world
        with filled(world):
            run = world.start(*words, world.image, "--", "true")
            status = run.end()
        must(status == 125, f"status {status}: {run.seen[-300:]!r}")
        _explained(status, run.seen)

    return act


def _full_at(phase: str, *options: str) -> Act:
    def act(place: Field) -> None:
        world = place.world
        run = world.run("true", options=options)
        run.wait_for_phase(phase)
        with filled(world):
            status = run.end()
        _explained(status, run.seen)

    return act


def _full_log(place: Field) -> None:
    world = place.world
    script = f"i=0; while [ $i -lt {_LINES} ]; do echo line $i; i=$((i+1)); done"
    run_id = world.detached("sh", "-c", f"sleep 3; {script}")
    with filled(world):
        # What it knows of the problem cannot be written down either: it waits for room.
        until(lambda: _stalled(world, run_id), "the log does not stall", 60)
    until(lambda: world.record(run_id).ended, "the workload does not go on", 90)
    found = [line.data for line in read_log(world.runs.folder(run_id))]
    wanted = [f"line {number}\n".encode() for number in range(_LINES)]
    must(found == wanted, f"{len(found)} lines of {_LINES}, of them {len(set(found))} different")


def _stalled(world: World, run_id: str) -> bool:
    """Whether nothing more is written, although the workload has not ended."""
    log = world.runs.folder(run_id) / "log"
    before = log.stat().st_size if log.exists() else 0
    time.sleep(4)
    after = log.stat().st_size if log.exists() else 0
    return before == after and not world.record(run_id).ended


def _full_during_stop(place: Field) -> None:
    world = place.world
    run_id = world.detached()
    with filled(world):
        run = world.start("stop", "-t", "1", run_id)
        status = run.end()
    # The guest may be gone before the answer is, and its record cannot say so.
    if b"ended before it answered" not in run.seen:
        _explained(status, run.seen)


def _full_during_gc(place: Field) -> None:
    world = place.world
    orphan(world)
    with filled(world):
        run = world.start("gc")
        status = run.end()
    _explained(status, run.seen)
