"""What is seen of a connection: server names of TLS, Hosts of HTTP, and nothing that waits."""

from __future__ import annotations

import contextlib
import ssl
import struct
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmrun.model.errors import Refused
from vmrun.network.client_hello import HelloReader
from vmrun.network.sniff import Inspector

HOST = "www.example.com"


def client_hello(name: str | None, **limits: ssl.TLSVersion) -> bytes:
    """A real one, of this Python's TLS."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    for limit, version in limits.items():
        setattr(context, limit, version)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = context.wrap_bio(incoming, outgoing, server_hostname=name)
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read()


def hello_of(extensions: bytes) -> bytes:
    """A handmade one."""
    body = b"\x03\x03" + bytes(32) + b"\0" + b"\0\x02\x13\x01" + b"\x01\0"
    body += struct.pack("!H", len(extensions)) + extensions
    message = b"\x01" + len(body).to_bytes(3, "big") + body
    return b"\x16\x03\x01" + struct.pack("!H", len(message)) + message


def extension(kind: int, content: bytes) -> bytes:
    return struct.pack("!2H", kind, len(content)) + content


def server_name(*names: bytes) -> bytes:
    listed = b"".join(b"\0" + struct.pack("!H", len(name)) + name for name in names)
    return extension(0, struct.pack("!H", len(listed)) + listed)


def portions(feed: Callable[[bytes], object], data: bytes, size: int, out: bytearray) -> None:
    """Feed ``data`` in portions; what passes is added to ``out``."""
    for at in range(0, len(data), size):
        got = feed(data[at : at + size])
        out += got if isinstance(got, bytes) else b""


def passed(data: bytes, *, host: str = HOST, port: int = 443, size: int = 1 << 20) -> bytes:
    """What gets through when ``data`` comes in portions of ``size`` bytes."""
    out = bytearray()
    portions(Inspector(host, port).feed, data, size, out)
    return bytes(out)


@pytest.mark.parametrize("size", [1, 2, 7, 100, 4096])
@pytest.mark.parametrize(
    "limits", [{}, {"maximum_version": ssl.TLSVersion.TLSv1_2}], ids=["1.3", "1.2"]
)
def test_a_hello_for_the_host_passes_unchanged(
    size: int, limits: dict[str, ssl.TLSVersion]
) -> None:
    hello = client_hello(HOST, **limits)
    assert passed(hello + b"\x17\x03\x03early", size=size) == hello + b"\x17\x03\x03early"


def test_a_hello_in_many_records_passes() -> None:
    message = client_hello(HOST)[5:]
    records = b"".join(
        b"\x16\x03\x01\0\x05" + message[at : at + 5] for at in range(0, len(message) - 5, 5)
    )
    last = message[(len(message) - 5 + 4) // 5 * 5 :]
    records += b"\x16\x03\x01" + struct.pack("!H", len(last)) + last
    assert passed(records) == records
    with pytest.raises(Refused, match="another"):
        passed(records, host="example.com")


@pytest.mark.parametrize("size", [1, 4096])
@pytest.mark.parametrize("name", ["evil.example.net", "example.com", "www.example.com.evil.net"])
def test_a_hello_for_another_host_does_not(name: str, size: int) -> None:
    inspector, out = Inspector(HOST, 443), bytearray()
    with pytest.raises(Refused, match="another"):
        portions(inspector.feed, client_hello(name), size, out)
    assert out == b""
    assert inspector.farewell.startswith(b"\x15\x03")


def test_a_server_name_is_compared_without_case() -> None:
    hello = hello_of(server_name(b"WWW.Example.COM"))
    assert passed(hello) == hello


@pytest.mark.parametrize(
    "extensions",
    [
        b"",
        server_name(),
        server_name(b"www.example.com", b"evil.example.net"),
        server_name(b"www.example.com") * 2,
        server_name(b"www.example.com\0"),
        server_name(b"www.ex\xc3\xa4mple.com"),
        server_name(b""),
        extension(0, b"\0\x06\x01\0\x03abc"),
        extension(0, b"\0\x12\0\0\x0fwww.example.comX"),
        extension(0, b""),
        server_name(b"www.example.com") + b"\0",
        server_name(b"www.example.com") + b"\xfe\x0d\x00\x05abc",
    ],
)
def test_a_hello_without_a_clear_server_name_does_not_pass(extensions: bytes) -> None:
    with pytest.raises(Refused):
        passed(hello_of(extensions))


def test_of_an_encrypted_hello_the_outer_name_counts() -> None:
    inner = extension(0xFE0D, b"\0" + bytes(200))
    assert passed(hello_of(server_name(b"www.example.com") + inner))
    with pytest.raises(Refused, match="another"):
        passed(hello_of(server_name(b"public.example.net") + inner))


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\0\0",
        b"\x16\x02\x00\0\x10" + bytes(16),
        b"\x16\x03\x01\x50\0" + bytes(16),
        b"\x16\x03\x01\0\x04\x02\0\0\0",
        b"\x16\x03\x01\0\x04\x01\xff\xff\xff",
        b"\x16\x03\x01\0\x04\x01\0\0\x20" + b"\x17\x03\x01\0\x20" + bytes(32),
        b"\x16\x03\x01\0\x0a\x01\0\0\x02\x03\x03\0\0\0\0",
        b"\x80\x2e\x01\x03\x01\0\x15",
    ],
)
def test_what_only_looks_like_a_hello_does_not_pass(data: bytes) -> None:
    with pytest.raises(Refused, match="TLS"):
        passed(data)


@pytest.mark.parametrize("size", [1, 4096])
def test_a_hello_is_limited(size: int) -> None:
    reader = HelloReader()
    endless = b"\x16\x03\x01\0\x01\x01" + b"\x16\x03\x01\0\x01\0" * 20_000
    with pytest.raises(Refused):
        portions(reader.feed, endless, size, bytearray())


def test_an_address_needs_no_server_name_and_takes_allowed_ones() -> None:
    hello = client_hello(None)
    assert passed(hello, host="93.184.216.34") == hello
    with pytest.raises(Refused, match="without"):
        passed(hello)
    named = client_hello(HOST)
    assert Inspector("93.184.216.34", 443, lambda name: name == HOST).feed(named) == named
    with pytest.raises(Refused, match="another"):
        passed(named, host="93.184.216.34")


GET = b"GET /a?b HTTP/1.1\r\nHost: www.example.com\r\nAccept: */*\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nhost: WWW.example.com:80\r\nContent-Length: 5\r\n\r\nhello"
CHUNKED = (
    b"PUT / HTTP/1.1\r\nHost: www.example.com\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"5\r\nhello\r\n1A\r\n" + b"x" * 26 + b"\r\n0\r\n\r\n"
)
EVIL = b"GET / HTTP/1.1\r\nHost: evil.example.net\r\n\r\n"


@pytest.mark.parametrize("size", [1, 3, 40, 4096])
def test_requests_for_the_host_pass_unchanged(size: int) -> None:
    requests = GET + POST + CHUNKED + GET + b"OPTIONS * HTTP/1.0\r\nHost: www.example.com\r\n\r\n"
    assert passed(requests, port=80, size=size) == requests


@pytest.mark.parametrize("size", [1, 7, 4096])
@pytest.mark.parametrize("before", [b"", GET, POST, CHUNKED], ids=["first", "get", "post", "put"])
def test_each_request_of_a_connection_is_judged(before: bytes, size: int) -> None:
    inspector, out, data = Inspector(HOST, 80), bytearray(), before + EVIL
    with pytest.raises(Refused, match="Host is another"):
        portions(inspector.feed, data, size, out)
    assert b"evil" not in out
    assert b"Forbidden" in inspector.farewell


@pytest.mark.parametrize(
    "request_",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.0\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: www.example.com\r\nHost: evil.example.net\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: www.example.com, evil.example.net\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost : www.example.com\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: www.example.com:81\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: user@www.example.com\r\n\r\n",
        b"GET / HTTP/1.1\r\nX: y\r\n Host: evil\r\nHost: www.example.com\r\n\r\n",
        b"GET / HTTP/1.1\nHost: www.example.com\n\n\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: www.example.com\nHost: evil.example.net\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: www.example.com\rX: y\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: www.example.com\r\nX: a\0b\r\n\r\n",
        b"GET http://evil.example.net/ HTTP/1.1\r\nHost: www.example.com\r\n\r\n",
        b"GET //evil/ x HTTP/1.1\r\nHost: www.example.com\r\n\r\n",
        b"GET evil HTTP/1.1\r\nHost: www.example.com\r\n\r\n",
        b"CONNECT evil.example.net:443 HTTP/1.1\r\nHost: www.example.com\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET / HTTP/2.0\r\nHost: www.example.com\r\n\r\n",
        b"GET\t/ HTTP/1.1\r\nHost: www.example.com\r\n\r\n",
        b" GET / HTTP/1.1\r\nHost: www.example.com\r\n\r\n",
        b"\r\nGET / HTTP/1.1\r\nHost: www.example.com\r\n\r\n",
        b"\n\n" + EVIL,
        b"get / http/1.1\r\nhost: evil.example.net\r\n\r\n",
        b"GET /\xc3\xa9 HTTP/1.1\r\nHost: evil.example.net\r\n\r\n",
        b"GET / HTTP/1.1\rHost: evil.example.net\r\r",
        b"GET /" + b"a" * 40_000 + b" HTTP/1.1\r\nHost: evil.example.net\r\n\r\n",
        b" " * 20_000 + EVIL,
        b"GET / HTTP/1.1\r\nHost: www.example.com\r\n" + b"A: b\r\n" * 200 + b"\r\n",
        b"GET / HTTP/1.1\r\nHost: www.example.com\r\nA: " + b"b" * 40_000,
        b"POST / HTTP/1.1\r\nHost: www.example.com\r\nContent-Length: 3\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: www.example.com\r\nContent-Length: 3\r\n"
        b"Content-Length: 3\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: www.example.com\r\nContent-Length: +3\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: www.example.com\r\nTransfer-Encoding: xchunked\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: www.example.com\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
        b"POST / HTTP/1.0\r\nHost: www.example.com\r\nTransfer-Encoding: chunked\r\n\r\n",
        CHUNKED.replace(b"5\r\nhello", b"5;a=b\r\nhello"),
        CHUNKED.replace(b"5\r\nhello", b"0x5\r\nhello"),
        CHUNKED.replace(b"5\r\nhello", b"5\nhello"),
        CHUNKED.replace(b"hello\r\n", b"hello\n"),
        CHUNKED.replace(b"hello", b"hello!"),
        CHUNKED.replace(b"0\r\n\r\n", b"0\r\nHost: evil\r\n\r\n"),
    ],
)
@pytest.mark.parametrize("size", [1, 1 << 20])
def test_what_servers_might_read_differently_does_not_pass(request_: bytes, size: int) -> None:
    with pytest.raises(Refused):
        passed(request_, port=8080, size=size)


@pytest.mark.parametrize("data", [b"\0\x01binary", b"SSH-2.0-x\r\n", b"GET /\r\n", b"x" * 20_000])
def test_on_port_80_there_is_only_http_and_tls(data: bytes) -> None:
    with pytest.raises(Refused, match="port 80"):
        passed(data, port=80)


@pytest.mark.parametrize(
    "data",
    [
        b"\0\0\0\x08\x04\xd2\x16\x2f",  # PostgreSQL asks for TLS
        b"\x80", b"\x90\x01", b"\x80\x01\x01",
        b"SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n",
        b"EHLO example.com\r\n",
        b"PING", b"G", b"GET ", b"*1\r\n$4\r\nPING\r\n", b"\r\n", b"\n",
        b"AMQP\0\0\x09\x01", b"\x10\x0c\0\x04MQTT",
        b"a word and \xff\xfe\0",
    ],
)  # fmt: skip
@pytest.mark.parametrize("size", [1, 4096])
def test_other_protocols_pass_without_waiting(data: bytes, size: int) -> None:
    inspector = Inspector(HOST, 5432)
    out = b"".join(inspector.feed(data[at : at + size]) for at in range(0, len(data), size))
    assert out == data
    assert not inspector.undecided


UPGRADE = (
    b"GET /chat HTTP/1.1\r\nHost: www.example.com\r\nConnection: Upgrade\r\nUpgrade: websocket"
    b"\r\n\r\n"
)


def test_an_upgrade_passes_once_the_server_agrees() -> None:
    inspector = Inspector(HOST, 80)
    assert inspector.feed(UPGRADE) == UPGRADE
    assert inspector.feed(b"\x81") == b""
    assert inspector.reply(b"HTTP/1.1 101 Switching") == b"HTTP/1.1 101 Switching"
    assert inspector.feed(b"\x05hello") == b"\x81\x05hello"


def test_an_upgrade_that_the_server_ignores_hides_nothing() -> None:
    inspector = Inspector(HOST, 80)
    inspector.feed(UPGRADE)
    assert inspector.feed(EVIL) == b""
    inspector.reply(b"HTTP/1.1 200 OK\r\n")
    with pytest.raises(Refused, match="Host is another"):
        inspector.feed(b"x")


def test_a_later_upgrade_does_not_pass() -> None:
    with pytest.raises(Refused, match="first request"):
        passed(GET + UPGRADE, port=80)


@given(st.binary(max_size=300), st.integers(1, 50), st.sampled_from([80, 443]))
def test_any_bytes_pass_unchanged_or_not_at_all(data: bytes, size: int, port: int) -> None:
    out = bytearray()
    with contextlib.suppress(Refused):
        portions(Inspector(HOST, port).feed, data, size, out)
    assert data.startswith(out)


@given(st.data())
def test_a_changed_hello_never_passes_for_another_host(data: st.DataObject) -> None:
    hello = bytearray(hello_of(server_name(b"evil.example.net")))
    at = data.draw(st.integers(0, len(hello) - 1))
    hello[at] = data.draw(st.integers(0, 255))
    inspector = Inspector(HOST, 443)
    try:
        out = inspector.feed(bytes(hello))
    except Refused:
        return
    assert out == b"" or hello[0] != 0x16
