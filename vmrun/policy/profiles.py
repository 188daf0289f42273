"""Profiles: how hard a workload is confined, and what may be loosened by name.

Modelled on Kubernetes' Pod Security Standards, with a read-only root on top and a third,
stricter profile. Pure values; docs/reference/profiles.md is their prose.
"""

from __future__ import annotations

from dataclasses import dataclass

from vmrun.model.workload import ProfileName

NON_ROOT_UID = 65532
"""The user that runs an image that says root: unnamed in practically every image."""

MASKED_PATHS = (
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kallsyms",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
    "/sys/fs/selinux",
)
"""Hidden in every profile: host-wide information, and interfaces that have leaked addresses or
secrets before."""

READONLY_PATHS = (
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
)
"""Read-only in every profile."""

_BASELINE_CAPABILITIES = frozenset(
    {
        "CAP_CHOWN",
        "CAP_DAC_OVERRIDE",
        "CAP_FOWNER",
        "CAP_FSETID",
        "CAP_KILL",
        "CAP_NET_BIND_SERVICE",
        "CAP_SETGID",
        "CAP_SETPCAP",
        "CAP_SETUID",
        "CAP_SYS_CHROOT",
    }
)


@dataclass(frozen=True, slots=True)
class Profile:
    """What a profile grants (``capabilities``), what may be added by name
    (``may_add``), and what may be loosened at all."""

    name: ProfileName
    capabilities: frozenset[str]
    may_add: frozenset[str]
    allow_root: bool
    allow_writable_root: bool
    allow_executable_tmpfs: bool
    require_isolation: bool
    max_pids: int
    strictness: int


PROFILES = {
    ProfileName.BASELINE: Profile(
        name=ProfileName.BASELINE,
        capabilities=frozenset(),
        may_add=_BASELINE_CAPABILITIES,
        allow_root=True,
        allow_writable_root=True,
        allow_executable_tmpfs=True,
        require_isolation=False,
        max_pids=32768,
        strictness=0,
    ),
    ProfileName.RESTRICTED: Profile(
        name=ProfileName.RESTRICTED,
        capabilities=frozenset(),
        may_add=frozenset({"CAP_NET_BIND_SERVICE"}),
        allow_root=False,
        allow_writable_root=True,
        allow_executable_tmpfs=True,
        require_isolation=False,
        max_pids=4096,
        strictness=1,
    ),
    ProfileName.HEALTHCARE: Profile(
        name=ProfileName.HEALTHCARE,
        capabilities=frozenset(),
        may_add=frozenset(),
        allow_root=False,
        allow_writable_root=False,
        allow_executable_tmpfs=False,
        require_isolation=True,
        max_pids=1024,
        strictness=2,
    ),
}
