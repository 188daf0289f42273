"""What a tenant's guest uses, and each container in it."""

from __future__ import annotations

from dataclasses import dataclass

from vmrun.model.errors import VmrunError
from vmrun.model.run_record import RunRecord
from vmrun.model.stats import Stats
from vmrun.model.wire import decode
from vmrun.run.directories import StateDirectories
from vmrun.run.tenant import guest_of
from vmrun.supervisor.client import request
from vmrun.supervisor.records import Runs

_ASK = 30.0


@dataclass(frozen=True, slots=True)
class ContainerStats:
    """One container's counters; None while they cannot be read, as of one that is paused."""

    record: RunRecord
    stats: Stats | None


@dataclass(frozen=True, slots=True)
class TenantStats:
    """``guest_memory`` is what the guest was given; the rest QEMU's own, as the host sees it. 0 and
    None where no container could be asked."""

    guest: str
    guest_memory: int
    qemu_memory: int | None
    qemu_cpu_seconds: float
    containers: tuple[ContainerStats, ...]


def tenant_stats(directories: StateDirectories, name: str) -> TenantStats:
    """Read them. Raises :class:`StateError` when the guest does not run."""
    guest = guest_of(directories, name)
    inside = [
        record
        for record in Runs(directories.runs).all(on_damage=lambda _: None)
        if record.guest == guest.intent.run_id and not record.ended
    ]
    found = []
    for record in inside:
        try:
            answer = request(guest.path, "stats", timeout=_ASK, run=record.run_id)
            found.append(ContainerStats(record, decode(Stats, answer.get("stats"))))
        except VmrunError:
            found.append(ContainerStats(record, None))
    read = [one.stats for one in found if one.stats is not None]
    return TenantStats(
        guest=guest.intent.run_id,
        guest_memory=guest.order.plan.memory.guest,
        qemu_memory=read[-1].qemu_memory if read else None,
        qemu_cpu_seconds=read[-1].qemu_cpu_seconds if read else 0.0,
        containers=tuple(found),
    )
