"""``ports`` and ``expose`` (Compose specification, 05-services.md)."""

from __future__ import annotations

import ipaddress

from vmrun.compose.field import Field
from vmrun.compose.values import port_number
from vmrun.model.network import Publish

DEFAULT_ADDRESS = "127.0.0.1"
"""Where a port is published that names no address. Compose takes every address of the host."""

_MOST = 256
_FORMS = 'write "[ADDRESS:]PORT:CONTAINER_PORT", e.g. "8080:80" or "0.0.0.0:8080:80"'
_NO_UDP = "UDP is not supported: what comes from outside is TCP through the connection to the guest"
_LONG = frozenset({"target", "published", "host_ip", "protocol", "mode", "name", "app_protocol"})


def read_ports(field: Field) -> tuple[Publish, ...]:
    """Both forms, ranges expanded."""
    found: list[Publish] = []
    for item in field.items(_MOST):
        found += _long(item) if item.is_mapping else _short(item)
        if len(found) > _MOST:
            raise item.wrong(f"more than {_MOST} ports", "publish fewer")
    return tuple(found)


def read_expose(field: Field) -> tuple[int, ...]:
    """Ports of the container, ranges expanded."""
    found: list[int] = []
    for item in field.items(_MOST):
        text, _, protocol = item.word().partition("/")
        _check_protocol(item, protocol)
        found += _range(item, text)
        if len(found) > _MOST:
            raise item.wrong(f"more than {_MOST} ports", "every port can be reached without")
    return tuple(found)


def _short(item: Field) -> list[Publish]:
    text, _, protocol = item.word().partition("/")
    _check_protocol(item, protocol)
    rest, colon, container = text.rpartition(":")
    address, second, host = rest.rpartition(":")
    if colon and not (host or address):
        raise item.wrong(f"not a port: {text[:80]!r}", _FORMS)
    return _pairs(item, address if second else None, host, container)


def _long(item: Field) -> list[Publish]:
    fields = item.section(_LONG)
    if "target" not in fields:
        raise item.wrong("has no 'target'", "target is the port in the container")
    if "protocol" in fields:
        _check_protocol(fields["protocol"], fields["protocol"].word())
    if "mode" in fields:
        fields["mode"].choice({"ingress": None, "host": None})
    for name in ("name", "app_protocol"):
        if name in fields:
            fields[name].word()
    target = fields["target"].integer(1, 65_535)
    published = fields["published"].word() if "published" in fields else ""
    address = fields["host_ip"].word() if "host_ip" in fields else None
    return _pairs(fields.get("published", item), address, published, str(target))


def _pairs(item: Field, address: str | None, host: str, container: str) -> list[Publish]:
    where = DEFAULT_ADDRESS if address is None else _address(item, address)
    inside = _range(item, container)
    if not host:
        return [Publish(where, 0, port) for port in inside]
    outside = _range(item, host)
    if len(outside) != len(inside):
        raise item.wrong(
            f"{len(outside)} ports of the host for {len(inside)} of the container",
            "ranges must be equally long; leave the host's out for any that is free",
        )
    return [Publish(where, *pair) for pair in zip(outside, inside, strict=True)]


def _address(item: Field, text: str) -> str:
    bare = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    try:
        address = ipaddress.ip_address(bare)
    except ValueError:
        raise item.wrong(f"not an IP address: {text[:80]!r}", _FORMS) from None
    if getattr(address, "scope_id", None):
        raise item.wrong(f"an address with a zone: {text[:80]!r}", _FORMS)
    return str(address)


def _range(item: Field, text: str) -> range:
    first, dash, last = text.partition("-")
    start = port_number(first)
    end = port_number(last) if dash else start
    if start is None or end is None:
        raise item.wrong(f"not a port: {text[:80]!r}", _FORMS)
    if end < start:
        raise item.wrong(f"a range that ends before it begins: {text!r}", _FORMS)
    if end - start >= _MOST:
        raise item.wrong(f"more than {_MOST} ports: {text!r}", "publish fewer")
    return range(start, end + 1)


def _check_protocol(item: Field, protocol: str) -> None:
    if protocol == "udp":
        raise item.wrong(_NO_UDP, "publish a TCP port")
    if protocol not in ("", "tcp"):
        raise item.wrong(f"protocol {protocol[:80]!r} is not supported", "write tcp, or nothing")
