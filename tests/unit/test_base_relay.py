"""The relay and what lays wires to it, on the host: namespaces stand in for containers."""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from tests.wire import LocalProcess, Member, inside, member
from vmrun.model.errors import ChannelError
from vmrun.network.frames import (
    PAYLOAD_MAX,
    TO_GUEST_WINDOW,
    TO_HOST_WINDOW,
    Close,
    Connect,
    Data,
    Decoder,
    End,
    Endpoint,
    Frame,
    Hello,
    Opened,
    Refused,
    Window,
    encode,
)
from vmrun.network.mux import Mux, Stream

from .base_binaries import binaries, guest

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="makes network namespaces")

GATEWAY = "10.90.0.1"
FIRST, SECOND = "10.90.0.2", "10.90.0.3"


def echo(stream: Stream) -> None:
    while data := stream.read(65536):
        stream.write(data)
    stream.close_write()


class Network:
    """A relay, its mux, and two members that are attached."""

    def __init__(self, stack: ExitStack) -> None:
        self.handle: Callable[[Stream], None] = echo
        self.process = LocalProcess(binaries() / "guest", "relay", f"{GATEWAY}/24", "listen=80,443")
        self.mux = Mux(
            self.process,
            on_stream=lambda stream: self.handle(stream),
            on_datagram=lambda source, data: f"{source} {data.decode()}".encode(),
        )
        stack.callback(self.mux.close)
        self.pid = self.mux.wait_ready(10)
        self.first, self.second = (stack.enter_context(member()) for _ in range(2))
        attach(self, self.first, FIRST)
        attach(self, self.second, SECOND)

    def streams(self) -> int:
        return len(self.mux._streams)


def attach(network: Network, target: Member, address: str) -> None:
    done = guest("attach", str(network.pid), str(target.pid), f"{address}/24", GATEWAY)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.fixture
def network() -> Iterator[Network]:
    with ExitStack() as stack:
        yield Network(stack)


def wait_for(condition: Callable[[], bool], seconds: float = 5) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def everything(sock: socket.socket) -> bytes:
    got = b""
    while data := sock.recv(65536):
        got += data
    return got


@pytest.mark.parametrize(
    ("address", "port"), [("93.184.216.34", 443), ("169.254.169.254", 80), (GATEWAY, 3128)]
)
def test_every_address_leads_to_the_host(network: Network, address: str, port: int) -> None:
    seen: list[Stream] = []

    def handle(stream: Stream) -> None:
        seen.append(stream)
        echo(stream)

    network.handle = handle
    sock = network.first.connect(address, port)
    sock.sendall(b"hello")
    sock.shutdown(socket.SHUT_WR)
    assert everything(sock) == b"hello"
    (stream,) = seen
    assert stream.destination == Endpoint(address, port)
    assert stream.peer == Endpoint(FIRST, sock.getsockname()[1])
    wait_for(lambda: network.streams() == 0)


@pytest.mark.parametrize("address", ["93.184.216.34", GATEWAY, "10.90.0.99"])
def test_other_ports_are_refused_at_once(network: Network, address: str) -> None:
    with pytest.raises(ConnectionRefusedError):
        network.first.connect(address, 8081)


def test_dns_queries_are_answered_from_where_they_went(network: Network) -> None:
    for address in ("8.8.8.8", GATEWAY):
        sock = network.first.socket(socket.SOCK_DGRAM)
        sock.sendto(b"query", (address, 53))
        answer, source = sock.recvfrom(100)
        assert source == (address, 53)
        assert answer == f"{FIRST}:{sock.getsockname()[1]} query".encode()


def test_members_reach_each_other(network: Network) -> None:
    listener = network.second.listen(8080)
    sock = network.first.connect(SECOND, 8080)
    server, peer = listener.accept()
    assert peer[0] == FIRST
    sock.sendall(b"hello")
    assert server.recv(10) == b"hello"


