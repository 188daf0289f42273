"""What a detached workload writes, on disk, in the format of Kubernetes' container runtimes
(design-proposals, "CRI: Log management"): ``TIME STREAM TAG LINE``, one line each, where the tag
says whether the line is full (F) or goes on in the next one of its stream (P).

The disk that logs may take is bounded: a full file is put aside, and of those only some are kept.
When the disk itself is full nothing is dropped: the writer waits, SSH's window closes, and the
workload blocks in its own write(2) until there is room again.
"""

from __future__ import annotations

import contextlib
import io
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO, cast

_FILE = "log"
_LONGEST = 16 << 10
"""Bytes of a line after which it is split, as in Kubernetes."""
_CHUNK = 256 << 10
_RETRY = 0.5


@dataclass(frozen=True, slots=True)
class LogLimits:
    """``size`` in bytes of one file; ``files`` are kept, the one that is written among them."""

    size: int = 16 << 20
    files: int = 4


@dataclass(frozen=True, slots=True)
class LogLine:
    """``time`` is RFC 3339 in UTC; ``stream`` stdout or stderr; ``data`` ends with a newline unless
    the line goes on."""

    time: str
    stream: str
    data: bytes


class LogWriter:
    """Writes one run's log in ``folder``. ``on_problem`` is told why nothing can be written, and
    with an empty text that it can again."""

    def __init__(
        self,
        folder: Path,
        *,
        limits: LogLimits | None = None,
        on_problem: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._path = folder / _FILE
        self._limits = limits or LogLimits()
        self._on_problem = on_problem
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._size = self._path.stat().st_size if self._path.exists() else 0

    def stream(self, name: str) -> BinaryIO:
        """A stream (``stdout`` or ``stderr``) whose lines go into the log."""
        return cast(BinaryIO, _Lines(self, name))

    def put(self, stream: str, data: bytes, *, full: bool) -> None:
        """Write one line; waits while the disk is full."""
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        line = f"{now} {stream} {'F' if full else 'P'} ".encode() + data + b"\n"
        with self._lock:
            if self._size and self._size + len(line) > self._limits.size:
                self._rotate()
            troubled = False
            while not self._append(line):
                troubled = True
                if self._closed.wait(_RETRY):
                    return
            if troubled:
                self._on_problem("")

    def close(self) -> None:
        """Wait no longer for room on the disk."""
        self._closed.set()

    def _append(self, line: bytes) -> bool:
        """Write all of ``line`` or nothing."""
        try:
            descriptor = os.open(
                self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600
            )
            try:
                written = os.write(descriptor, line)
                if written < len(line):
                    os.ftruncate(descriptor, self._size)
                    raise OSError(28, "No space left on device")
            finally:
                os.close(descriptor)
        except OSError as error:
            self._on_problem(f"the log cannot be written: {error.strerror}")
            return False
        self._size += len(line)
        return True

    def _rotate(self) -> None:
        for number in range(self._limits.files - 1, 0, -1):
            older = self._path.with_name(f"{_FILE}.{number}")
            newer = self._path if number == 1 else self._path.with_name(f"{_FILE}.{number - 1}")
            if newer.exists():
                newer.replace(older)
        if self._limits.files == 1:
            self._path.unlink(missing_ok=True)
        self._size = 0


class _Lines(io.BufferedIOBase):
    """Cuts what is written into lines. What has no newline yet is kept until a flush comes or it is
    too long: a prompt is seen at once."""

    def __init__(self, log: LogWriter, name: str) -> None:
        self._log = log
        self._name = name

    def writable(self) -> bool:
        return True

    def write(self, data: bytes) -> int:  # type: ignore[override]
        rest = bytes(data)
        while rest:
            line, newline, after = rest.partition(b"\n")
            if len(line) > _LONGEST:
                self._log.put(self._name, line[:_LONGEST], full=False)
                rest = rest[_LONGEST:]
                continue
            self._log.put(self._name, line, full=bool(newline))
            rest = after
        return len(data)


def log_files(folder: Path) -> list[Path]:
    """The files of a run's log, the oldest first."""
    aside = sorted(
        (path for path in folder.glob(f"{_FILE}.*") if path.suffix[1:].isdigit()),
        key=lambda path: -int(path.suffix[1:]),
    )
    current = folder / _FILE
    return [*aside, *([current] if current.exists() else [])]


def read_log(folder: Path) -> Iterator[LogLine]:
    """All that is there, the oldest line first."""
    with ExitStack() as stack:
        # All are opened before any is read: a file that is put aside meanwhile keeps its lines.
        files = [stack.enter_context(file) for file in _open_all(folder)]
        sizes = [os.fstat(file.fileno()).st_size for file in files]
        for file, size in zip(files, sizes, strict=True):
            yield from _lines_of_file(file, size)


def follow_log(
    folder: Path, ended: Callable[[], bool], pause: Callable[[], None]
) -> Iterator[LogLine]:
    """All that is there and all that comes, until ``ended`` and everything was read."""
    file: BinaryIO | None = None
    rest = b""
    try:
        while True:
            # Asked before the last look: what was written before the end is read.
            over = ended()
            if file is None:
                file = _after(folder, None)
            data = file.read(_CHUNK) if file is not None else b""
            if data:
                whole, newline, rest = (rest + data).rpartition(b"\n")
                yield from _lines_of(whole + newline)
                continue
            following = None if file is None else _after(folder, file)
            if file is not None and following is not None:
                # Nothing more is written to a file that has one after it.
                yield from _lines_of(rest + file.read())
                file.close()
                file, rest = following, b""
                continue
            if over:
                return
            pause()
    finally:
        if file is not None:
            file.close()


def _after(folder: Path, file: BinaryIO | None) -> BinaryIO | None:
    """The file that follows ``file``, or the oldest, opened; None when there is none. Files are
    known by their inodes: while one is read it may be put aside, more than once."""
    files = _open_all(folder)
    inodes = [os.fstat(one.fileno()).st_ino for one in files]
    here = None if file is None else os.fstat(file.fileno()).st_ino
    # One that is not there any more was the oldest, and gave way.
    number = inodes.index(here) + 1 if here in inodes else 0
    for other in (*files[:number], *files[number + 1 :]):
        other.close()
    return files[number] if number < len(files) else None


def _open_all(folder: Path) -> list[BinaryIO]:
    """Every file of the log, the oldest first, as they were at one moment."""
    while True:
        found: list[BinaryIO] = []
        with contextlib.suppress(FileNotFoundError):
            for path in log_files(folder):
                found.append(path.open("rb"))
            if [_inode(path) for path in log_files(folder)] == [
                os.fstat(file.fileno()).st_ino for file in found
            ]:
                return found
        for file in found:
            file.close()


def _inode(path: Path) -> int:
    return path.stat().st_ino


def _lines_of(data: bytes) -> Iterator[LogLine]:
    # Not splitlines: what was written may hold carriage returns.
    found = (parse_line(line + b"\n") for line in data.split(b"\n")[:-1])
    yield from (line for line in found if line is not None)


def _lines_of_file(file: BinaryIO, size: int) -> Iterator[LogLine]:
    """The lines in the first ``size`` bytes."""
    left = size
    while left > 0 and (raw := file.readline(left)):
        left -= len(raw)
        line = parse_line(raw)
        if line is not None:
            yield line


def parse_line(raw: bytes) -> LogLine | None:
    """One line of a log file; None for one that was cut off."""
    parts = raw.split(b" ", 3)
    if len(parts) != 4 or not raw.endswith(b"\n") or parts[2] not in (b"F", b"P"):
        return None
    data = parts[3] if parts[2] == b"F" else parts[3][:-1]
    return LogLine(parts[0].decode("ascii", "replace"), parts[1].decode("ascii", "replace"), data)
