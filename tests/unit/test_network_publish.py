"""Published ports: real sockets on both sides, a real relay between them."""

from __future__ import annotations

import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress

import pytest

from tests.wire import LocalProcess, Member, member
from vmrun.model.errors import ChannelError, StateError, UsageError
from vmrun.model.network import Publish
from vmrun.network import publish as publish_module
from vmrun.network.mux import Mux, Stream
from vmrun.network.publish import Publisher

from .base_binaries import binaries, guest

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="makes network namespaces")

ADDRESS = "10.90.0.2"


class Service:
    """A container with a listener on port 8080, and what makes connections to it."""

    def __init__(self, mux: Mux, container: Member) -> None:
        self.mux = mux
        self.container = container
        self.listener = container.listen(8080, 128)

    def connect(self) -> Stream:
        return self.mux.connect(ADDRESS, 8080, 5)

    def accept(self) -> socket.socket:
        made, _ = self.listener.accept()
        made.settimeout(10)
        return made


@pytest.fixture(scope="module")
def network() -> Iterator[tuple[Mux, Member]]:
    with ExitStack() as stack:
        process = LocalProcess(binaries() / "guest", "relay", "10.90.0.1/24")
        mux = Mux(
            process,
            on_stream=lambda stream: None,
            on_datagram=lambda source, data: None,
        )
        stack.callback(mux.close)
        container = stack.enter_context(member())
        pid = str(mux.wait_ready(10))
        done = guest("attach", pid, str(container.pid), f"{ADDRESS}/24", "10.90.0.1")
        assert done.returncode == 0
        yield mux, container


@pytest.fixture
def service(network: tuple[Mux, Member]) -> Iterator[Service]:
    made = Service(*network)
    yield made
    made.listener.close()
    wait_for(lambda: not made.mux._streams)


@pytest.fixture
def publisher(service: Service) -> Iterator[Publisher]:
    made = Publisher(Publish("127.0.0.1", 0, 8080), service.connect)
    yield made
    made.close()


def client_of(publisher: Publisher) -> socket.socket:
    return socket.create_connection((publisher.address, publisher.port), timeout=10)


def read_from(publisher: Publisher) -> bytes:
    """A reset may come while connecting, too."""
    return client_of(publisher).recv(10)


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def everything(sock: socket.socket) -> bytes:
    got = b""
    while data := sock.recv(65536):
        got += data
    return got


def test_joins_a_client_with_the_container(service: Service, publisher: Publisher) -> None:
    assert publisher.port > 0
    client = client_of(publisher)
    server = service.accept()
    client.sendall(b"question")
    client.shutdown(socket.SHUT_WR)
    assert everything(server) == b"question", "the end of one direction arrives alone"
    server.sendall(b"answer")
    server.close()
    assert everything(client) == b"answer"


