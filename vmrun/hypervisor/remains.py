"""What a guest can leave on the host, found by its own uuid and name, and removed.

Serves a run's own teardown and the reclaiming of dead runs alike. Nothing that does not carry
the guest's uuid or name is touched.
"""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

from vmrun.hypervisor import process
from vmrun.model.report import Removed

_CGROUPS = Path("/sys/fs/cgroup")
_PATTERNS = ("machine/qemu-*-{name}.libvirt-qemu", "*/machine/qemu-*-{name}.libvirt-qemu")


def remove_remains(*, domain: str, uuid: str) -> tuple[Removed, ...]:
    """Kill the guest's QEMU and remove its cgroups; says of each whether it is gone."""
    removed = []
    pid = process.find_guest_process(uuid)
    if pid is not None:
        removed.append(Removed("process", f"qemu {pid}", process.kill_guest_process(pid, uuid)))
    cgroups = _cgroups_of(domain)
    if cgroups:
        removed.append(Removed("cgroup", domain, all(_remove(path) for path in cgroups)))
    return tuple(removed)


def remains(*, domain: str, uuid: str) -> tuple[str, ...]:
    """What of a guest is still on the host; empty after a clean teardown."""
    pid = process.find_guest_process(uuid)
    found = [] if pid is None else [f"process qemu {pid}"]
    return (*found, *(f"cgroup {path}" for path in _cgroups_of(domain)))


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
