"""The server name in a TLS ClientHello (RFC 8446, section 4.1.2; RFC 6066, section 3). Pure.

A hello may be spread over several records, and a record over several reads. What is encrypted of
it (the inner hello of Encrypted Client Hello) is not seen; the name of the outer one counts, and
that is the one by which the connection is routed.
"""

from __future__ import annotations

from dataclasses import dataclass

from vmrun.model.errors import Refused

MAX_HELLO = 32 << 10
"""Bytes of records; hellos with post-quantum key shares have about 2 KiB."""

_HANDSHAKE = 22
_CLIENT_HELLO = 1
_SERVER_NAME = 0
_LARGEST_RECORD = 1 << 14


@dataclass(frozen=True, slots=True)
class Hello:
    """``server_name`` as it was sent, ``None`` when there is none."""

    server_name: str | None


class HelloReader:
    """Collects a ClientHello from the first bytes of a connection."""

    def __init__(self) -> None:
        self._records = bytearray()
        self._total = 0
        self._message = bytearray()

    def feed(self, data: bytes) -> Hello | None:
        """The hello, once it is complete. Raises :class:`Refused` when it is malformed."""
        self._total += len(data)
        self._records += data
        while (hello := self._complete()) is None and self._take_record():
            pass
        if hello is None and self._total > MAX_HELLO:
            raise Refused(f"TLS: a hello of more than {MAX_HELLO} bytes")
        return hello

    def _take_record(self) -> bool:
        """Move one record's content to the message; whether a whole one was there."""
        records = self._records
        if not bytes((_HANDSHAKE, 3)).startswith(records[:2]):
            raise Refused("TLS: not a handshake")
        if len(records) < 5:
            return False
        size = int.from_bytes(records[3:5], "big")
        if not 0 < size <= _LARGEST_RECORD:
            raise Refused("TLS: a malformed record")
        if len(records) < 5 + size:
            return False
        self._message += records[5 : 5 + size]
        del records[: 5 + size]
        return True

    def _complete(self) -> Hello | None:
        message = self._message
        if message and message[0] != _CLIENT_HELLO:
            raise Refused("TLS: not a ClientHello")
        if len(message) < 4:
            return None
        size = int.from_bytes(message[1:4], "big")
        if size > MAX_HELLO:
            raise Refused(f"TLS: a hello of more than {MAX_HELLO} bytes")
        if len(message) < 4 + size:
            return None
        if len(message) > 4 + size:
            # Nothing can follow in the same record before the server has answered (RFC 8446, 5.1).
            raise Refused("TLS: a malformed hello")
        return _parse(bytes(message[4:]))


class _Reader:
    """Bytes with a position; what is missing is refused."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def take(self, size: int) -> bytes:
        part = self._data[self._at : self._at + size]
        if len(part) != size:
            raise Refused("TLS: a malformed hello")
        self._at += size
        return part

    def vector(self, width: int) -> bytes:
        """A vector with a length of ``width`` bytes before it."""
        return self.take(int.from_bytes(self.take(width), "big"))

    @property
    def over(self) -> bool:
        return self._at == len(self._data)


def _parse(body: bytes) -> Hello:
    reader = _Reader(body)
    version = reader.take(2)
    reader.take(32)
    session, suites, compressions = reader.vector(1), reader.vector(2), reader.vector(1)
    if version[0] != 3 or len(session) > 32 or not suites or len(suites) % 2 or not compressions:
        raise Refused("TLS: a malformed hello")
    if reader.over:
        return Hello(None)
    extensions = _Reader(reader.vector(2))
    if not reader.over:
        raise Refused("TLS: a malformed hello")
    seen: set[bytes] = set()
    name: str | None = None
    while not extensions.over:
        kind, content = extensions.take(2), extensions.vector(2)
        if kind in seen:
            raise Refused("TLS: a hello with an extension twice")
        seen.add(kind)
        if int.from_bytes(kind, "big") == _SERVER_NAME:
            name = _server_name(content)
    return Hello(name)


def _server_name(content: bytes) -> str:
    outer = _Reader(content)
    names = _Reader(outer.vector(2))
    kind, name = names.take(1), names.vector(2)
    if not outer.over or not names.over or kind != b"\0":
        raise Refused("TLS: not exactly one server name")
    try:
        return name.decode("ascii")
    except UnicodeDecodeError:
        raise Refused("TLS: a malformed server name") from None
