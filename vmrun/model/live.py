"""What was read live, before a workload's first instruction: the kernel's word, not ours."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ContainerReading:
    """How a container's first process is confined, read in the guest from outside the container
    (proc(5), cgroups(7)). ``status`` holds the fields of /proc/PID/status by name,
    ``mounts`` maps mount points to (type, options), ``namespaces`` maps each kind to whether
    it is private, ``cgroup`` the values of the limiting cgroup's files."""

    pid: int
    status: Mapping[str, str]
    root_read_only: bool
    mounts: Mapping[str, tuple[str, frozenset[str]]]
    namespaces: Mapping[str, bool]
    cgroup: Mapping[str, str]
    open_files: tuple[str, str] | None = None


@dataclass(frozen=True, slots=True)
class QemuReading:
    """How a QEMU process is confined, read on the host. ``seccomp`` is the mode of
    /proc/PID/status (2: filtered); ``pss`` in bytes, None if it cannot be read; ``disks`` has for
    each disk its file, then ``ro`` or ``rw``, then ``luks`` if it is encrypted."""

    pid: int
    uid: int
    seccomp: int
    no_new_privs: bool
    effective_capabilities: int
    own_mount_namespace: bool
    accelerator: str
    devices: tuple[str, ...]
    memory_limit: int | None = None
    pss: int | None = None
    disks: tuple[str, ...] = ()
