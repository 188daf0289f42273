"""The containers' SOCKS 5 proxy (RFC 1928): CONNECT, without authentication.

BIND and UDP ASSOCIATE are refused: they would let others connect to the container, and carry what
cannot be looked at.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from vmrun.model.errors import Refused, VmrunError
from vmrun.network.guarded import HANDSHAKE, Failed, Failure, Ways
from vmrun.network.guest_stream import GuestStream
from vmrun.policy.egress import canonical_host

VIA = "socks"

SUCCEEDED = 0
FAILED = 1
NOT_ALLOWED = 2
HOST_UNREACHABLE = 4
BAD_COMMAND = 7
BAD_ADDRESS = 8

_VERSION = 5
_NO_AUTHENTICATION = 0
_NO_METHOD = 0xFF
_CONNECT = 1
_CHUNK = 4 << 10
_STATUS = {
    Failure.DENIED: NOT_ALLOWED,
    Failure.UNKNOWN: HOST_UNREACHABLE,
    Failure.UNREACHABLE: HOST_UNREACHABLE,
    Failure.LATE: HOST_UNREACHABLE,
}


@dataclass(frozen=True, slots=True)
class Target:
    """Where a client wants to go; ``host`` is ``None`` when it is malformed (``text`` shows it)."""

    host: str | None
    text: str
    port: int


class Handshake:
    """The client's side of a negotiation, from bytes in any portions.

    :meth:`feed` raises :class:`Refused` for what is not SOCKS 5 or not CONNECT; ``answer`` is then
    what to say last.
    """

    def __init__(self) -> None:
        self._held = bytearray()
        self._greeted = False
        self.target: Target | None = None
        self.answer = b""

    def feed(self, data: bytes) -> None:
        """Take the next bytes. ``answer`` is then to be sent, and ``target`` set at the end."""
        self._held += data
        self.answer = b""
        if not self._greeted and not self._greet():
            return
        self._request()

    def rest(self) -> bytes:
        """What followed the request."""
        return bytes(self._held)

    def _greet(self) -> bool:
        held = self._held
        if held and held[0] != _VERSION:
            raise Refused("not SOCKS 5")
        if len(held) < 2 or len(held) < 2 + held[1]:
            return False
        if _NO_AUTHENTICATION not in held[2 : 2 + held[1]]:
            self.answer = bytes((_VERSION, _NO_METHOD))
            raise Refused("SOCKS: a client that insists on authentication")
        del held[: 2 + held[1]]
        self._greeted = True
        self.answer = bytes((_VERSION, _NO_AUTHENTICATION))
        return True

    def _request(self) -> None:
        held = self._held
        if len(held) < 5:
            return
        version, command, reserved, kind, first = held[:5]
        if version != _VERSION or reserved:
            self.answer += reply(FAILED)
            raise Refused("SOCKS: a malformed request")
        if command != _CONNECT:
            self.answer += reply(BAD_COMMAND)
            raise Refused("SOCKS: only CONNECT is served")
        sizes = {1: 4, 3: 1 + first, 4: 16}
        if kind not in sizes:
            self.answer += reply(BAD_ADDRESS)
            raise Refused("SOCKS: an unknown type of address")
        end = 4 + sizes[kind]
        if len(held) < end + 2:
            return
        address = bytes(held[4:end])
        port = int.from_bytes(held[end : end + 2], "big")
        del held[: end + 2]
        if kind == 3:
            text = address[1:].decode("latin-1")
            self.target = Target(canonical_host(text), text, port)
        else:
            literal = str(IPv4Address(address) if kind == 1 else IPv6Address(address))
            self.target = Target(literal, literal, port)


def reply(status: int) -> bytes:
    """A reply; of the bound address nothing is told."""
    return bytes((_VERSION, status, 0, 1)) + bytes(6)


def serve(stream: GuestStream, ways: Ways) -> None:
    """Serve one client."""
    handshake = Handshake()
    watched = ways.watch.add(stream.close, idle=HANDSHAKE, limit=HANDSHAKE)
    try:
        while handshake.target is None:
            data = stream.read(_CHUNK)
            if not data:
                return
            handshake.feed(data)
            if handshake.answer:
                stream.write(handshake.answer)
    except Refused as refusal:
        ways.dialer.deny(stream.peer.address, VIA, "", 0, str(refusal))
        ways.say(stream, handshake.answer)
        return
    finally:
        ways.watch.remove(watched)
    target = handshake.target
    connection = ways.dial(stream, VIA, target.text, target.host, target.port)
    if target.host is None or isinstance(connection, Failed):
        status = _STATUS[connection.failure] if isinstance(connection, Failed) else NOT_ALLOWED
        ways.say(stream, reply(status))
        return
    try:
        stream.write(reply(SUCCEEDED))
    except VmrunError:
        connection.close()
        raise
    ways.tunnel(stream, connection, VIA, target.host, target.port, handshake.rest())
