"""Debian packages as apt finds and checks them, unpacked without being installed."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

STATUS_D = "var/lib/dpkg/status.d"
"""Where images without dpkg keep one record for each package."""


def package_hashes(names: Sequence[str]) -> list[str]:
    """The archive's checksums of the packages that :func:`unpack` would download."""
    listed = _output(["apt-get", "--print-uris", "-qq", "download", *names])
    return sorted(shlex.split(line)[3] for line in listed.splitlines())


def unpack(names: Sequence[str], downloads: Path, root: Path) -> None:
    """Download the packages (apt verifies them) and extract their files into ``root``."""
    subprocess.run(
        ["apt-get", "-qq", "-o", "APT::Sandbox::User=root", "download", *names],
        cwd=downloads,
        check=True,
    )
    for package in sorted(downloads.glob("*.deb")):
        subprocess.run(["dpkg-deb", "--extract", package, root], check=True)
        _record(package, root)


def _record(package: Path, root: Path) -> None:
    """Leave a record of the package as images without dpkg have it, so that scanners know what
    is in there and from which version on it needs an update."""
    control = _output(["dpkg-deb", "--field", str(package)])
    name = _output(["dpkg-deb", "--field", str(package), "Package"]).strip()
    records = root / STATUS_D
    records.mkdir(parents=True, exist_ok=True)
    (records / name).write_text(control)


def wheel(requirement: str, downloads: Path) -> Path:
    """Download a Python wheel, e.g. ``requests==2.19.1``, without what it depends on."""
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet"),
            *("--no-deps", "--only-binary=:all:", "--dest", str(downloads), requirement),
        ],
        check=True,
    )
    return next(downloads.glob("*.whl"))


def architecture() -> str:
    """The architecture of the packages, which Debian and OCI name alike (amd64, arm64)."""
    return _output(["dpkg", "--print-architecture"]).strip()


def _output(command: Sequence[str]) -> str:
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
