"""Tenants: defined, and their guests started.

A tenant's guest outlives the containers in it. It is a guest like any other, owned by a supervisor
that was started without a run of its own.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from vmrun.base.store import find_base, verify_base
from vmrun.journal.journal import Journal
from vmrun.model.errors import StateError, VmrunError
from vmrun.model.tenant import Tenant
from vmrun.model.wire import dumps, loads
from vmrun.planning.data import plan_tenant_disks
from vmrun.planning.memory import plan_memory
from vmrun.planning.planner import TENANT_SSH_PORTS, RunIdentity, check_room, plan_guest
from vmrun.policy.quota import check_guest
from vmrun.run.accelerator import host_facts
from vmrun.run.clock import PhaseClock
from vmrun.run.directories import StateDirectories
from vmrun.run.intent import Intent
from vmrun.run.reclaim import reclaim_all
from vmrun.run.shares import taken
from vmrun.run.signals import signal_guard
from vmrun.run.state import GuestDirectory, alive, claim
from vmrun.run.teardown import remove_guest
from vmrun.supervisor.launch import launch
from vmrun.supervisor.live import GuestOrder
from vmrun.tenant.store import TenantStore
from vmrun.volume.store import VolumeStore

_ORDER = "order.json"
_LOG = "supervisor.log"
_LARGEST_ORDER = 1 << 20


@dataclass(frozen=True, slots=True)
class TenantOptions:
    """Where things are, which libvirt to use, and who is told of what goes on."""

    directories: StateDirectories
    connect: str
    announce: Callable[[str], None]
    note: Callable[[str], None]


@dataclass(frozen=True, slots=True)
class TenantGuest:
    """A tenant's guest that lives: its directory, and what it was made as."""

    path: Path
    intent: Intent
    order: GuestOrder


def create(tenant: Tenant, options: TenantOptions) -> None:
    """Define a tenant; :func:`start` boots its guest. Raises :class:`StateError`."""
    quota = tenant.quota
    TenantStore(options.directories.tenants).create(tenant)
    Journal(options.directories.journal).append(
        "tenant.create",
        {
            "tenant": tenant.name,
            "engine": str(tenant.engine),
            "cpus": f"{quota.cpus:g}",
            "memory": str(quota.memory),
            "disk": str(quota.disk),
            "guests": str(quota.guests),
            "floor": str(tenant.floor or ""),
        },
    )


def start(name: str, options: TenantOptions) -> Intent:
    """Boot the guest of a tenant and leave it to a supervisor; returns what it is when containers
    can be started in it. Raises :class:`VmrunError`, and then nothing is left."""
    directories = options.directories
    with signal_guard() as guard:

        def announce(phase: str) -> None:
            guard.check()
            options.announce(phase)

        clock = PhaseClock(announce)
        with clock.phase("reclaim"):
            reclaim_all(directories, options.note)
        tenant, directory = _claim(name, options)
        owned = True
        try:
            order = _order(tenant, directory, options, clock)
            _write_order(directory.path / _ORDER, order)
            _tell_of_start(tenant, order, directory.intent, directories)
            log = directories.tenants / name / _LOG
            log.unlink(missing_ok=True)
            owned = False
            launch(order, directory, directories, log=log, announce=announce)
        except VmrunError:
            guard.protect()
            if owned:
                remove_guest(directory)
            raise
    return directory.intent


def guest_of(directories: StateDirectories, name: str) -> TenantGuest:
    """The guest of a tenant. Raises :class:`StateError` when it does not run."""
    intent = shared_guest(directories, name)
    if intent is None:
        raise StateError(
            f"the guest of tenant {name!r} does not run",
            hint=f"start it: vmrun tenant start {name}",
        )
    path = directories.guests / intent.run_id
    try:
        with (path / _ORDER).open("rb") as file:
            order = loads(GuestOrder, file.read(_LARGEST_ORDER))
    except OSError as error:
        raise StateError(
            f"the guest of tenant {name!r} is only being made, or is ending", hint="try again"
        ) from error
    return TenantGuest(path, intent, order)


def shared_guest(directories: StateDirectories, name: str) -> Intent | None:
    """The tenant's guest if it lives."""
    found = (i for i in alive(directories) if i.shared and i.tenant == name)
    return next(found, None)


def _claim(name: str, options: TenantOptions) -> tuple[Tenant, GuestDirectory]:
    """The tenant, and a directory for its guest, which it can have only once."""
    directories = options.directories
    store = TenantStore(directories.tenants)
    with store.locked():
        tenant = store.get(name)
        others = taken(directories, name)
        if any(other.shared for other in others):
            raise StateError(
                f"the guest of tenant {name!r} runs already, or is being started",
                hint=f"see 'vmrun tenant inspect {name}'",
            )
        check_guest(tenant, others)
        return tenant, claim(
            directories, name=None, tenant=name, connect=options.connect, shared=True
        )


def _order(
    tenant: Tenant, directory: GuestDirectory, options: TenantOptions, clock: PhaseClock
) -> GuestOrder:
    """The guest, with room for all that the quota lets its containers take, and all named volumes
    that the tenant has now."""
    directories, intent = options.directories, directory.intent
    with clock.phase("resolve"):
        base = find_base(directories.bases, tenant.engine.flavour)
        host = host_facts(base, directories, connect=intent.connect)
    with clock.phase("verify base"):
        verify_base(base)
    names = [volume.name for volume in VolumeStore(directories.volumes, tenant.name).list()]
    disks = plan_tenant_disks(names, tenant=tenant.name, uuid=intent.uuid, directory=directory.path)
    memory = plan_memory(
        workload=tenant.quota.memory,
        unpacked=0,
        blobs=(),
        flavour=base.flavour,
        accelerator=host.accelerator,
        disks=len(disks),
    )
    check_room(memory, host)
    if not host.accelerator.isolates:
        options.note(
            f"running under emulation, which is NOT a security boundary: {host.accelerator_reason}"
        )
    identity = RunIdentity(intent.run_id, intent.uuid, intent.slot)
    cpus = min(tenant.quota.cpus, host.cpus)
    plan = plan_guest(
        base, host, memory, identity, cpus=cpus, disks=disks, ssh_ports=TENANT_SSH_PORTS
    )
    metadata = {"run": intent.run_id, "tenant": tenant.name, "base": str(base.digest)}
    return GuestOrder(plan, base, tenant.name, metadata)


def _write_order(path: Path, order: GuestOrder) -> None:
    try:
        path.touch(mode=0o600)
        path.write_text(dumps(order))
    except OSError as error:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
        raise StateError(
            f"cannot write {path}: {error.strerror}", hint="free disk space"
        ) from error


def _tell_of_start(
    tenant: Tenant, order: GuestOrder, intent: Intent, directories: StateDirectories
) -> None:
    """The journal comes first: a guest that it cannot take down is not started."""
    journal = Journal(directories.journal)
    fields = {"tenant": tenant.name, "guest": intent.run_id}
    journal.append("tenant.start", fields)
    journal.append(
        "guest.start",
        {
            **fields,
            "accelerator": str(order.plan.accelerator),
            "base": str(order.base.digest),
            "engine": str(tenant.engine),
        },
    )
