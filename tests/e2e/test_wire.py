"""The wire through a real guest: kernel, relay and SSH are those of every run; the containers are
namespaces, each with a program of the guest's busybox."""

from __future__ import annotations

import shlex
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest

from vmrun.model.base import Flavour
from vmrun.model.errors import ChannelError, GuestError, VmrunError
from vmrun.model.network import Publish
from vmrun.network.frames import Endpoint, Hello, encode
from vmrun.network.mux import Mux, Stream
from vmrun.network.publish import Publisher
from vmrun.network.wire import attach_command, relay_command

pytestmark = pytest.mark.guest

GATEWAY, PREFIX = "10.90.0.1", 24
FIRST, SECOND = "10.90.0.2", "10.90.0.3"


def command(connection: Any, text: str) -> str:
    process = connection.execute(text)
    out = b""
    while data := process.read(65536):
        out += data
    errors = process.read_error(4096).decode()
    status = process.wait(60)
    assert status == 0, f"{text}: {status}: {errors}"
    return out.decode()


def echo(stream: Stream) -> None:
    if stream.destination.address == "192.0.2.99":  # takes all and says how much
        size = 0
        while data := stream.read(65536):
            size += len(data)
        stream.write(str(size).encode())
    else:
        while data := stream.read(65536):
            stream.write(data)
    stream.close_write()


def answer(source: Endpoint, query: bytes) -> bytes:
    """198.51.100.7 for every name (RFC 1035), nothing for other types."""
    found = query.endswith(b"\0\x01\0\x01")
    record = b"\xc0\x0c\0\x01\0\x01\0\0\0\x3c\0\x04" + bytes([198, 51, 100, 7])
    header = query[:2] + b"\x81\x80\0\x01" + (b"\0\x01" if found else b"\0\0") + b"\0\0\0\0"
    return header + query[12:] + (record if found else b"")


class Network:
    def __init__(self, connection: Any) -> None:
        self.connection = connection
        self.seen: list[tuple[Endpoint, Endpoint]] = []
        started = time.monotonic()
        self.mux = Mux(
            connection.execute(relay_command(GATEWAY, PREFIX, [80, 443])),
            on_stream=self._handle,
            on_datagram=answer,
        )
        self.pid = self.mux.wait_ready(30)
        self.ready_after = time.monotonic() - started
        self.members = {address: self._member(address) for address in (FIRST, SECOND)}

    def _handle(self, stream: Stream) -> None:
        self.seen.append((stream.peer, stream.destination))
        echo(stream)

    def _member(self, address: str) -> int:
        background = "busybox unshare -n sleep 1000 </dev/null >/dev/null 2>&1 & echo $!"
        pid = int(command(self.connection, background))
        # unshare has happened once the process is sleep.
        command(self.connection, f"until grep -q sleep /proc/{pid}/comm; do sleep 0.05; done")
        command(self.connection, attach_command(self.pid, pid, address, PREFIX, GATEWAY))
        return pid

    def within(self, address: str, text: str) -> str:
        """A command for the guest's shell, in a member's namespace."""
        pid = self.members[address]
        return f"busybox nsenter -t {pid} -n sh -c {shlex.quote(text)}"

    def run(self, address: str, text: str) -> str:
        return command(self.connection, self.within(address, text))

    def serve(self, address: str, port: int, program: str) -> None:
        """Start a server in a member, a process of ``program`` for each connection."""
        text = f"busybox nc -ll -p {port} -e {program} </dev/null >/dev/null 2>&1 &"
        self.run(address, text)
        deadline = time.monotonic() + 10
        while True:
            with suppress(ChannelError):
                self.mux.connect(address, port, 10).close()
                return
            assert time.monotonic() < deadline
            time.sleep(0.1)

    def close(self) -> None:
        self.mux.close()
        for pid in self.members.values():
            command(self.connection, f"kill -9 {pid} || true")


@pytest.fixture(scope="module")
def connection(guest_connection: Callable[[Flavour], Any]) -> Any:
    return guest_connection(Flavour.MINIMAL)


@pytest.fixture(scope="module")
def network(connection: Any) -> Iterator[Network]:
    made = Network(connection)
    yield made
    made.close()


def test_the_guest_has_what_a_wire_needs(network: Network) -> None:
    print(f"relay ready after {network.ready_after:.2f} s")
    assert "eth0" in network.run(FIRST, "ls /sys/class/net; busybox ip -o link")
    assert "default via 10.90.0.1" in network.run(FIRST, "busybox ip route")
    assert "inet6" not in network.run(FIRST, "busybox ip address show dev eth0")
    own = command(network.connection, "busybox ip -o link")
    assert [line.split(":")[1].strip() for line in own.splitlines()] == ["lo"]


def test_the_relay_is_confined(network: Network) -> None:
    status = command(network.connection, f"cat /proc/{network.pid}/status")
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert fields["Uid"].split()[0] == "64998"
    assert all(int(fields[name], 16) == 0 for name in ("CapPrm", "CapEff", "CapBnd"))
    assert (fields["NoNewPrivs"], fields["Seccomp"]) == ("1", "2")
    print(f"relay: {fields['VmRSS'].strip()} resident")


