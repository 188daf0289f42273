"""Who sees whom: the networks of a project, their addresses and names.

Each network is a /24 of 10.88.0.0/16 with the host's side at .1. Which /24, and which address in
it, follows from the names alone: a service that is added or removed moves others only where two
names meet at one number.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from vmrun.compose.model import Network, Project, Service
from vmrun.compose.values import host_name_of
from vmrun.model.errors import UsageError
from vmrun.model.network import MOST_PORTS, NetworkPlan

PREFIX = 24
_BASE = "10.88"
_SUBNETS = range(1, 256)
_HOSTS = range(2, 255)


@dataclass(frozen=True, slots=True)
class Layout:
    """A network as it is laid out: ``name`` in the guest, ``subnet`` the third number of its
    addresses, ``members`` are its services with their addresses, ``names`` what the resolver
    answers, in lower case; ``listen`` are the ports that any member may connect to outside."""

    network: Network
    name: str
    subnet: int
    members: tuple[tuple[str, str], ...]
    names: tuple[tuple[str, str], ...]
    listen: tuple[int, ...] = ()

    @property
    def gateway(self) -> str:
        """The host's side."""
        return f"{_BASE}.{self.subnet}.1"

    def address(self, service: str) -> str:
        """The address of a member."""
        return dict(self.members)[service]


def lay_out(project: Project, taken: Collection[int] = ()) -> tuple[Layout, ...]:
    """The networks that services of the project are on. ``taken`` are the subnets of other
    projects in the same guest. Raises :class:`UsageError` when no subnet or address is left."""
    used = [
        network
        for network in project.networks
        if any(network.name in service.networks for service in project.services)
    ]
    subnets = _numbers(
        [_network_name(project, network) for network in used],
        [number for number in _SUBNETS if number not in taken],
        f"networks of the project {project.name!r}",
    )
    return tuple(
        _layout(project, network, subnets[_network_name(project, network)]) for network in used
    )


def _network_name(project: Project, network: Network) -> str:
    return f"{project.name}_{network.name}"


def _layout(project: Project, network: Network, subnet: int) -> Layout:
    services = [service for service in project.services if network.name in service.networks]
    numbers = _numbers(
        [service.name for service in services], list(_HOSTS), f"services on {network.name!r}"
    )
    listen = sorted({port for item in services for rule in item.allow for port in rule.ports})
    if len(listen) > MOST_PORTS:
        raise UsageError(
            f"services on {network.name!r} allow {len(listen)} different ports;"
            f" {MOST_PORTS} are possible",
            hint="allow fewer, or put services on networks of their own",
        )
    addresses = {name: f"{_BASE}.{subnet}.{number}" for name, number in numbers.items()}
    return Layout(
        network=network,
        name=_network_name(project, network),
        subnet=subnet,
        members=tuple((service.name, addresses[service.name]) for service in services),
        names=tuple(
            (name, addresses[service.name]) for service in services for name in _names(service)
        ),
        listen=tuple(listen),
    )


def _names(service: Service) -> Iterable[str]:
    """As it is written, as a host name, and its aliases; each once, in lower case."""
    own = (service.name.lower(), host_name_of(service.name))
    return dict.fromkeys((*own, *(alias.lower() for alias in service.aliases)))


def _numbers(names: list[str], free: list[int], what: str) -> dict[str, int]:
    """A number for each name: where its hash points to, or the next that is free. Names come in
    an order of their own, so that the file's order does not matter."""
    if len(names) > len(free):
        raise UsageError(f"{len(names)} {what}, {len(free)} can have an address", hint="use fewer")
    found: dict[str, int] = {}
    used: set[int] = set()
    for name in sorted(names):
        at = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8]) % len(free)
        while free[at] in used:
            at = (at + 1) % len(free)
        used.add(free[at])
        found[name] = free[at]
    return found


def wire(service: Service, layouts: Iterable[Layout]) -> NetworkPlan | None:
    """The service's wire. None for one that needs none: it is on no network, or alone on one,
    publishes nothing and may connect to nothing."""
    layout = next((item for item in layouts if item.network.name in service.networks), None)
    if layout is None:
        return None
    if len(layout.members) == 1 and not service.ports and not service.allow:
        return None
    return NetworkPlan(
        network=layout.name,
        address=layout.address(service.name),
        gateway=layout.gateway,
        prefix=PREFIX,
        publish=service.ports,
        allow=service.allow,
        names=layout.names,
        listen=layout.listen,
    )


def visible(service: Service, services: Iterable[Service]) -> tuple[str, ...]:
    """Names of the other services that a service can reach."""
    return tuple(
        other.name
        for other in services
        if other.name != service.name and set(other.networks) & set(service.networks)
    )
