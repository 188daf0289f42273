"""The catalogue of an image's packages, from its verified bytes, layers and whiteouts applied."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

from vmrun.image.contents import FileBytes, read_files
from vmrun.image.limits import MIB
from vmrun.image.tree import LookupFailed, resolve
from vmrun.model.errors import ImageError
from vmrun.model.image import Image
from vmrun.model.scan import Catalogue, Distribution, Package, PackageKind
from vmrun.scan.catalogue import apk, dpkg, npm, os_release, python
from vmrun.scan.catalogue.foreign import foreign
from vmrun.scan.catalogue.records import MOST_PACKAGES, Installed, Unreadable, decoded
from vmrun.scan.purl import purl

_LARGEST = 64 * MIB
_ALL = 512 * MIB
_LISTS = "/var/lib/dpkg/info/"


def catalogue(image: Image) -> Catalogue:
    """Every package that the image records.

    What cannot be read is in ``unreadable``, never left out in silence.
    Raises :class:`ImageError` when the image itself cannot be read.
    """
    reader = _Reader(image)
    try:
        return reader.read()
    except Unreadable as error:
        return reader.catalogue((str(error),))


class _Reader:
    def __init__(self, image: Image) -> None:
        self._image = image
        self._distribution: Distribution | None = None
        self._packages: list[Package] = []
        self._unreadable: list[str] = []
        self._links = {
            real: path
            for path in (dpkg.STATUS, *apk.DATABASES, *os_release.PATHS)
            if (real := self._real(path))
        }
        self._status_d = (self._real(dpkg.STATUS_D.rstrip("/")) or dpkg.STATUS_D).rstrip("/") + "/"

    def read(self) -> Catalogue:
        files = {file.path: file for file in self._files(self._wanted)}
        self._read_distribution(files)
        for path, file in files.items():
            self._add(file, self._known(path))
        self._mark_managed(files)
        return self.catalogue((*foreign(self._image.tree.contents), *self._missing()))

    def catalogue(self, more: tuple[str, ...]) -> Catalogue:
        return Catalogue(
            digest=self._image.digest,
            distribution=self._distribution,
            packages=tuple(sorted(set(self._packages))),
            unreadable=(*self._unreadable, *more),
        )

    def _read_distribution(self, files: dict[str, FileBytes]) -> None:
        for path in os_release.PATHS:
            file = files.get(self._real(path))
            if file is not None:
                try:
                    self._distribution = os_release.parse_os_release(file.data)
                except Unreadable as error:
                    self._unreadable.append(f"{path}: {error}")
                return

    def _missing(self) -> Iterator[str]:
        """Databases that should be there, and are not."""
        native = {p.kind for p in self._packages} & {PackageKind.DEB, PackageKind.APK}
        if not native and self._distribution is not None:
            yield f"it is {self._distribution.id}, but has no package database of dpkg or apk"
        elif not self._packages:
            yield "no package database, so nobody knows what its files are from"
        for path in (dpkg.STATUS, *apk.DATABASES):
            if path in self._image.tree.entries and self._real(path) not in self._links:
                yield f"{path} leads nowhere"

    def _add(self, file: FileBytes, name: str) -> None:
        try:
            kind, found = _parse(name, file)
            for installed in found:
                self._packages.append(self._package(kind, installed, file))
                if len(self._packages) > MOST_PACKAGES:
                    raise Unreadable(f"more than {MOST_PACKAGES} packages")
        except Unreadable as error:
            self._unreadable.append(f"{file.path[:200]}: {error}")

    def _package(self, kind: PackageKind, installed: Installed, file: FileBytes) -> Package:
        distribution = self._distribution
        native = kind in (PackageKind.DEB, PackageKind.APK)
        distro = f"{distribution.id}-{distribution.version_id}" if distribution and native else ""
        return Package(
            kind=kind,
            name=installed.name,
            version=installed.version,
            source=installed.source,
            source_version=installed.source_version,
            architecture=installed.architecture,
            path=file.path,
            layer=file.layer.blob.digest,
            purl=purl(
                kind,
                installed.name,
                installed.version,
                distribution=distribution,
                qualifiers={"arch": installed.architecture, "distro": distro.rstrip("-")},
            ),
            licence=installed.licence,
        )

    def _mark_managed(self, files: dict[str, FileBytes]) -> None:
        """Python and npm packages whose record came with a package of the distribution."""
        if not any(p.kind in (PackageKind.PYPI, PackageKind.NPM) for p in self._packages):
            return
        owned = set()
        for file in self._files(lambda path: path.startswith(_LISTS) and path.endswith(".list")):
            owned |= {self._real(line) for line in decoded(file.data).split("\n") if line}
        for path in apk.DATABASES:
            if (database := files.get(self._real(path))) is not None:
                owned |= set(_apk_files(decoded(database.data)))
        self._packages = [
            package
            if package.kind in (PackageKind.DEB, PackageKind.APK) or package.path not in owned
            else _managed(package)
            for package in self._packages
        ]

    def _files(self, wanted: Callable[[str], bool]) -> Iterator[FileBytes]:
        try:
            yield from read_files(self._image, wanted, largest=_LARGEST, total=_ALL)
        except ImageError as error:
            raise Unreadable(error.message) from None

    def _wanted(self, path: str) -> bool:
        name = self._known(path)
        return (
            name in os_release.PATHS
            or name in apk.DATABASES
            or dpkg.is_database(name)
            or python.is_metadata(name)
            or npm.is_package(name)
        )

    def _known(self, path: str) -> str:
        """The name that a database is known by, where the image keeps it behind a link."""
        if path.startswith(self._status_d):
            return dpkg.STATUS_D + path.removeprefix(self._status_d)
        return self._links.get(path, path)

    def _real(self, path: str) -> str:
        try:
            return resolve(self._image.tree, path).path
        except LookupFailed:
            return ""


def _parse(name: str, file: FileBytes) -> tuple[PackageKind, Iterable[Installed]]:
    """What a file of the image records; ``name`` is what it is known by."""
    if dpkg.is_database(name):
        return PackageKind.DEB, dpkg.parse_status(file.data, partial=name != dpkg.STATUS)
    if name in apk.DATABASES:
        return PackageKind.APK, apk.parse_installed(file.data)
    if python.is_metadata(name):
        return PackageKind.PYPI, (python.parse_metadata(file.data),)
    if npm.is_package(name):
        installed = npm.parse_package(file.data, file.path)
        return PackageKind.NPM, () if installed is None else (installed,)
    return PackageKind.DEB, ()  # os-release


def _managed(package: Package) -> Package:
    return replace(package, managed=True)


def _apk_files(text: str) -> Iterator[str]:
    """Paths of apk's database: ``F:`` names a folder, ``R:`` a file in the last one."""
    folder = ""
    for line in text.split("\n"):
        if line.startswith("F:"):
            folder = line[2:]
        elif line.startswith("R:"):
            yield f"/{folder}/{line[2:]}"
