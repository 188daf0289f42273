"""The commands that lay a wire in a guest: text for the guest's POSIX shell.

Nothing here is trusted to be well-formed: what is no address, port or process id is refused.
"""

from __future__ import annotations

import ipaddress
import shlex
from collections.abc import Iterable

from vmrun.model.errors import GuestError, UsageError
from vmrun.model.network import MOST_PORTS, RELAY_PORTS

_TOOL = "/usr/lib/vmrun/guest"
_PREFIXES = range(8, 31)


def relay_command(gateway: str, prefix: int, ports: Iterable[int]) -> str:
    """Executes the relay of a network, in whose containers' eyes ``gateway`` is the way out, and
    which takes connections to any address on ``ports``. Raises :class:`UsageError`."""
    _network(gateway, prefix)
    numbers = sorted(set(ports) - set(RELAY_PORTS))
    for port in numbers:
        if not 0 < port < 1 << 16:
            raise UsageError(f"{port} is not a TCP port", hint="ports are 1 to 65535")
    if len(numbers) > MOST_PORTS:
        raise UsageError(
            f"a network can allow connections to {MOST_PORTS} different ports, not {len(numbers)}",
            hint="let the container use the proxy that HTTPS_PROXY names: it takes any port",
        )
    listen = [f"listen={','.join(map(str, numbers))}"] if numbers else []
    return shlex.join(["exec", _TOOL, "relay", f"{gateway}/{prefix}", *listen])


def attach_command(relay_pid: int, target_pid: int, address: str, prefix: int, gateway: str) -> str:
    """Lays a wire from a relay to the container whose first process is ``target_pid``. Raises
    :class:`UsageError`, and :class:`GuestError` for what a guest gave as a process id."""
    network = _network(gateway, prefix)
    edges = (network.network_address, network.broadcast_address)
    if _host(address) not in network or address == gateway or _host(address) in edges:
        raise UsageError(
            f"{address} is not an address for a container in {network}",
            hint="choose one of the network's other addresses",
        )
    for pid in (relay_pid, target_pid):
        if not 0 < pid < 1 << 22:
            raise GuestError(f"the guest named process {pid}")
    words = [str(relay_pid), str(target_pid), f"{address}/{prefix}", gateway]
    return shlex.join(["exec", _TOOL, "attach", *words])


def _host(address: str) -> ipaddress.IPv4Address:
    try:
        parsed = ipaddress.IPv4Address(address)
    except ValueError:
        raise UsageError(
            f"{address!r} is not an IPv4 address", hint="write it as 10.90.0.2"
        ) from None
    return parsed


def _network(gateway: str, prefix: int) -> ipaddress.IPv4Network:
    if prefix not in _PREFIXES:
        raise UsageError(f"/{prefix} is no length for a network", hint="use 8 to 30, such as 24")
    network = ipaddress.IPv4Network((int(_host(gateway)), prefix), strict=False)
    if ipaddress.IPv4Address(gateway) in (network.network_address, network.broadcast_address):
        raise UsageError(f"{gateway} is not a host of {network}", hint="use its first address")
    return network