def test_megabytes_arrive_unchanged_both_ways(service: Service, publisher: Publisher) -> None:
    blob = os.urandom(4 << 20)
    client, server = client_of(publisher), service.accept()
    results: dict[str, bytes] = {}

    def exchange(name: str, sock: socket.socket) -> None:
        sender = threading.Thread(
            target=lambda: (sock.sendall(blob), sock.shutdown(socket.SHUT_WR))
        )
        sender.start()
        results[name] = everything(sock)
        sender.join()

    threads = [
        threading.Thread(target=exchange, args=pair)
        for pair in (("client", client), ("server", server))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {"client": blob, "server": blob}


def test_a_container_that_does_not_read_stops_the_client(
    service: Service, publisher: Publisher
) -> None:
    client = client_of(publisher)
    server = service.accept()
    client.settimeout(0.5)
    sent = 0
    with suppress(TimeoutError):
        while sent < 64 << 20:
            sent += client.send(b"x" * 65536)
    assert sent < 16 << 20
    client.close()
    assert len(everything(server)) == sent, "and nothing of it is lost"


@pytest.mark.parametrize("side", ["client", "server"])
def test_a_reset_is_passed_on(service: Service, publisher: Publisher, side: str) -> None:
    client, server = client_of(publisher), service.accept()
    one, other = (client, server) if side == "client" else (server, client)
    one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    one.close()
    with pytest.raises(ConnectionResetError):
        other.recv(10)


def test_a_container_that_refuses_resets_the_client(service: Service, publisher: Publisher) -> None:
    service.listener.close()
    with pytest.raises(ConnectionResetError):
        read_from(publisher)


def test_a_port_in_use_is_named(publisher: Publisher, service: Service) -> None:
    with pytest.raises(UsageError) as caught:
        Publisher(Publish("127.0.0.1", publisher.port, 8080), service.connect)
    assert caught.value.message == (
        f"cannot publish port {publisher.port} of 127.0.0.1: Address already in use"
    )
    assert "another host port" in caught.value.hint


def test_an_address_the_host_does_not_have_is_named(service: Service) -> None:
    with pytest.raises(UsageError, match=r"192\.0\.2\.1") as caught:
        Publisher(Publish("192.0.2.1", 0, 8080), service.connect)
    assert "ip address" in caught.value.hint


def test_ipv6_is_published_apart_from_ipv4(service: Service) -> None:
    publisher = Publisher(Publish("::1", 0, 8080), service.connect)
    client = client_of(publisher)
    service.accept().sendall(b"hello")
    assert client.recv(10) == b"hello"
    publisher.close()


def test_closing_ends_connections_and_frees_the_port(service: Service) -> None:
    publisher = Publisher(Publish("127.0.0.1", 0, 8080), service.connect)
    client, server = client_of(publisher), service.accept()
    started = time.monotonic()
    publisher.close()
    assert time.monotonic() - started < 4
    for sock in (client, server):
        with pytest.raises(ConnectionResetError):
            sock.recv(10)
    with pytest.raises(ConnectionRefusedError):
        client_of(publisher)
    again = Publisher(Publish("127.0.0.1", publisher.port, 8080), service.connect)
    again.close()


def test_a_port_that_is_still_held_is_told(service: Service) -> None:
    publisher = Publisher(Publish("127.0.0.1", 0, 8080), service.connect)
    with socket.create_server(("127.0.0.1", 0)) as held:
        publisher._inode = os.fstat(held.fileno()).st_ino
        with pytest.raises(StateError, match="still in use") as caught:
            publisher.close()
    assert "ss -ltnp" in caught.value.hint


def test_closing_does_not_wait_for_a_client_that_does_not_read(service: Service) -> None:
    publisher = Publisher(Publish("127.0.0.1", 0, 8080), service.connect)
    client, server = client_of(publisher), service.accept()
    server.settimeout(0.5)
    with suppress(TimeoutError):
        for _ in range(1000):
            server.send(b"x" * 65536)
    started = time.monotonic()
    publisher.close()
    assert time.monotonic() - started < 4
    with pytest.raises(ConnectionResetError):
        everything(client)


def test_a_client_is_reset_that_waits_for_the_container_at_the_end(service: Service) -> None:
    release = threading.Event()

    def connect() -> Stream:
        release.wait(10)
        return service.connect()

    publisher = Publisher(Publish("127.0.0.1", 0, 8080), connect)
    client = client_of(publisher)
    wait_for(lambda: len(publisher._clients) == 1)
    publisher.close()
    with pytest.raises(ConnectionResetError):
        client.recv(10)
    release.set()
    wait_for(lambda: not publisher._clients)


def test_what_a_closed_wire_refuses_the_client_sees_as_a_reset(service: Service) -> None:
    def connect() -> Stream:
        raise ChannelError("the wire has been closed")

    publisher = Publisher(Publish("127.0.0.1", 0, 8080), connect)
    with pytest.raises(ConnectionResetError):
        read_from(publisher)
    publisher.close()


def test_connections_beyond_the_limit_wait_and_are_then_served(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publish_module, "CONNECTIONS_MAX", 2)
    publisher = Publisher(Publish("127.0.0.1", 0, 8080), service.connect)
    clients = [client_of(publisher) for _ in range(3)]
    servers = [service.accept() for _ in range(2)]
    service.listener.settimeout(0.3)
    with pytest.raises(TimeoutError):
        service.accept()
    clients[0].close()
    servers[0].close()
    servers[1].close()
    service.listener.settimeout(5)
    service.accept().sendall(b"hello")
    assert clients[2].recv(10) == b"hello"
    publisher.close()


def test_closing_at_the_limit_does_not_wait_for_connections_that_are_being_made(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publish_module, "CONNECTIONS_MAX", 1)
    release = threading.Event()

    def connect() -> Stream:
        release.wait(10)
        raise ChannelError("the wire has been closed")

    publisher = Publisher(Publish("127.0.0.1", 0, 8080), connect)
    clients = [client_of(publisher) for _ in range(2)]
    wait_for(lambda: len(publisher._clients) == 1)
    publisher.close()
    for client in clients:
        with pytest.raises(ConnectionResetError):
            client.recv(10)
    release.set()


def test_no_thread_is_left(service: Service) -> None:
    before = threading.active_count()
    publisher = Publisher(Publish("127.0.0.1", 0, 8080), service.connect)
    pairs = [(client_of(publisher), service.accept()) for _ in range(10)]
    publisher.close()
    wait_for(lambda: threading.active_count() <= before)
    del pairs
