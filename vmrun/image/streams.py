"""Byte streams: the little that readers of untrusted bytes need, in bounded chunks."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Protocol

from vmrun.model.errors import ImageError, ImageNotFound

CHUNK = 256 * 1024


class Readable(Protocol):
    """Anything that gives bytes: at most ``size`` of them, none at the end."""

    def read(self, size: int, /) -> bytes: ...


def read_exactly(stream: Readable, size: int) -> bytes:
    """``size`` bytes, or fewer when the stream ends before."""
    data = stream.read(size)
    if len(data) in (0, size):
        return data
    parts = [data]
    missing = size - len(data)
    while missing and (data := stream.read(missing)):
        parts.append(data)
        missing -= len(data)
    return b"".join(parts)


@contextmanager
def reading(what: str) -> Iterator[None]:
    """Failures to read what the image comes from."""
    try:
        yield
    except OSError as error:
        raise ImageError(
            f"cannot read {what}: {error.strerror or error}",
            hint="check who may read it, and the disk's health",
        ) from None


def open_regular(path: Path, what: str) -> BinaryIO:
    """Open a regular file. Anything else (a FIFO would block for ever) is refused."""
    with reading(f"{what} {str(path)!r}"):
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except (FileNotFoundError, NotADirectoryError):
            raise ImageNotFound(
                f"{what} {str(path)!r} does not exist", hint="check the path"
            ) from None
        file = os.fdopen(descriptor, "rb", buffering=0) if _regular(descriptor) else None
    if file is None:
        raise ImageError(f"{what} {str(path)!r} is not a regular file", hint="check the path")
    return file


def _regular(descriptor: int) -> bool:
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return True
    os.close(descriptor)
    return False


class Section:
    """A part of a file, read from its own position."""

    def __init__(self, file: BinaryIO, offset: int, size: int) -> None:
        self._file = file
        self._offset = offset
        self._left = size

    def read(self, size: int, /) -> bytes:
        self._file.seek(self._offset)
        data = self._file.read(min(size, self._left))
        self._offset += len(data)
        self._left -= len(data)
        return data
