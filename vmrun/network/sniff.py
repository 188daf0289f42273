"""What flows in a tunnel must be for the host that it was opened to. Pure.

Many hosts share an address, and what they are told apart by is inside the tunnel: the server name
of TLS, the Host of HTTP. Both must be the name that was allowed. Everything else passes as it is,
and nothing is waited for: bytes are held back only where they already are the beginning of TLS or
of an HTTP head. On port 80 nothing but these two passes.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from vmrun.model.errors import Refused
from vmrun.network.client_hello import HelloReader
from vmrun.network.http_message import (
    END,
    MAX_HEAD,
    Body,
    Head,
    host_of,
    parse_head,
    split_absolute,
)
from vmrun.policy.addresses import parse_address
from vmrun.policy.egress import canonical_host, parse_authority

MAX_LINE = 16 << 10
MAX_HELD = 64 << 10
_UNRECOGNIZED_NAME = bytes.fromhex("15030300020270")
"""A TLS record with the alert "unrecognized_name" (RFC 8446, section 6.2)."""
_FORBIDDEN = b"HTTP/1.1 403 Forbidden\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
_SWITCHING = b"HTTP/1.1 101 "
_WORD = re.compile(rb"[\x21-\x7e]*(?:[ \t\v\f\r].*)?", re.DOTALL)
"""A line, or its beginning, whose first word is visible ASCII."""
_BARE_CR = re.compile(rb"HTTP/[^\n]*\r[^\n]", re.IGNORECASE)


class Inspector:
    """Looks at what a container sends in one connection to ``host`` (canonical) and ``port``.

    ``also`` says of another name (canonical) whether it is allowed at this port: in a connection
    to an IP literal such names may be used.
    """

    def __init__(self, host: str, port: int, also: Callable[[str], bool] = lambda _: False) -> None:
        self._host = host
        self._port = port
        self._also = also
        self._literal = parse_address(host) is not None
        self._step: Callable[[], bytes] | None = self._start
        self._next: Callable[[], bytes] = self._head
        self._held = bytearray()
        self._line = bytearray()
        self._blank = False
        self._hello = HelloReader()
        self._looked_at = 0
        self._body: Body | None = None
        self._requests = 0
        self._reply = b""
        self._farewell = b""

    @property
    def farewell(self) -> bytes:
        """What the container can be told when it is refused, unless the server spoke already."""
        return self._farewell

    @property
    def undecided(self) -> bool:
        """Whether bytes are held back because more must come before they can be judged."""
        return bool(self._held)

    @property
    def single(self) -> bool:
        """A tunnel's two directions end on their own."""
        return False

    def feed(self, data: bytes) -> bytes:
        """What may go to the server now. Raises :class:`Refused` with the reason when the
        connection must end."""
        if self._step is None:
            return data
        self._held += data
        out = bytearray()
        while self._held and self._step is not None:
            step, size = self._step, len(self._held)
            out += step()
            if self._step == step and len(self._held) == size:
                return bytes(out)
        return bytes(out) + self._take(len(self._held))

    def reply(self, data: bytes) -> bytes:
        """What the server sent; it passes. Called before the container gets it."""
        if len(self._reply) < len(_SWITCHING):
            self._reply += data[: len(_SWITCHING) - len(self._reply)]
        return data

    def _take(self, size: int) -> bytes:
        taken = bytes(self._held[:size])
        del self._held[:size]
        return taken

    def _start(self) -> bytes:
        seen = bytes(self._line + self._held)
        if seen[0] == 0x16:
            self._step = self._tls
            self._farewell = _UNRECOGNIZED_NAME
            return b""
        # A hello in the format of SSL 2 has no server name (RFC 5246, appendix E.2).
        if seen[0] & 0x80 and b"\x01\x03".startswith(seen[2:4]):
            if len(seen) >= 4:
                raise Refused("TLS: a hello in the format of SSL 2")
            self._line += self._held
            return self._take(len(self._held))
        self._step = self._first_line
        return b""

    def _first_line(self) -> bytes:
        """The first line passes as it comes, until it ends: no server acts on less. ``_line`` is
        what has passed."""
        end = self._held.find(b"\n") + 1
        fresh = bytes(self._held[: end or len(self._held)])
        line = bytes(self._line) + fresh
        if not _WORD.fullmatch(line.rstrip(b"\r\n")):
            return self._other()
        if len(line) > MAX_LINE:
            if line.split(None, 1) == [line]:
                return self._other()
            raise Refused(f"a first line of more than {MAX_LINE} bytes")
        if _BARE_CR.search(line):
            raise Refused("HTTP: a bare CR")
        if not end:
            self._line += fresh
            return self._take(len(fresh))
        if not line.strip():
            # Servers of HTTP skip empty lines; a head after one is refused as malformed.
            self._blank = True
            self._line.clear()
            return self._take(len(fresh))
        if b"HTTP/" not in line.upper():
            return self._other()
        self._farewell = _FORBIDDEN
        if self._blank:
            raise Refused("HTTP: an empty line before the head")
        self._step = self._head
        return b""

    def _other(self) -> bytes:
        if self._port == 80:
            self._farewell = _FORBIDDEN
            raise Refused("neither HTTP/1 nor TLS on port 80")
        self._step = None
        return b""

    def _tls(self) -> bytes:
        fresh = bytes(self._held[self._looked_at :])
        self._looked_at = len(self._held)
        hello = self._hello.feed(fresh)
        if hello is None:
            return b""
        self._step = None
        if hello.server_name is not None:
            self._check(canonical_host(hello.server_name), "the TLS server name")
        elif not self._literal:
            raise Refused("TLS without a server name")
        return b""

    def _head(self) -> bytes:
        """``_line`` is what of the head has passed already: a part of its first line."""
        sent = len(self._line)
        data = bytes(self._line + self._held)
        end = data.find(END)
        if end < 0:
            if len(data) > MAX_HEAD:
                raise Refused(f"HTTP: a head of more than {MAX_HEAD} bytes")
            return b""
        end += len(END)
        head = parse_head(data[:end])
        passed = self._take(end - sent)
        self._line.clear()
        self._judge(head)
        self._requests += 1
        self._body = Body(head)
        self._next = self._head
        if head.all("upgrade"):
            if self._requests > 1:
                raise Refused("HTTP: an upgrade that is not the first request")
            self._next = self._upgrade
        self._step = self._next if self._body.done else self._in_body
        return passed

    def _judge(self, head: Head) -> None:
        if head.method in ("CONNECT", "PRI"):
            raise Refused(f"HTTP: {head.method} in a tunnel")
        host, port = host_of(head, self._port)
        if port != self._port:
            raise Refused("HTTP: the Host has another port")
        self._check(host, "the HTTP Host")
        if head.target.startswith("/") or (head.target == "*" and head.method == "OPTIONS"):
            return
        authority, _ = split_absolute(head.target)
        # Without a port it is port 80 (RFC 9110, section 4.2.1), other than with Host.
        if parse_authority(authority, 80) != (host, port):
            raise Refused("HTTP: the target is not the Host")

    def _in_body(self) -> bytes:
        body = self._body
        if body is None:
            return b""
        passed = self._take(body.feed(bytes(self._held)))
        if body.done:
            self._step = self._next
        return passed

    def _upgrade(self) -> bytes:
        """Hold what follows a request to upgrade until the server has answered."""
        if len(self._reply) == len(_SWITCHING):
            self._step = None if self._reply == _SWITCHING else self._head
        elif len(self._held) > MAX_HELD:
            raise Refused("HTTP: too much before the answer to an upgrade")
        return b""

    def _check(self, name: str | None, what: str) -> None:
        if name is None:
            raise Refused(f"{what} is malformed")
        if name != self._host and not (self._literal and self._also(name)):
            raise Refused(f"{what} is another one")
