"""The shell commands that bring data into a guest and out of it. Text for the guest's POSIX shell,
as in :mod:`vmrun.engine.guest`: every word that is not a constant of this module is quoted."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from vmrun.model.storage import Bind, SharedVolume

_TOOL = "/usr/lib/vmrun/guest"
_STRICT = "nosuid,nodev,noexec"

# Names are not reliable, serials are ours. A device appears before its init says hello.
_FIND_DISK = (
    'disk() { for d in /sys/block/*; do if [ "$(cat $d/serial 2>/dev/null)" = "$1" ]; '
    'then echo /dev/${d##*/}; return 0; fi; done; echo "there is no disk $1" >&2; return 1; }'
)

# What has just been killed may hold a mount for a moment.
_UNMOUNT = (
    "off() { for i in 1 2 3 4 5 6 7 8 9 10; do "
    'grep -q " $1 " /proc/mounts || return 0; umount "$1" 2>/dev/null && continue; sleep 0.2; '
    "done; "
    '! grep -q " $1 " /proc/mounts || { echo "$1 is still in use" >&2; return 1; }; }'
)


@dataclass(frozen=True, slots=True)
class DiskMount:
    """A disk by its serial, and where the guest mounts it; ``data`` is the directory of it that
    the container sees."""

    serial: str
    at: str
    data: str
    read_only: bool
    executable: bool


@dataclass(frozen=True, slots=True)
class Room:
    """A tmpfs of the guest: ``size`` in bytes; never swapped out where the kernel can promise
    that if it is ``secret``."""

    at: str
    size: int
    secret: bool = False


def populate_command(
    directory: str,
    rooms: Sequence[Room],
    disks: Sequence[DiskMount],
    binds: Sequence[Bind],
    *,
    uid: int,
    gid: int,
    shared: Sequence[SharedVolume] = (),
) -> str:
    """Makes ``directory``, which only root may enter, mounts everything below it, unpacks the tar
    on stdin there, and gives each of ``binds`` its options by a mount of its own."""
    steps = ["set -e", "umask 077", _FIND_DISK, f"mkdir -p {shlex.quote(directory)}"]
    for room in rooms:
        steps += _room(room)
    for disk in disks:
        steps += _mount_disk(disk)
        if not disk.read_only:
            steps.append(f"chown {uid:d}:{gid:d} {shlex.quote(disk.data)}")
    for volume in shared:
        steps += _shared(volume, uid, gid)
    steps.append(f"{_TOOL} apply {shlex.quote(directory)}")
    contents = {volume.at: volume.content for volume in shared}
    for bind in binds:
        source = shlex.quote(bind.source)
        content = shlex.quote(contents.get(bind.source, bind.source))
        options = "ro," if bind.read_only else ""
        # A remount keeps what is not said, and a tenant's volume is mounted noexec.
        options += "nosuid,nodev,exec" if bind.executable else _STRICT
        steps.append(f"mount -o bind {content} {source}")
        steps.append(f"mount -o remount,bind,{options} {source}")
    return "\n".join(steps)


def mount_command(directory: str, disks: Mapping[str, DiskMount]) -> str:
    """Makes ``directory``, which only root may enter, and mounts the volumes below it; ``disks`` by
    their names, of which the one that cannot be mounted is said."""
    steps = ["umask 077", _FIND_DISK, f"mkdir -p {shlex.quote(directory)} || exit 1"]
    for name, disk in disks.items():
        problem = shlex.quote(f"volume {name!r} cannot be mounted")
        mount = " && ".join(_mount_disk(disk))
        steps.append(f"{{ {mount}; }} || {{ echo {problem} >&2; exit 1; }}")
    return "\n".join(steps)


def _room(room: Room) -> list[str]:
    at = shlex.quote(room.at)
    options = f"{_STRICT},mode=0700,nr_inodes=0,size={room.size:d}"
    mount = f"mount -t tmpfs -o {options} tmpfs {at}"
    if room.secret:
        # The kernel knows noswap since 6.4; a guest has no swap in any case.
        mount = f"mount -t tmpfs -o {options},noswap tmpfs {at} 2>/dev/null || {mount}"
    return [f"mkdir {at}", mount]


def _mount_disk(disk: DiskMount) -> list[str]:
    at = shlex.quote(disk.at)
    options = "nosuid,nodev" if disk.executable else _STRICT
    options += ",ro" if disk.read_only else ",discard"
    return [
        f"mkdir {at}",
        f"device=$(disk {shlex.quote(disk.serial)})",
        f"mount -t ext4 -o {options} $device {at}",
    ]


def _shared(volume: SharedVolume, uid: int, gid: int) -> list[str]:
    """The place for a bind of it. An empty one is given to the first container that may write
    there, and to no other while the guest lives: the first may be about to write."""
    steps = [f"mkdir {shlex.quote(volume.at)}"]
    if not volume.read_only:
        content = shlex.quote(volume.content)
        steps.append(
            f"if mkdir {shlex.quote(volume.claimed)} 2>/dev/null && "
            f'[ -z "$(ls -A {content})" ]; then chown {uid:d}:{gid:d} {content}; fi'
        )
    return steps


def collect_command(directory: str, names: Iterable[str]) -> str:
    """Writes a tar of ``names`` below ``directory`` to stdout."""
    words = ["exec", "tar", "-C", directory, "-c", "-f", "-", *names]
    return shlex.join(words)


def release_command(
    rooms: Sequence[Room], disks: Sequence[DiskMount], binds: Sequence[Bind]
) -> str:
    """Writes everything to the disks and unmounts all; what could not be is said on stderr."""
    places = [bind.source for bind in reversed(binds)]
    places += [disk.at for disk in reversed(disks)] + [room.at for room in reversed(rooms)]
    steps = [_UNMOUNT, "cd /", "sync", "s=0"]
    steps += [f"off {shlex.quote(place)} || s=1" for place in places]
    return "\n".join([*steps, "sync", "exit $s"])
