"""The journal: append-only lines of JSON, each of which carries the hash of the line before.

Whoever changes, removes or reorders a line breaks the chain after it. Whoever cuts the end off, or
changes the last line only, does not, so the head (number and hash of the last line) can be kept
somewhere else and compared. Append-only means by vmrun: root can rewrite all of it and chain it
anew, which only a head kept elsewhere shows.
"""

from __future__ import annotations

import fcntl
import os
import pwd
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from vmrun.journal.chain import CHANGED, Chain, Head, torn_hash
from vmrun.journal.entry import (
    GENESIS,
    LONGEST_LINE,
    TORN,
    Entry,
    capped,
    line_hash,
    parse_entry,
)
from vmrun.model.errors import StateError
from vmrun.model.record import as_text

__all__ = ["Head", "Journal"]

_FILE = "journal.jsonl"
_TAIL = 4 * LONGEST_LINE
"""Bytes that are read to append: the last entry, and broken lines after it."""
_LOGIN = Path("/proc/self/loginuid")
_NOBODY_LOGGED_IN = 0xFFFFFFFF
_FLAGS = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


class Journal:
    """The journal in ``directory``, which only its owner may enter."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.path = directory / _FILE

    def append(self, event: str, fields: Mapping[str, str]) -> Entry:
        """Write an entry down for good: it is on the disk when this returns.

        What a crash has left of a last line is kept, and its hash is in the new entry.
        Raises :class:`StateError` when it cannot be written: what is not recorded must not happen.
        """
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | _FLAGS, 0o600)
            with os.fdopen(descriptor, "r+b", buffering=0) as file:
                _must_be_regular(file)
                # flock(2), not a POSIX lock: that would not keep threads apart.
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                return self._append(file, event, fields)
        except OSError as error:
            raise StateError(
                f"cannot write the journal {self.path}: {error.strerror or error}",
                hint="free disk space, or set VMRUN_STATE_DIR to a directory that you own",
            ) from error

    def entries(self) -> Iterator[Entry]:
        """All entries in order, as far as the chain holds. Raises :class:`StateError` at the first
        line that was changed, removed, added or moved."""
        chain = Chain(str(self.path))
        for line in self._lines():
            entry = chain.take(line)
            if entry is not None:
                yield entry

    def verify(
        self, expected: Head | None = None, *, copy: Callable[[bytes], object] | None = None
    ) -> Head:
        """Check the whole chain; the head. ``copy`` is given each line, once it was checked.

        Raises :class:`StateError` at the first line that was changed, removed, added or moved, or
        when entry ``expected`` is not there as it was.
        """
        chain = Chain(str(self.path), expected)
        for line in self._lines():
            chain.take(line)
            if copy is not None:
                copy(line + b"\n")
        return chain.head()

    def _append(self, file: BinaryIO, event: str, fields: Mapping[str, str]) -> Entry:
        size = file.seek(0, os.SEEK_END)
        last, torn, ended = self._tail(file, size)
        before = parse_entry(last) if last else None
        left = {TORN: torn_hash(torn)} if torn else {}
        entry = capped(
            Entry(
                seq=before.seq + 1 if before else 1,
                time=datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z"),
                user=_user(),
                event=event,
                fields={key: as_text(value) for key, value in fields.items()} | left,
                previous=line_hash(last) if last else GENESIS,
            )
        )
        _write_all(file, (b"" if ended else b"\n") + entry.line() + b"\n", size)
        if size == 0:
            _sync(self._directory)
        return entry

    def _tail(self, file: BinaryIO, size: int) -> tuple[bytes, list[bytes], bool]:
        """The last entry's line, the broken lines after it, and whether the file ends a line."""
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
                return line, torn[::-1], ended
            torn.append(line)
        if start or sum(map(len, torn)) > 2 * LONGEST_LINE:
            raise StateError(f"{self.path} ends with what is no entry", hint=CHANGED)
        return b"", torn[::-1], ended

    def _lines(self) -> Iterator[bytes]:
        """The lines that are there now, even when others append meanwhile."""
        with self._reading() as (file, size):
            left = size
            while left > 0 and (line := file.readline(min(left, LONGEST_LINE + 2))):
                left -= len(line)
                if len(line) > LONGEST_LINE + 1:
                    raise StateError(f"{self.path}: a line is too long", hint=CHANGED)
                yield line.removesuffix(b"\n")

    @contextmanager
    def _reading(self) -> Iterator[tuple[BinaryIO, int]]:
        try:
            try:
                descriptor = os.open(self.path, os.O_RDONLY | _FLAGS)
            except FileNotFoundError:
                descriptor = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
                with os.fdopen(descriptor, "rb") as nothing:
                    yield nothing, 0
                return
            with os.fdopen(descriptor, "rb") as file:
                _must_be_regular(file)
                fcntl.flock(descriptor, fcntl.LOCK_SH)
                size = os.fstat(descriptor).st_size
                fcntl.flock(descriptor, fcntl.LOCK_UN)
                yield file, size
        except OSError as error:
            raise StateError(
                f"cannot read the journal {self.path}: {error.strerror or error}",
                hint="check who may read it, and the disk's health",
            ) from None


def _must_be_regular(file: BinaryIO) -> None:
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        raise OSError("not a regular file")


def _read(file: BinaryIO, size: int) -> bytes:
    parts = []
    while size > 0 and (data := file.read(size)):
        parts.append(data)
        size -= len(data)
    return b"".join(parts)


def _write_all(file: BinaryIO, data: bytes, size: int) -> None:
    """Write and sync; what does not fit is taken back, as far as that can be done."""
    try:
        view = memoryview(data)
        while view:
            view = view[file.write(view) :]
        os.fsync(file.fileno())
    except OSError:
        os.ftruncate(file.fileno(), size)
        raise


def _sync(directory: Path) -> None:
    """Let the name of a new journal last, too."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _user() -> str:
    """Who this process is, and who logged in when that was somebody else (sudo, su)."""
    uid, login = os.getuid(), _login()
    return (
        _account(uid) if login is None or login == uid else f"{_account(uid)} for {_account(login)}"
    )


def _account(uid: int) -> str:
    try:
        return f"{pwd.getpwuid(uid).pw_name} ({uid})"
    except KeyError:
        return f"({uid})"


def _login() -> int | None:
    """The audit user id (proc_pid_loginuid(5)), which no later change of user touches."""
    try:
        login = int(_LOGIN.read_text())
    except (OSError, ValueError):
        return None
    return None if login == _NOBODY_LOGGED_IN else login
