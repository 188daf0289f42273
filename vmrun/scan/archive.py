"""A database of advisories as it is published: a zip of JSON that nobody has vouched for."""

from __future__ import annotations

import hashlib
import lzma
import os
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from vmrun.image.limits import GIB, MIB
from vmrun.image.streams import CHUNK, reading
from vmrun.model.digest import Digest
from vmrun.model.errors import ImageError, ScanError

_LARGEST_ZIP = 2 * GIB
_LARGEST_ADVISORY = 8 * MIB
_MOST_ADVISORIES = 1_000_000
_UNPACKED = 16 * GIB
_RATIO = 200
HINT = "get the database again, see docs/how-to/get-advisories.md"


def digest_of(file: BinaryIO, path: Path) -> Digest:
    """What the file holds from here on. Raises :class:`ImageError`."""
    hasher = hashlib.sha256()
    with reading(f"database {path}"):
        if os.fstat(file.fileno()).st_size > _LARGEST_ZIP:
            raise ImageError(f"database {path} has more than {_LARGEST_ZIP} bytes")
        while chunk := file.read(CHUNK):
            hasher.update(chunk)
    return Digest("sha256", hasher.hexdigest())


def members(file: BinaryIO, path: Path) -> Iterator[tuple[str, bytes]]:
    """The advisories of a zip, each bounded; a damaged zip is a :class:`ScanError`."""
    try:
        with zipfile.ZipFile(file) as archive:
            listed = archive.infolist()
            if len(listed) > _MOST_ADVISORIES:
                raise ScanError(f"{path}: more than {_MOST_ADVISORIES} files", hint=HINT)
            names: set[str] = set()
            left = _UNPACKED
            for member in listed:
                if member.is_dir() or not member.filename.endswith(".json"):
                    continue
                if member.filename in names:
                    raise ScanError(f"{path}: {member.filename[:200]!r} twice", hint=HINT)
                names.add(member.filename)
                left -= member.file_size
                bomb = member.file_size > _RATIO * max(member.compress_size, 1024)
                if member.file_size > _LARGEST_ADVISORY or left < 0 or bomb:
                    raise ScanError(f"{path}: {member.filename[:200]!r} is too large", hint=HINT)
                yield member.filename, _content(archive, member)
    except _BAD_ZIP as error:
        raise ScanError(f"{path}: not a zip that can be read ({error})", hint=HINT) from None


# bz2 has OSError for damaged data, and seeking where a damaged zip points to may fail as well.
_BAD_ZIP = (
    zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, NotImplementedError, RuntimeError,
    ValueError, OSError,
)  # fmt: skip


def _content(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    """A member's bytes, as many as the directory says; the checksum was checked."""
    with archive.open(member) as file:
        return file.read(member.file_size + 1)
