"""Reading: what is installed on this host."""

from __future__ import annotations

import os
import platform
import pwd
import re
import shutil
import socket
import subprocess
from collections.abc import Mapping
from pathlib import Path

from vmrun.base.tools import PROGRAMS
from vmrun.host.checks.facts import Libvirt, Qemu, Software

_QEMU = "qemu-system-x86_64"
_DISK_TOOLS = {"qemu-img": "qemu-utils", "mke2fs": "e2fsprogs"}
_DEADLINE = 10.0
_DOCKER_SOCKET = "/var/run/docker.sock"


def read_software(libvirt: Libvirt, qemu: Qemu) -> Software:
    """The programs and libraries that vmrun uses; libvirt and QEMU were asked before."""
    release = _os_release()
    return Software(
        name=release.get("PRETTY_NAME", "an unnamed system"),
        distribution=release.get("ID", ""),
        release=release.get("VERSION_ID", ""),
        kernel=platform.release(),
        architecture=platform.machine(),
        python=platform.python_version(),
        libvirt=libvirt,
        libvirt_user=_has_user("libvirt-qemu"),
        qemu=qemu,
        missing_tools={
            program: package
            for program, package in PROGRAMS.items()
            if shutil.which(program) is None
        },
        missing_disk_tools={
            program: package for program, package in _DISK_TOOLS.items() if not _found(program)
        },
        docker=_docker(os.environ),
    )


def _found(program: str) -> bool:
    """Also where a plain user's PATH does not lead."""
    return bool(shutil.which(program) or shutil.which(program, path="/usr/sbin:/sbin"))


def ask_qemu() -> Qemu:
    """QEMU's version, and whether it takes ``-sandbox``, which one without seccomp refuses."""
    confined = _qemu_version("-sandbox", "on")
    return Qemu(confined or _qemu_version(), sandbox=bool(confined))


def _qemu_version(*options: str) -> str:
    try:
        answer = subprocess.run(
            [_QEMU, *options, "-version"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_DEADLINE,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    match = re.search(r"version (\d[\d.]*)", answer.stdout)
    return match[1] if match and answer.returncode == 0 else ""


def _os_release() -> Mapping[str, str]:
    try:
        return platform.freedesktop_os_release()
    except OSError:
        return {}


def _has_user(name: str) -> bool:
    try:
        pwd.getpwnam(name)
    except KeyError:
        return False
    return True


def _docker(environment: Mapping[str, str]) -> str:
    """What images of a Docker daemon would come from; empty if there is none."""
    if named := environment.get("DOCKER_HOST"):
        return f"the one that DOCKER_HOST names: {named}"
    if not Path(_DOCKER_SOCKET).exists():
        return ""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(1.0)
        try:
            sock.connect(_DOCKER_SOCKET)
        except OSError as error:
            return f"{_DOCKER_SOCKET}, which does not answer: {error.strerror or error}"
    return f"one answers at {_DOCKER_SOCKET}"
