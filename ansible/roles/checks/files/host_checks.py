#!/usr/bin/env python3
"""Say what about this host is good for running guests, and what could be better.

Reads /proc, /sys and /etc only, needs no root and nothing but Python. The exit status is 0 whatever
is found: this is advice. The choice follows Firecracker's production host recommendations, where
they concern any virtual machine monitor.
"""

from __future__ import annotations

import argparse
import grp
import os
import platform
import pwd
import re
import shutil
import stat
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

KERNEL_DOC = "https://docs.kernel.org/admin-guide/hw-vuln/"


@dataclass(frozen=True)
class Finding:
    subject: str
    found: str
    remedy: str = ""

    @property
    def state(self) -> str:
        return "advice" if self.remedy else "ok"


def read(path: str) -> str:
    """The file's text, or an empty string: what cannot be read is not there for our purpose."""
    try:
        return Path(path).read_text(errors="replace").strip()
    except OSError:
        return ""


def cpu_flags() -> set[str]:
    match = re.search(r"^flags\s*:(.*)$", read("/proc/cpuinfo"), re.MULTILINE)
    return set(match[1].split()) if match else set()


def is_guest() -> bool:
    return "hypervisor" in cpu_flags()


def user() -> str:
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())


def check_virtualization() -> Finding:
    flags = cpu_flags() & {"vmx", "svm"}
    where = " (this host is itself a guest)" if is_guest() else ""
    if flags:
        return Finding("virtualization", f"{', '.join(sorted(flags))}{where}")
    remedy = "switch on VT-x or AMD-V in the firmware"
    if is_guest():
        remedy = "ask for nested virtualization, or use a bare-metal host"
    return Finding(
        "virtualization",
        f"the processor offers none{where}",
        f"{remedy}; without it guests run emulated: slower, and no security boundary",
    )


def check_kvm() -> Finding:
    try:
        info = os.stat("/dev/kvm")
    except OSError:
        return Finding(
            "/dev/kvm", "absent", "modprobe kvm_intel or kvm_amd, if virtualization is on"
        )
    mode = stat.S_IMODE(info.st_mode)
    try:
        group = grp.getgrgid(info.st_gid).gr_name
    except KeyError:
        group = str(info.st_gid)
    found = f"group {group}, mode {mode:04o}"
    if mode & stat.S_IWOTH:
        return Finding(
            "/dev/kvm",
            f"{found}: every local user may use KVM",
            "chmod 0660 /dev/kvm, and a udev rule that keeps it so",
        )
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        if group != "kvm":
            remedy = "chgrp kvm /dev/kvm && chmod 0660 /dev/kvm (udev does it where it runs)"
        else:
            remedy = f"adduser {user()} kvm, then log in again"
        return Finding("/dev/kvm", f"{found}: closed to {user()}", remedy)
    if group != "kvm" or not mode & stat.S_IWGRP:
        return Finding(
            "/dev/kvm",
            f"{found}: open to root alone",
            "chgrp kvm /dev/kvm && chmod 0660 /dev/kvm (udev does it where it runs)",
        )
    return Finding("/dev/kvm", found)


def check_nested() -> Finding | None:
    for module in ("kvm_intel", "kvm_amd"):
        value = read(f"/sys/module/{module}/parameters/nested")
        if value in ("Y", "1"):
            return Finding(
                "nested guests",
                f"{module} allows them",
                "run the playbook with vmrun_host_disable_nested=true: they widen what a guest can"
                " reach in KVM",
            )
        if value:
            return Finding("nested guests", "off")
    return None


def check_smt() -> Finding:
    if read("/sys/devices/system/cpu/smt/active") != "1":
        return Finding("SMT", "off")
    return Finding(
        "SMT",
        "on: two guests can share a core",
        "boot with nosmt where guests of different tenants share the host; sibling threads leak"
        " through caches and buffers",
    )


