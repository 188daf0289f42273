"""All ways out together: whose rules count, what is recorded, what ends, and that bytes arrive."""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
import struct
import threading
import time
from collections.abc import Mapping

import pytest

from tests.unit.egress_world import (
    CONTAINER,
    GATEWAY,
    PUBLIC,
    SocketStream,
    World,
    receive_all,
    tcp_server,
)
from tests.unit.test_network_names import address, query
from tests.unit.test_network_sniff import client_hello
from vmrun.model.errors import StateError
from vmrun.network.decisions import DENY, MAX_KINDS, Decision, Decisions
from vmrun.network.dialer import by_turns, connect_to, is_own
from vmrun.network.filtered import FilteredJoint
from vmrun.network.frames import Endpoint
from vmrun.network.sniff import Inspector
from vmrun.network.watch import Watch

HOST = "db.example.com"
OTHER_ADDRESS = "151.101.1.1"


def echo(client: socket.socket) -> None:
    while data := client.recv(65536):
        client.sendall(data)


def synthetic(world: World, name: str) -> str:
    found = address(world.egress.datagram(Endpoint(CONTAINER, 53), query(name)))
    assert found is not None
    return found


def test_a_synthetic_address_is_the_name() -> None:
    world = World(f"{HOST}:5432", hosts={HOST: [PUBLIC]})
    with tcp_server(echo) as port:
        world.servers[PUBLIC, 5432] = port
        with world.open(synthetic(world, HOST), 5432) as client:
            client.sendall(b"\0\0\0\x08")
            assert client.recv(10) == b"\0\0\0\x08"
    assert world.allowed() == [(HOST, PUBLIC, "connected")]
    world.close()


def test_through_the_proxy_it_is_the_name_too() -> None:
    world = World(f"{HOST}:5432", hosts={HOST: [PUBLIC]})
    with tcp_server(echo) as port:
        world.servers[PUBLIC, 5432] = port
        with world.open(GATEWAY, 3128) as client:
            client.sendall(f"CONNECT {synthetic(world, HOST)}:5432 HTTP/1.0\r\n\r\n".encode())
            assert client.recv(100).startswith(b"HTTP/1.1 200")
            hello = client_hello(HOST)
            client.sendall(hello)
            assert client.recv(65536) == hello
    assert world.allowed() == [(HOST, PUBLIC, "connected")]
    world.close()


def test_the_rules_are_those_of_the_container() -> None:
    world = World(f"{HOST}:5432", hosts={HOST: [PUBLIC]})
    there = synthetic(world, HOST)
    with tcp_server(echo) as port:
        world.servers[PUBLIC, 5432] = port
        with world.open(there, 5432, container="10.88.0.9") as client:
            assert receive_all(client) == b""
        with world.open(there, 5433) as client:
            assert receive_all(client) == b""
    assert world.connected == []
    assert [
        (e.fields["container"], e.fields["name"], e.fields["reason"]) for e in world.events
    ] == [
        ("10.88.0.9", HOST, "no rule"),
        (CONTAINER, HOST, "no rule"),
    ]
    world.close()


def test_an_event_says_who_and_where_and_why() -> None:
    world = World(f"{HOST}:5432", hosts={HOST: ["10.0.0.1"]})
    with world.open(GATEWAY, 3128) as client:
        client.sendall(f"CONNECT {HOST}:5432 HTTP/1.0\r\nX-Secret: s3cret\r\n\r\n".encode())
        assert b"403" in receive_all(client)
    (event,) = world.events
    assert event.event == "network.deny"
    assert event.fields == {
        "container": CONTAINER, "via": "http", "name": HOST, "address": "10.0.0.1",
        "port": "5432", "reason": "private",
    }  # fmt: skip
    world.close()


def test_what_cannot_be_recorded_does_not_happen() -> None:
    served = threading.Event()

    def serve(client: socket.socket) -> None:
        if client.recv(10):
            served.set()

    world = World(f"{HOST}:5432", hosts={HOST: [PUBLIC]})
    there = synthetic(world, HOST)
    world.record_error = StateError("the disk is full")
    with tcp_server(serve) as port:
        world.servers[PUBLIC, 5432] = port
        with world.open(there, 5432) as client:
            with contextlib.suppress(OSError):
                client.sendall(b"\0data")
            assert receive_all(client) == b""
    assert not served.is_set()
    world.record_error = None
    world.close()


