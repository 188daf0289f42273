"""Judging a layer before anything of it leaves the host.

A layer is decompressed as a stream, its tar hashed against the diff_id, and every entry
looked at on its own. What an entry means on top of the layers below is judged by
:mod:`vmrun.image.flatten`. Whiteouts are as in OCI image-spec, layer.md.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path

from vmrun.image.compression import decompress
from vmrun.image.limits import ImageLimits
from vmrun.image.streams import CHUNK, Readable, open_regular
from vmrun.image.tar import TarEntry, TarFormatError, TarKind, TarReader
from vmrun.model.digest import Digest
from vmrun.model.errors import DigestMismatch, ImageError, ImageTooLarge, UnsafeLayer
from vmrun.model.image import Layer

_WHITEOUT = ".wh."
_OPAQUE = ".wh..wh..opq"
_RESERVED = ".wh..wh."
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
# The kernel keeps -1 for "no change", and ids are 32 bits wide.
_LARGEST_ID = (1 << 32) - 2


class Change(Enum):
    """What an entry does to the tree below it."""

    FILE = auto()
    DIRECTORY = auto()
    SYMLINK = auto()
    HARDLINK = auto()
    WHITEOUT = auto()
    OPAQUE = auto()


_CHANGES = {
    TarKind.FILE: Change.FILE,
    TarKind.DIRECTORY: Change.DIRECTORY,
    TarKind.SYMLINK: Change.SYMLINK,
    TarKind.HARDLINK: Change.HARDLINK,
}


@dataclass(frozen=True, slots=True)
class LayerEntry:
    """An entry that is sound by itself.

    ``path`` has no leading slash and no ``.`` or ``..``; it is empty for the root. For a
    whiteout it is the path to hide, for an opaque marker the directory. ``target`` of a
    hard link is a path of the same form, of a symbolic link the text as stored.
    """

    change: Change
    path: str
    mode: int
    uid: int
    gid: int
    size: int
    target: str
    offset: int


class Budget:
    """What the layers of one image may still use, all together."""

    def __init__(self, limits: ImageLimits) -> None:
        self.limits = limits
        self._unpacked = 0
        self._entries = 0

    def unpack(self, size: int, where: str) -> None:
        """Count unpacked bytes."""
        self._unpacked += size
        if self._unpacked > self.limits.unpacked:
            raise _too_large(where, "the image unpacks to", self.limits.unpacked, "bytes")

    def enter(self, where: str) -> None:
        """Count an entry."""
        self._entries += 1
        if self._entries > self.limits.entries:
            raise _too_large(where, "the image has", self.limits.entries, "entries")


def read_layer(path: Path, layer: Layer, budget: Budget) -> list[LayerEntry]:
    """The layer's entries in order, once all of it was read, hashed and found sound."""
    where = f"layer {layer.blob.digest}"
    with open_regular(path, where) as file:
        counted = _Counted(file)
        unpacked = _Measured(
            decompress(counted, layer.compression, where), counted, layer.diff_id, budget, where
        )
        entries = list(_judged(unpacked, where, budget))
        # The tar reader stops at the end of the stream only, so all of it was hashed.
        unpacked.check()
    return entries


def read_content(path: Path, layer: Layer, offset: int, size: int) -> bytes:
    """Bytes of a layer's unpacked tar, which :func:`read_layer` checked before."""
    where = f"layer {layer.blob.digest}"
    with open_regular(path, where) as file:
        stream = decompress(file, layer.compression, where)
        data = bytearray()
        while offset + size > 0:
            chunk = stream.read(CHUNK)
            if not chunk:
                raise ImageError(f"{where}: changed while it was read")
            data += chunk[offset : offset + size]
            size -= min(max(len(chunk) - offset, 0), size)
            offset = max(offset - len(chunk), 0)
    return bytes(data)


class _Counted:
    """Counts what the decompressor takes in."""

    def __init__(self, stream: Readable) -> None:
        self._stream = stream
        self.taken = 0

    def read(self, size: int, /) -> bytes:
        data = self._stream.read(size)
        self.taken += len(data)
        return data


class _Measured:
    """Hashes and counts the unpacked bytes, and stops bombs while they unfold."""

    def __init__(
        self, stream: Readable, packed: _Counted, diff_id: Digest, budget: Budget, where: str
    ) -> None:
        self._stream = stream
        self._packed = packed
        self._diff_id = diff_id
        self._hasher = diff_id.hasher()
        self._budget = budget
        self._where = where
        self._given = 0

    def read(self, size: int, /) -> bytes:
        data = self._stream.read(min(size, CHUNK))
        self._given += len(data)
        self._hasher.update(data)
        limits = self._budget.limits
        self._budget.unpack(len(data), self._where)
        if self._given > limits.layer_unpacked:
            raise _too_large(self._where, "it unpacks to", limits.layer_unpacked, "bytes")
        if self._given > max(limits.ratio_floor, limits.ratio * self._packed.taken):
            raise _too_large(self._where, "it unpacks to", limits.ratio, "times its size")
        return data

    def check(self) -> None:
        """Compare the tar's digest with the config's diff_id."""
        if self._hasher.hexdigest() != self._diff_id.hex:
            raise DigestMismatch(
                f"{self._where}: its tar is {self._diff_id.algorithm}:{self._hasher.hexdigest()},"
                f" the config says {self._diff_id}",
                hint="the image's layers and config do not belong together; build it again",
            )


