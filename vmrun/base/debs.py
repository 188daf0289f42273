"""Reading Debian packages: which package a file comes from (deb(5))."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from vmrun.model.errors import BaseError

_MAGIC = b"!<arch>\n"
_HEADER_SIZE = 60


@dataclass(frozen=True, slots=True)
class Package:
    """One selected package."""

    name: str
    version: str
    architecture: str

    @property
    def file_name(self) -> str:
        """The name apt gives the downloaded package."""
        return f"{self.name}_{self.version.replace(':', '%3a')}_{self.architecture}.deb"


def parse_selection(text: str) -> tuple[Package, ...]:
    """The packages in the output of ``apt-get --simulate install``, sorted.

    The lines that matter look like ``Inst name (version origin [architecture])``.
    """
    packages = set()
    for line in text.splitlines():
        words = line.split()
        if words[:1] != ["Inst"]:
            continue
        architecture = next((word for word in words if word.startswith("[")), "")
        if len(words) < 4 or not words[2].startswith("(") or not architecture:
            raise BaseError(f"apt's answer is not understood: {line[:100]!r}")
        name = words[1].partition(":")[0]
        packages.add((name, words[2][1:], architecture.strip("[])")))
    return tuple(Package(*fields) for fields in sorted(packages))


def owners(archives: Path, packages: Iterable[Package]) -> Mapping[str, Package]:
    """For every regular file of the packages, as an absolute path, the package it is from."""
    return {path: package for package in packages for path in _files(archives / package.file_name)}


def _files(deb: Path) -> list[str]:
    """The absolute paths of a package's regular files, from its list of MD5 sums."""
    try:
        control = _control_member(deb)
        with tarfile.open(fileobj=io.BytesIO(control)) as tar:
            names = {name.lstrip("./"): name for name in tar.getnames()}
            if "md5sums" not in names:
                return []
            stream = tar.extractfile(names["md5sums"])
            listing = stream.read() if stream is not None else b""
    except (OSError, ValueError, tarfile.TarError) as error:
        raise BaseError(f"cannot read the package {deb.name}: {error}") from error
    return ["/" + line.partition("  ")[2] for line in listing.decode().splitlines()]


def _control_member(deb: Path) -> bytes:
    """The compressed control archive, the second member of the package."""
    with deb.open("rb") as stream:
        if stream.read(len(_MAGIC)) != _MAGIC:
            raise ValueError("not an ar archive")
        while header := stream.read(_HEADER_SIZE):
            name, size = header[:16].decode("ascii").strip(), int(header[48:58])
            data = stream.read(size)
            if name.startswith("control.tar"):
                return data
            stream.read(size % 2)
    raise ValueError("no control archive")
