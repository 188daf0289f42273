"""Where a workload's data lies: on the host, in the guest, and in the container. Pure.

In the guest all of a run's data is below one directory of root's own, and every bind is a mount of
its own there, with its options on it: docker can say none but read-only, and a bind of a mount
inherits the rest.

The volumes of a tenant's guest are mounted once, when it starts, where no run can reach them but by
binds of its own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from vmrun.model.errors import StateError, UsageError
from vmrun.model.storage import Bind, Disk, HostDirectory, NamedVolume, SharedVolume, Storage
from vmrun.planning.storage import MAX_DISKS, SECRETS_TARGET

TENANT_VOLUMES = "volumes"
"""Stands for a run id where the volumes of a tenant's guest are mounted; it can be none."""

_DATA = "/run/vmrun-data"
_PAGE = 4096
_SCRATCH_SERIAL = "vmrun-scratch"


@dataclass(frozen=True, slots=True)
class StorageFacts:
    """What planning must know of the host's side: ``directory`` is the guest's own, where its
    disks are; ``copied`` and ``secret`` are the bytes that the host directories and the secrets
    take in the guest's memory, in whole pages."""

    directory: Path
    copied: int = 0
    secret: int = 0


NOTHING_STORED = StorageFacts(Path())


def in_pages(size: int) -> int:
    """The bytes that a file of ``size`` bytes takes in a tmpfs, its inode included."""
    return -(-size // _PAGE) * _PAGE + _PAGE // 4


def data_directory(run_id: str) -> str:
    """The directory of a run's data in the guest."""
    return f"{_DATA}/{run_id}"


def copies_directory(run_id: str) -> str:
    """The tmpfs of the guest that holds the host directories."""
    return f"{data_directory(run_id)}/copies"


def secrets_directory(run_id: str) -> str:
    """The tmpfs of the guest that holds the secrets, and nothing else."""
    return f"{data_directory(run_id)}/secrets"


def copy_name(index: int) -> str:
    """Below :func:`copies_directory`: the copy of the host directory with that number."""
    return f"{index}/content"


def mount_point(run_id: str, serial: str) -> str:
    """Where the guest mounts the disk with that serial; ``data`` in it is what the container
    sees, so that it meets no ``lost+found``."""
    return f"{data_directory(run_id)}/{serial}"


def disk_content(run_id: str, serial: str) -> str:
    """What of a disk the container sees."""
    return f"{mount_point(run_id, serial)}/data"


def volume_serial(name: str) -> str:
    """The serial of the disk of a tenant's volume; 20 characters, which is all that virtio has
    (virtio 1.2, 5.2.6)."""
    return f"vmrun-{hashlib.sha256(name.encode()).hexdigest()[:14]}"


def plan_disks(storage: Storage, *, uuid: str, directory: Path) -> tuple[Disk, ...]:
    """The encrypted disks of the guest ``uuid``, whose files are in ``directory``."""
    asked = [(volume_serial(item.name), item.read_only) for item in storage.volumes]
    if storage.scratch is not None:
        asked.append((_SCRATCH_SERIAL, False))
    return _disks(asked, uuid, directory)


def plan_tenant_disks(
    names: Sequence[str], *, tenant: str, uuid: str, directory: Path
) -> tuple[Disk, ...]:
    """The disks of a tenant's guest: all named volumes that the tenant has when it starts. Raises
    :class:`StateError` for more than a guest can have."""
    if len(names) > MAX_DISKS:
        raise StateError(
            f"tenant {tenant!r} has {len(names)} volumes; its guest can have {MAX_DISKS}",
            hint=f"remove those that nobody needs: vmrun volume rm --tenant {tenant} NAME",
        )
    return _disks([(volume_serial(name), False) for name in sorted(names)], uuid, directory)


def _disks(asked: Iterable[tuple[str, bool]], uuid: str, directory: Path) -> tuple[Disk, ...]:
    return tuple(
        Disk(
            path=directory / f"{serial.removeprefix('vmrun-')}.qcow2",
            serial=serial,
            secret=_secret_uuid(uuid, serial),
            read_only=read_only,
        )
        for serial, read_only in asked
    )


def scratch_disk(disks: tuple[Disk, ...]) -> Disk | None:
    """The scratch disk among them."""
    return next((disk for disk in disks if disk.serial == _SCRATCH_SERIAL), None)


def _secret_uuid(uuid: str, serial: str) -> str:
    """The same for the same guest and disk, and of no other (RFC 9562, version 8)."""
    digits = hashlib.sha256(f"{uuid} {serial}".encode()).hexdigest()
    return f"{digits[:8]}-{digits[8:12]}-8{digits[13:16]}-8{digits[17:20]}-{digits[20:32]}"


def shared_volumes(storage: Storage, run_id: str) -> tuple[SharedVolume, ...]:
    """The volumes of a run in its tenant's guest."""
    found = []
    for item in storage.volumes:
        serial = volume_serial(item.name)
        found.append(
            SharedVolume(
                content=disk_content(TENANT_VOLUMES, serial),
                at=mount_point(run_id, serial),
                claimed=f"{mount_point(TENANT_VOLUMES, serial)}.claimed",
                read_only=item.read_only,
            )
        )
    return tuple(found)


def check_shared(storage: Storage, disks: Sequence[Disk], tenant: str) -> None:
    """That a container can have its data in the guest of ``tenant``, which lives and has ``disks``:
    disks are part of a guest from its creation. Raises :class:`UsageError`, :class:`StateError`."""
    if storage.scratch is not None:
        raise UsageError(
            "scratch space is a disk of a guest of the run's own", hint="add --own-guest"
        )
    there = {disk.serial for disk in disks}
    if late := [item.name for item in storage.volumes if volume_serial(item.name) not in there]:
        raise made_later(late, tenant)


def made_later(names: Sequence[str], tenant: str) -> StateError:
    """That volumes are not in the guest of a tenant, which has started without them."""
    one = len(names) == 1
    which = ", ".join(repr(name) for name in names[:5])
    return StateError(
        f"{'volume' if one else 'volumes'} {which} {'was' if one else 'were'} made after the guest"
        f" of tenant {tenant!r} had started",
        hint=f"vmrun tenant stop {tenant}; vmrun tenant start {tenant}",
    )


def plan_binds(storage: Storage, run_id: str, *, shared: bool = False) -> tuple[Bind, ...]:
    """What the container sees of its data, parents before what lies below them; ``shared``: in the
    guest of its tenant."""
    content = mount_point if shared else disk_content
    binds = [
        _bind(f"{copies_directory(run_id)}/{copy_name(at)}", item)
        for at, item in enumerate(storage.directories)
    ]
    binds += [_bind(content(run_id, volume_serial(item.name)), item) for item in storage.volumes]
    if storage.scratch is not None:
        source = disk_content(run_id, _SCRATCH_SERIAL)
        binds.append(Bind(source, storage.scratch_target, read_only=False))
    if storage.secrets:
        binds.append(Bind(secrets_directory(run_id), SECRETS_TARGET, read_only=True))
    return tuple(sorted(binds, key=lambda bind: bind.target))


def _bind(source: str, item: HostDirectory | NamedVolume) -> Bind:
    return Bind(source, item.target, item.read_only, item.executable)