def _judged(stream: Readable, where: str, budget: Budget) -> Iterator[LayerEntry]:
    try:
        for entry in TarReader(stream):
            budget.enter(where)
            yield _judge(entry, where, budget.limits)
    except TarFormatError as error:
        at = f" at entry {error.entry[:200]!r}" if error.entry else ""
        raise UnsafeLayer(f"{where}: {error.message}{at}", hint=error.hint) from None


def _judge(entry: TarEntry, where: str, limits: ImageLimits) -> LayerEntry:
    change = _CHANGES.get(entry.kind)
    if change is None:
        raise unsafe(where, entry.name, f"is a {entry.kind.value}")
    path = _clean(entry.name, where, entry.name, limits)
    target = entry.target if change in (Change.SYMLINK, Change.HARDLINK) else ""
    if change is Change.SYMLINK:
        _check_symlink(entry, where, limits)
    elif change is Change.HARDLINK:
        target = _clean(entry.target, where, entry.name, limits)
        if not target:
            raise unsafe(where, entry.name, "is a hard link to the root")
    if not path and change is not Change.DIRECTORY:
        raise unsafe(where, entry.name, "replaces the root directory")
    if max(entry.uid, entry.gid) > _LARGEST_ID:
        raise unsafe(where, entry.name, "has an owner out of range")
    if any(name.startswith("trusted.") for name in entry.xattrs):
        # overlayfs keeps its own whiteouts and redirections there.
        raise unsafe(where, entry.name, "carries trusted extended attributes")
    change, path = _whiteout(change, path, entry, where)
    return LayerEntry(
        change, path, entry.mode, entry.uid, entry.gid, entry.size, target, entry.offset
    )


def _clean(name: str, where: str, entry: str, limits: ImageLimits) -> str:
    if name.startswith("/"):
        raise unsafe(where, entry, f"has an absolute path {name[:200]!r}")
    if not name or _CONTROL.search(name):
        raise unsafe(where, entry, "has an empty path or one with control characters")
    if len(name.encode("utf-8", "surrogateescape")) > limits.path:
        raise unsafe(where, entry, f"has a path longer than {limits.path} bytes")
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise unsafe(where, entry, f"leads out of the layer by {name[:200]!r}")
    if len(parts) > limits.path_depth:
        raise unsafe(where, entry, f"lies more than {limits.path_depth} directories deep")
    if any(len(part.encode("utf-8", "surrogateescape")) > limits.name for part in parts):
        raise unsafe(where, entry, f"has a name longer than {limits.name} bytes")
    return "/".join(parts)


def _check_symlink(entry: TarEntry, where: str, limits: ImageLimits) -> None:
    if not entry.target or _CONTROL.search(entry.target):
        raise unsafe(where, entry.name, "links to nothing or to control characters")
    if len(entry.target.encode("utf-8", "surrogateescape")) > limits.path:
        raise unsafe(where, entry.name, f"has a target longer than {limits.path} bytes")


def _whiteout(change: Change, path: str, entry: TarEntry, where: str) -> tuple[Change, str]:
    parent, _, name = path.rpartition("/")
    if any(part.startswith(_WHITEOUT) for part in parent.split("/")):
        raise unsafe(where, entry.name, "lies below a whiteout")
    if not name.startswith(_WHITEOUT):
        return change, path
    if change is not Change.FILE or entry.size:
        raise unsafe(where, entry.name, "is a whiteout but not an empty file")
    if name == _OPAQUE:
        if not parent:
            raise unsafe(where, entry.name, "hides the whole image below it")
        return Change.OPAQUE, parent
    hidden = name.removeprefix(_WHITEOUT)
    if name.startswith(_RESERVED) or hidden in ("", ".", ".."):
        raise unsafe(where, entry.name, "is not a whiteout of the OCI specification")
    return Change.WHITEOUT, f"{parent}/{hidden}" if parent else hidden


def unsafe(where: str, entry: str, why: str) -> UnsafeLayer:
    """The error for an entry; names are shown escaped, they may hold anything."""
    return UnsafeLayer(
        f"{where}: entry {entry[:200]!r} {why}",
        hint="vmrun does not unpack such layers; rebuild the image without that entry",
    )


def _too_large(where: str, what: str, limit: int, unit: str) -> ImageTooLarge:
    return ImageTooLarge(
        f"{where}: {what} more than {limit} {unit}",
        hint="use a smaller image; such a layer may be a decompression bomb",
    )
