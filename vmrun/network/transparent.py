"""Connections that a container makes to an address, as if it had a network card."""

from __future__ import annotations

from vmrun.network.guarded import Failed, Ways
from vmrun.network.guest_stream import GuestStream
from vmrun.network.names import is_synthetic
from vmrun.policy.egress import canonical_host

VIA = "direct"


def serve(stream: GuestStream, ways: Ways) -> None:
    """Connect ``stream`` to where it wants to go: a synthetic address is the name for which it was
    made; any other one is allowed only by a rule that names it. Refused, it is reset."""
    container, there = stream.peer.address, stream.destination
    host = canonical_host(there.address)
    if host is not None and is_synthetic(host) and ways.synthetic.host(host) == host:
        ways.dialer.deny(container, VIA, host, there.port, "no name has this address")
        return
    connection = ways.dial(stream, VIA, there.address, host, there.port)
    if host is None or isinstance(connection, Failed):
        return
    ways.tunnel(stream, connection, VIA, host, there.port)
