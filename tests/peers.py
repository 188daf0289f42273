"""cosign and skopeo as live peers: Debian 13's packages, unpacked into a folder.

They are not installed: this host may be Debian 12, whose C library is older than theirs. cosign
is static enough to run anywhere; skopeo is started through the loader that came with it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

_SUITE = "trixie"
_MIRROR = "http://deb.debian.org/debian"
_KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
_PACKAGES = (
    "cosign", "skopeo", "libc6", "libgpgme11t64", "libassuan9", "libgpg-error0", "libsubid5",
    "libdevmapper1.02.1", "libselinux1", "libudev1", "libpcre2-8-0", "libcap2", "libgcc-s1",
    "libsqlite3-0", "libaudit1", "libcap-ng0",
)  # fmt: skip
_TIMEOUT = 240


@dataclass(frozen=True)
class Peers:
    """How each program is started."""

    cosign: tuple[str, ...]
    skopeo: tuple[str, ...]


def peers(directory: Path) -> Peers:
    """The programs, fetched into ``directory`` the first time. Skips where they cannot be had."""
    root = directory / "root"
    if not (directory / "complete").exists():
        if shutil.which("apt-get") is None:
            pytest.skip("cosign and skopeo come from Debian packages")
        try:
            _fetch(directory, root)
        except (OSError, subprocess.SubprocessError) as error:
            said = getattr(error, "stderr", b"") or b""
            pytest.skip(f"cosign and skopeo cannot be fetched: {error} {said.decode()[-300:]}")
        (directory / "complete").touch()
    libraries = root / "usr" / "lib" / "x86_64-linux-gnu"
    loader = (str(libraries / "ld-linux-x86-64.so.2"), "--library-path", str(libraries))
    return Peers(
        cosign=(*loader, str(root / "usr" / "bin" / "cosign")),
        skopeo=(*loader, str(root / "usr" / "bin" / "skopeo")),
    )


def _fetch(directory: Path, root: Path) -> None:
    apt = directory / "apt"
    for name in ("lists/partial", "archives/partial", "etc"):
        (apt / name).mkdir(parents=True, exist_ok=True)
    # Only root can hand the download to apt's own user.
    sources = apt / "etc" / "sources.list"
    sources.write_text(f"deb [signed-by={_KEYRING}] {_MIRROR} {_SUITE} main\n")
    status = apt / "status"
    status.touch()
    options = {
        "Dir::State::lists": apt / "lists",
        "Dir::State::status": status,
        "Dir::Cache": apt,
        "Dir::Cache::archives": apt / "archives",
        "Dir::Etc::sourcelist": sources,
        "Dir::Etc::sourceparts": "-",
        "APT::Sandbox::User": "root",
        "Acquire::Languages": "none",
    }
    flags = [word for key, value in options.items() for word in ("-o", f"{key}={value}")]
    _apt([*flags, "update", "-q"], apt)
    _apt([*flags, "download", "-q", *_PACKAGES], apt / "archives")
    for package in sorted((apt / "archives").glob("*.deb")):
        subprocess.run(
            ["dpkg-deb", "-x", package, root], check=True, capture_output=True, timeout=_TIMEOUT
        )
    shutil.rmtree(apt)


def _apt(arguments: Sequence[str], directory: Path) -> None:
    subprocess.run(
        ["apt-get", *arguments],
        check=True,
        capture_output=True,
        timeout=_TIMEOUT,
        cwd=directory,
        env={**os.environ, "LC_ALL": "C.UTF-8"},
    )