def test_a_failing_resolver_is_no_connection() -> None:
    def resolve(name: str) -> tuple[str, ...]:
        raise StateError("cannot tell")

    world = World(f"{HOST}:80")
    world.egress._ways.dialer._resolve = resolve
    with world.open(GATEWAY, 3128) as client:
        client.sendall(f"GET http://{HOST}/ HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode())
        assert receive_all(client).startswith(b"HTTP/1.1 504")
    assert world.connected == []
    world.close()


@pytest.mark.parametrize("port", [22, 8080, 54])
def test_the_gateway_has_no_other_service(port: int) -> None:
    world = World(f"{HOST}:{port}")
    with world.open(GATEWAY, port) as client:
        assert receive_all(client) == b""
    assert world.denied() == ["no service"]
    world.close()


def test_connections_of_a_container_are_limited() -> None:
    world = World(f"{HOST}:5432", hosts={HOST: [PUBLIC]}, streams=3)
    clients = [world.open(GATEWAY, 3128) for _ in range(3)]
    deadline = time.monotonic() + 5
    while world.egress._open[CONTAINER] < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    with world.open(GATEWAY, 3128) as fourth:
        assert receive_all(fourth) == b""
    assert world.denied() == ["too many connections"]
    with world.open(GATEWAY, 53, container="10.88.0.9") as other:
        other.sendall(b"\0\0")
        assert receive_all(other) == b""
    for client in clients:
        client.close()
    while world.egress._open[CONTAINER] and time.monotonic() < deadline:
        time.sleep(0.01)
    with world.open(GATEWAY, 3128) as client:
        client.sendall(b"x\r\n\r\n")
        assert receive_all(client).startswith(b"HTTP/1.1 400")
    world.close()


def test_a_megabyte_each_way_with_half_close() -> None:
    """The server answers only once the container has ended its side."""
    data = b"\0" + os.urandom(8 << 20)

    def serve(client: socket.socket) -> None:
        client.sendall(hashlib.sha256(receive_all(client)).digest() + data)

    world = World(f"{HOST}:9", hosts={HOST: [PUBLIC]})
    with tcp_server(serve) as port:
        world.servers[PUBLIC, 9] = port
        with world.open(synthetic(world, HOST), 9) as client:
            client.sendall(data)
            client.shutdown(socket.SHUT_WR)
            assert receive_all(client) == hashlib.sha256(data).digest() + data
    world.close()


def test_the_server_may_end_first() -> None:
    got: list[bytes] = []
    done = threading.Event()

    def serve(client: socket.socket) -> None:
        client.sendall(b"220 bye\r\n")
        client.shutdown(socket.SHUT_WR)
        got.append(receive_all(client))
        done.set()

    world = World(f"{HOST}:9", hosts={HOST: [PUBLIC]})
    with tcp_server(serve) as port:
        world.servers[PUBLIC, 9] = port
        with world.open(synthetic(world, HOST), 9) as client:
            assert receive_all(client) == b"220 bye\r\n"
            client.sendall(b"\0" * 300_000)
        assert done.wait(10)
    assert got == [b"\0" * 300_000]
    world.close()


def test_who_does_not_read_stops_who_writes() -> None:
    sent = 0

    def serve(client: socket.socket) -> None:
        nonlocal sent
        client.settimeout(0.2)
        try:
            while sent < 256 << 20:
                sent += client.send(bytes(65536))
        except TimeoutError:
            return

    world = World(f"{HOST}:9", hosts={HOST: [PUBLIC]})
    with tcp_server(serve) as port:
        world.servers[PUBLIC, 9] = port
        with world.open(synthetic(world, HOST), 9):
            time.sleep(0.6)
    assert 0 < sent < 32 << 20
    world.close()


def joined(
    port: int, watch: Watch, refusals: list[str], **limits: float
) -> tuple[socket.socket, threading.Thread]:
    """A tunnel to ``port`` of this host, and its thread."""
    inside, outside = socket.socketpair()
    inside.settimeout(10)
    there = Endpoint(PUBLIC, 443)
    stream = SocketStream(outside, Endpoint(CONTAINER, 1), there)
    upstream = socket.create_connection(("127.0.0.1", port))
    joint = FilteredJoint(stream, upstream, Inspector(HOST, 443), watch, **limits)
    thread = threading.Thread(target=joint.run, args=(b"", refusals.append), daemon=True)
    thread.start()
    return inside, thread


def test_a_connection_that_stands_still_ends() -> None:
    watch, refusals = Watch(), list[str]()
    with tcp_server(echo) as port:
        client, thread = joined(port, watch, refusals, idle=0.6)
        for _ in range(4):
            client.sendall(b"\0ping")
            assert client.recv(10) == b"\0ping"
            time.sleep(0.2)
        assert receive_all(client) == b""
        thread.join(5)
    assert not thread.is_alive()
    assert refusals == []
    watch.close()


def test_a_hello_that_does_not_go_on_ends() -> None:
    watch, refusals = Watch(), list[str]()
    with tcp_server(echo) as port:
        client, thread = joined(port, watch, refusals, undecided=0.5)
        hello = client_hello(HOST)
        start = time.monotonic()
        with contextlib.suppress(OSError):
            for at in range(20):
                client.sendall(hello[at : at + 1])
                time.sleep(0.2)
        assert time.monotonic() - start < 4
        thread.join(5)
    assert refusals == ["it did not go on before it could be judged"]
    watch.close()


def test_half_a_hello_and_an_end_reaches_nobody() -> None:
    got: list[bytes] = []

    def serve(client: socket.socket) -> None:
        got.append(receive_all(client))

    watch, refusals = Watch(), list[str]()
    with tcp_server(serve) as port:
        client, thread = joined(port, watch, refusals)
        client.sendall(client_hello(HOST)[:100])
        client.shutdown(socket.SHUT_WR)
        thread.join(5)
    assert refusals == ["it ended before it could be judged"]
    assert b"".join(got) == b""
    watch.close()


def test_closing_ends_all_connections() -> None:
    world = World(f"{HOST}:9", hosts={HOST: [PUBLIC]})
    with tcp_server(echo) as port:
        world.servers[PUBLIC, 9] = port
        with world.open(synthetic(world, HOST), 9) as client, world.open(GATEWAY, 3128) as idle:
            client.sendall(b"\0x")
            assert client.recv(9) == b"\0x"
            world.close()
            assert receive_all(client) == b""
            assert receive_all(idle) == b""


def test_this_host_is_told_by_the_kernel() -> None:
    assert is_own("127.0.0.1")
    assert is_own("255.255.255.255")
    assert not is_own(PUBLIC)
    assert not is_own("2606:4700::1111")


def test_a_public_address_of_this_host_is_denied(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(f"{PUBLIC}:9", f"{HOST}:9", hosts={HOST: [PUBLIC]})
    monkeypatch.setattr("vmrun.network.dialer.is_own", lambda found: found == PUBLIC)
    for there in (PUBLIC, synthetic(world, HOST)):
        with world.open(there, 9) as client:
            assert receive_all(client) == b""
    assert world.denied() == ["this host", "this host"]
    assert world.connected == []
    world.close()


def test_a_family_that_leads_nowhere_costs_little() -> None:
    found = ["2606::1", "2606::2", "2606::3", PUBLIC]
    assert by_turns(found) == ["2606::1", PUBLIC, "2606::2", "2606::3"]
    assert by_turns([PUBLIC, "1.1.1.1"]) == [PUBLIC, "1.1.1.1"]
    world = World(f"{HOST}:9", hosts={HOST: found})
    with tcp_server(echo) as port:
        world.servers[PUBLIC, 9] = port
        with world.open(synthetic(world, HOST), 9) as client:
            client.sendall(b"\0x")
            assert client.recv(9) == b"\0x"
    assert world.connected == [("2606::1", 9), (PUBLIC, 9)]
    world.close()


def test_connecting_resolves_nothing() -> None:
    with tcp_server(echo) as port, connect_to("127.0.0.1", port, 5) as connection:
        connection.sendall(b"x")
        assert connection.recv(1) == b"x"
    with pytest.raises(ConnectionRefusedError):
        connect_to("127.0.0.1", port, 5)


class Log:
    def __init__(self) -> None:
        self.lines: list[tuple[str, dict[str, str]]] = []
        self.error: Exception | None = None

    def __call__(self, event: str, fields: Mapping[str, str]) -> None:
        if self.error is not None:
            raise self.error
        self.lines.append((event, dict(fields)))


def denial(number: int = 0) -> Decision:
    return Decision(CONTAINER, "dns", f"a{number}.example.net", "", 0, "no rule")


def counted(log: Log) -> int:
    return sum(int(fields.get("repeated", 1)) for _, fields in log.lines)


def test_repetitions_are_counted() -> None:
    log = Log()
    now = 0.0
    decisions = Decisions(log, clock=lambda: now)
    for _ in range(1000):
        decisions.deny(denial())
    assert len(log.lines) == 1
    now = 61.0
    decisions.deny(denial(1))
    assert [fields.get("repeated") for _, fields in log.lines] == [None, "999", None]
    decisions.close()
    assert counted(log) == 1001


def test_ever_new_denials_are_bounded_and_none_is_lost() -> None:
    log = Log()
    decisions = Decisions(log)
    for number in range(5000):
        decisions.deny(denial(number))
    decisions.allow(denial())
    assert len(log.lines) == MAX_KINDS + 1
    assert len(decisions._counts) <= 2 * MAX_KINDS
    decisions.close()
    assert counted(log) == 5001
    assert log.lines[-1][1]["reason"] == "many others"
    assert {event for event, _ in log.lines} == {"network.allow", DENY}


def test_another_container_is_counted_on_its_own() -> None:
    log = Log()
    decisions = Decisions(log)
    for number in range(100):
        decisions.deny(denial(number))
    decisions.deny(Decision("10.88.0.9", "dns", "b.example.net", "", 0, "no rule"))
    assert log.lines[-1][1]["container"] == "10.88.0.9"
    decisions.close()


def test_counts_are_recorded_even_if_nothing_follows() -> None:
    log = Log()
    decisions = Decisions(log, window=0.2)
    decisions.deny(denial())
    decisions.deny(denial())
    deadline = time.monotonic() + 5
    while counted(log) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    assert counted(log) == 2
    decisions.close()


def test_counts_survive_a_journal_that_fails() -> None:
    log = Log()
    decisions = Decisions(log)
    decisions.deny(denial())
    decisions.deny(denial())
    log.error = StateError("the disk is full")
    with pytest.raises(StateError):
        decisions.close()
    log.error = None
    decisions.close()
    assert counted(log) == 2


def test_what_a_container_wrote_is_printable() -> None:
    fields = Decision(CONTAINER, "http", "a\n\x1b[31m\u202e" + "x" * 999, "", 80, "r").fields()
    assert fields["name"].isascii()
    assert fields["name"].isprintable()
    assert len(fields["name"]) == 255


def test_a_reset_is_passed_on() -> None:
    ended: list[str] = []
    done = threading.Event()

    def serve(client: socket.socket) -> None:
        try:
            while client.recv(100):
                pass
            ended.append("end")
        except ConnectionError:
            ended.append("reset")
        done.set()

    watch, refusals = Watch(), list[str]()
    with tcp_server(serve) as port:
        listener = socket.create_server(("127.0.0.1", 0))
        client = socket.create_connection(listener.getsockname())
        outside, _ = listener.accept()
        stream = SocketStream(outside, Endpoint(CONTAINER, 1), Endpoint(PUBLIC, 9))
        upstream = socket.create_connection(("127.0.0.1", port))
        joint = FilteredJoint(stream, upstream, Inspector(HOST, 9), watch)
        thread = threading.Thread(target=joint.run, args=(b"", refusals.append), daemon=True)
        thread.start()
        client.sendall(b"\0half of a file")
        time.sleep(0.1)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
        assert done.wait(5)
        thread.join(5)
        listener.close()
    assert ended == ["reset"]
    watch.close()


def test_refusals_are_no_errors_of_the_product() -> None:
    """A refusal inside a connection ends that connection and is recorded; nothing is raised."""
    world = World(f"{HOST}:443", hosts={HOST: [PUBLIC]})
    with tcp_server(echo) as port:
        world.servers[PUBLIC, 443] = port
        with world.open(synthetic(world, HOST), 443) as client:
            client.sendall(client_hello("evil.example.net"))
            assert receive_all(client).startswith(b"\x15\x03")
    world.close()
    assert world.denied() == ["the TLS server name is another one"]


def test_nothing_is_left_of_connections() -> None:
    """Whatever they were, and however they ended: no thread, no descriptor, no place."""
    world = World(f"{HOST}:9,443", hosts={HOST: [PUBLIC]})
    hello = client_hello(HOST)
    with tcp_server(echo) as port:
        world.servers.update({(PUBLIC, 9): port, (PUBLIC, 443): port})
        there = synthetic(world, HOST)

        def some() -> None:
            for address_, number, data in (
                (there, 9, b"\0data"),
                (there, 443, hello),
                (there, 443, hello[:50]),
                (there, 22, b"x"),
                (OTHER_ADDRESS, 443, hello),
                (GATEWAY, 3128, f"CONNECT {HOST}:443 HTTP/1.0\r\n\r\n".encode()),
                (GATEWAY, 3128, b"GET"),
                (
                    GATEWAY,
                    3128,
                    f"GET http://{HOST}:9/ HTTP/1.1\r\nHost: {HOST}:9\r\n\r\n".encode(),
                ),
                (GATEWAY, 1080, b"\x05\x01\0"),
                (GATEWAY, 53, b"\0\x0c"),
            ):
                for pause in (0.0, 0.02):
                    with world.open(address_, number) as client, contextlib.suppress(OSError):
                        client.sendall(data)
                        time.sleep(pause)

        def settled(threads: int, descriptors: int) -> bool:
            quiet = threading.active_count() <= threads and open_descriptors() <= descriptors
            return quiet and not world.egress._open

        some()
        time.sleep(1)
        threads, descriptors = threading.active_count(), open_descriptors()
        for _ in range(5):
            some()
        deadline = time.monotonic() + 8
        while not settled(threads, descriptors) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert settled(threads, descriptors)
    world.close()


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))
