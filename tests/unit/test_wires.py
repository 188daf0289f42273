"""The networks of one guest, from the ports of the host to the relay's frames.

The guest is a fake: a shell that takes notes, and relays in the test's hands.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest

from tests.engine_samples import RUN_ID, container_plan, image_of, plan_of
from tests.unit.test_network_mux import Relay
from tests.unit.test_network_names import address, query, status
from vmrun.model.errors import ChannelError, EngineError, StateError, UsageError
from vmrun.model.network import Allow, NetworkPlan, Publish
from vmrun.model.plan import Plan
from vmrun.model.report import Removed
from vmrun.network.frames import (
    Close,
    Connect,
    Data,
    Datagram,
    End,
    Endpoint,
    Frame,
    Hello,
    Open,
    Opened,
    Window,
)
from vmrun.supervisor.wires import Wires

GATEWAY = "10.88.0.1"
NETWORK = NetworkPlan(
    network="shop", address="10.88.0.2", gateway=GATEWAY, prefix=24, listen=(80,),
    publish=(Publish("127.0.0.1", 0, 8080),),
    allow=(Allow("www.example.com", (80,)),),
)  # fmt: skip


class Command:
    """A command that has ended."""

    def __init__(self, status: int) -> None:
        self._status = status

    def read(self, size: int) -> bytes:
        return b""

    read_error = read

    def write(self, data: bytes) -> None: ...

    def close_stdin(self) -> None: ...

    def resize(self, size: object) -> None: ...

    def wait(self, timeout: float | None = None) -> int:
        return self._status

    def close(self) -> None: ...


class Guest:
    """The connection to a guest; each relay says hello with a process id of its own."""

    def __init__(self) -> None:
        self.commands: list[str] = []
        self.relays: list[Relay] = []
        self.failing = ""
        self.slow = threading.Event()
        self.slow.set()

    def execute(self, command: str, *, terminal: object = None) -> Any:
        self.commands.append(command)
        if " relay " not in command:
            return Command(1 if self.failing and self.failing in command else 0)
        assert self.slow.wait(10)
        relay = Relay()
        self.relays.append(relay)
        relay.say(Hello(100 + len(self.relays)))
        return relay

    def close(self) -> None: ...


class World:
    def __init__(self, image: Any) -> None:
        self.guest = Guest()
        self.events: list[tuple[str, Mapping[str, str]]] = []
        self.wires = Wires(lambda: self.guest, lambda e, f: self.events.append((e, dict(f))))
        self._image = image

    def plan(self, network: NetworkPlan | None = NETWORK, run_id: str = RUN_ID) -> Plan:
        return replace(plan_of(self._image, container_plan(network=network)), run_id=run_id)

    def start(self, plan: Plan) -> tuple[Publish, ...]:
        """All that comes before the container's first instruction."""
        ports = self.wires.reserve(plan)
        self.wires.lay(plan)
        self.wires.attach(plan, 4711)
        return ports

    def ask(self, name: str, source: str, relay: int = -1) -> bytes:
        """What the name server answers to a container."""
        there = Endpoint(source, 5353), Endpoint(GATEWAY, 53)
        self.guest.relays[relay].say(Datagram(*there, query(name)))
        answer = self.guest.relays[relay].hear()
        assert isinstance(answer, Datagram)
        return answer.data

    def denied(self) -> list[tuple[str, str, str]]:
        return [(f["run"], f["name"], f.get("repeated", "1"))
                for event, f in self.events if event == "network.deny"]  # fmt: skip


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return image_of(tmp_path_factory.mktemp("image"), [])


@pytest.fixture
def world(image: Any) -> Iterator[World]:
    made = World(image)
    yield made
    made.wires.close()


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), 5)


def connect_and_read(port: int) -> bytes:
    """A reset may come before connect(2) has returned."""
    with connect(port) as client:
        return client.recv(1)


def is_free(port: int) -> bool:
    with suppress(OSError), socket.create_server(("127.0.0.1", port)):
        return True
    return False


def other(**changes: Any) -> NetworkPlan:
    return replace(NETWORK, address="10.88.0.3", publish=(), **changes)


# --- ports ---------------------------------------------------------------------------------


def test_a_run_without_a_network_needs_none(world: World) -> None:
    plan = world.plan(None)
    assert world.start(plan) == ()
    world.wires.detach(plan)
    assert world.wires.close() == ()
    assert world.guest.commands == []


def test_ports_are_taken_before_there_is_a_guest(world: World) -> None:
    def no_guest() -> Any:
        raise ChannelError("the guest is not up yet")

    wires = Wires(no_guest, lambda *_: None)
    (port,) = wires.reserve(world.plan())
    assert port.host_port > 0
    assert not is_free(port.host_port)
    with pytest.raises(ConnectionResetError):
        connect_and_read(port.host_port)
    assert wires.close() == (Removed("port", f"127.0.0.1:{port.host_port}", gone=True),)
    assert is_free(port.host_port)


