"""What a container may reach, and who may reach it. There is no network card in a guest: all of
it travels through the SSH connection, and the host decides on each connection."""

from __future__ import annotations

from dataclasses import dataclass

PROXY_PORT = 3128
SOCKS_PORT = 1080
DNS_PORT = 53
RELAY_PORTS = (DNS_PORT, SOCKS_PORT, PROXY_PORT)
"""What a network's gateway serves: a name server, and the ways out for programs that know them."""

MOST_PORTS = 64 - len(RELAY_PORTS)
"""How many ports the transparent path of one network can take (guest contract, "Wire")."""


@dataclass(frozen=True, slots=True)
class Publish:
    """A TCP port of the host (``address`` an IP literal; ``host_port`` 0: any that is free) whose
    connections go to ``container_port`` in the container."""

    address: str
    host_port: int
    container_port: int


@dataclass(frozen=True, slots=True)
class Allow:
    """A destination that a container may connect to: ``host`` is a lower-case DNS name in A-label
    form, ``*.`` and such a name for everything below it, or an IP literal in canonical form;
    ``ports`` are TCP ports."""

    host: str
    ports: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class NetworkPlan:
    """The wire of one container: ``network`` names it inside the guest (a run id, or a tenant's
    own network), ``address`` is the container's IPv4 address on it, ``gateway`` the host side's,
    ``prefix`` the length of the network's prefix. ``listen`` are the ports that the transparent
    path takes (those that any container of the network is allowed), ``names`` what the resolver
    answers for other containers of the same network (name, address)."""

    network: str
    address: str
    gateway: str
    prefix: int
    publish: tuple[Publish, ...] = ()
    allow: tuple[Allow, ...] = ()
    names: tuple[tuple[str, str], ...] = ()
    listen: tuple[int, ...] = ()
