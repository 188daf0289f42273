"""A strict reader of tar headers: ustar, GNU and pax as image builders write them.

Readers of tar disagree about malformed or unusual archives, and every disagreement is a
way to show one content to the judge and unpack another. This reader therefore accepts
one plain dialect and refuses the rest: sparse files, multi-volume archives, sizes on
entries without data, two names for one entry, data after the end. It holds one header at
a time and never the data.

References: POSIX.1-2017 ``pax``, "ustar Interchange Format" and "pax Header Block";
GNU tar manual, "Basic Tar Format".
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

from vmrun.image.streams import CHUNK, Readable, read_exactly
from vmrun.model.errors import ImageError

BLOCK = 512
_ZERO = bytes(BLOCK)
_LARGEST_SIZE = 1 << 62
_LONGEST_NAME = 64 * 1024
_LONGEST_PAX = 1024 * 1024
_PAX_RECORD = re.compile(rb"([1-9][0-9]{0,7}) ([^=\n]+)=", re.DOTALL)
_OCTAL = re.compile(rb" *([0-7]*)[ \0]*")
_DECIMAL = re.compile(rb"[0-9]{1,19}")


class TarKind(Enum):
    """The kinds of entry that an image may need, and those that are always refused."""

    FILE = "file"
    DIRECTORY = "directory"
    SYMLINK = "symbolic link"
    HARDLINK = "hard link"
    CHARACTER_DEVICE = "character device"
    BLOCK_DEVICE = "block device"
    FIFO = "FIFO"


_KINDS = {
    b"0": TarKind.FILE,
    b"\0": TarKind.FILE,
    b"1": TarKind.HARDLINK,
    b"2": TarKind.SYMLINK,
    b"3": TarKind.CHARACTER_DEVICE,
    b"4": TarKind.BLOCK_DEVICE,
    b"5": TarKind.DIRECTORY,
    b"6": TarKind.FIFO,
}


class TarFormatError(ImageError):
    """The bytes are not a tar that vmrun reads; ``entry`` is the last name seen."""

    def __init__(self, message: str, entry: str = "") -> None:
        super().__init__(message, hint="the archive is malformed; build or save it again")
        self.entry = entry


@dataclass(frozen=True, slots=True)
class TarEntry:
    """A header. Names are as stored (bytes that are not UTF-8 as surrogate escapes);
    ``offset`` is where the data starts in the stream."""

    name: str
    kind: TarKind
    mode: int
    uid: int
    gid: int
    size: int
    target: str
    offset: int
    xattrs: tuple[str, ...] = ()


class TarReader:
    """Walks a tar in one pass.

    Iterating gives the entries; between two steps the caller may read up to the entry's
    size with :meth:`read`, what is left is skipped. The end is checked: only zeros follow.
    """

    def __init__(self, stream: Readable) -> None:
        self._stream = stream
        self._position = 0
        self._data_left = 0
        self._padding = 0

    def __iter__(self) -> Iterator[TarEntry]:
        overrides = _Overrides()
        while (block := self._header()) is not None:
            kind = block[156:157]
            if kind in b"xgLK":
                self._extend(overrides, kind, self._extension(block, kind))
                continue
            entry = overrides.apply(block, self._position)
            overrides = _Overrides()
            self._data_left, self._padding = entry.size, -entry.size % BLOCK
            yield entry
            self._finish_entry(entry)
        if overrides.seen:
            raise TarFormatError("the tar ends after an extended header")

    def read(self, size: int, /) -> bytes:
        """Bytes of the current entry's data, none at its end."""
        data = self._stream.read(min(size, self._data_left))
        self._data_left -= len(data)
        self._position += len(data)
        return data

    def _header(self) -> bytes | None:
        block = self._take(BLOCK)
        if not block:
            return None
        if len(block) < BLOCK:
            raise TarFormatError("the tar is truncated in a header")
        if block == _ZERO:
            self._check_end()
            return None
        if not _checksum_matches(block):
            raise TarFormatError("not a tar header (its checksum is wrong)")
        return block

    def _check_end(self) -> None:
        while data := self._take(CHUNK):
            if data.count(0) != len(data):
                raise TarFormatError("the tar goes on after its end")

    def skip(self, size: int) -> int:
        """Pass over data; returns how much there was, which is less at the stream's end."""
        left = size
        while left and (data := self._stream.read(min(left, CHUNK))):
            left -= len(data)
        return size - left

    def _finish_entry(self, entry: TarEntry) -> None:
        left = self._data_left + self._padding
        self._data_left = 0
        self._position += left
        if self.skip(left) < left:
            raise TarFormatError("the tar is truncated in an entry", entry.name)

    def _extension(self, block: bytes, kind: bytes) -> bytes:
        size = _number(block[124:136], "size")
        if size > (_LONGEST_NAME if kind in b"LK" else _LONGEST_PAX):
            raise TarFormatError(f"an extended header of {size} bytes")
        padded = size + -size % BLOCK
        data = self._take(padded)
        if len(data) < padded:
            raise TarFormatError("the tar is truncated in an extended header")
        return data[:size]

    def _extend(self, overrides: _Overrides, kind: bytes, data: bytes) -> None:
        if kind == b"g":
            # git writes its commit there; anything else would alter entries at a distance.
            if set(_pax_records(data)) - {"comment"}:
                raise TarFormatError("a global extended header")
        elif kind == b"x":
            overrides.add_pax(_pax_records(data))
        else:
            overrides.add_long("path" if kind == b"L" else "linkpath", data)

    def _take(self, size: int) -> bytes:
        data = read_exactly(self._stream, size)
        self._position += len(data)
        return data


