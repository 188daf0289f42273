"""The HTTP proxy, asked by curl, by Python's client, and by bytes that no client sends."""

from __future__ import annotations

import contextlib
import http.client
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.egress_world import (
    GATEWAY,
    PUBLIC,
    Web,
    World,
    receive_all,
    tcp_server,
    tls_context,
)
from vmrun.model.errors import Refused
from vmrun.network.http_message import Body, parse_head
from vmrun.network.proxy_http import OneRequest, forwarded

HOST = "www.example.com"


@pytest.fixture(scope="module")
def web() -> Iterator[Web]:
    server = Web()
    yield server
    server.shutdown()


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ssl.SSLContext]:
    directory = tmp_path_factory.mktemp("tls")
    return directory / "cert.pem", tls_context(directory)


@pytest.fixture(scope="module")
def tls_web(certificates: tuple[Path, ssl.SSLContext]) -> Iterator[Web]:
    server = Web(certificates[1])
    yield server
    server.shutdown()


@pytest.fixture
def world(web: Web, tls_web: Web) -> Iterator[World]:
    web.asked.clear()
    web.bodies.clear()
    web.heads.clear()
    made = World(
        HOST,
        hosts={HOST: [PUBLIC]},
        servers={(PUBLIC, 80): web.port, (PUBLIC, 443): tls_web.port},
    )
    yield made
    made.close()


def curl(world: World, *arguments: str) -> subprocess.CompletedProcess[str]:
    proxy = f"http://127.0.0.1:{world.listen(GATEWAY, 3128)}"
    return subprocess.run(
        ["curl", "-sS", "--max-time", "10", "--noproxy", "", "--proxy", proxy, *arguments],
        capture_output=True, text=True, timeout=20, check=False,
    )  # fmt: skip


def ask(world: World, data: bytes) -> bytes:
    with world.open(GATEWAY, 3128) as client:
        client.sendall(data)
        return receive_all(client)


def test_curl_gets_an_allowed_page(world: World, web: Web) -> None:
    done = curl(world, "-d", "secret=1", f"http://{HOST}/path?query")
    assert done.stdout == f"{HOST}/path?query"
    assert web.asked == [("POST", "/path?query", HOST)]
    assert web.bodies == [b"secret=1"]
    assert world.allowed() == [(HOST, PUBLIC, "connected")]
    assert not any("path" in value for e in world.events for value in e.fields.values())


def test_curl_gets_two_pages_and_each_is_decided(world: World, web: Web) -> None:
    done = curl(world, f"http://{HOST}/1", f"http://{HOST}/2", "http://example.net/3")
    assert f"{HOST}/1{HOST}/2" in done.stdout
    assert "example.net:80 is not allowed" in done.stdout
    assert world.denied() == ["no rule"]
    assert world.resolved == [HOST, HOST]