def test_nothing_answers_a_ping_of_the_world(network: Network) -> None:
    def ask() -> socket.socket:
        raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
        # Echo request, identifier 1, with its checksum (RFC 792).
        raw.sendto(bytes([8, 0, 0xF7, 0xFD, 0, 1, 0, 1]), ("8.8.8.8", 0))
        return raw

    with inside(network.first.pid, ask) as raw:
        raw.settimeout(0.5)
        with pytest.raises(TimeoutError):
            raw.recv(100)


def test_there_is_no_ipv6(network: Network) -> None:
    shown = network.first.run("ip", "-6", "address", "show", "dev", "eth0")
    assert shown.stdout == ""
    relay = subprocess.run(
        ["nsenter", f"--net=/proc/{network.pid}/ns/net", "ip", "-6", "address"],
        capture_output=True,
        text=True,
    )
    assert relay.stdout == ""


def test_no_member_can_use_anothers_address(network: Network) -> None:
    """Even one that may change its own devices."""
    assert network.first.run("ip", "address", "add", f"{SECOND}/32", "dev", "eth0").returncode == 0
    sock = network.first.socket(socket.SOCK_DGRAM)
    sock.bind((SECOND, 0))
    sock.sendto(b"query", (GATEWAY, 53))
    sock.settimeout(0.5)
    with pytest.raises(TimeoutError):
        sock.recvfrom(100)
    tcp = network.first.socket()
    tcp.bind((SECOND, 0))
    tcp.settimeout(0.5)
    with pytest.raises(TimeoutError):
        tcp.connect((GATEWAY, 80))


def test_an_address_of_nobody_is_no_source(network: Network) -> None:
    network.first.run("ip", "address", "add", "192.0.2.1/32", "dev", "eth0")
    sock = network.first.socket()
    sock.bind(("192.0.2.1", 0))
    sock.settimeout(0.5)
    with pytest.raises(TimeoutError):
        sock.connect((GATEWAY, 80))


def test_the_relay_has_no_privileges(network: Network) -> None:
    text = Path(f"/proc/{network.pid}/status").read_text()
    status = dict(line.split(":\t", 1) for line in text.splitlines() if ":\t" in line)
    assert status["Uid"] == "64998\t64998\t64998\t64998"
    assert status["Gid"] == "64998\t64998\t64998\t64998"
    assert status["Groups"].strip() == ""
    assert all(int(status[name], 16) == 0 for name in ("CapPrm", "CapEff", "CapBnd", "CapAmb"))
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    assert int(status["VmRSS"].split()[0]) < 4096


def test_the_hosts_own_namespace_is_untouched(network: Network) -> None:
    own = subprocess.run(["ip", "address"], capture_output=True, text=True).stdout
    assert GATEWAY not in own
    assert os.readlink(f"/proc/{network.pid}/ns/net") != os.readlink("/proc/self/ns/net")


# What the host asks for.


def test_the_host_connects_to_a_member(network: Network) -> None:
    listener = network.first.listen(8080)
    stream = network.mux.connect(FIRST, 8080, 5)
    server, peer = listener.accept()
    assert peer[0] == GATEWAY
    stream.write(b"question")
    stream.close_write()
    assert everything(server) == b"question"
    server.sendall(b"answer")
    server.close()
    assert (stream.read(100), stream.read(100)) == (b"answer", b"")
    wait_for(lambda: network.streams() == 0)


@pytest.mark.parametrize(
    ("address", "why"),
    [
        (FIRST, "Connection refused"),
        ("10.90.0.99", "Connection refused"),
        (GATEWAY, "Network is unreachable"),
        ("93.184.216.34", "Network is unreachable"),
        ("10.90.0.255", "Network is unreachable"),
        ("127.0.0.1", "Network is unreachable"),
    ],
)
def test_the_host_is_told_why_not(network: Network, address: str, why: str) -> None:
    with pytest.raises(ChannelError, match=why):
        network.mux.connect(address, 443 if address == FIRST else 9999, 5)
    wait_for(lambda: network.streams() == 0)


