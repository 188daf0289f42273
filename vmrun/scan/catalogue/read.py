"""The catalogue of an image's packages, from its verified bytes, layers and whiteouts applied.

The distribution's databases are read first, then the records of Python and npm packages and the
lists that say which of those the distribution brought itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from vmrun.image.contents import FileBytes, read_files
from vmrun.image.limits import MIB
from vmrun.model.image import Image
from vmrun.model.scan import Catalogue, Distribution, Package, PackageKind
from vmrun.scan.catalogue import apk, dpkg, npm, os_release, python
from vmrun.scan.catalogue.foreign import counted, example, foreign
from vmrun.scan.catalogue.owners import Owners
from vmrun.scan.catalogue.places import Places
from vmrun.scan.catalogue.records import MOST_PACKAGES, Installed, Unreadable, printable
from vmrun.scan.purl import purl

_LARGEST = 32 * MIB
_ALL = 256 * MIB
_MOST_REASONS = 50
_NATIVE = (PackageKind.DEB, PackageKind.APK)
_EXPECTED = {
    "debian": PackageKind.DEB,
    "ubuntu": PackageKind.DEB,
    "alpine": PackageKind.APK,
    "wolfi": PackageKind.APK,
    "chainguard": PackageKind.APK,
}
_ELF = b"\x7fELF"


def catalogue(image: Image) -> Catalogue:
    """Every package that the image records.

    What cannot be read is in ``unreadable``, never left out in silence.
    Raises :class:`ImageError` when the image itself cannot be read.
    """
    return _Reader(image).read()


class _Reader:
    def __init__(self, image: Image) -> None:
        self._image = image
        self._tree = image.tree
        self._places = Places(image.tree)
        self._names = {path: self._places.known(path) for path in image.tree.contents}
        self._distribution: Distribution | None = None
        self._packages: dict[Package, str] = {}
        """And the real path of the record of each."""
        self._reasons: list[tuple[str, str]] = []
        """What could not be read, and why."""

    def read(self) -> Catalogue:
        self._read_distribution()
        self._read(lambda name: dpkg.is_database(name) or name in apk.DATABASES)
        strange = foreign(self._names)
        programs = [path for path in self._names if self._may_be_program(path)]
        records = [p for p, n in self._names.items() if python.is_metadata(n) or npm.is_package(n)]
        owned = self._owned([*records, *strange, *programs])
        self._read(lambda name: python.is_metadata(name) or npm.is_package(name), owned)
        strange = {path: kind for path, kind in strange.items() if path not in owned}
        return Catalogue(
            digest=self._image.digest,
            distribution=self._distribution,
            packages=tuple(
                sorted(
                    replace(package, managed=True)
                    if package.kind not in _NATIVE and path in owned
                    else package
                    for package, path in self._packages.items()
                )
            ),
            unreadable=self._unreadable([*counted(strange), *self._missing(bool(strange))]),
            unseen=self._unseen([path for path in programs if path not in owned]),
        )

    # --- what is recorded --------------------------------------------------------------------

    def _read_distribution(self) -> None:
        """Of the two files the first one counts, as os-release(5) has it."""
        path = next(filter(None, map(self._places.real, os_release.PATHS)), "")
        for file in self._files(lambda at: at == path):
            try:
                self._distribution = os_release.parse_os_release(file.data)
            except Unreadable as error:
                self._reasons.append((path, str(error)))

    def _read(self, wanted: Callable[[str], bool], owned: frozenset[str] = frozenset()) -> None:
        """Add the packages of all records of a ``wanted`` name. One that cannot be read does not
        matter where the distribution answers for it (``owned``)."""
        for file in self._files(lambda path: wanted(self._names[path])):
            try:
                for kind, installed in _parse(self._names[file.path], file.data):
                    if len(self._packages) >= MOST_PACKAGES:
                        self._reasons.append((file.path, f"more than {MOST_PACKAGES} packages"))
                        return
                    self._packages[self._package(kind, installed, file)] = file.path
            except Unreadable as error:
                if file.path not in owned:
                    self._reasons.append((file.path, str(error)))

    def _package(self, kind: PackageKind, installed: Installed, file: FileBytes) -> Package:
        distribution = self._distribution if kind in _NATIVE else None
        distro = f"{distribution.id}-{distribution.version_id}" if distribution else ""
        return Package(
            kind=kind,
            name=installed.name,
            version=installed.version,
            source=installed.source,
            source_version=installed.source_version,
            architecture=installed.architecture,
            path=printable(file.path),
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

    def _owned(self, candidates: list[str]) -> frozenset[str]:
        """Those of the paths that came with a package of the distribution that is installed: its
        fixes are backported, so that what such a record says of a version says little."""
        owners = Owners(candidates, self._places)
        installed = {package.name for package in self._packages}
        for file in self._files(lambda path: self._lists_files(self._names[path], installed)):
            name = self._names[file.path]
            try:
                if name in apk.DATABASES:
                    owners.add(apk.owned_files(file.data))
                else:
                    owners.add(dpkg.owned_files(file.data, name))
            except Unreadable as error:
                self._reasons.append((file.path, str(error)))
                break
        return frozenset(owners.owned)

    @staticmethod
    def _lists_files(name: str, installed: set[str]) -> bool:
        return name in apk.DATABASES or dpkg.lists_files_of(name) in installed

    # --- what is not -------------------------------------------------------------------------

    def _missing(self, strange: bool) -> Iterator[str]:
        """Databases that should be there, and are not."""
        native = {package.kind for package in self._packages} & set(_NATIVE)
        distribution = self._distribution
        expected = _EXPECTED.get(distribution.id) if distribution is not None else None
        if distribution is not None and expected not in (None, *native):
            yield f"it is {distribution.id}, but has no packages of kind {expected}"
        elif not native and not strange and distribution is not None:
            yield f"it is {distribution.id}, but has no package database of dpkg or apk"
        elif not native and not strange:
            yield "no package database: what its files come from cannot be known"
        yield from self._places.problems()

    def _unreadable(self, more: list[str]) -> tuple[str, ...]:
        found = [f"{printable(path)[:200]}: {printable(why)}" for path, why in self._reasons]
        left = len(found) - _MOST_REASONS
        if left > 0:
            found[_MOST_REASONS:] = [f"{left} more records that could not be read"]
        return (*found, *more)

    def _may_be_program(self, path: str) -> bool:
        name = path.rpartition("/")[2]
        return bool(self._tree.entries[path].mode & 0o111) or name.endswith(".so") or ".so." in name

    def _unseen(self, candidates: list[str]) -> tuple[str, ...]:
        """Programs and libraries of nobody's: nothing says what they were made of."""
        some = set(candidates)
        found = [
            file.path
            for file in read_files(
                self._image, some.__contains__, largest=len(_ELF), total=_ALL, first=len(_ELF)
            )
            if file.data == _ELF
        ]
        if not found:
            return ()
        count = "1 program or library" if len(found) == 1 else f"{len(found)} programs or libraries"
        return (f"{count} of no package of the distribution, {example(found)}",)

    def _files(self, wanted: Callable[[str], bool]) -> Iterator[FileBytes]:
        """The files, except for those that are larger than any sound record."""
        sizes = {path: at.size for path, at in self._tree.contents.items() if wanted(path)}
        for path in [path for path, size in sizes.items() if size > _LARGEST]:
            limit = f"the limit is {_LARGEST}"
            self._reasons.append((path, f"it has {sizes.pop(path)} bytes, {limit}"))
        if sum(sizes.values()) > _ALL:
            path = max(sizes, key=lambda path: sizes[path])
            why = f"it and {len(sizes) - 1} more records have more than {_ALL} bytes together"
            self._reasons.append((path, why))
            return
        yield from read_files(self._image, sizes.__contains__, largest=_LARGEST, total=_ALL)


def _parse(name: str, data: bytes) -> Iterator[tuple[PackageKind, Installed]]:
    """What a file of the image records; ``name`` is what it is known by."""
    if dpkg.is_database(name):
        for installed in dpkg.parse_status(data, partial=name != dpkg.STATUS):
            yield PackageKind.DEB, installed
    elif name in apk.DATABASES:
        for installed in apk.parse_installed(data):
            yield PackageKind.APK, installed
    elif python.is_metadata(name):
        yield PackageKind.PYPI, python.parse_metadata(data)
    elif npm.is_package(name) and (package := npm.parse_package(data)) is not None:
        yield PackageKind.NPM, package
