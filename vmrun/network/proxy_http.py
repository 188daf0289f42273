"""The containers' HTTP proxy (RFC 9110, section 9.3.6; RFC 9112, section 3.2.2).

CONNECT opens a tunnel. A request with an http:// address is forwarded, one on a connection: each
is decided on its own, and none can hide behind another. Its body is followed to its end, and
nothing after it goes on.
"""

from __future__ import annotations

import re

from vmrun.model.errors import Refused, VmrunError
from vmrun.network.guarded import HANDSHAKE, Failed, Failure, Ways
from vmrun.network.guest_stream import GuestStream
from vmrun.network.http_message import (
    END,
    MAX_HEAD,
    Body,
    Head,
    host_of,
    parse_head,
    split_absolute,
)
from vmrun.policy.egress import parse_authority

VIA = "http"
_CHUNK = 16 << 10
_HOP_BY_HOP = frozenset(
    ("connection", "keep-alive", "proxy-connection", "proxy-authorization", "proxy-authenticate",
     "te", "trailer", "upgrade", "host")
)  # fmt: skip
"""RFC 9110, section 7.6.1; Host is written anew."""
_END_TO_END = frozenset(("host", "content-length", "transfer-encoding"))
"""Fields that a Connection field must not name."""
_STATUS_LINE = re.compile(rb"HTTP/1\.[01] ([1-5][0-9]{2})(?: [\t\x20-\x7e\x80-\xff]*)?")
_DROPPED = re.compile(rb"(?i)(?:connection|keep-alive|proxy-connection)[ \t]*:")
_PHRASES = {
    400: "Bad Request",
    403: "Forbidden",
    502: "Bad Gateway",
    504: "Gateway Timeout",
}
_STATUS = {
    Failure.DENIED: 403,
    Failure.UNKNOWN: 502,
    Failure.UNREACHABLE: 502,
    Failure.LATE: 504,
}


def serve(stream: GuestStream, ways: Ways) -> None:
    """Serve one client."""
    try:
        received = _read_head(stream, ways)
        if received is None:
            return
        head, rest = received
        connect = head.method == "CONNECT"
        text, path = (head.target, "") if connect else split_absolute(head.target)
        authority = _authority(head, text, None if connect else 80)
    except Refused as refusal:
        ways.dialer.deny(stream.peer.address, VIA, "", 0, str(refusal))
        ways.say(stream, answer(400, str(refusal)))
        return
    host, port = authority
    connection = ways.dial(stream, VIA, host, host, port)
    if isinstance(connection, Failed):
        ways.say(stream, answer(_STATUS[connection.failure], connection.reason))
    elif connect:
        try:
            stream.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        except VmrunError:
            connection.close()
            raise
        ways.tunnel(stream, connection, VIA, host, port, rest)
    else:
        passing = OneRequest(head, forwarded(head, text, path))
        ways.join(stream, connection, VIA, host, port, passing, rest or b"")


def _read_head(stream: GuestStream, ways: Ways) -> tuple[Head, bytes] | None:
    """A request's head and what came after it; ``None`` when the client sends nothing."""
    held = bytearray()
    watched = ways.watch.add(stream.close, idle=HANDSHAKE, limit=HANDSHAKE)
    try:
        while (end := held.find(END)) < 0:
            if len(held) > MAX_HEAD:
                raise Refused(f"HTTP: a head of more than {MAX_HEAD} bytes")
            data = stream.read(_CHUNK)
            if not data:
                if held:
                    raise Refused("HTTP: an unfinished head")
                return None
            held += data
    finally:
        ways.watch.remove(watched)
    end += len(END)
    return parse_head(bytes(held[:end])), bytes(held[end:])


def _authority(head: Head, text: str, default_port: int | None) -> tuple[str, int]:
    """Where a request is to go; its Host must say the same."""
    authority = parse_authority(text, default_port)
    if authority is None:
        raise Refused("HTTP: the target is no host and port")
    if head.method == "CONNECT" and (
        head.all("transfer-encoding") or head.all("content-length") not in ([], ["0"])
    ):
        raise Refused("HTTP: CONNECT with a body")
    # CONNECT of an HTTP/1.0 client may come without; Host may leave the port of CONNECT out.
    if (head.version == "1.1" or head.all("host")) and host_of(
        head, default_port or authority[1]
    ) != authority:
        raise Refused("HTTP: the target is not the Host")
    if _END_TO_END & set(head.words("connection")):
        raise Refused("HTTP: Connection names a field that must stay")
    return authority


def forwarded(head: Head, authority: str, path: str) -> bytes:
    """The head that the server gets: origin-form, without what was for the proxy."""
    dropped = _HOP_BY_HOP | set(head.words("connection"))
    lines = [f"{head.method} {path} HTTP/1.1", f"host: {authority.lower()}"]
    lines += [f"{name}: {value}" for name, value in head.fields if name not in dropped]
    lines += [f"via: {head.version} vmrun", "connection: close"]
    return "\r\n".join(lines).encode("latin-1") + END


def answer(status: int, reason: str) -> bytes:
    """What the proxy itself says."""
    body = f"vmrun: {''.join(c if ' ' <= c <= '~' else '?' for c in reason[:500])}\n".encode()
    return (
        f"HTTP/1.1 {status} {_PHRASES[status]}\r\nContent-Type: text/plain\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    ).encode() + body


class OneRequest:
    """Lets one request pass to the server and its answer back (a
    :class:`vmrun.network.filtered.Filter`)."""

    def __init__(self, head: Head, first: bytes) -> None:
        self._first = first
        self._body = Body(head)
        self._head: bytearray | None = bytearray()

    @property
    def undecided(self) -> bool:
        return False

    @property
    def farewell(self) -> bytes:
        return answer(502, "the request or its answer was malformed")

    @property
    def single(self) -> bool:
        return True

    def feed(self, data: bytes) -> bytes:
        """Of what the container sends the request's body, after the head; the rest is dropped."""
        first, self._first = self._first, b""
        return first + data[: self._body.feed(data)]

    def reply(self, data: bytes) -> bytes:
        """The answer, its head without what is for the server's own connection."""
        if self._head is None:
            return data
        self._head += data
        out = b""
        while self._head is not None and (end := self._head.find(END)) >= 0:
            lines = bytes(self._head[:end]).split(b"\r\n")
            del self._head[: end + len(END)]
            status = _STATUS_LINE.fullmatch(lines[0])
            if status is None or status[1] == b"101":
                raise Refused("HTTP: a malformed answer")
            kept = [line for line in lines if not _DROPPED.match(line)]
            final = not status[1].startswith(b"1")
            out += b"\r\n".join([*kept, *([b"Connection: close"] if final else [])]) + END
            if final:
                out += self._head
                self._head = None
        if self._head is not None and len(self._head) > 2 * MAX_HEAD:
            raise Refused("HTTP: an answer with too long a head")
        return out