# Ends.


def test_a_reset_by_the_member_is_one_for_the_host(network: Network) -> None:
    errors: list[str] = []

    def handle(stream: Stream) -> None:
        try:
            stream.read(10)
        except ChannelError as error:
            errors.append(error.message)

    network.handle = handle
    sock = network.first.connect("192.0.2.1", 80)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()
    wait_for(lambda: errors == ["192.0.2.1:80: the connection was reset"])
    wait_for(lambda: network.streams() == 0)


def test_a_refusal_of_the_host_is_a_reset_for_the_member(network: Network) -> None:
    network.handle = lambda stream: None

    def ask() -> bytes:
        return network.first.connect("192.0.2.1", 80).recv(10)  # the reset may come at once

    with pytest.raises(ConnectionResetError):
        ask()


def test_what_was_sent_before_the_end_arrives_however_slowly_it_is_read(network: Network) -> None:
    size = 3 * TO_GUEST_WINDOW

    def handle(stream: Stream) -> None:
        stream.write(b"x" * size)
        stream.close_write()
        stream.close()  # wants nothing of what the member still sends

    network.handle = handle
    sock = network.first.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.connect(("192.0.2.1", 80))
    got = 0
    while data := sock.recv(5000):
        got += len(data)
        time.sleep(0.001)
    assert got == size
    wait_for(lambda: network.streams() == 0)


def test_each_direction_ends_on_its_own(network: Network) -> None:
    def handle(stream: Stream) -> None:
        stream.write(b"first")
        stream.close_write()
        got = b""
        while data := stream.read(100):
            got += data
        results.append(got)

    results: list[bytes] = []
    network.handle = handle
    sock = network.first.connect("192.0.2.1", 80)
    assert everything(sock) == b"first"
    sock.sendall(b"second")
    sock.close()
    wait_for(lambda: results == [b"second"])


# One does not stop the others.


def test_a_slow_reader_on_either_side_stops_only_itself(network: Network) -> None:
    release = threading.Event()

    def handle(stream: Stream) -> None:
        if stream.destination.port == 443:  # reads nothing
            release.wait(20)
        elif stream.destination.address == "192.0.2.9":  # to one who reads nothing
            with suppress(ChannelError):
                while not release.is_set():
                    stream.write(b"x" * 10000)
        else:
            echo(stream)

    network.handle = handle
    stuck = network.first.connect("192.0.2.1", 443)
    stuck.settimeout(0.3)
    sent = 0
    with suppress(TimeoutError):
        while True:
            sent += stuck.send(b"x" * 65536)
    # The kernels' buffers and one window, no more.
    assert sent < TO_HOST_WINDOW + (4 << 20)
    deaf = network.first.connect("192.0.2.9", 80)
    started = time.monotonic()
    for _ in range(20):
        sock = network.second.connect("192.0.2.1", 80)
        sock.sendall(b"y" * 100000)
        sock.shutdown(socket.SHUT_WR)
        assert len(everything(sock)) == 100000
    assert time.monotonic() - started < 10
    memory = Path(f"/proc/{network.pid}/status").read_text().split("VmRSS:")[1].split()[0]
    assert int(memory) < 4096
    release.set()
    deaf.close()


def test_one_member_cannot_take_all_streams(network: Network) -> None:
    network.handle = lambda stream: (stream.read(1), None)[1]
    held: list[socket.socket] = []
    for _ in range(160):
        with suppress(ConnectionResetError):
            held.append(network.first.connect("192.0.2.1", 80))
    time.sleep(0.2)

    def is_open(sock: socket.socket) -> bool:
        sock.setblocking(False)
        try:
            sock.recv(1)
        except BlockingIOError:
            return True
        except ConnectionResetError:
            return False
        return False

    assert sum(map(is_open, held)) == 128
    network.handle = echo
    sock = network.second.connect("192.0.2.1", 80)
    sock.sendall(b"still served")
    assert sock.recv(100) == b"still served"


