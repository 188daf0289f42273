"""Debian packages as apt finds and checks them, unpacked without being installed, and wheels of
Python as pip does."""

from __future__ import annotations

import shlex
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import unquote


def with_dependencies(names: Sequence[str]) -> list[str]:
    """``NAME=VERSION`` of the packages, of all that they need and of all that is essential, as if
    nothing were installed here."""
    with tempfile.TemporaryDirectory() as empty:
        Path(empty, "status").touch()
        Path(empty, "archives", "partial").mkdir(parents=True)
        options = {
            "Dir::State::status": f"{empty}/status",
            "Dir::Cache::archives": f"{empty}/archives",
            "Debug::NoLocking": "1",
            "APT::Install-Recommends": "false",
            "APT::Architectures": architecture(),
        }
        flags = [word for key, value in options.items() for word in ("-o", f"{key}={value}")]
        listed = _output(["apt-get", "-qq", "--print-uris", *flags, "install", *names])
    # 'URI' NAME_VERSION_ARCHITECTURE.deb SIZE CHECKSUM
    files = [shlex.split(line)[1].split("_") for line in listed.splitlines()]
    return sorted(f"{file[0]}={unquote(file[1])}" for file in files)


def package_hashes(names: Sequence[str]) -> list[str]:
    """The archive's checksums of the packages that :func:`download` would download."""
    listed = _output(["apt-get", "--print-uris", "-qq", "download", *names])
    return sorted(shlex.split(line)[3] for line in listed.splitlines())


def download(names: Sequence[str], downloads: Path) -> None:
    """Download the packages into a folder; apt verifies them."""
    subprocess.run(
        ["apt-get", "-qq", "-o", "APT::Sandbox::User=root", "download", *names],
        cwd=downloads,
        check=True,
    )


def download_wheels(pins: Mapping[str, str], downloads: Path) -> None:
    """Download wheels (``NAME==VERSION`` and the SHA-256 of each), without what they need."""
    if not pins:
        return
    requirements = downloads / "requirements.txt"
    lines = [f"{pin} --hash=sha256:{digest}\n" for pin, digest in pins.items()]
    requirements.write_text("".join(lines))
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "-qq", "--disable-pip-version-check", "download"),
            *("--no-deps", "--only-binary=:all:", "--require-hashes"),
            *("--dest", downloads, "--requirement", requirements),
        ],
        check=True,
    )


def extract(downloads: Path, root: Path) -> None:
    """The files of all packages in ``downloads``, into ``root``."""
    for package in packages_in(downloads):
        subprocess.run(["dpkg-deb", "--extract", package, root], check=True)


def packages_in(downloads: Path) -> list[Path]:
    """The packages in a folder."""
    return sorted(downloads.glob("*.deb"))


def control(package: Path) -> Mapping[str, str]:
    """The package's control files by name: ``control`` has its fields as a database of installed
    packages has them, ``md5sums`` (if it has any) sums and paths of its files."""
    with tempfile.TemporaryDirectory() as directory:
        subprocess.run(["dpkg-deb", "--control", package, directory], check=True)
        names = ("control", "md5sums")
        paths = [path for name in names if (path := Path(directory, name)).exists()]
        return {path.name: path.read_text() for path in paths}


def files(package: Path) -> bytes:
    """The package's files as a tar."""
    return subprocess.run(
        ["dpkg-deb", "--fsys-tarfile", package], check=True, stdout=subprocess.PIPE
    ).stdout


def architecture() -> str:
    """The architecture of the packages, which Debian and OCI name alike (amd64, arm64)."""
    return _output(["dpkg", "--print-architecture"]).strip()


def _output(command: Sequence[str]) -> str:
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
