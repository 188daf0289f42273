"""A service as a workload, as ``vmrun run`` would be told of it."""

from __future__ import annotations

from dataclasses import replace

from vmrun.compose.model import Project, Service
from vmrun.compose.values import host_name_of
from vmrun.model.service import ServiceOptions
from vmrun.model.storage import Storage
from vmrun.model.workload import Limits, Workload

PROJECT_LABEL = "vmrun.compose.project"
SERVICE_LABEL = "vmrun.compose.service"


def workload_name(project: Project, service: Service) -> str:
    """What the service's container is called within the tenant's guest."""
    return host_name_of(f"{project.name}-{service.name}")


def to_workload(project: Project, service: Service, defaults: Workload) -> Workload:
    """``defaults`` has the settings' limits, tenant and profile, which count where the file says
    nothing, and what a file cannot say (engine, base, connection), which always count."""
    entrypoint, command = _words(service)
    return replace(
        defaults,
        image=service.image,
        command=command,
        entrypoint=entrypoint,
        env=service.environment,
        workdir=service.working_dir,
        user=service.user,
        hostname=service.hostname or host_name_of(service.name),
        tmpfs=service.tmpfs,
        read_only=service.read_only,
        cap_add=service.cap_add,
        limits=_limits(service, defaults.limits),
        interactive=False,
        terminal=False,
        name=workload_name(project, service),
        tenant=project.tenant or defaults.tenant,
        profile=project.profile or defaults.profile,
        keep=False,
        publish=service.ports,
        allow=service.allow,
        storage=Storage(
            directories=service.directories, volumes=service.volumes, secrets=service.secrets
        ),
        service=ServiceOptions(
            restart=service.restart,
            health=service.healthcheck,
            stop_signal=service.stop_signal,
            stop_timeout=service.stop_timeout,
        ),
        labels=(
            *service.labels,
            (PROJECT_LABEL, project.name),
            (SERVICE_LABEL, service.name),
        ),
    )


def _words(service: Service) -> tuple[str | None, tuple[str, ...]]:
    """A workload's entrypoint is one word, and what follows it is its command's. An empty one of
    a service sets the image's aside, so that the command's first word is the program."""
    command = service.command or ()
    if service.entrypoint is None:
        return None, command
    words = (*service.entrypoint, *command)
    return words[0], words[1:]


def _limits(service: Service, defaults: Limits) -> Limits:
    asked = service.limits
    return Limits(
        memory=defaults.memory if asked.memory is None else asked.memory,
        cpus=defaults.cpus if asked.cpus is None else asked.cpus,
        pids=defaults.pids if asked.pids is None else asked.pids,
        files=defaults.files if asked.files is None else asked.files,
    )
