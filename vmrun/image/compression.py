"""Decompression that never holds or produces more than it was asked for."""

from __future__ import annotations

import zlib
from collections.abc import Mapping

from vmrun.image.streams import CHUNK, Readable
from vmrun.model.errors import ImageError, ImageTooLarge
from vmrun.model.image import Compression

_MAGIC: Mapping[bytes, Compression] = {
    b"\x1f\x8b": Compression.GZIP,
    b"\x28\xb5\x2f\xfd": Compression.ZSTD,
}
MAGIC_LENGTH = 4

# What follows a member is copied, so large chunks would make many tiny members costly;
# eStargz writes one or more for each file.
_GZIP_CHUNK = 16 * 1024
_GZIP_MEMBERS = 1_000_000

# Decoders must accept windows of 8 MiB (RFC 8878, section 3.1.1.1.2); larger ones only
# serve to make us allocate. 128 MiB is what `zstd --long` writes and decodes at most
# without being told to.
_ZSTD_WINDOW = 128 * 1024 * 1024


def detect(head: bytes) -> Compression:
    """The compression that a stream's first ``MAGIC_LENGTH`` bytes announce."""
    for magic, compression in _MAGIC.items():
        if head.startswith(magic):
            return compression
    return Compression.NONE


def decompress(stream: Readable, compression: Compression, where: str) -> Readable:
    """A stream of the unpacked bytes; corrupt input becomes an :class:`ImageError`."""
    if compression is Compression.GZIP:
        return _Gzip(stream, where)
    if compression is Compression.ZSTD:
        return _Zstd(stream, where)
    return stream


class _Gzip:
    """RFC 1952, members one after the other as Go's reader and GNU gzip accept them."""

    def __init__(self, stream: Readable, where: str) -> None:
        self._stream = stream
        self._where = where
        self._pending = b""
        self._member: zlib._Decompress | None = None
        self._members = 0

    def read(self, size: int, /) -> bytes:
        data = b""
        while not data:
            self._pending = self._pending or self._stream.read(_GZIP_CHUNK)
            if not self._pending and self._member is None and self._members:
                return b""
            if not self._pending:
                raise ImageError(f"{self._where}: the gzip stream is truncated")
            data = self._inflate(size)
        return data

    def _inflate(self, size: int) -> bytes:
        member = self._member or self._begin()
        try:
            data = member.decompress(self._pending, size)
        except zlib.error as error:
            raise ImageError(f"{self._where}: corrupt gzip stream: {error}") from None
        self._member = None if member.eof else member
        self._pending = member.unused_data if member.eof else member.unconsumed_tail
        return data

    def _begin(self) -> zlib._Decompress:
        self._members += 1
        if self._members > _GZIP_MEMBERS:
            raise ImageTooLarge(f"{self._where}: more than {_GZIP_MEMBERS} gzip members")
        return zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)


class _Zstd:
    """RFC 8878, frames (skippable ones too) one after the other."""

    def __init__(self, stream: Readable, where: str) -> None:
        import zstandard

        self._where = where
        self._error = zstandard.ZstdError
        self._reader = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW).stream_reader(
            stream,  # type: ignore[arg-type]  # it only ever calls read
            read_size=CHUNK,
            read_across_frames=True,
        )

    def read(self, size: int, /) -> bytes:
        try:
            return self._reader.read(size)
        except self._error as error:
            raise ImageError(f"{self._where}: corrupt zstd stream: {error}") from None
