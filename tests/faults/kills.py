"""Processes killed at every phase of a run, and between the phases."""

from __future__ import annotations

import signal
from collections.abc import Iterator

from tests.faults.fault import Act, Fault, Field
from tests.faults.world import Violated, signal_to, until

KILL = signal.SIGKILL
BEFORE_THE_GUEST = (
    *("reclaim", "resolve", "admit", "verify base", "find", "verify", "fetch", "scan", "plan"),
    "provision",
)
WITH_A_GUEST = ("boot", "identify", "connect", "deliver", "start")
IN_A_SUPERVISOR = ("boot", "identify", "connect", "start")
LATER = ("workload", "collect", "teardown")

# Where a process dies between what a phase consists of.
_STATE = "vmrun.run.state"
_REMAINS = "vmrun.hypervisor.remains:remove_remains"
_MADE = "vmrun.hypervisor.guest:Hypervisor.create"
BETWEEN_IN_COMMAND = (
    ("claimed, no intent yet", f"{_STATE}:write_intent:before"),
    ("intent written", f"{_STATE}:write_intent:after"),
    ("journal has the start", "vmrun.journal.journal:Journal.append:after:run.start"),
    ("record half made", "vmrun.supervisor.records:Runs._write:before"),
    ("record made", "vmrun.supervisor.records:Runs.write:after"),
)
BETWEEN_WITH_QEMU = (
    ("QEMU made", f"{_MADE}:after"),
    ("QEMU made, memory limited", "vmrun.hypervisor.guest:LibvirtGuest.limit_memory:after"),
)
BETWEEN_IN_TEARDOWN = (
    ("QEMU destroyed", "vmrun.hypervisor.guest:LibvirtGuest.destroy:after"),
    ("remains removed", f"{_REMAINS}:after"),
    ("directory cleared", f"{_STATE}:GuestDirectory.clear:after"),
    ("directory removed", f"{_STATE}:GuestDirectory.remove:after"),
)
BETWEEN_IN_DETACH = (
    ("before the launch", "vmrun.supervisor.launch:launch:before"),
    ("supervisor started, told nothing", f"{_STATE}:GuestDirectory.release:before"),
    ("supervisor started, lock let go", f"{_STATE}:GuestDirectory.release:after"),
)
BETWEEN_IN_SUPERVISOR = (
    ("not yet adopted", f"{_STATE}:GuestDirectory.adopt:before"),
    ("adopted", f"{_STATE}:GuestDirectory.adopt:after"),
    ("QEMU made", f"{_MADE}:after"),
)


def attended() -> Iterator[Fault]:
    """``vmrun run`` is killed."""
    for phase in BEFORE_THE_GUEST:
        yield Fault(f"run killed: {phase}", _run_dies(f"phase {phase}"), quick=True)
    for what, where in (*BETWEEN_IN_COMMAND, *BETWEEN_WITH_QEMU):
        yield Fault(f"run killed: {what}", _run_dies(f"at {where}"), quick=True)
    for phase in WITH_A_GUEST:
        yield Fault(f"run killed: {phase}", _run_dies(f"phase {phase}"))
    for phase in LATER:
        yield Fault(f"run killed: {phase}", _run_dies(f"phase {phase}", "true"))
    for what, where in BETWEEN_IN_TEARDOWN:
        yield Fault(f"run killed: {what}", _run_dies(f"at {where}", "true"))
    for phase in (*WITH_A_GUEST, "workload"):
        yield Fault(f"QEMU killed in a run: {phase}", _qemu_dies_in_a_run(phase))


def detached() -> Iterator[Fault]:
    """``vmrun run -d`` is killed, or its supervisor, or QEMU."""
    for what, where in BETWEEN_IN_DETACH:
        yield Fault(f"run -d killed: {what}", _detach_dies("command", f"at {where}"), quick=True)
    for what, where in BETWEEN_IN_SUPERVISOR:
        fault = _detach_dies("supervisor", f"at {where}")
        yield Fault(f"supervisor killed: {what}", fault, quick=True)
    yield Fault(
        "supervisor killed: provision", _detach_dies("supervisor", "phase provision"), quick=True
    )
    for phase in IN_A_SUPERVISOR:
        yield Fault(f"run -d killed: {phase}", _command_dies_meanwhile(phase))
        yield Fault(f"supervisor killed: {phase}", _detach_dies("supervisor", f"phase {phase}"))
        yield Fault(f"QEMU killed in run -d: {phase}", _qemu_dies_in_detach(phase))
    yield Fault("supervisor killed: workload", _supervisor_dies)
    yield Fault("QEMU killed: workload", _qemu_dies)
    yield Fault("supervisor and QEMU killed", _both_die)
    for what, where in BETWEEN_IN_TEARDOWN:
        yield Fault(f"supervisor killed: {what}", _supervisor_dies_late(f"at {where}"))
    yield Fault(
        "supervisor killed: before its last word",
        _supervisor_dies_late("at vmrun.journal.journal:Journal.append:before:run.end"),
    )
    yield Fault(
        "supervisor killed: last word in the journal only",
        _supervisor_dies_late("at vmrun.journal.journal:Journal.append:after:run.end"),
    )


