"""The signed index of Debian's security suite: is a security update pending?

A second source beside databases of advisories, and one that is there wherever apt works. apt
fetches the lists into a folder of its own and checks their signature and their date; installed
versions are then compared with what the suite has.
"""

from __future__ import annotations

import lzma
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path

from vmrun.image.durable import locked_directory
from vmrun.image.limits import MIB
from vmrun.model.digest import Digest
from vmrun.model.errors import ScanError, StateError
from vmrun.model.scan import Database, Distribution, Finding, Package, PackageKind, Severity
from vmrun.scan.catalogue.records import Unreadable, decoded, stanzas
from vmrun.scan.debian_lists import fetch_lists
from vmrun.scan.private import make_private
from vmrun.scan.versions import compare

_TIMEOUT = 120.0
_LARGEST_LIST = 256 * MIB
_CODENAME = re.compile(r"[a-z]{3,20}")


@dataclass(frozen=True, slots=True)
class SecuritySuite:
    """The newest version of each binary package in a release's security suite."""

    description: Database
    versions: dict[str, str]

    def findings(self, packages: Sequence[Package]) -> list[Finding]:
        """Installed packages that are older than the suite's."""
        found = []
        for package in packages:
            newest = self.versions.get(package.name)
            if package.kind is not PackageKind.DEB or newest is None:
                continue
            order = compare("Debian", package.version, newest)
            if order is None or order < 0:
                found.append(
                    Finding(
                        id=f"DEBIAN-SECURITY:{package.source}",
                        aliases=(),
                        package=package,
                        fixed=newest,
                        severity=Severity.UNKNOWN,
                        summary="a security update is pending",
                        source=self.description.name,
                        certain=order is not None,
                    )
                )
        return found


def covers(distribution: Distribution | None) -> bool:
    """Whether there is such a suite for an image's distribution, and apt to ask for it."""
    return (
        distribution is not None
        and distribution.id == "debian"
        and _CODENAME.fullmatch(distribution.codename) is not None
        and shutil.which("apt-get") is not None
    )


def security_suite(
    distribution: Distribution, cache: Path, *, max_age: float, sources: Path = Path("/etc/apt")
) -> SecuritySuite:
    """The suite of ``distribution``'s release; lists that were fetched less than ``max_age``
    seconds and a day ago are used again, and older ones where apt cannot reach the archive now:
    they say of what time they are.

    Raises :class:`ScanError` when there is none, :class:`StateError` when it cannot be kept.
    """
    codename = distribution.codename
    root = cache / f"apt-{codename}"
    try:
        make_private(cache)
        make_private(root)
        with locked_directory(root):
            fetch_lists(root, codename, sources, max_age=max_age)
            return _read(root, codename)
    except OSError as error:
        raise StateError(
            f"cannot write {root}: {error.strerror or error}",
            hint="free disk space, or set VMRUN_STATE_DIR to a directory that you own",
        ) from error


def _read(root: Path, codename: str) -> SecuritySuite:
    release = next((root / "lists").glob("*Release"), None)
    if release is None:
        raise ScanError(f"apt has no index of {codename}-security", hint="try again")
    dated = _date(release)
    versions: dict[str, str] = {}
    hashes = []
    for path in sorted((root / "lists").glob("*_Packages*")):
        data = _unpacked(path)
        hashes.append(Digest.of(data).hex)
        for name, version in _packages(data, path):
            before = versions.get(name)
            if before is None or compare("Debian", before, version) == -1:
                versions[name] = version
    if not hashes:
        raise ScanError(f"apt has no packages of {codename}-security", hint="try again")
    digest = Digest.of(" ".join(hashes).encode())
    return SecuritySuite(
        Database(f"debian-security {codename}", digest, dated, len(versions)), versions
    )


def _packages(data: bytes, path: Path) -> Iterator[tuple[str, str]]:
    try:
        for fields in stanzas(decoded(data)):
            yield fields.get("package", ""), fields.get("version", "")
    except Unreadable as error:
        raise ScanError(f"{path}: {error}", hint="remove the folder and try again") from None


def _unpacked(path: Path) -> bytes:
    """apt keeps lists as they came or unpacked, as it is told on the host."""
    try:
        if path.suffix == ".xz":
            with lzma.open(path) as file:
                data = file.read(_LARGEST_LIST + 1)
        elif path.name.endswith("_Packages"):
            with path.open("rb") as plain:
                data = plain.read(_LARGEST_LIST + 1)
        else:
            done = subprocess.run(
                ["/usr/lib/apt/apt-helper", "cat-file", str(path)],
                capture_output=True,
                timeout=_TIMEOUT,
                check=True,
            )
            data = done.stdout
    except (OSError, lzma.LZMAError, EOFError, subprocess.SubprocessError) as error:
        raise ScanError(f"cannot read {path}: {error}", hint="remove it and try again") from None
    if len(data) > _LARGEST_LIST:
        raise ScanError(f"{path} has more than {_LARGEST_LIST} bytes")
    return data


def _date(release: Path) -> float | None:
    """When the archive made the index, which apt has found signed; None if it does not say."""
    match = re.search(r"^Date:\s*(.+)$", release.read_text(errors="replace"), re.M)
    try:
        return parsedate_to_datetime(match[1]).timestamp() if match else None
    except (ValueError, TypeError, OverflowError):
        return None
