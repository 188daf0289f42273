"""What planning must know of this host, read from the kernel."""

from __future__ import annotations

import os
import pwd
from pathlib import Path

from vmrun.model.errors import HypervisorError
from vmrun.model.plan import EMBEDDED, Accelerator, HostFacts

KVM = Path("/dev/kvm")


def read_facts(connect: str, *, accelerator: Accelerator, reason: str) -> HostFacts:
    """Facts of this host for libvirt at ``connect`` and the accelerator that was proved."""
    privileged = os.geteuid() == 0 or connect.startswith("qemu:///system")
    return HostFacts(
        accelerator=accelerator,
        accelerator_reason=reason,
        cpus=len(os.sched_getaffinity(0)),
        memory=available_memory(),
        privileged=privileged,
        memory_cgroup=privileged and has_memory_cgroup(),
        connect=connect,
        kvm_gid=kvm_group(),
        daemon_user=None if connect == EMBEDDED else _daemon_user(),
    )


def _daemon_user() -> tuple[int, int] | None:
    try:
        entry = pwd.getpwnam("libvirt-qemu")
    except KeyError:
        return None
    return entry.pw_uid, entry.pw_gid


def available_memory() -> int:
    """MemAvailable of /proc/meminfo in bytes (proc(5))."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) << 10
    raise HypervisorError("/proc/meminfo has no MemAvailable")


def has_memory_cgroup() -> bool:
    """Whether a memory controller is mounted, version 2 or 1."""
    root = Path("/sys/fs/cgroup")
    if (root / "memory" / "memory.limit_in_bytes").exists():
        return True
    try:
        return "memory" in (root / "cgroup.controllers").read_text().split()
    except OSError:
        return False


def kvm_group() -> int | None:
    """The group that may open /dev/kvm, None if none may or there is no such device."""
    try:
        status = KVM.stat()
    except OSError:
        return None
    return status.st_gid if status.st_mode & 0o060 == 0o060 else None
