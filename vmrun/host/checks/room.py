"""Judging: room for guests, the bases they boot from, and what earlier runs left. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from vmrun.host.checks.facts import Asked, BaseFound, Host, State
from vmrun.model.diagnosis import Diagnosis, advice, fault, ok
from vmrun.model.plan import Accelerator
from vmrun.model.quantity import MIB, format_size
from vmrun.planning.memory import plan_memory

_LITTLE_DISK = 2048 * MIB
"""Both bases, the packages they are built from, and a few images."""

_TOO_LITTLE_DISK = 64 * MIB
"""A small image and libvirt's own files."""


def judge_room(host: Host) -> Iterator[Diagnosis]:
    """The state directory, its disk, memory for guests and for keys, bases and leftovers."""
    yield _state(host.state)
    yield _disk(host.state)
    yield _memory(host)
    if host.asked.embedded:
        yield _memory_folder(host)
    yield from _bases(host.asked, host.bases)
    yield from _leftovers(host.state)


def _state(state: State) -> Diagnosis:
    if state.error:
        return fault("state", state.error, state.hint)
    return ok("state", f"{state.path}: a guest's directory can be made, its sockets fit")


def _disk(state: State) -> Diagnosis:
    found = f"{format_size(state.free)} free at {state.path}"
    remedy = "free some, or set VMRUN_STATE_DIR to a larger disk"
    if state.free < _TOO_LITTLE_DISK:
        return fault("disk", found, remedy)
    if state.free < _LITTLE_DISK:
        return advice("disk", found, f"{remedy}: bases and images want {format_size(_LITTLE_DISK)}")
    return ok("disk", found)


def _memory(host: Host) -> Diagnosis:
    verdict = host.trial.verdict
    plan = plan_memory(
        workload=host.asked.memory,
        unpacked=0,
        blobs=(),
        flavour=host.asked.flavour,
        accelerator=verdict.accelerator if verdict else Accelerator.KVM,
    )
    fit = host.kernel.memory // plan.host
    found = (
        f"{format_size(host.kernel.memory)} available, enough for {fit} default guests at a time"
        f" ({format_size(plan.host)} each, and the image)"
    )
    if fit == 0:
        return fault("memory", found, "free some, or ask for less with --memory")
    return ok("memory", found)


def _memory_folder(host: Host) -> Diagnosis:
    check = "key-memory"
    if host.kernel.memory_folder:
        return ok(check, "keys of encrypted disks are in memory only: /dev/shm is a tmpfs")
    return advice(
        check,
        "no tmpfs at /dev/shm: encrypted disks are refused, whose keys would lie on a disk",
        "mount -t tmpfs -o mode=1777,nosuid,nodev tmpfs /dev/shm",
    )


def _bases(asked: Asked, bases: Iterable[BaseFound]) -> Iterator[Diagnosis]:
    for base in bases:
        check, needed = f"base-{base.flavour}", base.flavour is asked.flavour
        remedy = base.hint or f"vmrun base build --flavour {base.flavour}"
        if base.error:
            yield (fault if needed else advice)(check, f"damaged: {base.error}", remedy)
        elif base.digest is None:
            yield (fault if needed else advice)(check, "not built", remedy)
        else:
            yield ok(check, f"{base.digest.short}, every file hashes to what its manifest says")


def _leftovers(state: State) -> Iterator[Diagnosis]:
    if state.unreclaimed:
        yield advice(
            "leftovers",
            f"could not remove all that dead runs left: {', '.join(state.unreclaimed)}",
            f"the next vmrun command tries again; look into {state.path}/guests",
        )
    elif state.reclaimed:
        yield ok(
            "leftovers",
            f"{len(state.reclaimed)} reclaimed just now, as every command does:"
            f" {', '.join(state.reclaimed)}",
        )
    else:
        yield ok("leftovers", "none")
    if state.kept:
        yield advice(
            "kept-guests",
            f"{len(state.kept)} kept for a look: {', '.join(state.kept)}",
            f"vmrun rm {state.kept[0]}",
        )
    else:
        yield ok("kept-guests", "none")
