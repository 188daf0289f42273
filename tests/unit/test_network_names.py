"""The containers' DNS server: allowed names only, synthetic addresses, nothing forwarded."""

from __future__ import annotations

import ipaddress
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.egress_world import CONTAINER, GATEWAY, World, receive_all
from vmrun.network.frames import Endpoint
from vmrun.network.names import MAX_NAMES, SYNTHETIC, NameServer, SyntheticNames
from vmrun.policy.egress import parse_allows

A, NS, TXT, AAAA, HTTPS, AXFR, ANY = 1, 2, 16, 28, 65, 252, 255
RULES = parse_allows(["registry.example.com", "*.example.org"])


def query(name: str, kind: int = A, *, group: int = 1, flags: int = 0x0100) -> bytes:
    labels = [label.encode("latin-1") for label in name.split(".") if label]
    encoded = b"".join(bytes((len(label),)) + label for label in labels) + b"\0"
    return struct.pack("!6H", 0xBEEF, flags, 1, 0, 0, 0) + encoded + struct.pack("!2H", kind, group)


def status(message: bytes | None) -> int:
    assert message is not None
    return message[3] & 15


def address(message: bytes | None) -> str | None:
    """The one address in an answer."""
    assert message is not None
    assert len(message) <= 512
    count = struct.unpack_from("!H", message, 6)[0]
    if not count:
        return None
    assert count == 1
    return str(ipaddress.IPv4Address(message[-4:]))


@pytest.fixture
def server() -> NameServer:
    return NameServer({"db": "10.88.0.3"}, SyntheticNames(frozenset({GATEWAY, "198.18.0.2"})))


def ask(server: NameServer, data: bytes) -> bytes | None:
    return server.answer(CONTAINER, RULES, data).message


def test_an_allowed_name_has_one_synthetic_address(server: NameServer) -> None:
    first = address(ask(server, query("registry.example.com")))
    assert first is not None
    assert ipaddress.ip_address(first) in SYNTHETIC
    assert address(ask(server, query("REGISTRY.example.com."))) == first
    second = address(ask(server, query("a.example.org")))
    assert second not in (first, "198.18.0.2", None)


def test_the_answer_is_one_to_the_question(server: NameServer) -> None:
    asked = query("ReGiStRy.example.com")
    message = ask(server, asked)
    assert message is not None
    assert message[:2] == asked[:2]
    assert message[2] & 0x80
    assert message[12 : len(asked)] == asked[12:]


def test_other_containers_have_their_own(server: NameServer) -> None:
    assert address(ask(server, query("DB"))) == "10.88.0.3"
    assert address(server.answer("10.88.0.9", (), query("db")).message) == "10.88.0.3"


@pytest.mark.parametrize("kind", [NS, TXT, AAAA, HTTPS, 0, 41, 65535])
def test_of_other_types_an_allowed_name_has_nothing(server: NameServer, kind: int) -> None:
    message = ask(server, query("registry.example.com", kind))
    assert (status(message), address(message)) == (0, None)


@pytest.mark.parametrize(
    "name",
    [
        "example.com", "example.org", "evil-example.org", "registry.example.com.evil.net",
        "localhost", "1.0.0.127.in-addr.arpa", "", "a b.example.org", "198.18.0.1",
        "169.254.169.254", "x" * 63 + ".example.net",
    ],
)  # fmt: skip
@pytest.mark.parametrize("kind", [A, TXT, AAAA, NS])
def test_other_names_do_not_exist(server: NameServer, name: str, kind: int) -> None:
    answer = server.answer(CONTAINER, RULES, query(name, kind))
    assert status(answer.message) == 3
    assert answer.reason == "no rule"


