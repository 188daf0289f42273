"""The journal: append-only lines of JSON, each of which carries the hash of the line before.

Whoever changes, removes or reorders a line breaks the chain after it. Whoever cuts the end off does
not, so the head (number and hash of the last line) can be kept somewhere else and compared.
Append-only means by vmrun: root can rewrite all of it and chain it anew, which only a head kept
elsewhere shows.
"""

from __future__ import annotations

import os
import pwd
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from vmrun.journal.entry import GENESIS, LONGEST_LINE, Entry, line_hash, parse_entry
from vmrun.model.errors import StateError

_FILE = "journal.jsonl"


@dataclass(frozen=True, slots=True)
class Head:
    """The last entry: its number (0: none) and its line's hash."""

    seq: int
    hash: str

    def __str__(self) -> str:
        return f"{self.seq}:{self.hash}"

    @classmethod
    def parse(cls, text: str) -> Head:
        """Read ``SEQ:HASH``. Raises :class:`StateError`."""
        seq, _, value = text.partition(":")
        if not seq.isdecimal() or len(seq) > 12 or len(value) != len(GENESIS):
            raise StateError(f"not a head: {text[:100]!r}", hint="'vmrun audit verify' prints it")
        return cls(int(seq), value)


class Journal:
    """The journal in ``directory``, which only its owner may enter."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.path = directory / _FILE

    def append(self, event: str, fields: Mapping[str, str]) -> Entry:
        """Write an entry down for good: it is on the disk when this returns.

        What a crash has left of a last line is kept, ended, and named by the next entry.
        Raises :class:`StateError` when it cannot be written: what is not recorded must not happen.
        """
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
            with os.fdopen(os.open(self.path, flags, 0o600), "r+b", buffering=0) as file:
                os.lockf(file.fileno(), os.F_LOCK, 0)
                last, torn = _last_line(file)
                if torn:
                    file.write(b"\n")
                    last = torn
                return _write(file, last, event, fields, torn=bool(torn))
        except OSError as error:
            raise StateError(
                f"cannot write the journal {self.path}: {error.strerror or error}",
                hint="free disk space, or set VMRUN_STATE_DIR to a directory that you own",
            ) from error

    def entries(self) -> Iterator[Entry]:
        """All entries in order; a line that is none is a :class:`StateError`."""
        for number, line in enumerate(self._lines(), start=1):
            if not _is_torn(line):
                yield parse_entry(line, f"{self.path}:{number}")

    def verify(self, expected: Head | None = None) -> Head:
        """Check the whole chain; the head. Raises :class:`StateError` at the first line that was
        changed, removed, added or moved, or when entry ``expected`` is not there as it was."""
        previous, seq = GENESIS, 0
        met = expected is None or expected.seq == 0
        for number, line in enumerate(self._lines(), start=1):
            where = f"{self.path}:{number}"
            if _is_torn(line):
                previous = line_hash(line)
                continue
            entry = parse_entry(line, where)
            if entry.previous != previous:
                raise StateError(
                    f"{where}: the chain is broken before entry {entry.seq}", hint=_BROKEN
                )
            if entry.seq != seq + 1:
                raise StateError(f"{where}: entry {entry.seq} follows entry {seq}", hint=_BROKEN)
            seq, previous = entry.seq, line_hash(line)
            if expected is not None and seq == expected.seq:
                if previous != expected.hash:
                    raise StateError(f"{where}: entry {seq} is not the expected one", hint=_BROKEN)
                met = True
        if not met and expected is not None:
            raise StateError(
                f"{self.path} ends with entry {seq}; entry {expected.seq} was cut off", hint=_BROKEN
            )
        return Head(seq, previous)

    def _lines(self) -> Iterator[bytes]:
        try:
            with self.path.open("rb") as file:
                while line := file.readline(LONGEST_LINE + 2):
                    if len(line) > LONGEST_LINE + 1:
                        raise StateError(f"{self.path}: a line is too long", hint=_BROKEN)
                    yield line.removesuffix(b"\n")
        except FileNotFoundError:
            return
        except OSError as error:
            raise StateError(f"cannot read {self.path}: {error.strerror}") from None


_BROKEN = "somebody changed the journal; compare it with an exported copy"


def _write(
    file: BinaryIO, last: bytes, event: str, fields: Mapping[str, str], *, torn: bool
) -> Entry:
    seq = 0
    if last and not torn:
        seq = parse_entry(last, "the journal's last line").seq
    elif torn:
        seq = _seq_before(file)
    entry = Entry(
        seq=seq + 1,
        time=datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z"),
        user=_user(),
        event=event,
        fields={**fields, **({"torn": "a crash left half a line before this one"} if torn else {})},
        previous=line_hash(last) if last else GENESIS,
    )
    line = entry.line()
    if len(line) > LONGEST_LINE:
        raise StateError(f"an entry of {len(line)} bytes is too long for the journal")
    file.write(line + b"\n")
    os.fsync(file.fileno())
    return entry


def _last_line(file: BinaryIO) -> tuple[bytes, bytes]:
    """The last complete line, and what stands after it without a newline."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - 2 * LONGEST_LINE - 2))
    tail = file.read(2 * LONGEST_LINE + 2)
    complete, newline, torn = tail.rpartition(b"\n")
    if not newline:
        return b"", tail
    return complete.rpartition(b"\n")[2], torn


def _seq_before(file: BinaryIO) -> int:
    """The number of the last entry before a torn line."""
    file.seek(0)
    lines = [line for line in file.read().split(b"\n") if line and not _is_torn(line)]
    return parse_entry(lines[-1], "the journal").seq if lines else 0


def _is_torn(line: bytes) -> bool:
    """Half a line: a complete one ends with the brace of its object."""
    return not line.endswith(b"}") or not line.startswith(b'{"seq":')


def _user() -> str:
    uid = os.getuid()
    try:
        return f"{pwd.getpwuid(uid).pw_name} ({uid})"
    except KeyError:
        return f"({uid})"
