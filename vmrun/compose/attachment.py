"""``networks``, ``network_mode`` and ``x-vmrun`` of a service (05-services.md)."""

from __future__ import annotations

from collections.abc import Mapping

from vmrun.compose import unsupported
from vmrun.compose.context import Context
from vmrun.compose.field import Field
from vmrun.compose.model import Network, Service
from vmrun.compose.toplevel import DEFAULT_NETWORK
from vmrun.compose.values import is_name
from vmrun.model.errors import UsageError
from vmrun.model.network import Allow


def read_networks(
    fields: Mapping[str, Field], declared: Mapping[str, Network]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The service's network, the implicit one where it names none, and its further names on it.
    A wire ends in one network, so a service is on one; ``network_mode: none`` is on none."""
    if "network_mode" in fields:
        mode = fields["network_mode"]
        if mode.word() != "none":
            raise mode.wrong(
                f"{mode.word()[:80]!r} is not supported: a guest has no network card, and a "
                "container its own namespace",
                "write none, or use 'networks'",
            )
        if "networks" in fields:
            raise mode.wrong("there are 'networks' as well", "remove one of them")
        return (), ()
    if "networks" not in fields:
        return (DEFAULT_NETWORK,), ()
    field = fields["networks"]
    items: dict[str, Field] = {}
    aliases: tuple[str, ...] = ()
    if field.is_mapping:
        items = field.named()
        for item in items.values():
            if not item.null:
                aliases = _aliases(item)
    else:
        for item in field.items():
            if item.word() in items:
                raise item.wrong(f"{item.word()[:80]!r} stands there twice", "remove one of them")
            items[item.word()] = item
    for name, item in items.items():
        if name not in declared:
            raise item.wrong(
                f"there is no network {name[:80]!r}",
                "declare it below 'networks:' at the top level",
            )
    if len(items) != 1:
        raise field.wrong(
            f"{len(items)} networks: a service is on exactly one",
            "put services that must reach each other on one network; network_mode: none for none",
        )
    return tuple(items), aliases


def _aliases(field: Field) -> tuple[str, ...]:
    fields = field.section(("aliases",), unsupported.SERVICE_NETWORK)
    found: list[str] = []
    for item in fields["aliases"].items(64) if "aliases" in fields else ():
        if not is_name(item.word()):
            raise item.wrong(f"not a host name: {item.word()[:80]!r}", "letters, digits, hyphens")
        found.append(item.word())
    return tuple(found)


def check_network(
    service: Service, fields: Mapping[str, Field], declared: Mapping[str, Network]
) -> None:
    """Nothing leaves an internal network, and nothing comes in."""
    closed = "" if service.networks else "network_mode is none"
    for name in service.networks:
        if declared[name].internal:
            closed = f"the network {name!r} is internal"
    for key, used in (("ports", service.ports), ("x-vmrun", service.allow)):
        if closed and used:
            raise fields[key].wrong(f"cannot be, because {closed}", "remove one of them")


def read_allow(field: Field, context: Context) -> tuple[Allow, ...]:
    """``x-vmrun: {allow: [HOST:PORT]}`` of a service: what it may connect to outside."""
    fields = field.section(("allow",), extensions=False)
    found: list[Allow] = []
    for item in fields["allow"].items(256) if "allow" in fields else ():
        text = item.word()
        try:
            found.append(context.parse_allow(text))
        except UsageError as error:
            raise item.rethrow(error) from None
    return tuple(found)
