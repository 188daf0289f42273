"""The frames between the host and the relay in a guest: a pure, strict codec.

docs/reference/guest-contract.md, "Wire", describes them. What the guest sends is untrusted: a
frame that is not exactly as described raises :class:`GuestError`, and nothing is buffered beyond
one frame.
"""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import IntEnum

from vmrun.model.errors import GuestError

VERSION = 1
PAYLOAD_MAX = 32768
STREAMS = 512
"""Streams have the numbers below this: the relay's the odd ones, the host's the even from 2."""

TO_HOST_WINDOW = 128 << 10
"""Bytes of one stream that the relay may send before the host has granted more."""

TO_GUEST_WINDOW = 64 << 10
DATAGRAM_MAX = 4096

_HEADER = struct.Struct(">BxHI")
_HELLO = struct.Struct(">II")
_ENDPOINT = struct.Struct(">4sH")
_PAIR = struct.Struct(">4sH4sH")
_NUMBER = struct.Struct(">I")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An IPv4 address (dotted decimal) and a TCP or UDP port."""

    address: str
    port: int

    def __str__(self) -> str:
        return f"{self.address}:{self.port}"


class Kind(IntEnum):
    """The first byte of a frame."""

    HELLO = 1
    OPEN = 2
    CONNECT = 3
    OPENED = 4
    REFUSED = 5
    DATA = 6
    WINDOW = 7
    END = 8
    CLOSE = 9
    DATAGRAM = 10


@dataclass(frozen=True, slots=True)
class Hello:
    """The relay is ready; ``pid`` is its process id in the guest."""

    pid: int


@dataclass(frozen=True, slots=True)
class Open:
    """``source`` has connected to ``destination``, and the relay has accepted it."""

    stream: int
    source: Endpoint
    destination: Endpoint


@dataclass(frozen=True, slots=True)
class Connect:
    """The host asks for a connection to ``destination``; answered by Opened or Refused."""

    stream: int
    destination: Endpoint


@dataclass(frozen=True, slots=True)
class Opened:
    """The connection that the host asked for stands."""

    stream: int


@dataclass(frozen=True, slots=True)
class Refused:
    """It does not, and why: an errno(3) of Linux. Counts as the relay's Close."""

    stream: int
    errno: int


@dataclass(frozen=True, slots=True)
class Data:
    """Bytes of a stream, at least one."""

    stream: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Window:
    """The sender takes ``credit`` more bytes of the stream."""

    stream: int
    credit: int


@dataclass(frozen=True, slots=True)
class End:
    """The sender sends no more bytes of the stream, as TCP's FIN."""

    stream: int


@dataclass(frozen=True, slots=True)
class Close:
    """The sender's last frame of the stream; without its End before, as TCP's RST. The number is
    free again when both sides have sent one."""

    stream: int


@dataclass(frozen=True, slots=True)
class Datagram:
    """A DNS query of ``source`` to ``destination``; an answer names both as the query did."""

    source: Endpoint
    destination: Endpoint
    data: bytes


Frame = Hello | Open | Connect | Opened | Refused | Data | Window | End | Close | Datagram


def encode(frame: Frame) -> bytes:
    """The bytes of a frame that is within the protocol's limits."""
    match frame:
        case Data(stream, data):
            return _HEADER.pack(Kind.DATA, stream, len(data)) + data
        case Window(stream, credit):
            return _frame(Kind.WINDOW, stream, _NUMBER.pack(credit))
        case End(stream):
            return _frame(Kind.END, stream)
        case Close(stream):
            return _frame(Kind.CLOSE, stream)
        case Connect(stream, destination):
            return _frame(Kind.CONNECT, stream, _endpoint(destination))
        case Open(stream, source, destination):
            return _frame(Kind.OPEN, stream, _endpoint(source) + _endpoint(destination))
        case Opened(stream):
            return _frame(Kind.OPENED, stream)
        case Refused(stream, errno):
            return _frame(Kind.REFUSED, stream, _NUMBER.pack(errno))
        case Datagram(source, destination, data):
            return _frame(Kind.DATAGRAM, 0, _endpoint(source) + _endpoint(destination) + data)
        case Hello(pid):
            return _frame(Kind.HELLO, 0, _HELLO.pack(VERSION, pid))


