"""What all ways to the outside share: a connection to a destination that is allowed, and looking
at what flows in it."""

from __future__ import annotations

import socket
from dataclasses import dataclass

from vmrun.network.dialer import Dialer, Failed, Failure
from vmrun.network.filtered import Filter, FilteredJoint, say
from vmrun.network.guest_stream import GuestStream
from vmrun.network.names import SyntheticNames
from vmrun.network.sniff import Inspector
from vmrun.network.watch import Watch
from vmrun.policy.egress import allows

HANDSHAKE = 30.0
"""Seconds until a client must have said where it wants to go."""


@dataclass(frozen=True, slots=True)
class Ways:
    """What the proxies and the transparent path work with."""

    dialer: Dialer
    synthetic: SyntheticNames
    watch: Watch

    def dial(
        self, stream: GuestStream, via: str, text: str, host: str | None, port: int
    ) -> socket.socket | Failed:
        """A connection to ``host`` (canonical; ``None``: ``text`` is malformed). An address that
        stands for a name is one to that name."""
        container = stream.peer.address
        if host is None:
            return self.dialer.deny(container, via, text, port, "malformed name")
        return self.dialer.dial(container, via, self.synthetic.host(host), port)

    def tunnel(
        self,
        stream: GuestStream,
        connection: socket.socket,
        via: str,
        host: str,
        port: int,
        first: bytes = b"",
    ) -> None:
        """Join them until they end; what flows must be for ``host``."""
        host = self.synthetic.host(host)

        def also(name: str) -> bool:
            return allows(self.dialer.rules_of(stream.peer.address), name, port)

        self.join(stream, connection, via, host, port, Inspector(host, port, also), first)

    def join(
        self,
        stream: GuestStream,
        connection: socket.socket,
        via: str,
        host: str,
        port: int,
        passing: Filter,
        first: bytes,
    ) -> None:
        """Join them through ``passing``; a refusal is recorded."""

        def refused(reason: str) -> None:
            self.dialer.deny(stream.peer.address, via, host, port, reason)

        FilteredJoint(stream, connection, passing, self.watch).run(first, refused)

    def say(self, stream: GuestStream, data: bytes) -> None:
        """The last that the container gets."""
        say(stream, data, self.watch)


__all__ = ["HANDSHAKE", "Failed", "Failure", "Ways"]
