"""The SOCKS proxy, asked by curl and by hand."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.egress_world import GATEWAY, PUBLIC, Web, World, receive_all, tcp_server
from vmrun.model.errors import Refused
from vmrun.network.proxy_socks import Handshake

HOST = "www.example.com"
GREETING = b"\x05\x01\x00"


def request(kind: int, address: bytes, port: int = 80, *, command: int = 1) -> bytes:
    return bytes((5, command, 0, kind)) + address + port.to_bytes(2, "big")


def named(name: bytes, port: int = 80) -> bytes:
    return request(3, bytes((len(name),)) + name, port)


@pytest.fixture
def web() -> Iterator[Web]:
    server = Web()
    yield server
    server.shutdown()


@pytest.fixture
def world(web: Web) -> Iterator[World]:
    made = World(
        HOST,
        "93.184.216.35:80",
        f"{HOST}:25",
        hosts={HOST: [PUBLIC]},
        servers={(PUBLIC, 80): web.port, ("93.184.216.35", 80): web.port},
    )
    yield made
    made.close()


def ask(world: World, data: bytes) -> bytes:
    with world.open(GATEWAY, 1080) as client:
        client.sendall(data)
        client.shutdown(socket.SHUT_WR)
        return receive_all(client)


@pytest.mark.parametrize("option", ["--socks5-hostname", "--socks5"])
def test_curl_gets_an_allowed_page(world: World, web: Web, option: str) -> None:
    """With --socks5 it resolves the name itself: here an address of the literal rule."""
    url = f"http://{HOST}/x" if option == "--socks5-hostname" else "http://93.184.216.35/x"
    done = subprocess.run(
        ["curl", "-sS", "--max-time", "10", "--noproxy", "", option,
         f"127.0.0.1:{world.listen(GATEWAY, 1080)}", url, url],
        capture_output=True, text=True, timeout=20, check=False,
    )  # fmt: skip
    assert done.stdout == url.removeprefix("http://") * 2
    assert len(web.asked) == 2
    assert world.denied() == []


def test_curl_is_refused_another(world: World) -> None:
    done = subprocess.run(
        ["curl", "-sS", "--max-time", "10", "--noproxy", "", "--socks5-hostname",
         f"127.0.0.1:{world.listen(GATEWAY, 1080)}", "http://example.net/"],
        capture_output=True, text=True, timeout=20, check=False,
    )  # fmt: skip
    assert done.returncode == 97
    assert world.denied() == ["no rule"]
    assert world.resolved == []


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (named(b"example.net"), 2),
        (named(HOST.encode(), 22), 2),
        (named(HOST.encode() + b"\0.evil.net"), 2),
        (named(b""), 2),
        (named(b"127.1"), 2),
        (named(b"127.0.0.1"), 2),
        (named(b"93.184.216.34"), 2),
        (request(1, b"\x7f\0\0\1"), 2),
        (request(1, b"\x5d\xb8\xd8\x22"), 2),
        (request(4, bytes(15) + b"\1"), 2),
        (request(4, bytes(10) + b"\xff\xff\x5d\xb8\xd8\x23"), 2),
        (request(1, b"\x5d\xb8\xd8\x23", command=2), 7),
        (request(1, b"\x5d\xb8\xd8\x23", command=3), 7),
        (request(2, b"\x5d\xb8\xd8\x23"), 8),
        (b"\x05\x01\x01\x01" + bytes(6), 1),
        (b"\x04\x01\x00\x01" + bytes(6), 1),
    ],
)
def test_a_request_that_is_not_allowed_is_answered_so(
    world: World, data: bytes, status: int
) -> None:
    assert ask(world, GREETING + data) == b"\x05\x00" + bytes((5, status, 0, 1)) + bytes(6)
    assert world.connected == []
    assert len(world.denied()) == 1


@pytest.mark.parametrize(
    ("data", "answer"),
    [
        (b"\x04\x01\0\x50\x5d\xb8\xd8\x22\0", b""),
        (b"\x05\x01\x02", b"\x05\xff"),
        (b"\x05\0", b"\x05\xff"),
        (b"GET / HTTP/1.1\r\n\r\n", b""),
    ],
)
def test_another_greeting_is_refused(world: World, data: bytes, answer: bytes) -> None:
    assert ask(world, data) == answer


def test_who_does_not_answer_is_unreachable(world: World) -> None:
    world.servers.clear()
    assert ask(world, GREETING + named(HOST.encode()))[2:4] == b"\x05\x04"


def test_a_server_may_speak_first(world: World) -> None:
    def smtp(client: socket.socket) -> None:
        client.sendall(b"220 ready\r\n")
        while data := client.recv(100):
            client.sendall(b"250 " + data)

    with tcp_server(smtp) as port:
        world.servers[PUBLIC, 25] = port
        with world.open(GATEWAY, 1080) as client:
            client.sendall(GREETING)
            assert client.recv(10) == b"\x05\x00"
            client.sendall(named(HOST.encode(), 25))
            assert client.recv(10)[:2] == b"\x05\x00"
            assert client.recv(100) == b"220 ready\r\n"
            client.sendall(b"EHLO")
            assert client.recv(100) == b"250 EHLO"


def test_a_request_in_the_tunnel_is_judged(world: World, web: Web) -> None:
    data = GREETING + named(HOST.encode()) + b"GET / HTTP/1.1\r\nHost: evil.example.net\r\n\r\n"
    assert b"403 Forbidden" in ask(world, data)
    assert web.asked == []
    assert world.denied() == ["the HTTP Host is another one"]


@given(st.binary(max_size=300), st.integers(1, 40))
def test_any_bytes_are_a_target_or_refused(data: bytes, size: int) -> None:
    handshake = Handshake()
    try:
        for at in range(0, len(data), size):
            handshake.feed(data[at : at + size])
            if handshake.target is not None:
                assert data.startswith(b"\x05")
                return
    except Refused:
        return
    assert handshake.target is None


@given(st.integers(1, 40), st.binary(max_size=20))
def test_a_request_may_come_in_any_portions(size: int, after: bytes) -> None:
    handshake, data, rest, answers = Handshake(), GREETING + named(b"Example.COM", 8080), b"", b""
    for at in range(0, len(data), size):
        part = data[at : at + size]
        if at + size >= len(data):
            part += after
        handshake.feed(part)
        answers += handshake.answer
    rest = handshake.rest()
    assert handshake.target is not None
    assert (handshake.target.host, handshake.target.port) == ("example.com", 8080)
    assert (answers, rest) == (b"\x05\x00", after)