def check_vulnerabilities() -> Finding | None:
    directory = Path("/sys/devices/system/cpu/vulnerabilities")
    if not directory.is_dir():
        return None
    states = {entry.name: read(str(entry)) for entry in directory.iterdir()}
    bad = sorted(name for name, text in states.items() if text.startswith("Vulnerable"))
    if not bad:
        return Finding("CPU vulnerabilities", f"{len(states)} known, none open")
    return Finding(
        "CPU vulnerabilities",
        f"open: {', '.join(bad)}",
        f"update kernel and microcode, drop mitigations=off if it is set; see {KERNEL_DOC}",
    )


def check_microcode() -> Finding:
    if is_guest():
        return Finding("microcode", "loaded by the hypervisor below this host")
    vendor = "amd64" if "AuthenticAMD" in read("/proc/cpuinfo") else "intel"
    package = f"{vendor}-microcode"
    revision = re.search(r"^microcode\s*:\s*(\S+)$", read("/proc/cpuinfo"), re.MULTILINE)
    found = f"revision {revision[1]}" if revision else "unknown revision"
    if Path(f"/var/lib/dpkg/info/{package}.list").exists():
        return Finding("microcode", f"{found}, {package} installed")
    return Finding(
        "microcode",
        f"{found}, {package} not installed",
        f"apt install {package} (from non-free-firmware) and reboot",
    )


def check_kernel() -> Finding:
    running = platform.release()
    if Path("/run/reboot-required").exists():
        return Finding("kernel", f"{running}, a newer one is installed", "reboot")
    return Finding("kernel", running)


def check_ksm() -> Finding:
    if read("/sys/kernel/mm/ksm/run") != "1":
        return Finding("KSM", "off")
    return Finding(
        "KSM",
        "on: pages of different guests are merged",
        "echo 2 > /sys/kernel/mm/ksm/run and disable ksmtuned; the time a write takes tells a guest"
        " what its neighbour holds",
    )


def swap_is_safe(device: str) -> bool:
    """Whether what is swapped out cannot be read from the disk later: encrypted, or in memory."""
    name = Path(os.path.realpath(device)).name
    if name.startswith("zram"):
        return not read(f"/sys/block/{name}/backing_dev").startswith("/")
    return read(f"/sys/block/{name}/dm/uuid").startswith("CRYPT-")


def check_swap() -> Finding:
    devices = [line.split()[0] for line in read("/proc/swaps").splitlines()[1:]]
    if not devices:
        return Finding("swap", "none")
    plain = [device for device in devices if not swap_is_safe(device)]
    if not plain:
        return Finding("swap", f"{', '.join(devices)} (encrypted, or in memory)")
    return Finding(
        "swap",
        f"{', '.join(plain)}, not encrypted",
        "swapoff -a, or swap on dm-crypt: guests' memory must not stay on a disk",
    )


def check_hugepages() -> Finding | None:
    match = re.search(r"\[(\w+)\]", read("/sys/kernel/mm/transparent_hugepage/enabled"))
    if match is None:
        return None
    if match[1] != "never":
        return Finding("huge pages", f"transparent: {match[1]}")
    return Finding(
        "huge pages",
        "transparent: never",
        "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled: page faults of guests under"
        " KVM cost less",
    )


def check_memory() -> Finding:
    match = re.search(r"^MemAvailable:\s*(\d+) kB$", read("/proc/meminfo"), re.MULTILINE)
    gib = int(match[1]) / 2**20 if match else 0.0
    if gib >= 1:
        return Finding("memory", f"{gib:.1f} GiB available")
    return Finding("memory", f"{gib:.1f} GiB available", "free some: a guest takes 0.3 GiB or more")


def check_disk() -> Finding:
    place = "/var/lib" if os.getuid() == 0 else str(Path.home())
    gib = shutil.disk_usage(place).free / 2**30
    if gib >= 5:
        return Finding("disk", f"{gib:.0f} GiB free at {place}")
    return Finding(
        "disk",
        f"{gib:.1f} GiB free at {place}",
        "free some: bases and images want 5 GiB",
    )


