"""The containers' DNS server (RFC 1035). It forwards nothing.

A name that some rule of the container allows has a synthetic address of 198.18.0.0/15 (RFC 2544),
one for each name and the same for the whole run; a connection to that address is one to the name.
Other containers of the same network have their own. All else does not exist. So no query leaves
this host, and nothing can be smuggled out in one.
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network

from vmrun.model.network import Allow
from vmrun.policy.addresses import parse_address
from vmrun.policy.egress import canonical_host, knows

SYNTHETIC = IPv4Network("198.18.0.0/15")
MAX_NAMES = 2048
"""Names for which one container can have addresses made."""
TTL = 60
"""Seconds; the address of a name does not change before the run is over."""
MAX_QUERY = 4096

_A, _ANY, _IN = 1, 255, 1
_NOERROR, _FORMERR, _SERVFAIL, _NXDOMAIN, _NOTIMP, _REFUSED = range(6)


def is_synthetic(host: str) -> bool:
    """Whether ``host`` (canonical) is an address that can only stand for a name."""
    address = parse_address(host)
    return address is not None and address in SYNTHETIC


class SyntheticNames:
    """Names and their addresses, for one network. Addresses in ``taken`` are not given out."""

    def __init__(self, taken: frozenset[str] = frozenset()) -> None:
        self._taken = taken
        self._lock = threading.Lock()
        self._addresses: dict[str, str] = {}
        self._names: dict[str, str] = {}
        self._used: dict[str, int] = {}
        self._next = 1

    def address(self, container: str, name: str) -> str | None:
        """The address that stands for ``name``; ``None`` when ``container`` has had too many made,
        or no address is left."""
        with self._lock:
            known = self._addresses.get(name)
            if known is not None:
                return known
            used = self._used.get(container, 0)
            if used >= MAX_NAMES or self._next >= SYNTHETIC.num_addresses - 1:
                return None
            address = str(SYNTHETIC[self._next])
            while address in self._taken:
                self._next += 1
                address = str(SYNTHETIC[self._next])
            self._next += 1
            self._used[container] = used + 1
            self._addresses[name] = address
            self._names[address] = name
            return address

    def host(self, host: str) -> str:
        """``host`` (canonical), or the name for which it stands when it is synthetic."""
        with self._lock:
            return self._names.get(host, host)


@dataclass(frozen=True, slots=True)
class Answer:
    """``message`` to send back (``None``: nothing), and what was denied, if anything."""

    message: bytes | None
    denied: str = ""
    reason: str = ""


@dataclass(frozen=True, slots=True)
class _Query:
    identity: int
    recursion: int
    question: bytes
    labels: tuple[bytes, ...]
    kind: int
    group: int


class NameServer:
    """Answers for the containers of one network; ``names`` are those containers' addresses."""

    def __init__(self, names: Mapping[str, str], synthetic: SyntheticNames) -> None:
        self._names = names
        self._synthetic = synthetic

    def answer(self, container: str, rules: tuple[Allow, ...], data: bytes) -> Answer:
        """The answer to one message of a container, at most 512 bytes."""
        if len(data) < 12 or len(data) > MAX_QUERY or data[2] & 0x80:
            # Not a query. To answer an answer would make two servers talk for ever.
            return Answer(None)
        if data[2] >> 3 & 0xF:
            return Answer(_error(data, _NOTIMP))
        query = _parse(data)
        if query is None:
            return Answer(_error(data, _FORMERR))
        if query.group != _IN or query.kind in range(249, 255):
            # Another class, or a transfer of a zone.
            return Answer(_reply(query, _REFUSED), _text(query), "not answered")
        name = _text(query)
        host = canonical_host(name)
        address = None if host is None else self._names.get(host)
        if address is None:
            if host is None or not knows(rules, host):
                return Answer(_reply(query, _NXDOMAIN), name, "no rule")
            address = self._synthetic.address(container, host)
            if address is None:
                return Answer(_reply(query, _SERVFAIL), name, "too many names")
        wanted = query.kind in (_A, _ANY)
        return Answer(_reply(query, _NOERROR, address if wanted else None))


def _parse(data: bytes) -> _Query | None:
    """A query with one question whose name is not compressed; ``None`` for anything else. What
    follows the question (EDNS) is not looked at."""
    identity, flags, questions, answers, authorities, additional = struct.unpack_from("!6H", data)
    if questions != 1 or answers or authorities or additional > 2 or flags & 0x0200:
        return None
    labels: list[bytes] = []
    at = 12
    while True:
        if at >= len(data):
            return None
        size = data[at]
        if size > 63 or at - 12 + size + 1 > 255:
            return None
        at += 1
        if size == 0:
            break
        labels.append(data[at : at + size])
        at += size
    if len(data) < at + 4 or (additional == 0 and len(data) > at + 4):
        return None
    kind, group = struct.unpack_from("!2H", data, at)
    return _Query(identity, flags & 0x0100, data[12 : at + 4], tuple(labels), kind, group)


def _text(query: _Query) -> str:
    """The name as text; one whose labels have dots in them is none of ours."""
    labels = (label.decode("latin-1").replace(".", "\\") for label in query.labels)
    return ".".join(labels) or "."


def _reply(query: _Query, status: int, address: str | None = None) -> bytes:
    # Authoritative, recursion available: resolvers take it as final.
    flags = 0x8480 | query.recursion | status
    header = struct.pack("!6H", query.identity, flags, 1, int(address is not None), 0, 0)
    message = header + query.question
    if address is not None:
        message += struct.pack("!3HIH", 0xC00C, _A, _IN, TTL, 4) + IPv4Address(address).packed
    return message


def _error(data: bytes, status: int) -> bytes:
    """An error for what could not be parsed: the header alone."""
    identity, flags = struct.unpack_from("!2H", data)
    return struct.pack("!6H", identity, 0x8080 | flags & 0x7900 | status, 0, 0, 0, 0)
