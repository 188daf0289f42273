"""What services say about each other, checked where each of them is read already."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from vmrun.compose.field import Field
from vmrun.compose.model import Condition, Service
from vmrun.compose.order import cycle
from vmrun.compose.values import host_name_of
from vmrun.model.service import RestartWhen

_ANY = {"0.0.0.0", "::"}  # noqa: S104 - compared with, not listened on


def check_relations(services: Mapping[str, Service], fields: Mapping[str, Field]) -> None:
    """Raises :class:`~vmrun.model.errors.UsageError`; ``fields`` are the services' own."""
    for service in services.values():
        _dependencies(service, services, fields[service.name])
    circle = cycle(services.values())
    if circle:
        raise fields[circle[0]].wrong(
            "depends on itself: " + " → ".join(circle), "remove one of the dependencies"
        )
    _names(services, fields)
    _ports(services, fields)
    _directories(services, fields)


def _dependencies(service: Service, services: Mapping[str, Service], field: Field) -> None:
    place = field.named()["depends_on"] if service.depends_on else field
    for dependency in service.depends_on:
        other = services.get(dependency.service)
        if other is None:
            raise place.wrong(
                f"there is no service {dependency.service[:80]!r}", f"there are {_list(services)}"
            )
        if dependency.condition is Condition.HEALTHY and other.healthcheck is None:
            raise place.wrong(
                f"{other.name!r} has no healthcheck, so it never is healthy",
                "give it a healthcheck (the image's own does not count), or use service_started",
            )
        endless = other.restart.when in (RestartWhen.ALWAYS, RestartWhen.UNLESS_STOPPED)
        if dependency.condition is Condition.COMPLETED and endless:
            raise place.wrong(
                f"{other.name!r} is restarted whenever it ends, so it never is completed",
                f"write 'restart: on-failure' or 'restart: \"no\"' for {other.name}",
            )


def _list(services: Mapping[str, Service]) -> str:
    names = sorted(services)
    return ", ".join(names[:10]) + (", …" if len(names) > 10 else "")


def _names(services: Mapping[str, Service], fields: Mapping[str, Field]) -> None:
    """DNS knows no upper case, and host names no underscore: both would make two names one."""
    hosts: dict[str, str] = {}
    for service in services.values():
        host = host_name_of(service.name)
        if host in hosts:
            raise fields[service.name].wrong(
                f"{hosts[host]!r} and {service.name!r} are one host name", "rename one of them"
            )
        hosts[host] = service.name
    taken = {
        (network, host_name_of(service.name)): service.name
        for service in services.values()
        for network in service.networks
    }
    for service in services.values():
        for network in service.networks:
            for alias in service.aliases:
                holder = taken.setdefault((network, host_name_of(alias)), service.name)
                if holder != service.name:
                    raise fields[service.name].wrong(
                        f"the alias {alias!r} names {holder!r} on the network {network!r}",
                        "choose another alias",
                    )


def _ports(services: Mapping[str, Service], fields: Mapping[str, Field]) -> None:
    taken: dict[int, list[tuple[str, str]]] = {}
    for service in services.values():
        for publish in service.ports:
            if publish.host_port == 0:
                continue
            holders = taken.setdefault(publish.host_port, [])
            for address, name in holders:
                if address == publish.address or {address, publish.address} & _ANY:
                    other = "stands there twice"
                    if name != service.name:
                        other = f"is published by {name!r} as well"
                    raise (
                        fields[service.name]
                        .named()["ports"]
                        .wrong(
                            f"port {publish.host_port} of {publish.address} {other}",
                            "choose another port of the host",
                        )
                    )
            holders.append((publish.address, service.name))


def _directories(services: Mapping[str, Service], fields: Mapping[str, Field]) -> None:
    """Each service has a copy of its own. What two of them copied back would be the last one's."""
    taken: list[tuple[Path, str]] = []
    for service in services.values():
        for directory in service.directories:
            if directory.read_only:
                continue
            here = directory.source
            for other, name in taken:
                if other.is_relative_to(here) or here.is_relative_to(other):
                    place = fields[service.name].named()["volumes"]
                    raise place.wrong(
                        f"{here} is copied back from {name!r} as well",
                        "a directory is copied, not shared: use a named volume, or :ro",
                    )
            taken.append((here, service.name))