def test_one_port_that_cannot_be_had_gives_all_back(world: World) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        number = taken.getsockname()[1]
        (free,) = world.wires.reserve(world.plan(run_id="aaaaaaaaaaaa"))
        world.wires.release("aaaaaaaaaaaa")
        both = (
            Publish("127.0.0.1", free.host_port, 1),
            Publish("127.0.0.1", number, 2),
        )
        with pytest.raises(UsageError, match=f"cannot publish port {number} of 127.0.0.1"):
            world.wires.reserve(world.plan(replace(NETWORK, publish=both)))
        assert is_free(free.host_port)
        assert [r for r in world.wires.close() if r.name.endswith(str(number))] == []


def test_a_connection_goes_to_the_container_and_back(world: World) -> None:
    (port,) = world.start(world.plan())
    relay = world.guest.relays[0]
    with connect(port.host_port) as client:
        asked = relay.hear()
        assert asked == Connect(asked.stream, Endpoint("10.88.0.2", 8080))  # type: ignore[union-attr]
        number = asked.stream
        relay.say(Opened(number), Data(number, b"hello"))
        assert client.recv(10) == b"hello"
        client.sendall(b"question")
        client.shutdown(socket.SHUT_WR)
        assert [relay.hear(), relay.hear()] == [Data(number, b"question"), End(number)]
        relay.say(Data(number, b"answer"), End(number))
        assert client.recv(10) == b"answer"
        assert client.recv(10) == b""
        relay.say(Close(number))


def test_an_ended_run_gives_its_ports_back_and_the_guests_receipt_says_so(world: World) -> None:
    plan = world.plan()
    (port,) = world.start(plan)
    world.wires.detach(plan)
    assert is_free(port.host_port)
    gone = Removed("port", f"127.0.0.1:{port.host_port}", gone=True)
    assert world.wires.close() == (gone,)
    assert world.wires.close() == (gone,), "however often it is asked"


def test_a_guest_with_many_runs_has_a_receipt_of_bounded_length(world: World) -> None:
    for number in range(70):
        plan = world.plan(run_id=f"{number:012x}")
        world.wires.reserve(plan)
        world.wires.detach(plan)
    assert len(world.wires.close()) == 64


def test_a_run_that_has_ended_is_not_connected_to(world: World) -> None:
    first, second = world.plan(), world.plan(other(), run_id="bbbbbbbbbbbb")
    (port,) = world.start(first)
    world.start(second)
    client = connect(port.host_port)
    world.guest.relays[0].hear()
    world.wires.detach(first)
    with client, pytest.raises(ConnectionResetError):
        client.recv(1)
    with pytest.raises(ConnectionRefusedError):
        connect(port.host_port)


@pytest.mark.skipif(not socket.has_ipv6, reason="needs IPv6")
def test_the_receipt_writes_ipv6_addresses_as_others_do(world: World) -> None:
    (port,) = world.wires.reserve(world.plan(replace(NETWORK, publish=(Publish("::1", 0, 80),))))
    assert world.wires.close() == (Removed("port", f"[::1]:{port.host_port}", gone=True),)


# --- the network in the guest --------------------------------------------------------------


def test_files_come_first_then_the_relay_then_the_wire(world: World) -> None:
    world.start(world.plan())
    files, relay, attach = world.guest.commands
    assert files.startswith("mkdir -p /run/vmrun-net/shop ")
    assert relay == "exec /usr/lib/vmrun/guest relay 10.88.0.1/24 listen=80"
    assert attach == "exec /usr/lib/vmrun/guest attach 101 4711 10.88.0.2/24 10.88.0.1"


def test_a_restart_uses_the_network_that_is_there(world: World) -> None:
    plan = world.plan()
    world.start(plan)
    world.wires.lay(plan)
    world.wires.attach(plan, 4712)
    assert len(world.guest.relays) == 1
    assert world.guest.commands[-1].split()[3:5] == ["101", "4712"]
    assert address(world.ask("www.example.com", "10.88.0.2"))


def test_the_last_one_takes_the_network_along(world: World) -> None:
    first, second = world.plan(), world.plan(other(), run_id="bbbbbbbbbbbb")
    world.start(first)
    world.start(second)
    assert len(world.guest.relays) == 1
    world.wires.detach(first)
    assert not world.guest.relays[0].closed.is_set()
    world.wires.detach(second)
    assert world.guest.relays[0].closed.is_set()
    assert world.guest.commands[-1] == "rm -rf /run/vmrun-net/shop"
    world.wires.detach(second)
    assert world.guest.commands.count("rm -rf /run/vmrun-net/shop") == 1


def test_networks_are_apart(world: World) -> None:
    world.start(world.plan())
    world.start(world.plan(other(network="else", allow=()), run_id="bbbbbbbbbbbb"))
    assert len(world.guest.relays) == 2
    assert address(world.ask("www.example.com", "10.88.0.2", relay=0))
    assert status(world.ask("www.example.com", "10.88.0.2", relay=1)) == 3


def test_an_address_belongs_to_one_container(world: World) -> None:
    plan = world.plan()
    world.start(plan)
    double = world.plan(replace(other(), address="10.88.0.2"), run_id="bbbbbbbbbbbb")
    with pytest.raises(StateError, match=f"in use by run {RUN_ID}"):
        world.wires.lay(double)
    world.wires.detach(double)
    assert address(world.ask("www.example.com", "10.88.0.2")), "the first one keeps its rules"
    assert not world.guest.relays[0].closed.is_set()


