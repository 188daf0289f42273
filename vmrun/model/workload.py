"""What a user asks for: an image, a command, limits, and how hard it is held."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from vmrun.model.base import Flavour
from vmrun.model.image import Reference
from vmrun.model.network import Allow, Publish
from vmrun.model.service import NO_SERVICE, ServiceOptions
from vmrun.model.storage import NO_STORAGE, Storage


class ProfileName(StrEnum):
    """How hard a workload is confined; see docs/reference/profiles.md."""

    BASELINE = "baseline"
    RESTRICTED = "restricted"
    HEALTHCARE = "healthcare"


class EngineName(StrEnum):
    """What starts the container inside the guest."""

    CRUN = "crun"
    DOCKER = "docker"

    @property
    def flavour(self) -> Flavour:
        """The flavour of base that has this engine."""
        return Flavour.DOCKER if self is EngineName.DOCKER else Flavour.MINIMAL


@dataclass(frozen=True, slots=True)
class Limits:
    """The workload's own limits: ``memory`` in bytes, ``cpus`` in cores (fractions allowed),
    ``pids`` and ``files`` as counts, ``timeout`` in seconds (None: no deadline)."""

    memory: int
    cpus: float
    pids: int
    files: int
    timeout: float | None = None


@dataclass(frozen=True, slots=True)
class TmpfsMount:
    """A tmpfs inside the container; ``size`` in bytes, None for the profile's default."""

    path: str
    size: int | None = None
    executable: bool = False


@dataclass(frozen=True, slots=True)
class Workload:
    """Everything ``vmrun run`` was told about what to run."""

    image: Reference
    command: tuple[str, ...] = ()
    entrypoint: str | None = None
    env: tuple[tuple[str, str], ...] = ()
    workdir: str | None = None
    user: str | None = None
    hostname: str | None = None
    tmpfs: tuple[TmpfsMount, ...] = ()
    read_only: bool | None = None
    cap_add: tuple[str, ...] = ()
    limits: Limits = field(
        default_factory=lambda: Limits(memory=128 << 20, cpus=1.0, pids=128, files=1024)
    )
    interactive: bool = False
    terminal: bool = False
    name: str | None = None
    tenant: str = "default"
    profile: ProfileName = ProfileName.RESTRICTED
    allow_emulation: bool = False
    engine: EngineName = EngineName.CRUN
    base: str | None = None
    connect: str | None = None
    keep: bool = False
    publish: tuple[Publish, ...] = ()
    allow: tuple[Allow, ...] = ()
    storage: Storage = NO_STORAGE
    service: ServiceOptions = NO_SERVICE
    labels: tuple[tuple[str, str], ...] = ()
