"""Reading the tar that a guest sends back. It is hostile until proved otherwise: only what
busybox's tar and the guest tool write (ustar with GNU's long names and large numbers) is
understood, everything is capped, and whatever does not fit is a :class:`GuestError`."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum

from vmrun.model.errors import GuestError

BLOCK = 512
CHUNK = 64 << 10
LONGEST_PATH = 4095
LONGEST_NAME = 255
DEEPEST = 256

_OCTAL = re.compile(rb"[ \0]*([0-7]*)[ \0]*")
_LONG_NAME, _LONG_LINK = b"L", b"K"
_BINARY = 0x80
_LARGEST = (1 << 63) - 1
_HIGHEST_ID = (1 << 32) - 2


class Kind(Enum):
    """What an entry is."""

    FILE = b"0"
    LINK = b"1"
    SYMLINK = b"2"
    DEVICE = b"3"
    DIRECTORY = b"5"
    FIFO = b"6"


_KINDS = {kind.value: kind for kind in Kind} | {b"\0": Kind.FILE, b"4": Kind.DEVICE}


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry: ``parts`` are its path's components, never empty, ``.`` or ``..``; ``target`` is
    a symbolic link's text or a hard link's path, as sent; ``mtime`` in seconds since 1970; ``uid``
    and ``gid`` are the guest's."""

    parts: tuple[str, ...]
    kind: Kind
    mode: int
    size: int
    mtime: int
    target: str
    uid: int = 0
    gid: int = 0


class ArchiveReader:
    """Entries out of a stream; ``read`` returns at most the bytes asked for, none at the end."""

    def __init__(self, read: Callable[[int], bytes], *, max_bytes: int, max_entries: int) -> None:
        self._read = read
        self._left = 0
        self._padding = 0
        self._bytes_left = max_bytes
        self._entries_left = max_entries

    def entries(self) -> Iterator[Entry]:
        """Each entry in turn; what was not read of its content is skipped."""
        name = target = b""
        while True:
            for _ in self.content():
                pass
            self._exactly(self._padding)
            self._padding = 0
            header = self._exactly(BLOCK)
            if not any(header):
                self._end()
                return
            kind, size = header[156:157], self._checked(header)
            if kind in (_LONG_NAME, _LONG_LINK):
                if not 0 < size <= LONGEST_PATH + 1:
                    raise _hostile("a name that is too long")
                text = self._exactly(size).split(b"\0")[0]
                self._exactly(-size % BLOCK)
                name, target = (text, target) if kind == _LONG_NAME else (name, text)
                continue
            yield self._entry(header, kind, size, name, target)
            name = target = b""

    def content(self) -> Iterator[bytes]:
        """The bytes of the entry that was returned last."""
        while self._left:
            data = self._read(min(CHUNK, self._left))
            if not data:
                raise _hostile("an end in the middle of a file")
            self._left -= len(data)
            yield data

    def _entry(self, header: bytes, kind: bytes, size: int, name: bytes, target: bytes) -> Entry:
        found = _KINDS.get(kind)
        if found is None:
            raise _hostile(f"an entry of the unknown type {kind!r}")
        if size and found is not Kind.FILE:
            raise _hostile("content that belongs to no file")
        self._entries_left -= 1
        self._bytes_left -= size
        if self._entries_left < 0 or self._bytes_left < 0:
            raise GuestError(
                "the guest sent back more than it could have", hint="nothing more was copied"
            )
        self._left, self._padding = size, -size % BLOCK
        return Entry(
            parts=split_path(name or _path_of(header)),
            kind=found,
            mode=_number(header[100:108]) & 0o777,
            size=size,
            mtime=_number(header[136:148]),
            target=os.fsdecode(target or header[157:257].split(b"\0")[0]),
            uid=_number(header[108:116], _HIGHEST_ID),
            gid=_number(header[116:124], _HIGHEST_ID),
        )

    def _checked(self, header: bytes) -> int:
        """The size, if the header's checksum is right (POSIX.1-2024, pax, "ustar")."""
        total = sum(header) - sum(header[148:156]) + 8 * 0x20
        if _number(header[148:156]) != total or header[257:262] != b"ustar":
            raise _hostile("something that is no tar")
        return _number(header[124:136])

    def _end(self) -> None:
        """Nothing but zeros may follow, and not many of them."""
        for _ in range(64):
            data = self._read(CHUNK)
            if not data:
                return
            if any(data):
                raise _hostile("more after its end")
        raise _hostile("no end")

    def _exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            more = self._read(size - len(data))
            if not more:
                raise _hostile("an end in the middle")
            data += more
        return data


def split_path(path: bytes) -> tuple[str, ...]:
    """A relative path's components. Raises :class:`GuestError` if it could lead elsewhere."""
    if len(path) > LONGEST_PATH or path.startswith(b"/"):
        raise _hostile(f"the path {path[:80]!r}")
    parts = [part for part in path.split(b"/") if part not in (b"", b".")]
    if not parts or len(parts) > DEEPEST:
        raise _hostile(f"the path {path[:80]!r}")
    if b".." in parts or max(map(len, parts)) > LONGEST_NAME:
        raise _hostile(f"the path {path[:80]!r}")
    return tuple(map(os.fsdecode, parts))


def _path_of(header: bytes) -> bytes:
    name = header[:100].split(b"\0")[0]
    # GNU's magic is followed by a space, and its header has no prefix there.
    prefix = header[345:500].split(b"\0")[0] if header[262:263] == b"\0" else b""
    return prefix + b"/" + name if prefix else name


def _number(field: bytes, highest: int = _LARGEST) -> int:
    """Octal digits, or GNU's big-endian binary after a byte 0x80."""
    match = _OCTAL.fullmatch(field)
    if match is None and field[0] != _BINARY:
        raise _hostile(f"a number that is none: {field!r}")
    value = int(match[1] or b"0", 8) if match else int.from_bytes(field[1:], "big")
    if value > highest:
        raise _hostile(f"a number that is too large: {field!r}")
    return value


def _hostile(what: str) -> GuestError:
    return GuestError(
        f"the guest sent back {what}", hint="nothing of that was written; see the threat model"
    )
