"""What the checks know of a host. Values only: reading is one thing, judging another."""

from __future__ import annotations

from dataclasses import dataclass

from vmrun.host.accelerator import Verdict
from vmrun.model.base import Flavour
from vmrun.model.digest import Digest


@dataclass(frozen=True, slots=True)
class Asked:
    """For whom and with which settings: ``memory`` is a workload's default limit in bytes,
    ``flavour`` the base that the default engine needs."""

    user: str
    privileged: bool
    connect: str
    memory: int
    flavour: Flavour

    @property
    def embedded(self) -> bool:
        """Whether libvirt runs inside vmrun."""
        return self.connect == "embedded"


@dataclass(frozen=True, slots=True)
class Libvirt:
    """Versions, empty when unknown; ``error`` says why the driver does not open."""

    binding: str
    library: str
    error: str = ""
    hint: str = ""


@dataclass(frozen=True, slots=True)
class Qemu:
    """``version`` is empty when there is no QEMU that runs; ``sandbox`` whether it was built
    with seccomp."""

    version: str
    sandbox: bool


@dataclass(frozen=True, slots=True)
class Software:
    """``distribution`` and ``release`` are os-release(5)'s ID and VERSION_ID;
    ``libvirt_user`` whether the user exists that libvirt was built to run QEMU as;
    ``missing_tools`` maps a program that builds bases to the Debian package that has it,
    ``missing_disk_tools`` likewise one that makes encrypted disks."""

    name: str
    distribution: str
    release: str
    kernel: str
    architecture: str
    python: str
    libvirt: Libvirt
    libvirt_user: bool
    qemu: Qemu
    missing_tools: dict[str, str]
    missing_disk_tools: dict[str, str]
    docker: str


@dataclass(frozen=True, slots=True)
class Device:
    """A device node: its group by name, whether that group may read and write it, whether
    everybody may, and whether this process may."""

    group: str
    mode: int
    group_may: bool
    anyone_may: bool
    we_may: bool


@dataclass(frozen=True, slots=True)
class Processor:
    """``flag`` is the CPU's own word (vmx or svm); ``guest`` whether this host is itself one."""

    cpus: int
    flag: bool
    guest: bool
    smt: bool
    vulnerable: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Cgroups:
    """``version``: ``v2``, ``v1``, ``hybrid`` or empty; ``memory`` whether there is a memory
    controller, ``writable`` whether this process may make groups in it."""

    version: str
    memory: bool
    writable: bool


@dataclass(frozen=True, slots=True)
class Kernel:
    """What the kernel offers to confine with. ``apparmor_profile``: one of the profiles is
    loaded under which libvirt confines QEMU; None where we may not know. ``memory_folder``:
    /dev/shm is a tmpfs."""

    cgroups: Cgroups
    seccomp: bool
    apparmor: bool
    apparmor_profile: bool | None
    namespaces_off: tuple[str, ...]
    subordinate_ids: bool
    ksm: bool
    plain_swap: tuple[str, ...]
    memory_folder: bool
    memory: int


@dataclass(frozen=True, slots=True)
class BaseFound:
    """A flavour's current base after hashing; ``digest`` is None when there is none, or
    ``error`` says what is wrong with it."""

    flavour: Flavour
    digest: Digest | None
    error: str = ""
    hint: str = ""


@dataclass(frozen=True, slots=True)
class State:
    """The state directory: ``error`` when no guest's directory can be made in it, ``free`` in
    bytes, and the run ids or names of what was found in it."""

    path: str
    free: int
    error: str = ""
    hint: str = ""
    reclaimed: tuple[str, ...] = ()
    unreclaimed: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Trial:
    """The accelerator that was found, or why none was looked for."""

    verdict: Verdict | None
    untried: str = ""


@dataclass(frozen=True, slots=True)
class Host:
    """Everything the checks judge."""

    asked: Asked
    software: Software
    processor: Processor
    kvm: Device | None
    vsock: Device | None
    kernel: Kernel
    state: State
    bases: tuple[BaseFound, ...]
    trial: Trial
