"""What an ELF program needs to run: its interpreter and its libraries."""

from __future__ import annotations

import struct
from dataclasses import dataclass

_PT_LOAD, _PT_DYNAMIC, _PT_INTERP = 1, 2, 3
_DT_NULL, _DT_NEEDED, _DT_STRTAB = 0, 1, 5
_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_SEGMENT = struct.Struct("<IIQQQQQQ")
_DYNAMIC = struct.Struct("<qQ")


@dataclass(frozen=True, slots=True)
class Needs:
    """``interpreter`` is None for a static program; ``libraries`` are sonames."""

    interpreter: str | None
    libraries: tuple[str, ...]


def read_needs(data: bytes) -> Needs | None:
    """The needs of a 64-bit little-endian ELF file; None if ``data`` is not one.

    Raises ``ValueError`` or ``struct.error`` for a file that starts like one and is malformed.
    """
    if data[:6] != b"\x7fELF\x02\x01":
        return None
    header = _HEADER.unpack_from(data)
    table, entry_size, count = header[5], header[9], header[10]
    segments = [_SEGMENT.unpack_from(data, table + i * entry_size) for i in range(count)]

    def file_offset(address: int) -> int:
        for kind, _, offset, virtual, _, size, _, _ in segments:
            if kind == _PT_LOAD and virtual <= address < virtual + size:
                return int(offset + address - virtual)
        raise ValueError(f"address {address:#x} is in no segment")

    def text(offset: int) -> str:
        return data[offset : data.index(b"\0", offset)].decode()

    interpreter: str | None = None
    needed: list[int] = []
    strings = 0
    for kind, _, offset, _, _, size, _, _ in segments:
        if kind == _PT_INTERP:
            interpreter = text(offset)
        if kind == _PT_DYNAMIC:
            for tag, value in _DYNAMIC.iter_unpack(data[offset : offset + size]):
                if tag == _DT_NULL:
                    break
                if tag == _DT_NEEDED:
                    needed.append(value)
                if tag == _DT_STRTAB:
                    strings = file_offset(value)
    return Needs(interpreter, tuple(text(strings + name) for name in needed))
