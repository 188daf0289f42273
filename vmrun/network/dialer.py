"""Connects for a container: judged by name, resolved here, judged by address, then connected to
the very address that was judged. A name is never resolved twice for one connection, so an answer
that changes (DNS rebinding) changes nothing.

A name that resolves to public and to denied addresses is connected to at a public one, and the
denied ones are recorded. To refuse it altogether would keep nobody out of anything (the denied
address is not connected to either way), and would let whoever can add one record to a zone cut a
container off.
"""

from __future__ import annotations

import errno
import itertools
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from vmrun.model.errors import VmrunError
from vmrun.model.network import Allow
from vmrun.network.decisions import Decision, Decisions
from vmrun.policy.addresses import denied_range, parse_address
from vmrun.policy.egress import allows

CONNECT_TIMEOUT = 10.0
"""Seconds for one address."""
TOTAL_TIMEOUT = 30.0
"""Seconds for all addresses of a name."""

Resolve = Callable[[str], tuple[str, ...]]
Connect = Callable[[str, int, float], socket.socket]


class Failure(Enum):
    """Why there is no connection."""

    DENIED = "denied"
    UNKNOWN = "unknown name"
    UNREACHABLE = "unreachable"
    LATE = "late"


@dataclass(frozen=True, slots=True)
class Failed:
    """No connection, and why: ``reason`` is for the container."""

    failure: Failure
    reason: str


def connect_to(address: str, port: int, timeout: float) -> socket.socket:
    """A TCP connection to an IP literal; nothing is resolved. Raises OSError."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    connection = socket.socket(family, socket.SOCK_STREAM)
    try:
        connection.settimeout(timeout)
        connection.connect((address, port))
    except BaseException:
        connection.close()
        raise
    return connection


def is_own(address: str) -> bool:
    """Whether ``address`` is one of this host's: the kernel lets a socket be bound to it.

    This follows the kernel's routing table of local addresses, which has more than the interfaces
    have (routes of type ``local``, broadcast addresses). When it cannot be told, it is.
    """
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind((address, 0))
    except OSError as error:
        return error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)
    return True


def by_turns(addresses: list[str]) -> list[str]:
    """IPv6 and IPv4 by turns, the family of the first one first, so that one of the two that leads
    nowhere costs little (RFC 8305, section 4)."""
    families: tuple[list[str], list[str]] = ([], [])
    for address in addresses:
        families[(":" in address) != (":" in addresses[0])].append(address)
    pairs = itertools.zip_longest(*families)
    return [address for pair in pairs for address in pair if address is not None]


class Dialer:
    """Makes the connections of all containers of a network. Every decision is recorded."""

    def __init__(
        self,
        rules_of: Callable[[str], tuple[Allow, ...]],
        decisions: Decisions,
        *,
        resolve: Resolve,
        connect: Connect = connect_to,
    ) -> None:
        self.rules_of = rules_of
        self._decisions = decisions
        self._resolve = resolve
        self._connect = connect

    def dial(self, container: str, via: str, host: str, port: int) -> socket.socket | Failed:
        """A connection to ``host`` (canonical), or why there is none.

        Raises what the record of decisions raises; then there is no connection either.
        """
        if not allows(self.rules_of(container), host, port):
            return self.deny(container, via, host, port, "no rule")
        if parse_address(host) is not None:
            addresses: tuple[str, ...] = (host,)
        else:
            try:
                addresses = self._resolve(host)
            except VmrunError as error:
                self._allowed(container, via, host, "", port, "not resolved")
                return Failed(Failure.LATE, str(error))
        if not addresses:
            self._allowed(container, via, host, "", port, "unknown name")
            return Failed(Failure.UNKNOWN, f"{host} has no address")
        public = [a for a in addresses if self._judged(container, via, host, a, port)]
        if not public:
            return Failed(Failure.DENIED, f"{host} has no public address")
        return self._try(container, via, host, port, by_turns(public))

    def deny(
        self, container: str, via: str, host: str, port: int, reason: str, address: str = ""
    ) -> Failed:
        """Record a denial."""
        if not address and parse_address(host) is not None:
            host, address = "", host
        self._decisions.deny(Decision(container, via, host, address, port, reason))
        return Failed(Failure.DENIED, f"{host or address}:{port} is not allowed ({reason})")

    def _judged(self, container: str, via: str, host: str, address: str, port: int) -> bool:
        parsed = parse_address(address)
        if parsed is None:
            reason: str | None = "not an address"
        else:
            reason = denied_range(parsed)
            if reason is None and is_own(str(parsed)):
                reason = "this host"
        if reason is not None:
            self.deny(container, via, host if host != address else "", port, reason, address)
        return reason is None

    def _try(
        self, container: str, via: str, host: str, port: int, addresses: list[str]
    ) -> socket.socket | Failed:
        give_up = time.monotonic() + TOTAL_TIMEOUT
        failed = Failed(Failure.UNREACHABLE, f"{host}:{port} cannot be reached")
        for address in addresses:
            timeout = min(CONNECT_TIMEOUT, give_up - time.monotonic())
            if timeout <= 0:
                break
            try:
                connection = self._connect(address, port, timeout)
            except TimeoutError:
                failed = Failed(Failure.LATE, f"{host}:{port} does not answer")
                continue
            except OSError:
                continue
            try:
                self._allowed(container, via, host, address, port, "connected")
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            except (VmrunError, OSError):
                connection.close()
                raise
            connection.settimeout(None)
            return connection
        self._allowed(container, via, host, addresses[0], port, "not reached")
        return failed

    def _allowed(
        self, container: str, via: str, host: str, address: str, port: int, reason: str
    ) -> None:
        name = "" if host == address else host
        self._decisions.allow(Decision(container, via, name, address, port, reason))
