"""The commands for a guest: text that means one thing, whatever went in."""

from __future__ import annotations

import pytest

from vmrun.model.errors import GuestError, UsageError
from vmrun.model.network import MOST_PORTS
from vmrun.network.wire import attach_command, relay_command


def test_names_each_port_once() -> None:
    command = relay_command("10.90.0.1", 24, [443, 80, 443, 53, 3128])
    assert command == "exec /usr/lib/vmrun/guest relay 10.90.0.1/24 listen=80,443"
    assert relay_command("10.90.0.1", 24, []) == "exec /usr/lib/vmrun/guest relay 10.90.0.1/24"


def test_lays_a_wire_between_two_processes() -> None:
    assert (
        attach_command(12, 34, "10.90.0.2", 24, "10.90.0.1")
        == "exec /usr/lib/vmrun/guest attach 12 34 10.90.0.2/24 10.90.0.1"
    )


@pytest.mark.parametrize("ports", [[0], [65536], [-1], range(1000, 1001 + MOST_PORTS)])
def test_refuses_ports(ports: list[int]) -> None:
    with pytest.raises(UsageError) as caught:
        relay_command("10.90.0.1", 24, ports)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("gateway", "prefix"),
    [
        ("10.90.0.0", 24),
        ("10.90.0.255", 24),
        ("10.90.0.1", 31),
        ("10.90.0.1", 7),
        ("10.90.0.1; reboot", 24),
        ("::1", 24),
        ("", 24),
    ],
)
def test_refuses_networks(gateway: str, prefix: int) -> None:
    with pytest.raises(UsageError) as caught:
        relay_command(gateway, prefix, [])
    assert caught.value.hint


@pytest.mark.parametrize(
    "address", ["10.91.0.2", "10.90.0.1", "10.90.0.255", "$(reboot)", "10.90.0.02"]
)
def test_refuses_addresses(address: str) -> None:
    with pytest.raises(UsageError):
        attach_command(12, 34, address, 24, "10.90.0.1")


@pytest.mark.parametrize(("relay", "target"), [(0, 1), (1, 0), (-1, 1), (1, 1 << 22)])
def test_a_process_that_cannot_be_is_the_guests_doing(relay: int, target: int) -> None:
    with pytest.raises(GuestError):
        attach_command(relay, target, "10.90.0.2", 24, "10.90.0.1")
