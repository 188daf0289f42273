"""What a compose file says, as values. Everything in them was checked while it was read."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from vmrun.model.image import Reference
from vmrun.model.network import Allow, Publish
from vmrun.model.service import HealthCheck, RestartPolicy
from vmrun.model.storage import HostDirectory, NamedVolume, Secret
from vmrun.model.workload import ProfileName, TmpfsMount

NO_RESTART = RestartPolicy()


class Condition(StrEnum):
    """When a dependency is good enough for what depends on it to start."""

    STARTED = "service_started"
    HEALTHY = "service_healthy"
    COMPLETED = "service_completed_successfully"


@dataclass(frozen=True, slots=True)
class Dependency:
    """``service`` must have come as far as ``condition``."""

    service: str
    condition: Condition = Condition.STARTED


@dataclass(frozen=True, slots=True)
class ServiceLimits:
    """Limits that the file sets; None for those that are left to vmrun's settings. ``memory`` in
    bytes, ``cpus`` in cores, ``pids`` and ``files`` as counts."""

    memory: int | None = None
    cpus: float | None = None
    pids: int | None = None
    files: int | None = None


@dataclass(frozen=True, slots=True)
class Service:
    """A container of the project.

    ``command`` and ``entrypoint`` are None where the image's count. ``networks`` is empty for
    ``network_mode: none``; ``aliases`` are further names of the service on its network.
    ``read_only`` is None where the file does not say. ``expose`` has no effect: on a network every
    port is reachable. ``stop_timeout`` in seconds.
    """

    name: str
    image: Reference
    command: tuple[str, ...] | None = None
    entrypoint: tuple[str, ...] | None = None
    environment: tuple[tuple[str, str], ...] = ()
    ports: tuple[Publish, ...] = ()
    expose: tuple[int, ...] = ()
    allow: tuple[Allow, ...] = ()
    directories: tuple[HostDirectory, ...] = ()
    volumes: tuple[NamedVolume, ...] = ()
    secrets: tuple[Secret, ...] = ()
    tmpfs: tuple[TmpfsMount, ...] = ()
    networks: tuple[str, ...] = ("default",)
    aliases: tuple[str, ...] = ()
    depends_on: tuple[Dependency, ...] = ()
    limits: ServiceLimits = ServiceLimits()
    healthcheck: HealthCheck | None = None
    restart: RestartPolicy = NO_RESTART
    stop_signal: str = ""
    stop_timeout: float = 10.0
    user: str | None = None
    working_dir: str | None = None
    hostname: str | None = None
    read_only: bool | None = None
    cap_add: tuple[str, ...] = ()
    labels: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Network:
    """A network of the project. No service on an ``internal`` one reaches anything outside."""

    name: str
    internal: bool = False


@dataclass(frozen=True, slots=True)
class ProjectVolume:
    """A volume of the tenant's by its name in the file (``key``) and the tenant's own for it.
    An ``external`` one belongs to no project and is not removed with one."""

    key: str
    name: str
    external: bool = False


@dataclass(frozen=True, slots=True)
class Project:
    """A compose file. ``folder`` is where it is; ``tenant`` and ``profile`` are None where it does
    not say. ``notes`` are for the user's eyes: what of the host outside ``folder`` it uses."""

    name: str
    folder: Path
    services: tuple[Service, ...]
    networks: tuple[Network, ...] = ()
    volumes: tuple[ProjectVolume, ...] = ()
    secrets: tuple[Secret, ...] = ()
    tenant: str | None = None
    profile: ProfileName | None = None
    notes: tuple[str, ...] = ()

    def network(self, name: str) -> Network:
        """The network of that name, which the reader has made sure of."""
        return next(network for network in self.networks if network.name == name)
