"""Where an image keeps its package databases: behind links, as a process inside would find them."""

from __future__ import annotations

from collections.abc import Iterator

from vmrun.image.tree import LookupFailed, join, parent, resolve
from vmrun.model.image import FileTree
from vmrun.scan.catalogue import apk, dpkg, foreign, npm, os_release, python

_FILES = (dpkg.STATUS, *apk.DATABASES, *os_release.PATHS)
_FOLDERS = (dpkg.FOLDER, dpkg.STATUS_D, dpkg.INFO, *foreign.FOLDERS)

# Following one may take a millisecond, as the image has it.
_MOST_LINKS = 50_000


class Places:
    """The names by which the files of an image are known, whatever links lead to them."""

    def __init__(self, tree: FileTree) -> None:
        self._tree = tree
        self._real_folders: dict[str, str] = {}
        self._known_folders: dict[str, str] = {"/": "/"}
        self._files: dict[str, str] = {}
        self._folders: dict[str, str] = {}
        for path in _FILES:
            self._files.setdefault(self.real(path), path)
        for path in _FOLDERS:
            self._folders.setdefault(self.real(path), path)
        links = [path for path, entry in tree.entries.items() if entry.kind == "symlink"]
        for path in filter(npm.FOLDER.fullmatch, links):
            self._folders.setdefault(self._resolve(path), path)
        self._left = _MOST_LINKS
        for path in links:
            self._link(path)

    def known(self, path: str) -> str:
        """The name that ``path`` (a real one) is known by; most often its own."""
        if path in self._files:
            return self._files[path]
        return join(self._known_folder(parent(path)), path.rpartition("/")[2])

    def real(self, path: str) -> str:
        """Where ``path`` leads; empty if it leads nowhere."""
        folder = self.real_folder(parent(path))
        joined = join(folder, path.rpartition("/")[2]) if folder else ""
        entry = self._tree.entries.get(joined)
        if entry is None:
            return ""
        return self._resolve(joined) if entry.kind == "symlink" else joined

    def real_folder(self, folder: str) -> str:
        """The same for a folder, which is remembered."""
        if folder not in self._real_folders:
            self._real_folders[folder] = self._resolve(folder)
        return self._real_folders[folder]

    def problems(self) -> Iterator[str]:
        """What a process inside might find, and we do not: links of a database to nowhere, and
        more links than anybody could follow."""
        for path in (dpkg.STATUS, dpkg.STATUS_D, *apk.DATABASES, *foreign.FOLDERS):
            for part in (path, parent(path)):
                entry = self._tree.entries.get(part)
                if entry is not None and entry.kind == "symlink" and not self.real(part):
                    yield f"{part} is a link that leads nowhere"
                    break
        if self._left < 0:
            yield f"more than {_MOST_LINKS} links that may lead to records"

    def _link(self, path: str) -> None:
        """A link by whose name something is a record, which it is not by its own name."""
        name = self.known(path)
        for suffix in ("", "/METADATA", "/PKG-INFO", "/EGG-INFO/PKG-INFO", "/package.json"):
            if is_record(name + suffix):
                self._left -= 1
                if self._left < 0:
                    return
                real = self._resolve(path + suffix)
                if real and not is_record(real):
                    self._files.setdefault(real, name + suffix)

    def _known_folder(self, folder: str) -> str:
        if folder not in self._known_folders:
            self._known_folders[folder] = self._folders.get(folder) or join(
                self._known_folder(parent(folder)), folder.rpartition("/")[2]
            )
        return self._known_folders[folder]

    def _resolve(self, path: str) -> str:
        try:
            return resolve(self._tree, path).path
        except LookupFailed:
            return ""


def is_record(name: str) -> bool:
    """Whether a file of that name records packages, or the distribution."""
    return (
        name in os_release.PATHS
        or name in apk.DATABASES
        or dpkg.is_database(name)
        or python.is_metadata(name)
        or npm.is_package(name)
    )
