"""Reading: the processor, the devices and the kernel, from /proc, /sys and /dev."""

from __future__ import annotations

import grp
import os
import re
import stat
import sys
from pathlib import Path

from vmrun.host.accelerator import has_virtualisation_flag
from vmrun.host.checks.facts import Cgroups, Device, Kernel, Processor
from vmrun.host.facts import available_memory, has_memory_cgroup
from vmrun.hypervisor.remains import MEMORY, lies_in_memory

_CGROUPS = Path("/sys/fs/cgroup")
_NAMESPACE_SWITCHES = ("user/max_user_namespaces", "kernel/unprivileged_userns_clone")


def read_processor() -> Processor:
    """The processor, and what of it concerns isolation."""
    weak = Path("/sys/devices/system/cpu/vulnerabilities")
    states = {path.name: _read(path) for path in weak.iterdir()} if weak.is_dir() else {}
    return Processor(
        cpus=len(os.sched_getaffinity(0)),
        flag=has_virtualisation_flag(),
        guest=re.search(r"^flags\s*:.*\bhypervisor\b", _read("/proc/cpuinfo"), re.M) is not None,
        smt=_read("/sys/devices/system/cpu/smt/active") == "1",
        vulnerable=tuple(sorted(n for n, text in states.items() if text.startswith("Vulnerable"))),
    )


def read_device(path: Path) -> Device | None:
    """A device node as its permissions have it, None if it is not there."""
    try:
        status = path.stat()
    except OSError:
        return None
    try:
        group = grp.getgrgid(status.st_gid).gr_name
    except KeyError:
        group = str(status.st_gid)
    mode = stat.S_IMODE(status.st_mode)
    return Device(
        group=group,
        mode=mode,
        group_may=mode & 0o060 == 0o060,
        anyone_may=mode & 0o006 == 0o006,
        we_may=os.access(path, os.R_OK | os.W_OK),
    )


def read_kernel(user: str) -> Kernel:
    """What the kernel offers to confine guests with, and what weakens it."""
    return Kernel(
        cgroups=_cgroups(),
        seccomp=Path("/proc/sys/kernel/seccomp/actions_avail").exists(),
        apparmor=_read("/sys/module/apparmor/parameters/enabled") == "Y",
        apparmor_profile=_apparmor_profile(),
        namespaces_off=tuple(
            f"{key.replace('/', '.')} = 0"
            for key in _NAMESPACE_SWITCHES
            if _read(f"/proc/sys/{key}") == "0"
        ),
        subordinate_ids=_has_subordinate_ids(user),
        ksm=_read("/sys/kernel/mm/ksm/run") == "1",
        plain_swap=tuple(
            line.split()[0]
            for line in _read("/proc/swaps").splitlines()[1:]
            if not _is_private_swap(line.split()[0])
        ),
        memory_folder=lies_in_memory(MEMORY),
        memory=available_memory(),
    )


def _read(path: Path | str) -> str:
    """The file's text, or an empty string: what cannot be read is not there for our purpose."""
    try:
        return Path(path).read_text(errors="replace").strip()
    except OSError:
        return ""


def _cgroups() -> Cgroups:
    if (_CGROUPS / "cgroup.controllers").exists():
        version, memory = "v2", _CGROUPS
    elif (_CGROUPS / "memory").is_dir() or (_CGROUPS / "pids").is_dir():
        version = "hybrid" if (_CGROUPS / "unified").is_dir() else "v1"
        memory = _CGROUPS / "memory"
    else:
        return Cgroups("", memory=False, writable=False)
    return Cgroups(version, memory=has_memory_cgroup(), writable=os.access(memory, os.W_OK))


def _apparmor_profile() -> bool | None:
    """Whether libvirt would find a profile under which it confines QEMU: it looks for one of
    the program it runs in, then for libvirtd's, and wants its templates besides."""
    try:
        loaded = Path("/sys/kernel/security/apparmor/profiles").read_text()
    except FileNotFoundError:
        return False
    except OSError:
        return None
    names = {line.rpartition(" (")[0] for line in loaded.splitlines() if line.endswith("(enforce)")}
    program = os.path.realpath(sys.executable)
    template = Path("/etc/apparmor.d/libvirt/TEMPLATE.qemu")
    return not names.isdisjoint({program, "libvirtd"}) and template.exists()


def _has_subordinate_ids(user: str) -> bool:
    owners = (line.partition(":")[0] for line in _read("/etc/subuid").splitlines())
    return not {user, str(os.getuid())}.isdisjoint(owners)


def _is_private_swap(device: str) -> bool:
    """Whether what is swapped out cannot be read from a disk later: encrypted, or in memory."""
    block = Path("/sys/block") / Path(os.path.realpath(device)).name
    if block.name.startswith("zram"):
        return not _read(block / "backing_dev").startswith("/")
    return _read(block / "dm" / "uuid").startswith("CRYPT-")
