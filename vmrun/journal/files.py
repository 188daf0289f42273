"""The journal's files: the one that is appended to, and its segments, which are full.

A segment is named after the number of its last entry and never touched again. All of them, in
their order, and then the file that is appended to are one chain.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from vmrun.journal.chain import CHANGED
from vmrun.journal.entry import LONGEST_LINE, parse_entry
from vmrun.model.errors import StateError

ACTIVE = "journal.jsonl"
_SEGMENT = re.compile(r"journal-([0-9]{12})\.jsonl")
_TAIL = 4 * LONGEST_LINE
"""Bytes that are read to append: the last entry, and broken lines after it."""
_FLAGS = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


@dataclass(frozen=True, slots=True)
class Segment:
    """A full file; ``last`` is the number of the last entry in it."""

    path: Path
    last: int


@dataclass(frozen=True, slots=True)
class Tail:
    """A file's end: the last entry's line, empty for none, the broken lines after it, and whether
    a newline is the last byte."""

    last: bytes
    torn: tuple[bytes, ...]
    ended: bool


def segments(directory: Path) -> tuple[Segment, ...]:
    """The segments in their order. Raises :class:`OSError`."""
    try:
        names = os.listdir(directory)
    except FileNotFoundError:
        return ()
    found = [(match, name) for name in names if (match := _SEGMENT.fullmatch(name))]
    return tuple(sorted((Segment(directory / n, int(m[1])) for m, n in found), key=_last))


def _last(segment: Segment) -> int:
    return segment.last


def segment_path(directory: Path, last: int) -> Path:
    """Where the segment is whose last entry has that number."""
    return directory / f"journal-{last:012}.jsonl"


def open_for_append(path: Path) -> BinaryIO:
    """The file, new if there is none. Raises :class:`OSError` for what is no regular file."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | _FLAGS, 0o600)
    return _regular(os.fdopen(descriptor, "r+b", buffering=0))


def open_to_read(path: Path) -> BinaryIO:
    """The file. Raises :class:`OSError`."""
    return _regular(os.fdopen(os.open(path, os.O_RDONLY | _FLAGS), "rb"))


def _regular(file: BinaryIO) -> BinaryIO:
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError("not a regular file")
    return file


def is_at(file: BinaryIO, path: Path) -> bool:
    """Whether an open file is still the one of that name."""
    try:
        there = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return False
    here = os.fstat(file.fileno())
    return (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino)


def lines_of(file: BinaryIO, size: int, path: Path) -> Iterator[bytes]:
    """The lines in the first ``size`` bytes, even when others append meanwhile."""
    left = size
    while left > 0 and (line := file.readline(min(left, LONGEST_LINE + 2))):
        left -= len(line)
        if len(line) > LONGEST_LINE + 1:
            raise StateError(f"{path}: a line is too long", hint=CHANGED)
        yield line.removesuffix(b"\n")


def read_tail(file: BinaryIO, size: int, path: Path) -> Tail:
    """The end of a file of ``size`` bytes; :class:`StateError` when it is none of a journal's."""
    start = max(0, size - _TAIL)
    file.seek(start)
    lines = _read(file, size - start).split(b"\n")
    ended = lines[-1] == b""
    if ended:
        lines.pop()
    torn: list[bytes] = []
    while lines:
        # The first piece of a longer journal is half a line.
        whole = len(lines) > 1 or start == 0
        line = lines.pop()
        if whole and parse_entry(line) is not None:
            return Tail(line, tuple(torn[::-1]), ended)
        torn.append(line)
    if start or sum(map(len, torn)) > 2 * LONGEST_LINE:
        raise StateError(f"{path} ends with what is no entry", hint=CHANGED)
    return Tail(b"", tuple(torn[::-1]), ended)


def _read(file: BinaryIO, size: int) -> bytes:
    parts = []
    while size > 0 and (data := file.read(size)):
        parts.append(data)
        size -= len(data)
    return b"".join(parts)


def write_all(file: BinaryIO, data: bytes, size: int) -> None:
    """Write and sync; what does not fit is taken back to ``size``, as far as that can be done."""
    try:
        view = memoryview(data)
        while view:
            view = view[file.write(view) :]
        os.fsync(file.fileno())
    except OSError:
        os.ftruncate(file.fileno(), size)
        raise


def sync_directory(directory: Path) -> None:
    """Let a new name last, too."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