def test_a_container_reaches_whom_the_host_answers_for(network: Network) -> None:
    out = network.run(FIRST, "echo hello | busybox nc 93.184.216.34 443")
    assert out == "hello\n"
    source, destination = network.seen[-1]
    assert source.address == FIRST
    assert destination == Endpoint("93.184.216.34", 443)


def test_other_ports_are_refused(network: Network) -> None:
    network.run(FIRST, "! busybox nc -w 5 93.184.216.34 25 </dev/null")


def test_datagrams_to_any_resolver_are_answered(network: Network) -> None:
    for resolver in ("8.8.8.8", GATEWAY):
        out = network.run(FIRST, f"busybox nslookup www.example.com {resolver}")
        assert "Address: 198.51.100.7" in out


def test_a_published_port_leads_to_the_container(network: Network) -> None:
    network.serve(SECOND, 8080, "cat")
    publisher = Publisher(
        Publish("127.0.0.1", 0, 8080), lambda: network.mux.connect(SECOND, 8080, 10)
    )
    times = []
    for _ in range(20):
        started = time.monotonic()
        with socket.create_connection(("127.0.0.1", publisher.port), timeout=10) as client:
            client.sendall(b"question")
            assert client.recv(100) == b"question"
            times.append(time.monotonic() - started)
    print(f"connect, ask, answer: median {sorted(times)[10] * 1000:.0f} ms")
    assert "question" in network.run(FIRST, f"echo question | busybox nc -w 3 {SECOND} 8080")
    publisher.close()


def test_throughput(network: Network) -> None:
    size = 16 << 20
    started = time.monotonic()
    out = network.run(FIRST, f"dd if=/dev/zero bs=65536 count={size >> 16} 2>/dev/null"
                      " | busybox nc 192.0.2.99 80")  # fmt: skip
    print(f"to the host: {size / (time.monotonic() - started) / 1e6:.1f} MB/s")
    assert int(out) == size
    network.serve(FIRST, 9000, "wc -c")
    stream = network.mux.connect(FIRST, 9000, 10)
    started = time.monotonic()
    for _ in range(size >> 16):
        stream.write(b"x" * 65536)
    stream.close_write()
    assert int(stream.read(100)) == size
    print(f"to the container: {size / (time.monotonic() - started) / 1e6:.1f} MB/s")


def test_many_connections_at_once(network: Network) -> None:
    text = "for i in $(seq 40); do (echo $i | busybox nc 192.0.2.1 80) & done; wait"
    out = network.run(FIRST, text)
    assert sorted(map(int, out.split())) == list(range(1, 41))


HELLO = "".join(f"\\\\{byte:03o}" for byte in encode(Hello(1)))


@pytest.mark.parametrize(
    "program",
    [
        "cat /dev/urandom",
        "cat /dev/zero",
        "yes",
        f"printf '{HELLO}'; cat /dev/urandom",
        f"printf '{HELLO}'; cat /dev/zero",
    ],
)
def test_a_relay_that_is_none_ends_its_wire_alone(network: Network, program: str) -> None:
    ended = threading.Event()
    mux = Mux(
        network.connection.execute(program),
        on_stream=lambda stream: None,
        on_datagram=lambda source, data: None,
        on_end=lambda error: ended.set(),
    )
    assert ended.wait(30)
    assert isinstance(mux.failure, GuestError)
    assert network.run(FIRST, "echo alive | busybox nc 192.0.2.1 80") == "alive\n"


def test_a_killed_relay_is_told_and_takes_the_network_along(connection: Any) -> None:
    network = Network(connection)
    ended: list[VmrunError] = []
    network.mux._on_end = ended.append
    publisher = Publisher(
        Publish("127.0.0.1", 0, 8080), lambda: network.mux.connect(SECOND, 8080, 10)
    )
    network.serve(SECOND, 8080, "cat")
    client = socket.create_connection(("127.0.0.1", publisher.port), timeout=30)
    client.sendall(b"x")
    assert client.recv(10) == b"x"
    command(connection, f"kill -9 {network.pid}")
    with pytest.raises(ConnectionResetError):
        client.recv(10)
    deadline = time.monotonic() + 10
    while not ended and time.monotonic() < deadline:  # it is told by another thread
        time.sleep(0.01)
    assert [type(error) for error in ended] == [ChannelError]
    with pytest.raises(ChannelError, match="the relay in the guest has ended"):
        network.mux.connect(SECOND, 8080, 10)
    network.run(
        FIRST,
        "for i in $(seq 20); do busybox ip link show eth0 2>/dev/null || exit 0; sleep 0.2; done;"
        " exit 1",
    )
    publisher.close()
    network.close()


def test_closing_the_wire_ends_the_relay(connection: Any) -> None:
    network = Network(connection)
    network.mux.close()
    command(connection, f"for i in 1 2 3 4 5 6 7 8 9; do [ -d /proc/{network.pid} ] || exit 0;"
            " sleep 0.5; done; exit 1")  # fmt: skip
    network.close()