def test_curl_uploads_in_chunks(world: World, web: Web, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x" * 300_000)
    done = curl(world, "-T", str(tmp_path / "file"), "-H", "Transfer-Encoding: chunked",
                f"http://{HOST}/up")  # fmt: skip
    assert done.stdout.endswith(f"{HOST}/up")
    assert web.bodies == [b"x" * 300_000]


def test_curl_opens_a_tunnel(
    world: World, tls_web: Web, certificates: tuple[Path, ssl.SSLContext]
) -> None:
    done = curl(world, "--cacert", str(certificates[0]), f"https://{HOST}/a", f"https://{HOST}/b")
    assert done.stdout == f"{HOST}/a{HOST}/b"
    assert world.allowed() == [(HOST, PUBLIC, "connected")]
    assert world.denied() == []


def test_curl_is_told_why_not(world: World) -> None:
    done = curl(world, "-i", "http://example.net/")
    assert "403" in done.stdout
    assert "example.net:80 is not allowed (no rule)" in done.stdout
    tunnel = curl(world, "https://example.net/")
    assert tunnel.returncode == 56
    assert "403" in tunnel.stderr
    assert world.connected == []
    assert world.resolved == []


def test_python_opens_a_tunnel(world: World, certificates: tuple[Path, ssl.SSLContext]) -> None:
    context = ssl.create_default_context(cafile=str(certificates[0]))
    port = world.listen(GATEWAY, 3128)
    client = http.client.HTTPSConnection("127.0.0.1", port, context=context, timeout=10)
    client.set_tunnel(HOST, 443)
    for path in ("/one", "/two"):
        client.request("GET", path)
        assert client.getresponse().read() == f"{HOST}{path}".encode()
    client.close()


def test_a_tunnel_for_another_server_name_is_cut(world: World, tls_web: Web) -> None:
    before = len(tls_web.asked)
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    client = world.open(GATEWAY, 3128)
    client.sendall(f"CONNECT {HOST}:443 HTTP/1.1\r\nHost: {HOST}:443\r\n\r\n".encode())
    assert client.recv(100).startswith(b"HTTP/1.1 200")
    with pytest.raises(ssl.SSLError, match=r"(?i)unrecognized.name"):
        context.wrap_socket(client, server_hostname="evil.example.net")
    assert len(tls_web.asked) == before
    world.close()
    assert world.denied() == ["the TLS server name is another one"]


def test_what_is_for_the_proxy_is_removed(world: World, web: Web) -> None:
    answer = ask(
        world,
        b"GET http://www.example.com HTTP/1.1\r\nHost: www.example.com\r\n"
        b"Proxy-Authorization: Basic c2VjcmV0\r\nProxy-Connection: keep-alive\r\n"
        b"Connection: keep-alive, X-Hop\r\nX-Hop: 1\r\nTE: trailers\r\nKeep-Alive: 5\r\n"
        b"Upgrade: h2c\r\nX-End: 2\r\n\r\n",
    )
    assert answer.startswith(b"HTTP/1.1 200")
    assert b"\r\nConnection: close\r\n" in answer
    assert web.asked == [("GET", "/", HOST)]
    assert web.heads == [{"host": HOST, "x-end": "2", "via": "1.1 vmrun", "connection": "close"}]


def test_nothing_follows_a_request(world: World, web: Web) -> None:
    first = b"POST http://www.example.com/1 HTTP/1.1\r\nHost: www.example.com\r\n"
    second = b"GET http://evil.example.net/2 HTTP/1.1\r\nHost: evil.example.net\r\n\r\n"
    answer = ask(world, first + b"Content-Length: 2\r\n\r\nab" + second)
    assert answer.count(b"HTTP/1.1 ") == 1
    answer = ask(world, first + b"Transfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n" + second)
    assert answer.count(b"HTTP/1.1 ") == 1
    assert web.asked == [("POST", "/1", HOST)] * 2
    assert web.bodies == [b"ab"] * 2


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\nHost: www.example.com\r\n\r\n",
        b"GET https://www.example.com/ HTTP/1.1\r\nHost: www.example.com\r\n\r\n",
        b"GET ftp://www.example.com/ HTTP/1.1\r\nHost: www.example.com\r\n\r\n",
        b"GET http://www.example.com/#x HTTP/1.1\r\nHost: www.example.com\r\n\r\n",
        b"GET http://u:p@www.example.com/ HTTP/1.1\r\nHost: www.example.com\r\n\r\n",
        b"GET http://www.example.com/ HTTP/1.1\r\nHost: evil.example.net\r\n\r\n",
        b"GET http://www.example.com/ HTTP/1.1\r\nHost: www.example.com:8080\r\n\r\n",
        b"GET http://www.example.com/ HTTP/1.1\r\n\r\n",
        b"GET http://www.example.com/ HTTP/1.1\r\nHost: www.example.com\r\nHost: x\r\n\r\n",
        b"GET http:///x HTTP/1.1\r\nHost: www.example.com\r\n\r\n",
        b"GET http://www.example.com/ HTTP/2.0\r\nHost: www.example.com\r\n\r\n",
        b"GET  http://www.example.com/ HTTP/1.1\r\nHost: www.example.com\r\n\r\n",
        b"GET http://www.example.com/\xe9 HTTP/1.1\r\nHost: www.example.com\r\n\r\n",
        b"GET http://www.example.com/ HTTP/1.1\r\nHost: www.example.com\r\nX\r\n\r\n",
        b"GET http://www.example.com/ HTTP/1.1\r\nHost: www.example.com\r\nX: a\r\n b\r\n\r\n",
        b"GET http://www.example.com/ HTTP/1.1\r\nHost: www.example.com\r\n"
        b"Connection: host\r\n\r\n",
        b"POST http://www.example.com/ HTTP/1.1\r\nHost: www.example.com\r\n"
        b"Connection: content-length\r\nContent-Length: 5\r\n\r\nhello",
        b"POST http://www.example.com/ HTTP/1.1\r\nHost: www.example.com\r\n"
        b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"CONNECT www.example.com HTTP/1.1\r\nHost: www.example.com\r\n\r\n",
        b"CONNECT http://www.example.com:443 HTTP/1.1\r\nHost: www.example.com:443\r\n\r\n",
        b"CONNECT www.example.com:443 HTTP/1.1\r\nHost: evil.example.net:443\r\n\r\n",
        b"CONNECT u@www.example.com:443 HTTP/1.1\r\nHost: www.example.com:443\r\n\r\n",
        b"CONNECT www.example.com:0443 HTTP/1.1\r\nHost: www.example.com:443\r\n\r\n",
        b"CONNECT www.example.com:443 HTTP/1.1\r\nHost: www.example.com:443\r\n"
        b"Content-Length: 5\r\n\r\nhello",
        b"\x16\x03\x01\r\n\r\n",
        b"GET http://www.example.com/ HTTP/1.1\r\nX: " + b"a" * 40_000,
    ],
)
def test_an_unclear_request_is_refused(world: World, data: bytes) -> None:
    assert ask(world, data).startswith(b"HTTP/1.1 400 ")
    assert world.connected == []
    assert len(world.denied()) == 1