def check_cgroups() -> Finding:
    controllers = set(read("/sys/fs/cgroup/cgroup.controllers").split())
    missing = {"cpu", "memory", "pids"} - controllers
    if not missing:
        return Finding("cgroups", "v2")
    if not controllers:
        return Finding(
            "cgroups",
            "v1, or none",
            "boot with systemd.unified_cgroup_hierarchy=1: vmrun limits a guest's processes by"
            " cgroup v2",
        )
    return Finding(
        "cgroups",
        f"v2 without {', '.join(sorted(missing))}",
        "have these controllers delegated to this group",
    )


def check_apparmor() -> Finding:
    if read("/sys/module/apparmor/parameters/enabled") == "Y":
        return Finding("AppArmor", "on")
    return Finding(
        "AppArmor",
        "off",
        "apt install apparmor and boot with apparmor=1 security=apparmor: it confines QEMU once"
        " more",
    )


def check_user_namespaces() -> Finding | None:
    if os.getuid() == 0:
        return None
    off = [
        key
        for key in ("user/max_user_namespaces", "kernel/unprivileged_userns_clone")
        if read(f"/proc/sys/{key}") == "0"
    ]
    if off:
        return Finding(
            "user namespaces",
            f"off ({', '.join(key.replace('/', '.') for key in off)} = 0)",
            "set it above 0, or build bases as root and share them",
        )
    if not re.search(rf"^({re.escape(user())}|{os.getuid()}):", read("/etc/subuid"), re.MULTILINE):
        return Finding(
            "user namespaces",
            f"no ids for {user()} in /etc/subuid",
            f"usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {user()}",
        )
    return Finding("user namespaces", f"open to {user()}")


def check_sysctls(wanted: list[tuple[str, str]]) -> Finding | None:
    if not wanted:
        return None
    other = []
    for key, value in wanted:
        path = Path("/proc/sys", key.replace(".", "/"))
        now = read(str(path))
        # Some can be read by root alone, and some kernels do not have them all.
        if now and now != value:
            other.append(f"{key} = {now} (advised: {value})")
    if not other:
        return Finding("kernel settings", f"{len(wanted)} as advised")
    return Finding(
        "kernel settings",
        "; ".join(other),
        "run the playbook with vmrun_host_apply_sysctls=true; the reasons are in"
        " ansible/roles/kernel/defaults/main.yml",
    )


CHECKS: tuple[Callable[[], Finding | None], ...] = (
    check_virtualization,
    check_kvm,
    check_nested,
    check_cgroups,
    check_apparmor,
    check_user_namespaces,
    check_memory,
    check_disk,
    check_kernel,
    check_microcode,
    check_vulnerabilities,
    check_smt,
    check_ksm,
    check_swap,
    check_hugepages,
)


def table(findings: list[Finding], width: int) -> Iterator[str]:
    first = max(len(finding.subject) for finding in findings) + 2
    indent = " " * (first + len("advice") + 2)
    for finding in findings:
        head = f"{finding.subject:<{first}}{finding.state:<8}"
        yield from textwrap.wrap(
            finding.found, width, initial_indent=head, subsequent_indent=indent
        )
        yield from textwrap.wrap(
            finding.remedy, width, initial_indent=f"{indent}→ ", subsequent_indent=f"{indent}  "
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only-advice", action="store_true", help="leave out what is well")
    parser.add_argument("--sysctl", action="append", default=[], metavar="KEY=VALUE")
    options = parser.parse_args()
    wanted = [tuple(setting.split("=", 1)) for setting in options.sysctl]

    findings = [finding for check in CHECKS if (finding := check()) is not None]
    if (settings := check_sysctls(wanted)) is not None:
        findings.append(settings)
    advice = sum(1 for finding in findings if finding.remedy)
    shown = [finding for finding in findings if finding.remedy or not options.only_advice]
    for line in table(shown, width=100) if shown else ():
        print(line)
    print(f"{len(findings)} checks: {len(findings) - advice} ok, {advice} with advice")


if __name__ == "__main__":
    main()