class _Overrides:
    """What extended headers say about the next entry."""

    def __init__(self) -> None:
        self.seen: dict[str, bytes] = {}

    def add_pax(self, records: dict[str, bytes]) -> None:
        for key, value in records.items():
            if key.startswith("GNU.sparse.") or key == "SCHILY.realsize":
                raise TarFormatError("a sparse file", _text(records.get("path", b"")))
            self._add(key, value)

    def add_long(self, key: str, data: bytes) -> None:
        self._add(key, data.removesuffix(b"\0"))

    def _add(self, key: str, value: bytes) -> None:
        if key in self.seen:
            raise TarFormatError(f"two extended headers give {key!r}", _text(value))
        self.seen[key] = value

    def apply(self, block: bytes, offset: int) -> TarEntry:
        name = _text(self.seen.get("path", _stored_name(block)))
        kind = _KINDS.get(block[156:157])
        if kind is None:
            raise TarFormatError(_unknown_kind(block[156:157]), name)
        size = self._number("size", block[124:136])
        if kind is not TarKind.FILE and size:
            raise TarFormatError(f"a {kind.value} with data", name)
        if name.endswith("/") and kind is not TarKind.DIRECTORY:
            if block[156:157] != b"\0" or size:
                raise TarFormatError(f"a {kind.value} named like a directory", name)
            kind = TarKind.DIRECTORY  # as V7 tar marked them
        return TarEntry(
            name=name,
            kind=kind,
            mode=_number(block[100:108], "mode") & 0o7777,
            uid=self._number("uid", block[108:116]),
            gid=self._number("gid", block[116:124]),
            size=size,
            target=_text(self.seen.get("linkpath", _until_nul(block[157:257]))),
            offset=offset,
            xattrs=tuple(
                key.removeprefix("SCHILY.xattr.")
                for key in self.seen
                if key.startswith("SCHILY.xattr.")
            ),
        )

    def _number(self, key: str, field: bytes) -> int:
        value = self.seen.get(key)
        if value is None:
            return _number(field, key)
        if not _DECIMAL.fullmatch(value) or int(value) > _LARGEST_SIZE:
            raise TarFormatError(f"bad {key} {value[:40]!r} in an extended header")
        return int(value)


def _pax_records(data: bytes) -> dict[str, bytes]:
    """Records of ``LENGTH KEY=VALUE\\n``, where LENGTH counts all of it."""
    records: dict[str, bytes] = {}
    at = 0
    while at < len(data):
        match = _PAX_RECORD.match(data, at)
        end = at + int(match[1]) if match else 0
        if match is None or end <= match.end() - 1 or data[end - 1 : end] != b"\n":
            raise TarFormatError("a malformed extended header")
        key = _text(match[2])
        if key in records:
            raise TarFormatError(f"an extended header gives {key[:80]!r} twice")
        records[key] = data[match.end() : end - 1]
        at = end
    return records


def _stored_name(block: bytes) -> bytes:
    name = _until_nul(block[:100])
    # Only POSIX archives have a prefix; GNU keeps times at that place.
    prefix = _until_nul(block[345:500]) if block[257:263] == b"ustar\0" else b""
    return prefix + b"/" + name if prefix else name


def _number(field: bytes, what: str) -> int:
    """An octal number, or GNU's base 256 when the first bit is set."""
    if field[0] & 0x80:
        if field[0] != 0x80:
            raise TarFormatError(f"a negative or huge {what}")
        value = int.from_bytes(field[1:], "big")
    else:
        match = _OCTAL.fullmatch(field)
        if match is None:
            raise TarFormatError(f"bad {what} {field!r} in a tar header")
        value = int(match[1] or b"0", 8)
    if value > _LARGEST_SIZE:
        raise TarFormatError(f"a negative or huge {what}")
    return value


def _checksum_matches(block: bytes) -> bool:
    field = _OCTAL.fullmatch(block[148:156])
    if field is None or not field[1]:
        return False
    stored = int(field[1], 8)
    counted = block[:148] + b" " * 8 + block[156:]
    unsigned = sum(counted)
    # Some old tars summed signed bytes.
    return stored == unsigned or stored == unsigned - 256 * sum(byte >> 7 for byte in counted)


def _unknown_kind(flag: bytes) -> str:
    if flag == b"S":
        return "a sparse file"
    return f"an entry of unknown type {flag!r}"


def _until_nul(field: bytes) -> bytes:
    return field.split(b"\0", 1)[0]


def _text(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")