def test_rules_are_each_containers_own_and_end_with_it(world: World) -> None:
    first = world.plan()
    second = world.plan(other(allow=(Allow("db.example.com", (80,)),)), run_id="bbbbbbbbbbbb")
    world.start(first)
    world.start(second)
    assert address(world.ask("www.example.com", "10.88.0.2"))
    assert status(world.ask("db.example.com", "10.88.0.2")) == 3
    assert address(world.ask("db.example.com", "10.88.0.3"))
    assert status(world.ask("www.example.com", "10.88.0.9")) == 3, "nobody's address"
    world.wires.detach(second)
    assert status(world.ask("db.example.com", "10.88.0.3")) == 3


def test_a_broken_wire_is_in_the_journal_and_a_restart_makes_it_anew(world: World) -> None:
    plan = world.plan()
    (port,) = world.start(plan)
    world.guest.relays[0].say(Window(77, 1))
    deadline = time.monotonic() + 5
    while not world.events:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    ((event, fields),) = world.events
    assert (event, fields["run"], fields["network"]) == ("network.lost", RUN_ID, "shop")
    assert "stream 77" in fields["error"]
    with pytest.raises(ConnectionResetError):
        connect_and_read(port.host_port)
    world.wires.lay(plan)
    world.wires.attach(plan, 4712)
    assert world.guest.commands[-1].split()[3:5] == ["102", "4712"]
    assert address(world.ask("www.example.com", "10.88.0.2"))


def test_a_guest_that_is_gone_has_lost_no_network(world: World) -> None:
    """Its end is told by those who ended it, or found it dead."""
    world.start(world.plan())
    world.guest.failing = "true"
    world.guest.relays[0].end()
    deadline = time.monotonic() + 5
    while "true" not in world.guest.commands:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    world.wires.close()
    assert world.events == []


@pytest.mark.parametrize("failing", ["mkdir", "attach"])
def test_a_guest_that_cannot_is_an_error_and_leaves_nothing(world: World, failing: str) -> None:
    plan = world.plan()
    world.guest.failing = failing
    with pytest.raises(EngineError):
        world.start(plan)
    world.wires.detach(plan)
    assert all(relay.closed.is_set() for relay in world.guest.relays)


def test_an_ending_guest_gets_no_new_network(world: World) -> None:
    plan = world.plan()
    world.guest.slow.clear()
    errors: list[BaseException] = []

    def lay() -> None:
        try:
            world.wires.lay(plan)
        except ChannelError as error:
            errors.append(error)

    thread = threading.Thread(target=lay)
    thread.start()
    world.wires.close()
    world.guest.slow.set()
    thread.join(5)
    assert [str(error) for error in errors] == ["the guest is ending"]
    assert world.guest.relays[0].closed.is_set()
    with pytest.raises(ChannelError):
        world.wires.attach(world.plan(other(network="else")), 1)


# --- decisions -----------------------------------------------------------------------------


def test_a_decision_names_the_run(world: World) -> None:
    world.start(world.plan())
    world.start(world.plan(other(), run_id="bbbbbbbbbbbb"))
    for source in ("10.88.0.2", "10.88.0.3", "10.88.0.9"):
        world.ask("evil.example.net", source)
    assert world.denied() == [
        (RUN_ID, "evil.example.net", "1"), ("bbbbbbbbbbbb", "evil.example.net", "1"),
        ("", "evil.example.net", "1"),
    ]  # fmt: skip


def test_what_was_counted_of_a_run_is_not_the_next_ones(world: World) -> None:
    """Two runs, one after the other, have the same address; a third keeps the network."""
    world.start(world.plan(other(), run_id="bbbbbbbbbbbb"))
    first, second = world.plan(), world.plan(run_id="cccccccccccc")
    world.start(first)
    for _ in range(3):
        world.ask("evil.example.net", "10.88.0.2")
    world.wires.detach(first)
    world.start(second)
    for _ in range(2):
        world.ask("evil.example.net", "10.88.0.2")
    world.wires.close()
    assert world.denied() == [
        (RUN_ID, "evil.example.net", "1"), (RUN_ID, "evil.example.net", "2"),
        ("cccccccccccc", "evil.example.net", "1"), ("cccccccccccc", "evil.example.net", "1"),
    ]  # fmt: skip


def test_what_cannot_be_written_down_is_not_answered_with_an_address(image: Any) -> None:
    guest = Guest()

    def full(event: str, fields: Mapping[str, str]) -> None:
        raise StateError("the journal cannot be written: no space left on device")

    wires = Wires(lambda: guest, full)
    plan = World(image).plan()
    wires.reserve(plan)
    wires.lay(plan)
    relay = guest.relays[0]
    frames: list[Frame] = []
    relay.say(Open(1, Endpoint("10.88.0.2", 40000), Endpoint("93.184.216.66", 80)))
    frames.append(relay.hear())
    assert frames == [Close(1)]
    wires.close()
