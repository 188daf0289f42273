"""``--publish`` as docker writes it. Pure."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable

from vmrun.model.errors import UsageError
from vmrun.model.network import Publish

LOOPBACK = "127.0.0.1"
"""Where a port is published unless an address is given: docker's default, every address of the
host, is more than most mean."""

_MOST = 64
_FORM = re.compile(
    r"(?:(?P<address>\[[0-9a-fA-F:.]+\]|[0-9]+(?:\.[0-9]+){3}):)?"
    r"(?:(?P<host>[0-9]*):)?(?P<container>[0-9]+)(?:/(?P<protocol>[a-z]+))?"
)


def parse_publish(text: str) -> Publish:
    """``[ADDRESS:][HOST]:CONTAINER[/tcp]`` or ``CONTAINER``. Without a host port any free one is
    taken. Raises :class:`UsageError`."""
    match = _FORM.fullmatch(text)
    if match is None:
        raise _bad(text, "is not ADDRESS:HOST:CONTAINER")
    if match["protocol"] not in (None, "tcp"):
        raise _bad(text, f"asks for {match['protocol']}: only TCP can be published")
    if match["address"] and match["host"] is None:
        raise _bad(text, "names an address and one port only", hint="ADDRESS::PORT for any port")
    host = _port(match["host"], text, lowest=0) if match["host"] else 0
    return Publish(_address(match["address"], text), host, _port(match["container"], text))


def parse_publishes(texts: Iterable[str]) -> tuple[Publish, ...]:
    """All ``--publish`` of one workload; no host port twice. Raises :class:`UsageError`."""
    found: list[Publish] = []
    for text in texts:
        publish = parse_publish(text)
        taken = {(other.address, other.host_port) for other in found}
        if publish.host_port and (publish.address, publish.host_port) in taken:
            raise _bad(text, "publishes a port of the host twice")
        found.append(publish)
    if len(found) > _MOST:
        raise UsageError(f"more than {_MOST} --publish", hint="publish fewer ports")
    return tuple(found)


def _address(text: str | None, whole: str) -> str:
    if text is None:
        return LOOPBACK
    try:
        return str(ipaddress.ip_address(text.strip("[]")))
    except ValueError:
        raise _bad(whole, f"{text} is not an IP address") from None


def _port(text: str, whole: str, *, lowest: int = 1) -> int:
    if len(text) > 5 or not lowest <= int(text) < 1 << 16:
        raise _bad(whole, f"{text[:20]} is not a port", hint="ports are 1 to 65535")
    return int(text)


def _bad(text: str, why: str, *, hint: str = "e.g. 8080:80, or 0.0.0.0:8080:80") -> UsageError:
    return UsageError(f"--publish {text[:80]}: {why}", hint=hint)
