"""HTTP/1 request heads and bodies, parsed strictly (RFC 9112). Pure.

What different servers read differently is refused, not repaired: bare CR and LF, folded lines,
white space before a colon, repeated or conflicting lengths, chunk extensions, trailers. All
functions raise :class:`Refused` with the reason.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from vmrun.model.errors import Refused
from vmrun.policy.egress import parse_authority

MAX_HEAD = 32 << 10
MAX_FIELDS = 128
END = b"\r\n\r\n"

_REQUEST_LINE = re.compile(
    rb"([A-Za-z0-9!#$%&'*+.^_`|~-]{1,32}) ([\x21-\x7e]{1,16384}) HTTP/(1\.[01])"
)
_FIELD = re.compile(
    rb"([A-Za-z0-9!#$%&'*+.^_`|~-]{1,256}):[ \t]*((?:[\x21-\x7e\x80-\xff][\x20-\x7e\x80-\xff\t]*)?)"
)
_LENGTH = re.compile(r"[0-9]{1,18}", re.ASCII)
_CHUNK = re.compile(rb"[0-9A-Fa-f]{1,15}")


@dataclass(frozen=True, slots=True)
class Head:
    """A request's head. Field names are in lower case, values as they came (Latin-1)."""

    method: str
    target: str
    version: str
    fields: tuple[tuple[str, str], ...]

    def all(self, name: str) -> list[str]:
        """The values of every field of that name."""
        return [value for field, value in self.fields if field == name]

    def words(self, name: str) -> list[str]:
        """The comma-separated words of the fields of that name, in lower case."""
        return [word.strip().lower() for value in self.all(name) for word in value.split(",")]


def parse_head(data: bytes) -> Head:
    """A request's head, from its first byte to the empty line that ends it."""
    if len(data) > MAX_HEAD:
        raise Refused(f"HTTP: a head of more than {MAX_HEAD} bytes")
    if not data.endswith(END):
        raise Refused("HTTP: an unfinished head")
    lines = data[: -len(END)].split(b"\r\n")
    match = _REQUEST_LINE.fullmatch(lines[0])
    if match is None:
        raise Refused("HTTP: a malformed request line")
    method, target, version = (group.decode("ascii") for group in match.groups())
    if len(lines) - 1 > MAX_FIELDS:
        raise Refused(f"HTTP: more than {MAX_FIELDS} header fields")
    head = Head(method, target, version, tuple(_field(line) for line in lines[1:]))
    _check_framing(head)
    return head


def host_of(head: Head, default_port: int | None) -> tuple[str, int]:
    """The one Host field as canonical host and port."""
    hosts = head.all("host")
    if len(hosts) != 1:
        raise Refused("HTTP: not exactly one Host")
    authority = parse_authority(hosts[0], default_port)
    if authority is None:
        raise Refused("HTTP: a malformed Host")
    return authority


def split_absolute(target: str) -> tuple[str, str]:
    """Authority and origin-form of an absolute-form target (RFC 9112, section 3.2.2)."""
    scheme, separator, rest = target.partition("://")
    if not separator or scheme.lower() != "http":
        raise Refused("HTTP: the target is not an http:// address")
    if "#" in rest:
        raise Refused("HTTP: a target with a fragment")
    end = min((at for at in (rest.find("/"), rest.find("?")) if at >= 0), default=len(rest))
    authority, path = rest[:end], rest[end:]
    return authority, path if path.startswith("/") else f"/{path}"


def _field(line: bytes) -> tuple[str, str]:
    match = _FIELD.fullmatch(line)
    if match is None:
        raise Refused("HTTP: a malformed header field")
    name, value = match.groups()
    return name.decode("ascii").lower(), value.decode("latin-1").rstrip(" \t")


def _check_framing(head: Head) -> None:
    lengths, codings = head.all("content-length"), head.all("transfer-encoding")
    if len(lengths) > 1 or (lengths and not _LENGTH.fullmatch(lengths[0])):
        raise Refused("HTTP: an unclear Content-Length")
    if not codings:
        return
    if lengths:
        raise Refused("HTTP: both Content-Length and Transfer-Encoding")
    if head.version != "1.1" or [coding.lower() for coding in codings] != ["chunked"]:
        raise Refused("HTTP: an unclear Transfer-Encoding")


class Body:
    """Finds the end of a request's body."""

    def __init__(self, head: Head) -> None:
        self._chunked = bool(head.all("transfer-encoding"))
        lengths = head.all("content-length")
        self._left = int(lengths[0]) if lengths else 0
        self._phase = self._size if self._chunked else None
        self._line = bytearray()
        self.done = not self._chunked and self._left == 0

    def feed(self, data: bytes) -> int:
        """How many of these bytes, which follow those fed before, belong to the body."""
        at = 0
        while at < len(data) and not self.done:
            if self._left:
                taken = min(self._left, len(data) - at)
                self._left -= taken
                at += taken
                self.done = not self._chunked and self._left == 0
            elif self._phase is not None:
                self._line.append(data[at])
                at += 1
                self._phase()
        return at

    def _size(self) -> None:
        """A chunk's size and CRLF."""
        line = self._line
        digits = line.removesuffix(b"\r\n").removesuffix(b"\r")
        if not _CHUNK.fullmatch(digits):
            raise Refused("HTTP: a malformed chunk size")
        if line.endswith(b"\r\n"):
            self._left = int(digits, 16)
            self._phase = self._after_data if self._left else self._last
            line.clear()

    def _after_data(self) -> None:
        """The CRLF after a chunk's data."""
        if self._is_end("HTTP: a malformed chunk"):
            self._phase = self._size

    def _last(self) -> None:
        """The CRLF after the last chunk."""
        self.done = self._is_end("HTTP: a trailer")

    def _is_end(self, otherwise: str) -> bool:
        if not b"\r\n".startswith(self._line):
            raise Refused(otherwise)
        if len(self._line) < 2:
            return False
        self._line.clear()
        return True
