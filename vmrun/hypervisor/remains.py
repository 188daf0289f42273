"""What a guest can leave on the host, found by its own uuid and name, and removed.

Serves a run's own teardown and the reclaiming of dead runs alike. Nothing that does not carry
the guest's uuid or name is touched.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import time
from pathlib import Path

from vmrun.hypervisor import process
from vmrun.model.report import Removed

_CGROUPS = Path("/sys/fs/cgroup")
MEMORY = Path("/dev/shm")  # noqa: S108 - for one directory of a name that nobody can guess
_PATTERNS = ("machine/qemu-*-{name}.libvirt-qemu", "*/machine/qemu-*-{name}.libvirt-qemu")


def remove_remains(*, domain: str, uuid: str) -> tuple[Removed, ...]:
    """Kill the guest's QEMU and remove its cgroups; says of each whether it is gone.

    ``uuid`` may be empty where only the domain's name is known.
    """
    removed = []
    for pid in process.find_guest_processes(uuid, domain):
        gone = process.kill_guest_process(pid, uuid, domain=domain)
        removed.append(Removed("process", f"qemu {pid}", gone))
    cgroups = _cgroups_of(domain)
    if cgroups:
        removed.append(Removed("cgroup", domain, all(_remove(path) for path in cgroups)))
    memory = memory_of(domain)
    if _is_ours(memory):
        shutil.rmtree(memory, ignore_errors=True)
        removed.append(Removed("keys", str(memory), not _is_ours(memory)))
    return tuple(removed)


def remains(*, domain: str, uuid: str) -> tuple[str, ...]:
    """What of a guest is still on the host; empty after a clean teardown."""
    found = [f"process qemu {pid}" for pid in process.find_guest_processes(uuid, domain)]
    if _is_ours(memory_of(domain)):
        found.append(f"keys {memory_of(domain)}")
    return (*found, *(f"cgroup {path}" for path in _cgroups_of(domain)))


def memory_of(domain: str) -> Path:
    """Where a guest's directory in memory is, if it has one."""
    return MEMORY / domain


def lies_in_memory(path: Path) -> bool:
    """Whether a tmpfs is mounted there."""
    try:
        lines = Path("/proc/self/mountinfo").read_text().splitlines()
    except OSError:
        return False
    # The mount point is the fifth field, the type the one after the hyphen (proc(5)).
    kinds = [line.partition(" - ")[2].split()[0] for line in lines if line.split()[4] == str(path)]
    return kinds[-1:] == ["tmpfs"]


def _is_ours(path: Path) -> bool:
    """Whether it is a directory of this user's: anybody may make something of that name there."""
    try:
        status = path.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid()


def _cgroups_of(domain: str) -> list[Path]:
    return [path for pattern in _PATTERNS for path in _CGROUPS.glob(pattern.format(name=domain))]


def _remove(cgroup: Path, *, timeout: float = 2.0) -> bool:
    """Remove an empty cgroup and those below it; the kernel empties it a moment after the kill."""
    deadline = time.monotonic() + timeout
    while cgroup.exists():
        for path in sorted(cgroup.rglob("*/"), reverse=True):
            with contextlib.suppress(OSError):
                path.rmdir()
        with contextlib.suppress(OSError):
            cgroup.rmdir()
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True
