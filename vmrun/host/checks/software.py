"""Judging: what is installed. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from vmrun.host.checks.facts import Asked, Software
from vmrun.model.diagnosis import Diagnosis, advice, fault, ok

_TESTED_DEBIAN = 12
_TESTED_LIBVIRT = (9, 0)
_TESTED_QEMU = (7, 2)


def judge_software(asked: Asked, software: Software) -> Iterator[Diagnosis]:
    """The system, Python, libvirt, QEMU, the tools that build bases and make disks, and Docker."""
    yield _system(software)
    yield ok("python", software.python)
    yield _libvirt(asked, software)
    if asked.privileged and asked.embedded:
        yield _libvirt_user(software)
    yield _qemu(software)
    yield _build_tools(software)
    yield _disk_tools(software)
    yield ok(
        "docker",
        software.docker or "no daemon; only images named docker-daemon:… need one",
    )


def _system(software: Software) -> Diagnosis:
    found = f"{software.name}, Linux {software.kernel}, {software.architecture}"
    if software.architecture != "x86_64":
        return fault("system", found, "use a host with an x86_64 processor: guests are x86_64")
    major = software.release.partition(".")[0]
    if software.distribution == "debian" and (
        # Debian's testing has no number and is newer than every release.
        not major.isdigit() or int(major) >= _TESTED_DEBIAN
    ):
        return ok("system", found)
    return advice("system", found, "vmrun is made and tested on Debian 12 and 13; prefer those")


def _libvirt(asked: Asked, software: Software) -> Diagnosis:
    libvirt = software.libvirt
    if libvirt.error:
        return fault("libvirt", libvirt.error, libvirt.hint)
    driver = "embedded QEMU driver opens" if asked.embedded else f"{asked.connect} opens"
    found = f"{libvirt.library}, binding {libvirt.binding}; {driver}"
    if _numbers(libvirt.library) < _TESTED_LIBVIRT:
        return advice("libvirt", found, "upgrade: vmrun is tested with libvirt 9.0 and later")
    return ok("libvirt", found)


def _libvirt_user(software: Software) -> Diagnosis:
    if software.libvirt_user:
        return ok("libvirt-user", "libvirt-qemu exists")
    return fault(
        "libvirt-user",
        "no user libvirt-qemu: libvirt's QEMU driver does not load as root without it",
        "make setup (the playbook's role kvm creates it)",
    )


def _qemu(software: Software) -> Diagnosis:
    version = software.qemu.version
    if not version:
        return fault(
            "qemu", "no qemu-system-x86_64 that runs", "make setup, or: apt install qemu-system-x86"
        )
    if _numbers(version) < _TESTED_QEMU:
        return advice("qemu", version, "upgrade: vmrun is tested with QEMU 7.2 and later")
    return ok("qemu", version)


def _build_tools(software: Software) -> Diagnosis:
    missing = software.missing_tools
    if not missing:
        return ok("build-tools", "all there: bases can be built on this host")
    return advice(
        "build-tools",
        f"bases cannot be built on this host without {', '.join(sorted(missing))}",
        f"apt install {' '.join(sorted(set(missing.values())))}",
    )


def _disk_tools(software: Software) -> Diagnosis:
    missing = software.missing_disk_tools
    if not missing:
        return ok("disk-tools", "all there: volumes and scratch space can be made")
    return advice(
        "disk-tools",
        f"no volumes and no scratch space without {', '.join(sorted(missing))}",
        f"apt install {' '.join(sorted(set(missing.values())))}",
    )


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())
