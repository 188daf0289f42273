"""Data of a workload: directories of the host, named volumes, secrets and scratch space."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True)
class HostDirectory:
    """A directory (or file) of the host that is copied into the guest before the start, and back
    after the end unless ``read_only``. Programs in it can be executed if ``executable``."""

    source: Path
    target: str
    read_only: bool = True
    executable: bool = False


@dataclass(frozen=True, slots=True)
class NamedVolume:
    """An encrypted volume of the tenant's, by name, mounted at ``target``. Programs in it can be
    executed if ``executable``."""

    name: str
    target: str
    read_only: bool = False
    executable: bool = False


@dataclass(frozen=True, slots=True)
class Secret:
    """A secret that the container finds as ``/run/secrets/<name>``: its bytes come from the file
    ``source`` or else from the environment variable ``variable`` when the run starts. The bytes
    themselves are in no value of the model, so that no plan, record or journal can show them."""

    name: str
    source: Path | None = None
    variable: str = ""


@dataclass(frozen=True, slots=True)
class Bind:
    """A directory or file of the guest (``source``) as the container sees it at ``target``: always
    nosuid and nodev, noexec unless ``executable``."""

    source: str
    target: str
    read_only: bool
    executable: bool = False


@dataclass(frozen=True, slots=True)
class SharedVolume:
    """A volume that a tenant's guest has mounted, for one container in it: ``content`` is the
    directory of the guest that it is to see, ``at`` the place of the container's own bind of that.
    ``claimed`` is made when the first container that may write there has come."""

    content: str
    at: str
    claimed: str
    read_only: bool


@dataclass(frozen=True, slots=True)
class Disk:
    """A qcow2 file of the host, encrypted with LUKS, as a virtio disk of the guest that is found by
    its ``serial`` (at most 20 characters). ``secret`` is the uuid of libvirt's secret that holds
    the passphrase while the guest lives."""

    path: Path
    serial: str
    secret: str
    read_only: bool = False


@dataclass(frozen=True, slots=True)
class Storage:
    """What of all this a workload asked for; ``scratch`` in bytes, None for none."""

    directories: tuple[HostDirectory, ...] = ()
    volumes: tuple[NamedVolume, ...] = ()
    secrets: tuple[Secret, ...] = ()
    scratch: int | None = None
    scratch_target: str = "/scratch"


NO_STORAGE = Storage()


@dataclass(frozen=True, slots=True)
class Volume:
    """A named volume as the host keeps it: ``size`` in bytes; exactly one of ``passphrase_file``
    and ``passphrase_command`` says where its passphrase comes from. The passphrase itself is kept
    nowhere."""

    name: str
    tenant: str
    size: int
    path: Path
    created: float
    passphrase_file: Path | None = None
    passphrase_command: str = ""
    in_use_by: str = field(default="", compare=False)