def test_a_dot_inside_a_label_is_none_between_labels(server: NameServer) -> None:
    name = b"\x0da.example.org\0"
    data = struct.pack("!6H", 1, 0x0100, 1, 0, 0, 0) + name + struct.pack("!2H", A, 1)
    assert status(ask(server, data)) == 3


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (query("registry.example.com", AXFR), 5),
        (query("registry.example.com", group=3), 5),
        (query("version.bind", TXT, group=3), 5),
        (query("registry.example.com", flags=0x2800), 4),  # UPDATE
        (query("registry.example.com", flags=0x0300), 1),  # truncated
        (query("registry.example.com")[:-1], 1),
        (query("registry.example.com") + b"x", 1),
        (query("registry.example.com").replace(b"\0\x01\0\0\0\0\0\0", b"\0\x02" + bytes(6), 1), 1),
        (struct.pack("!6H", 1, 0, 1, 0, 0, 0) + b"\xc0\x0c" + b"\0\x01\0\x01", 1),
        (struct.pack("!6H", 1, 0, 1, 0, 0, 0) + b"\x40" + bytes(70), 1),
        (struct.pack("!6H", 1, 0, 1, 0, 0, 0) + (b"\x3f" + b"a" * 63) * 4 + bytes(5), 1),
        (struct.pack("!6H", 1, 0, 0, 0, 0, 0), 1),
    ],
)
def test_what_is_no_plain_query_is_refused(server: NameServer, data: bytes, expected: int) -> None:
    message = ask(server, data)
    assert status(message) == expected
    assert address(message) is None


@pytest.mark.parametrize("data", [b"", b"\0" * 11, query("db", flags=0x8100), bytes(5000)])
def test_what_is_no_query_has_no_answer(server: NameServer, data: bytes) -> None:
    assert ask(server, data) is None


def test_edns_is_taken(server: NameServer) -> None:
    data = bytearray(query("registry.example.com") + b"\0\0\x29\x04\xd0\0\0\0\0\0\0")
    data[11] = 1
    assert address(ask(server, bytes(data))) is not None


def test_one_container_cannot_take_all_addresses() -> None:
    synthetic = SyntheticNames()
    for number in range(MAX_NAMES):
        assert synthetic.address(CONTAINER, f"a{number}.example.org")
    server = NameServer({}, synthetic)
    answer = server.answer(CONTAINER, RULES, query("one.more.example.org"))
    assert (status(answer.message), answer.reason) == (2, "too many names")
    assert address(server.answer("10.88.0.4", RULES, query("one.more.example.org")).message)
    assert address(ask(server, query("a0.example.org")))


@given(st.binary(max_size=200))
def test_any_bytes_have_a_short_answer_or_none(data: bytes) -> None:
    message = NameServer({}, SyntheticNames()).answer(CONTAINER, RULES, data).message
    assert message is None or (12 <= len(message) <= 512 and message[:2] == data[:2])


@given(st.lists(st.binary(min_size=1, max_size=63), max_size=4), st.integers(0, 65535))
def test_any_name_has_an_answer(labels: list[bytes], kind: int) -> None:
    name = b"".join(bytes((len(label),)) + label for label in labels) + b"\0"
    if len(name) > 255:
        return
    data = struct.pack("!6H", 1, 0, 1, 0, 0, 0) + name + struct.pack("!2H", kind, 1)
    assert ask(NameServer({}, SyntheticNames()), data) is not None


def test_queries_come_over_udp_and_tcp() -> None:
    world = World("registry.example.com", hosts={"registry.example.com": ["93.184.216.34"]})
    asked = query("registry.example.com")
    answer = world.egress.datagram(Endpoint(CONTAINER, 5353), asked)
    assert address(answer) is not None
    framed = len(asked).to_bytes(2, "big") + asked
    with world.open(GATEWAY, 53) as client:
        for byte in framed + framed:
            client.send(bytes((byte,)))
        client.shutdown(1)
        assert answer is not None
        assert receive_all(client) == (len(answer).to_bytes(2, "big") + answer) * 2
    assert world.resolved == []
    assert world.events == []
    world.close()


@pytest.mark.parametrize("data", [b"\0\0", b"\xff\xff" + bytes(100), b"\0\x0c" + b"\xff" * 12])
def test_nonsense_over_tcp_ends_the_connection(data: bytes) -> None:
    world = World("registry.example.com")
    with world.open(GATEWAY, 53) as client:
        client.send(data)
        assert receive_all(client) == b""
    world.close()