def _frame(kind: Kind, stream: int, payload: bytes = b"") -> bytes:
    return _HEADER.pack(kind, stream, len(payload)) + payload


def _endpoint(endpoint: Endpoint) -> bytes:
    return _ENDPOINT.pack(ipaddress.IPv4Address(endpoint.address).packed, endpoint.port)


class Decoder:
    """Makes frames of a stream of bytes."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[Frame]:
        """The frames that ``data`` completes. Raises :class:`GuestError`."""
        self._buffer += data
        position = 0
        try:
            while len(self._buffer) - position >= _HEADER.size:
                kind, stream, length = self._header(position)
                start = position + _HEADER.size
                if len(self._buffer) - start < length:
                    return
                position = start + length
                yield _decode(kind, stream, bytes(self._buffer[start:position]))
        finally:
            del self._buffer[:position]

    def _header(self, position: int) -> tuple[Kind, int, int]:
        number, stream, length = _HEADER.unpack_from(self._buffer, position)
        try:
            kind = Kind(number)
        except ValueError:
            raise GuestError(f"the relay sent a frame of unknown kind {number}") from None
        low, high = _LENGTHS[kind]
        if self._buffer[position + 1] != 0 or not low <= length <= high:
            raise GuestError(f"the relay sent a malformed {kind.name} frame")
        if not (0 < stream < STREAMS if kind in _OF_STREAMS else stream == 0):
            raise GuestError(f"the relay sent a {kind.name} frame of stream {stream}")
        return kind, stream, length


_LENGTHS = {
    Kind.HELLO: (_HELLO.size, _HELLO.size),
    Kind.OPEN: (_PAIR.size, _PAIR.size),
    Kind.CONNECT: (_ENDPOINT.size, _ENDPOINT.size),
    Kind.OPENED: (0, 0),
    Kind.REFUSED: (_NUMBER.size, _NUMBER.size),
    Kind.DATA: (1, PAYLOAD_MAX),
    Kind.WINDOW: (_NUMBER.size, _NUMBER.size),
    Kind.END: (0, 0),
    Kind.CLOSE: (0, 0),
    Kind.DATAGRAM: (_PAIR.size, _PAIR.size + DATAGRAM_MAX),
}
_OF_STREAMS = frozenset(Kind) - {Kind.HELLO, Kind.DATAGRAM}


def _hello(_stream: int, payload: bytes) -> Frame:
    version, pid = _HELLO.unpack(payload)
    if version != VERSION:
        raise GuestError(
            f"the relay speaks version {version} of the wire, not {VERSION}",
            hint="rebuild the base: vmrun base build",
        )
    if not 0 < pid < 1 << 22:  # PID_MAX_LIMIT
        raise GuestError(f"the relay says that its process id is {pid}")
    return Hello(pid)


def _pair(payload: bytes) -> tuple[Endpoint, Endpoint]:
    source, source_port, destination, port = _PAIR.unpack_from(payload)
    return (
        Endpoint(str(ipaddress.IPv4Address(source)), source_port),
        Endpoint(str(ipaddress.IPv4Address(destination)), port),
    )


def _connect(stream: int, payload: bytes) -> Frame:
    address, port = _ENDPOINT.unpack(payload)
    return Connect(stream, Endpoint(str(ipaddress.IPv4Address(address)), port))


def _number(payload: bytes) -> int:
    (value,) = _NUMBER.unpack(payload)
    return int(value)


_DECODERS: dict[Kind, Callable[[int, bytes], Frame]] = {
    Kind.HELLO: _hello,
    Kind.OPEN: lambda stream, payload: Open(stream, *_pair(payload)),
    Kind.CONNECT: _connect,
    Kind.OPENED: lambda stream, _: Opened(stream),
    Kind.REFUSED: lambda stream, payload: Refused(stream, _number(payload)),
    Kind.DATA: Data,
    Kind.WINDOW: lambda stream, payload: Window(stream, _number(payload)),
    Kind.END: lambda stream, _: End(stream),
    Kind.CLOSE: lambda stream, _: Close(stream),
    Kind.DATAGRAM: lambda _, payload: Datagram(*_pair(payload), payload[_PAIR.size :]),
}


def _decode(kind: Kind, stream: int, payload: bytes) -> Frame:
    return _DECODERS[kind](stream, payload)