def test_a_malformed_body_does_not_go_on(world: World, web: Web) -> None:
    ask(
        world,
        b"POST http://www.example.com/ HTTP/1.1\r\nHost: www.example.com\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n5;x\r\nhello\r\n0\r\n\r\n",
    )
    world.close()
    assert web.bodies == []
    assert world.denied() == ["HTTP: a malformed chunk size"]


def test_who_cannot_be_reached_is_a_bad_gateway(world: World) -> None:
    world.servers.clear()
    request = b"GET http://www.example.com/ HTTP/1.1\r\nHost: www.example.com\r\n\r\n"
    assert ask(world, request).startswith(b"HTTP/1.1 502 ")
    world.hosts.clear()
    assert ask(world, request).startswith(b"HTTP/1.1 502 ")
    assert [reason for *_, reason in world.allowed()] == ["not reached", "unknown name"]


def test_a_server_that_does_not_speak_http_is_cut(world: World) -> None:
    with tcp_server(lambda client: client.sendall(b"220 smtp.example.com ESMTP\r\n\r\n")) as port:
        world.servers[PUBLIC, 80] = port
        answer = ask(
            world, b"GET http://www.example.com/ HTTP/1.1\r\nHost: www.example.com\r\n\r\n"
        )
    assert b"ESMTP" not in answer


def test_interim_answers_pass() -> None:
    head = parse_head(b"GET http://a.example.com/ HTTP/1.1\r\nHost: a.example.com\r\n\r\n")
    one = OneRequest(head, b"")
    answer = (
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nconnection: keep-alive\r\nA: b\r\n\r\nxy"
    )
    got = b"".join(one.reply(answer[at : at + 1]) for at in range(len(answer)))
    assert got == (
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nA: b\r\nConnection: close\r\n\r\nxy"
    )


def test_a_forwarded_head_is_read_as_it_was_meant() -> None:
    head = parse_head(
        b"PUT http://Example.com:8080?q HTTP/1.0\r\nHost: example.com:8080\r\nA:  b c \t\r\n"
        b"Content-Length: 3\r\n\r\n"
    )
    again = parse_head(forwarded(head, "Example.com:8080", "/?q"))
    assert (again.method, again.target, again.version) == ("PUT", "/?q", "1.1")
    assert again.fields == (
        ("host", "example.com:8080"), ("a", "b c"), ("content-length", "3"),
        ("via", "1.0 vmrun"), ("connection", "close"),
    )  # fmt: skip


@pytest.mark.parametrize("answer", [b"HTTP/1.1 101 Switching\r\n\r\n", b"x" * 70_000])
def test_an_answer_is_one_of_http(answer: bytes) -> None:
    head = parse_head(b"GET http://a.example.com/ HTTP/1.1\r\nHost: a.example.com\r\n\r\n")
    with pytest.raises(Refused):
        OneRequest(head, b"").reply(answer)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_head_or_refused(data: bytes) -> None:
    with contextlib.suppress(Refused):
        head = parse_head(b"GET / HTTP/1.1\r\n" + data + b"\r\n\r\n")
        assert all(name and "\n" not in value for name, value in head.fields)
        # What is read is what a server that splits at every CRLF reads.
        assert len(head.fields) == data.count(b"\r\n") + 1


@given(
    st.lists(st.binary(min_size=1, max_size=40), max_size=6),
    st.integers(1, 30),
    st.binary(max_size=9),
)
def test_a_chunked_body_ends_where_it_ends(chunks: list[bytes], size: int, after: bytes) -> None:
    encoded = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"
    body = Body(parse_head(b"PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"))
    data, taken = encoded + after, 0
    for at in range(0, len(data), size):
        taken += body.feed(data[at : at + size])
    assert body.done
    assert taken == len(encoded)
