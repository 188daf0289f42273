"""A compose project in the guest of a tenant: its services brought up in order, and taken down.

What runs is told by the labels of the runs' records, so there is no state of its own to go wrong.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace

from vmrun.compose.model import Condition, Dependency, Project, Service
from vmrun.compose.networks import lay_out, wire
from vmrun.compose.order import closure, levels, stop_order
from vmrun.compose.workload import PROJECT_LABEL, SERVICE_LABEL, to_workload
from vmrun.model.errors import DeadlineExceeded, StateError
from vmrun.model.network import NetworkPlan
from vmrun.model.run_record import Health, RunRecord, RunState
from vmrun.model.wire import dumps
from vmrun.model.workload import Workload
from vmrun.planning.data import made_later, volume_serial
from vmrun.run.directories import StateDirectories
from vmrun.run.tenant import guest_of, shared_guest
from vmrun.volume.store import VolumeStore, create_words

CONFIG_LABEL = "vmrun.compose.config"
"""A digest of all that a service was started with: another one means that it is made anew."""

_POLL = 0.25

Start = Callable[[Workload, NetworkPlan | None], RunRecord]


@dataclass(frozen=True, slots=True)
class Runner:
    """How a project's services are run: ``start`` starts one and returns when it runs, ``stop``
    ends one and removes its record, ``look`` gives the records of the tenant's runs as they are
    now, ``say`` tells a service and what happens to it."""

    start: Start
    stop: Callable[[RunRecord], None]
    look: Callable[[], Iterable[RunRecord]]
    say: Callable[[str, str], None]
    patience: float


def check_volumes(
    project: Project, only: Collection[str], tenant: str, directories: StateDirectories
) -> None:
    """See that the guest of ``tenant`` has every volume of the services before one of them starts.
    Raises :class:`StateError` with the commands that bring it there."""
    services = closure(project.services, only) if only else project.services
    wanted = sorted({volume.name for service in services for volume in service.volumes})
    if not wanted:
        return
    there = {volume.name for volume in VolumeStore(directories.volumes, tenant).list()}
    if missing := [name for name in wanted if name not in there]:
        commands = [create_words(name, tenant) for name in missing]
        if shared_guest(directories, tenant) is not None:
            commands.append(f"vmrun tenant stop {tenant}")
        commands.append(f"vmrun tenant start {tenant}")
        which = ", ".join(repr(name) for name in missing)
        raise StateError(f"tenant {tenant!r} has no volume {which}", hint="; ".join(commands))
    disks = {disk.serial for disk in guest_of(directories, tenant).order.plan.disks}
    if late := [name for name in wanted if volume_serial(name) not in disks]:
        raise made_later(late, tenant)


def of_project(records: Iterable[RunRecord], project: str) -> dict[str, RunRecord]:
    """The runs of a project by service."""
    found = {}
    for record in records:
        labels = dict(record.labels)
        if labels.get(PROJECT_LABEL) == project and SERVICE_LABEL in labels:
            found[labels[SERVICE_LABEL]] = record
    return found


def up(
    project: Project, defaults: Workload, runner: Runner, *, only: Collection[str] = ()
) -> tuple[RunRecord, ...]:
    """Bring the services up, or those of ``only`` and what they depend on, each when what it
    depends on has come as far as it says. One that runs as the file says is left alone.

    Raises :class:`VmrunError` for the first that cannot be started; what runs by then goes on.
    """
    services = closure(project.services, only) if only else project.services
    by_name = {service.name: service for service in services}
    records = tuple(runner.look())
    layouts = lay_out(project, _subnets_of_others(records, project.name))
    running = of_project(records, project.name)
    found: dict[str, RunRecord] = {}
    for name in (name for level in levels(services) for name in level):
        service = by_name[name]
        for dependency in service.depends_on:
            _await(dependency, found[dependency.service].run_id, runner)
        workload = to_workload(project, service, defaults)
        network = wire(service, layouts)
        workload = replace(workload, labels=(*workload.labels, _config(workload, network)))
        found[name] = _brought_up(name, workload, network, running.get(name), runner)
    return tuple(found.values())


def down(project: Project, runner: Runner) -> tuple[str, ...]:
    """Stop and remove every run of the project, those that the file does not know any more first,
    then each before what it depends on. Returns the services that there were."""
    running = of_project(runner.look(), project.name)
    known = [name for name in stop_order(project.services) if name in running]
    strangers = sorted(set(running) - set(known))
    for name in (*strangers, *known):
        runner.say(name, "stopping")
        runner.stop(running[name])
        runner.say(name, "removed")
    return (*strangers, *known)


def _brought_up(
    name: str,
    workload: Workload,
    network: NetworkPlan | None,
    there: RunRecord | None,
    runner: Runner,
) -> RunRecord:
    if there is not None:
        same = dict(there.labels).get(CONFIG_LABEL) == dict(workload.labels)[CONFIG_LABEL]
        done = there.state is RunState.EXITED and there.exit_status == 0
        if same and (not there.ended or done):
            runner.say(name, "completed before" if there.ended else "running")
            return there
        runner.say(name, "making anew")
        runner.stop(there)
    runner.say(name, "starting")
    record = runner.start(workload, network)
    runner.say(name, "started")
    return record


def _await(dependency: Dependency, run_id: str, runner: Runner) -> None:
    """Wait until a dependency has come as far as it has to. Raises :class:`StateError` when it
    never will, :class:`DeadlineExceeded`."""
    deadline = time.monotonic() + runner.patience
    said = False
    while True:
        record = next((r for r in runner.look() if r.run_id == run_id), None)
        if _fulfilled(dependency, record):
            return
        if not said and dependency.condition is not Condition.STARTED:
            runner.say(dependency.service, f"waiting until it is {_words(dependency)}")
            said = True
        if time.monotonic() > deadline:
            raise DeadlineExceeded(
                f"{dependency.service} was not {_words(dependency)} within {runner.patience:g} s",
                hint=f"vmrun compose logs {dependency.service}",
            )
        time.sleep(_POLL)


def _fulfilled(dependency: Dependency, record: RunRecord | None) -> bool:
    name, condition = dependency.service, dependency.condition
    hint = f"vmrun compose logs {name}"
    if record is None:
        raise StateError(f"{name} is gone", hint="vmrun compose up")
    if condition is Condition.STARTED:
        return True
    if condition is Condition.COMPLETED:
        if record.ended and record.exit_status != 0:
            raise StateError(f"{name} ended with status {record.exit_status}", hint=hint)
        return record.ended
    if record.ended:
        raise StateError(f"{name} ended before it was healthy", hint=hint)
    if record.health is Health.UNHEALTHY:
        raise StateError(f"{name} is unhealthy", hint=hint)
    return record.health is Health.HEALTHY


def _words(dependency: Dependency) -> str:
    return "healthy" if dependency.condition is Condition.HEALTHY else "completed"


def _config(workload: Workload, network: NetworkPlan | None) -> tuple[str, str]:
    # Names and ports of the whole network change with every service that comes or goes; those that
    # run learn of them without being made anew.
    own = replace(network, names=(), listen=()) if network else None
    told = f"{dumps(workload)}\n{dumps(own)}"
    return CONFIG_LABEL, hashlib.sha256(told.encode()).hexdigest()


def _subnets_of_others(records: Iterable[RunRecord], project: str) -> frozenset[int]:
    """The third numbers of the addresses that runs of other projects have."""
    return frozenset(
        int(record.address.split(".")[2])
        for record in records
        if record.address and dict(record.labels).get(PROJECT_LABEL) != project
    )


def service_of(record: RunRecord) -> str:
    """The service that a run is of; empty for none."""
    labels: Mapping[str, str] = dict(record.labels)
    return labels.get(SERVICE_LABEL, "")


def check_services(project: Project, names: Iterable[str]) -> tuple[Service, ...]:
    """The services of those names, all without one. Raises :class:`UsageError`."""
    wanted = set(names)
    if not wanted:
        return project.services
    closure(project.services, wanted)
    return tuple(service for service in project.services if service.name in wanted)
