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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from vmrun.journal.chain import CHANGED, Chain, Head, torn_hash
from vmrun.journal.entry import GENESIS, TORN, Entry, capped, line_hash, parse_entry
from vmrun.journal.files import (
    ACTIVE,
    Segment,
    Tail,
    is_at,
    lines_of,
    open_for_append,
    open_to_read,
    read_tail,
    segment_path,
    segments,
    sync_directory,
    write_all,
)
from vmrun.model.errors import StateError
from vmrun.model.record import as_text

__all__ = ["CONTINUES", "Head", "Journal"]

CONTINUES = "journal.continues"
"""The event of the first entry after a segment."""
SEGMENT = 64 << 20
"""Bytes from which on a file is full."""
_TRIES = 1000
_LOGIN = Path("/proc/self/loginuid")
_NOBODY_LOGGED_IN = 0xFFFFFFFF


class Journal:
    """The journal in ``directory``, which only its owner may enter. A file of it that has
    ``segment`` bytes or more is put aside, and another one continues its chain."""

    def __init__(self, directory: Path, *, segment: int = SEGMENT) -> None:
        self._directory = directory
        self._segment = segment
        self.path = directory / ACTIVE

    def append(self, event: str, fields: Mapping[str, str]) -> Entry:
        """Write an entry down for good: it is on the disk when this returns.

        What a crash has left of a last line is kept, and its hash is in the new entry.
        Raises :class:`StateError` when it cannot be written: what is not recorded must not happen.
        """
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            for _ in range(_TRIES):
                with open_for_append(self.path) as file:
                    # flock(2), not a POSIX lock: that would not keep threads apart.
                    fcntl.flock(file.fileno(), fcntl.LOCK_EX)
                    # While we waited it may have been put aside, and is full for good then.
                    if is_at(file, self.path) and not self._put_aside(file):
                        return self._append(file, event, fields)
        except OSError as error:
            raise StateError(
                f"cannot write the journal {self.path}: {error.strerror or error}",
                hint="free disk space, or set VMRUN_STATE_DIR to a directory that you own",
            ) from error
        raise StateError(f"{self.path} is replaced all the time", hint="find out by whom")

    def entries(self) -> Iterator[Entry]:
        """All entries in order, as far as the chain holds. Raises :class:`StateError` at the first
        line that was changed, removed, added or moved."""
        for _, entry in self._walk(Chain()):
            if entry is not None:
                yield entry

    def verify(self, *expected: Head | None, copy: Callable[[bytes], object] | None = None) -> Head:
        """Check the whole chain; the head. ``copy`` is given each line, once it was checked.

        Raises :class:`StateError` at the first line that was changed, removed, added or moved, or
        when an entry of ``expected`` is not there as it was.
        """
        chain = Chain([head for head in expected if head is not None])
        for line, _ in self._walk(chain):
            if copy is not None:
                copy(line + b"\n")
        return chain.head()

    def _put_aside(self, file: BinaryIO) -> bool:
        """Make a full file a segment; whether it was full. It is locked by us."""
        size = file.seek(0, os.SEEK_END)
        if size < self._segment:
            return False
        last = parse_entry(read_tail(file, size, self.path).last)
        if last is None:
            return False
        path = segment_path(self._directory, last.seq)
        if os.path.lexists(path):
            raise StateError(f"{path} is there already", hint=CHANGED)
        os.rename(self.path, path)
        sync_directory(self._directory)
        return True

    def _append(self, file: BinaryIO, event: str, fields: Mapping[str, str]) -> Entry:
        size = file.seek(0, os.SEEK_END)
        tail = read_tail(file, size, self.path)
        lines: list[bytes] = []
        older = segments(self._directory) if not tail.last else ()
        if older:
            # The first entry of this file. A crash may have left half of one.
            before = self._tail_of(older[-1])
            tail = Tail(before.last, before.torn + tail.torn, tail.ended)
            head = Head(older[-1].last, line_hash(before.last))
            told = {"segment": older[-1].path.name, "head": str(head)}
            lines.append(_next(tail.last, tail.torn, CONTINUES, told).line())
            entry = _next(lines[0], (), event, fields)
        else:
            entry = _next(tail.last, tail.torn, event, fields)
        lines.append(entry.line())
        data = b"".join(line + b"\n" for line in lines)
        write_all(file, (b"" if tail.ended else b"\n") + data, size)
        if size == 0:
            sync_directory(self._directory)
        return entry

    def _tail_of(self, segment: Segment) -> Tail:
        with open_to_read(segment.path) as file:
            tail = read_tail(file, os.fstat(file.fileno()).st_size, segment.path)
        last = parse_entry(tail.last)
        if last is None or last.seq != segment.last:
            raise StateError(f"{segment.path} does not end with entry {segment.last}", hint=CHANGED)
        return tail

    def _walk(self, chain: Chain) -> Iterator[tuple[bytes, Entry | None]]:
        """The lines that are there now, and what they are to the chain."""
        try:
            older, active, size = self._now()
            with nullcontext() if active is None else closing(active):
                for segment in older:
                    chain.begins(str(segment.path))
                    with open_to_read(segment.path) as file:
                        whole = os.fstat(file.fileno()).st_size
                        for line in lines_of(file, whole, segment.path):
                            yield line, chain.take(line)
                    chain.ends(segment.last)
                chain.begins(str(self.path))
                if active is not None:
                    for line in lines_of(active, size, self.path):
                        yield line, chain.take(line)
        except OSError as error:
            raise StateError(
                f"cannot read the journal {self.path}: {error.strerror or error}",
                hint="check who may read it, and the disk's health",
            ) from None

    def _now(self) -> tuple[Sequence[Segment], BinaryIO | None, int]:
        """The segments, and the file that continues them with its size, at one moment."""
        for _ in range(_TRIES):
            try:
                file = open_to_read(self.path)
            except FileNotFoundError:
                return segments(self._directory), None, 0
            try:
                fcntl.flock(file.fileno(), fcntl.LOCK_SH)
                if is_at(file, self.path):
                    older = segments(self._directory)
                    size = os.fstat(file.fileno()).st_size
                    fcntl.flock(file.fileno(), fcntl.LOCK_UN)
                    return older, file, size
            except BaseException:
                file.close()
                raise
            file.close()
        raise StateError(f"{self.path} is replaced all the time", hint="find out by whom")


def _next(last: bytes, torn: Sequence[bytes], event: str, fields: Mapping[str, str]) -> Entry:
    """The entry after the one whose line is ``last``, and after the broken lines ``torn``."""
    before = parse_entry(last) if last else None
    left = {TORN: torn_hash(torn)} if torn else {}
    return capped(
        Entry(
            seq=before.seq + 1 if before else 1,
            time=datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z"),
            user=_user(),
            event=event,
            fields={key: as_text(value) for key, value in fields.items()} | left,
            previous=line_hash(last) if last else GENESIS,
        )
    )


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