def test_one_member_cannot_keep_the_resolver_busy(network: Network) -> None:
    flood = network.first.socket(socket.SOCK_DGRAM)
    for _ in range(2000):
        flood.sendto(b"q", (GATEWAY, 53))
    other = network.second.socket(socket.SOCK_DGRAM)
    other.settimeout(2)
    other.sendto(b"q", (GATEWAY, 53))
    assert other.recvfrom(100)[0].endswith(b" q")


def test_bytes_are_not_changed_on_the_way(network: Network) -> None:
    blob = os.urandom(8 << 20)
    sock = network.first.connect("192.0.2.1", 80)
    sender = threading.Thread(target=lambda: (sock.sendall(blob), sock.shutdown(socket.SHUT_WR)))
    sender.start()
    assert everything(sock) == blob
    sender.join()


# Life and death.


def test_the_relay_ends_with_its_stdin_and_takes_the_network_along(network: Network) -> None:
    network.process.close_stdin()
    assert network.process.wait(5) == 0
    wait_for(lambda: "eth0" not in network.first.run("ip", "link").stdout)


def test_a_relay_whose_host_is_gone_ends() -> None:
    process = LocalProcess(binaries() / "guest", "relay", f"{GATEWAY}/24")
    assert next(Decoder().feed(process.read(100))) == Hello(process.popen.pid)
    assert process.popen.stdout
    process.popen.stdout.close()
    process.write(encode(Connect(2, Endpoint("10.90.0.9", 1))))
    assert process.wait(5) == 0


def test_an_address_can_be_attached_again(network: Network) -> None:
    with member() as successor:
        attach(network, successor, FIRST)
        sock = successor.connect("192.0.2.1", 80)
        sock.sendall(b"hello")
        assert sock.recv(10) == b"hello"
        assert "eth0" not in network.first.run("ip", "link").stdout
        attach(network, successor, FIRST)


def test_a_container_has_one_wire(network: Network) -> None:
    third = guest("attach", str(network.pid), str(network.first.pid), "10.90.0.4/24", GATEWAY)
    assert third.returncode == 8
    assert third.stderr == b"vmrun-guest: make eth0: File exists\n"
    sock = network.first.connect("192.0.2.1", 80)
    sock.sendall(b"still there")
    assert sock.recv(100) == b"still there"


def test_a_member_that_dies_leaves_no_device(network: Network) -> None:
    def devices() -> list[str]:
        return inside(network.pid, lambda: [name for _, name in socket.if_nameindex()])

    assert devices() == ["lo", "c0a5a0002", "c0a5a0003"]
    network.first.end()
    wait_for(lambda: devices() == ["lo", "c0a5a0003"])


def test_two_networks_do_not_see_each_other(network: Network) -> None:
    with ExitStack() as stack:
        other = Network(stack)
        listener = other.second.listen(8080)
        with pytest.raises(ConnectionRefusedError):
            network.first.connect("10.91.0.3", 8080)
        listener.settimeout(0.2)
        with pytest.raises(TimeoutError):
            listener.accept()


