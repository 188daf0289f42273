"""A plan: all that a run will create, decided before anything is created."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from vmrun.model.base import Base
from vmrun.model.image import Image
from vmrun.model.network import NetworkPlan
from vmrun.model.storage import Bind, Disk
from vmrun.model.workload import Limits, Workload

EMBEDDED = "embedded"
"""In place of a libvirt URI: the driver inside vmrun's own process."""


class Accelerator(StrEnum):
    """What executes the guest's instructions. Emulation is not a security boundary."""

    KVM = "kvm"
    TCG = "tcg"

    @property
    def isolates(self) -> bool:
        """Whether QEMU's developers treat it as a security boundary."""
        return self is Accelerator.KVM


@dataclass(frozen=True, slots=True)
class HostFacts:
    """What planning must know of the host."""

    accelerator: Accelerator
    accelerator_reason: str
    cpus: int
    memory: int
    """Bytes available for new guests."""
    privileged: bool
    """Whether libvirt runs as root: own uid for each guest, cgroup limits."""
    memory_cgroup: bool
    """Whether libvirt can limit QEMU's memory."""
    connect: str
    """``embedded`` or a libvirt URI."""
    kvm_gid: int | None = None
    daemon_user: tuple[int, int] | None = None
    """uid and gid of QEMU where a libvirt daemon decides: its directories are open to no other."""


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """The three sizes of one run, in bytes: the workload's own limit, the guest's memory
    (that, the image unpacked, and a reserve for the guest itself) and the host's limit for
    the QEMU process (the guest's memory and QEMU's own)."""

    workload: int
    image: int
    reserve: int
    guest: int
    host: int


@dataclass(frozen=True, slots=True)
class Tmpfs:
    """A tmpfs in the container; ``size`` in bytes, ``mode`` in octal."""

    path: str
    size: int
    mode: int
    executable: bool


@dataclass(frozen=True, slots=True)
class ContainerPlan:
    """How the container is confined, in terms that both engines can be told and that can be
    read back from the kernel afterwards. Capability names carry the CAP_ prefix."""

    argv: tuple[str, ...]
    env: tuple[str, ...]
    workdir: str
    hostname: str
    uid: int
    gid: int
    groups: tuple[int, ...]
    user_asked: str
    user_mapped: bool
    read_only: bool
    capabilities: tuple[str, ...]
    no_new_privileges: bool
    limits: Limits
    tmpfs: tuple[Tmpfs, ...]
    terminal: bool
    interactive: bool
    masked_paths: tuple[str, ...]
    readonly_paths: tuple[str, ...]
    binds: tuple[Bind, ...] = ()
    network: NetworkPlan | None = None


@dataclass(frozen=True, slots=True)
class GuestPlan:
    """The guest: ``uuid`` and ``name`` are libvirt's, ``vcpus`` whole cores, ``ssh_ports`` how
    many SSH connections can be open at once, ``lease`` seconds until it powers off unrenewed.
    ``qemu_uid`` is the user of QEMU where libvirt runs as root, else None."""

    name: str
    uuid: str
    vcpus: int
    memory: MemoryPlan
    accelerator: Accelerator
    cpu_model: str
    kernel_arguments: tuple[str, ...]
    ssh_ports: int
    lease: int
    boot_deadline: float
    qemu_uid: int | None
    qemu_gid: int | None
    limit_host_memory: bool
    disks: tuple[Disk, ...] = ()


@dataclass(frozen=True, slots=True)
class Plan:
    """One run, decided: ``run_id`` is 12 hex digits."""

    run_id: str
    workload: Workload
    image: Image
    base: Base
    host: HostFacts
    guest: GuestPlan
    container: ContainerPlan
    warnings: tuple[str, ...]
