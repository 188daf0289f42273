"""The two places that hold an image's files: a directory and a tar archive."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from vmrun.image.compression import MAGIC_LENGTH, decompress, detect
from vmrun.image.layout import spool
from vmrun.image.limits import ImageLimits
from vmrun.image.source import Files
from vmrun.image.streams import Readable, Section, open_regular, read_exactly, reading
from vmrun.image.tar import TarFormatError, TarKind, TarReader
from vmrun.model.errors import ImageError, ImageNotFound, ImageTooLarge
from vmrun.model.image import Compression

_MEMBER_LINKS = 8


def read_document(files: Files, name: str, limits: ImageLimits) -> bytes:
    """A whole file that should be small: an index, a manifest, a config."""
    what = files.describe(name)
    with files.open(name) as stream, reading(what):
        data = read_exactly(stream, limits.document + 1)
    if len(data) > limits.document:
        raise ImageTooLarge(f"{what}: more than {limits.document} bytes")
    return data


class DirectoryFiles:
    """The files of a directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        with reading(f"directory {str(directory)!r}"):
            if not directory.is_dir():
                raise ImageNotFound(
                    f"directory {str(directory)!r} does not exist", hint="check the path"
                )

    def open(self, name: str) -> AbstractContextManager[Readable]:
        """A file's bytes."""
        return open_regular(self._directory / name, "file")

    def describe(self, name: str) -> str:
        """Names a file and where it lies."""
        return repr(str(self._directory / name))


@dataclass(frozen=True, slots=True)
class _Member:
    offset: int
    size: int
    target: str | None = None


class ArchiveFiles:
    """The members of an uncompressed tar, found in one pass over its headers and read in
    place. Links to other members are followed, as old ``docker save`` wrote for layers
    that images share."""

    def __init__(self, file: BinaryIO, name: str, limits: ImageLimits) -> None:
        self._file = file
        self._name = name
        self._members: dict[str, _Member] = {}
        with reading(f"archive {name}"):
            try:
                self._index(limits)
            except TarFormatError as error:
                raise ImageError(f"archive {name}: {error.message}", hint=error.hint) from None

    def __contains__(self, name: str) -> bool:
        return self._find(name) is not None

    def open(self, name: str) -> AbstractContextManager[Readable]:
        """A member's bytes."""
        return self._open(name)

    def size(self, name: str) -> int:
        """A member's size."""
        return self._get(name).size

    def describe(self, name: str) -> str:
        """Names a member and its archive."""
        return f"{name[:200]!r} in archive {self._name}"

    @contextmanager
    def _open(self, name: str) -> Iterator[Readable]:
        member = self._get(name)
        yield Section(self._file, member.offset, member.size)

    def _get(self, name: str) -> _Member:
        member = self._find(name)
        if member is None:
            raise ImageNotFound(
                f"archive {self._name} has no {name[:200]!r}",
                hint="the archive is incomplete or of another kind; save the image again",
            )
        return member

    def _find(self, name: str) -> _Member | None:
        at = posixpath.normpath(name)
        for _ in range(_MEMBER_LINKS):
            member = self._members.get(at)
            if member is None or member.target is None:
                return member
            at = member.target
        return None

    def _index(self, limits: ImageLimits) -> None:
        count = 0
        for entry in _SeekingReader(self._file):
            count += 1
            if count > limits.members:
                raise ImageTooLarge(f"archive {self._name}: more than {limits.members} members")
            name = posixpath.normpath(entry.name)
            target = None
            if entry.kind is TarKind.SYMLINK:
                target = posixpath.normpath(posixpath.join(posixpath.dirname(name), entry.target))
            elif entry.kind is TarKind.HARDLINK:
                target = posixpath.normpath(entry.target)
            elif entry.kind is not TarKind.FILE:
                continue
            if name in self._members:
                raise ImageError(f"archive {self._name} holds {name[:200]!r} twice")
            self._members[name] = _Member(entry.offset, entry.size, target)


class _SeekingReader(TarReader):
    """Passes over the data between headers without reading it."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file)
        self._file = file
        self._end = file.seek(0, os.SEEK_END)
        file.seek(0)

    def skip(self, size: int) -> int:
        at = self._file.tell()
        return self._file.seek(min(at + size, self._end)) - at


@contextmanager
def open_archive(path: Path, scratch: Path, limits: ImageLimits) -> Iterator[ArchiveFiles]:
    """The members of an archive file. A compressed one cannot be sought, so its tar goes
    through an unnamed file in ``scratch``."""
    name = repr(str(path))
    with open_regular(path, "archive") as file:
        with reading(f"archive {name}"):
            compression = detect(read_exactly(file, MAGIC_LENGTH))
            file.seek(0)
        if compression is Compression.NONE:
            yield ArchiveFiles(file, name, limits)
            return
        unpacked = decompress(file, compression, f"archive {name}")
        with spool(unpacked, scratch, limits.blobs, f"archive {name}") as spooled:
            yield ArchiveFiles(spooled, name, limits)