@pytest.mark.parametrize(
    ("arguments", "status", "reason"),
    [
        (["SELF", "TARGET", f"{FIRST}/24", GATEWAY], 8, "no network namespace of its own"),
        (["RELAY", "SELF", f"{FIRST}/24", GATEWAY], 8, "no network namespace of its own"),
        (["TARGET", "TARGET", f"{FIRST}/24", GATEWAY], 8, "is no relay"),
        (["RELAY", "999999999", f"{FIRST}/24", GATEWAY], 8, "No such file"),
        (["RELAY", "TARGET", FIRST, GATEWAY], 2, "not ADDRESS/PREFIX"),
        (["RELAY", "TARGET", f"{FIRST}/31", GATEWAY], 2, "not ADDRESS/PREFIX"),
        (["RELAY", "TARGET", "10.90.0.0/24", GATEWAY], 2, "not an address of a host"),
        (["RELAY", "TARGET", "10.90.0.255/24", GATEWAY], 2, "not an address of a host"),
        (["RELAY", "TARGET", "224.0.0.1/24", GATEWAY], 2, "not an address of a host"),
        (["RELAY", "TARGET", f"{FIRST}/24", "10.91.0.1"], 2, "not a gateway"),
        (["RELAY", "TARGET", f"{FIRST}/24", FIRST], 2, "not a gateway"),
        (["RELAY", "x", f"{FIRST}/24", GATEWAY], 2, "not a process id"),
        (["RELAY", "../1", f"{FIRST}/24", GATEWAY], 2, "not a process id"),
        (["RELAY", "TARGET"], 2, "usage"),
    ],
)
def test_attach_refuses(network: Network, arguments: list[str], status: int, reason: str) -> None:
    with member() as target:
        pids = {
            "SELF": str(os.getpid()), "RELAY": str(network.pid), "TARGET": str(target.pid)
        }  # fmt: skip
        done = guest("attach", *[pids.get(word, word) for word in arguments])
        assert done.returncode == status
        assert reason in done.stderr.decode()
        assert "eth0" not in target.run("ip", "link").stdout


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["10.90.0.1"],
        ["10.90.0.1/24", "80"],
        ["10.90.0.1/24", "listen="],
        ["10.90.0.1/24", "listen=80,"],
        ["10.90.0.1/24", "listen=0"],
        ["10.90.0.1/24", "listen=65536"],
        ["10.90.0.1/24", "listen=000000080"],
        ["10.90.0.1/24", "listen=" + ",".join(map(str, range(1000, 1064)))],
        ["10.90.0.0/24"],
        ["127.0.0.1/8"],
        ["10.90.0.1/24", "listen=80", "more"],
    ],
)
def test_the_relay_refuses_odd_arguments(arguments: list[str]) -> None:
    assert guest("relay", *arguments).returncode == 2


@pytest.mark.parametrize(
    "frames",
    [
        b"\x00" * 8,
        b"\xff" * 8,
        b"GET / HTTP/1.1\r\n\r\n",
        encode(Hello(1)),
        encode(Opened(2)),
        encode(Refused(2, 1)),
        encode(Connect(3, Endpoint(FIRST, 1))),
        encode(Data(2, b"x")),
        encode(End(1)),
        encode(Close(1)),
        encode(Window(1, 1)),
        encode(Connect(2, Endpoint(FIRST, 1))) + encode(Data(2, b"x")),
        encode(Connect(2, Endpoint(FIRST, 1))) + encode(Connect(2, Endpoint(FIRST, 1))),
        struct.pack(">BBHI", 6, 0, 2, PAYLOAD_MAX + 1),
        struct.pack(">BBHI", 3, 0, 2, 0),
        struct.pack(">BBHI", 3, 0, 512, 6) + b"\x0a\x5a\x00\x02\x00\x01",
        struct.pack(">BBHI", 10, 0, 0, 11) + b"x" * 11,
        struct.pack(">BBHI", 1, 0, 2, 0),
    ],
)
def test_the_relay_ends_when_the_host_breaks_the_protocol(frames: bytes) -> None:
    process = LocalProcess(binaries() / "guest", "relay", f"{GATEWAY}/24")
    process.write(frames)
    assert process.wait(5) == 8
    assert process.read_error(1000).startswith(b"vmrun-guest: ")


def test_a_window_that_the_host_exceeds_ends_the_relay(network: Network) -> None:
    listener = network.first.listen(8080, backlog=1)
    stream = network.mux.connect(FIRST, 8080, 5)
    server, _ = listener.accept()
    server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    stream._credit = -(1 << 30)  # what the relay grants meanwhile is no violation of its own
    frames: list[Frame] = [Data(2, b"x" * PAYLOAD_MAX)] * 100
    for frame in frames:
        network.mux._send(frame)
    assert network.process.wait(5) == 8
    with pytest.raises(ChannelError):
        stream.read(10)
