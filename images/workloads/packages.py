"""Debian packages as apt finds and checks them, unpacked without being installed."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path


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


def architecture() -> str:
    """The architecture of the packages, which Debian and OCI name alike (amd64, arm64)."""
    return _output(["dpkg", "--print-architecture"]).strip()


def _output(command: Sequence[str]) -> str:
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