def _run_dies(fault: str, *command: str) -> Act:
    def act(place: Field) -> None:
        done = place.world.run(*command, fault=f"command {fault}").end(timeout=200)
        must(done == -KILL, f"the fault did not strike: status {done}")
        _likeness(place)

    return act


def _qemu_dies_in_a_run(phase: str) -> Act:
    def act(place: Field) -> None:
        run = place.world.run()
        if phase == "workload":
            run_id = place.world.newest()
            until(lambda: place.world.state(run_id) == "running", "it does not run", 120)
        else:
            run.wait_for_phase(phase)
            run_id = place.world.newest()
        place.decoys.like(run_id)
        signal_to(until(lambda: place.world.qemu(run_id), "no QEMU"), KILL)
        status = run.end()
        must(status == 125, f"status {status}: {run.seen[-300:]!r}")
        must(b"Traceback" not in run.seen, f"a traceback: {run.seen[-600:]!r}")

    return act


def _detach_dies(role: str, fault: str) -> Act:
    def act(place: Field) -> None:
        world = place.world
        run = world.start(
            *("run", "-d", world.image, "--", "sleep", "600"), fault=f"{role} {fault}"
        )
        # A supervisor that lives on gives up: nobody knows of what it runs.
        status = run.end(timeout=200)
        if role == "command":
            must(status == -KILL, f"the fault did not strike: status {status}")
        else:
            must(status == 125, f"status {status}: {run.seen[-300:]!r}")
            must(b"supervisor" in run.seen, f"it does not say why: {run.seen[-300:]!r}")
        must(b"Traceback" not in run.seen, f"a traceback: {run.seen[-600:]!r}")

    return act


def _command_dies_meanwhile(phase: str) -> Act:
    def act(place: Field) -> None:
        run = place.world.start("run", "-d", place.world.image, "--", "sleep", "600")
        run.wait_for_phase(phase)
        run.send(KILL)
        run.end()

    return act


def _qemu_dies_in_detach(phase: str) -> Act:
    def act(place: Field) -> None:
        run = place.world.start("run", "-d", place.world.image, "--", "sleep", "600")
        run.wait_for_phase(phase)
        signal_to(until(lambda: place.world.qemu(place.world.newest()), "no QEMU"), KILL)
        status = run.end()
        must(status == 125, f"status {status}: {run.seen[-300:]!r}")
        must(b"Traceback" not in run.seen, f"a traceback: {run.seen[-600:]!r}")

    return act


def _supervisor_dies(place: Field) -> None:
    run_id = place.world.detached()
    place.decoys.like(run_id)
    signal_to(place.world.owner(run_id), KILL)


def _qemu_dies(place: Field) -> None:
    run_id = place.world.detached()
    place.decoys.like(run_id)
    signal_to(place.world.qemu(run_id), KILL)
    until(lambda: place.world.record(run_id).ended, "nobody notices that QEMU is gone", 60)
    must(bool(place.world.record(run_id).error), "its record has no error")


def _both_die(place: Field) -> None:
    run_id = place.world.detached()
    pids = (place.world.owner(run_id), place.world.qemu(run_id))
    for pid in pids if place.chance.random() < 0.5 else pids[::-1]:
        signal_to(pid, KILL)


def _supervisor_dies_late(fault: str) -> Act:
    """After a workload that has ended by itself."""

    def act(place: Field) -> None:
        run_id = place.world.detached("true", fault=f"supervisor {fault}")
        until(
            lambda: run_id not in {i.run_id for i in place.world.others()},
            "the fault did not strike",
            120,
        )

    return act


def _likeness(place: Field) -> None:
    """Decoys like what was killed, if it has left something."""
    for path in place.world.directories.guests.iterdir():
        if (
            path.name not in place.world.decoys
            and path.name != place.world.bystander
            and (path / "intent.json").exists()
        ):
            place.decoys.like(path.name)


def must(holds: bool, what: str) -> None:
    """Fail with ``what`` unless it holds."""
    if not holds:
        raise Violated(what)
