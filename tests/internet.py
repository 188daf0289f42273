"""An Internet of one namespace: every address of the world is a server of the test there, and a
namespace that stands for the host leads to nothing else. Whatever leaves that host is seen.

Programs are executed in the host's namespace with :meth:`Internet.command`; its resolver is the
Internet's. Needs root.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
import ssl
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from tests.wire import inside

HOST, HOST6 = "93.184.200.2", "2606:2800:200::2"
"""The host's own addresses: they look public."""
_UPLINK, _UPLINK6 = "93.184.200.1", "2606:2800:200::1"
RESOLVER = "8.8.8.8"
WEB_PORTS = (80, 22, 3128)
BULK_PORT = 8080
_TLS_PORT = 443
_SYN_ONLY = 0x02
_TCP, _UDP, _IPV4, _IPV6 = 6, 17, 0x0800, 0x86DD


@dataclass(frozen=True)
class Asked:
    """A request that arrived; ``host`` is its Host, or a server name."""

    address: str
    port: int
    path: str
    host: str


@dataclass(frozen=True)
class Packet:
    """What left the host: a datagram, or the first packet of a connection."""

    protocol: int
    address: str
    port: int


class Internet:
    """``names`` are the records of its only name server."""

    def __init__(self, stack: ExitStack, names: Mapping[str, tuple[str, ...]], tls: ssl.SSLContext):
        self.names = dict(names)
        self.asked: list[Asked] = []
        self.queries: list[str] = []
        self.packets: set[Packet] = set()
        self._tls = tls
        self._tls.sni_callback = self._server_name
        self._world = _holder(stack, "--net")
        self.host = _holder(stack, "--net", "--mount")
        self._wire_up()
        self._serve(stack)
        self._watch(stack)

    def _wire_up(self) -> None:
        here, there = str(self.host), str(self._world)
        _ip(here, f"link add up0 type veth peer name down0 netns {there}")
        for words in (
            "link set lo up",
            f"addr add {HOST}/30 dev up0",
            f"addr add {HOST6}/64 dev up0 nodad",
            "link set up0 up",
            f"route add default via {_UPLINK}",
            f"-6 route add default via {_UPLINK6}",
        ):
            _ip(here, words)
        for words in (
            "link set lo up",
            f"addr add {_UPLINK}/30 dev down0",
            f"addr add {_UPLINK6}/64 dev down0 nodad",
            "link set down0 up",
            # Longer prefixes win: the host is not here, but everybody else is.
            f"route add unicast {HOST}/32 dev down0 table local",
            f"-6 route add unicast {HOST6}/128 dev down0 table local",
            "route add local 0.0.0.0/0 dev lo",
            "-6 route add local ::/0 dev lo",
        ):
            _ip(there, words)

    @property
    def command(self) -> list[str]:
        """What to put before a command for it to live on the host."""
        return ["nsenter", f"--net=/proc/{self.host}/ns/net", f"--mount=/proc/{self.host}/ns/mnt"]

    def use_resolver(self, directory: Path) -> None:
        """Let the host ask :data:`RESOLVER`."""
        made = directory / "resolv.conf"
        made.write_text(f"nameserver {RESOLVER}\noptions timeout:2 attempts:2\n")
        there = os.path.realpath("/etc/resolv.conf")
        subprocess.run([*self.command, "mount", "--bind", made, there], check=True)

    def connect(self, address: str, port: int) -> socket.socket:
        """A connection from the host."""
        return inside(self.host, lambda: socket.create_connection((address, port), 20))

    def connect_from_outside(self, address: str, port: int) -> socket.socket:
        """A connection from somewhere else."""
        return inside(self._world, lambda: socket.create_connection((address, port), 5))

    def listen(self, address: str, port: int = 0) -> socket.socket:
        """A listening socket on the host."""
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        return inside(self.host, lambda: socket.create_server((address, port), family=family))

    def forget(self) -> None:
        self.asked.clear()
        self.queries.clear()
        self.packets.clear()

    # Servers.

    def _serve(self, stack: ExitStack) -> None:
        for port in WEB_PORTS:
            self._accept(stack, port, self._web)
        self._accept(stack, _TLS_PORT, self._secure)
        self._accept(stack, BULK_PORT, self._bulk)
        name_server = inside(self._world, lambda: _bound(socket.SOCK_DGRAM, 53))
        stack.callback(name_server.close)
        threading.Thread(target=self._resolve, args=(name_server,), daemon=True).start()

    def _accept(self, stack: ExitStack, port: int, serve: Callable[[socket.socket], None]) -> None:
        listener = inside(self._world, lambda: _bound(socket.SOCK_STREAM, port))
        stack.callback(listener.close)

        def run(client: socket.socket) -> None:
            with client, contextlib.suppress(OSError, ValueError):
                client.settimeout(30)
                serve(client)

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    client, _ = listener.accept()
                    threading.Thread(target=run, args=(client,), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        # A thread in accept(2) is not woken by close(2).
        stack.callback(lambda: _shut(listener))

    def _web(self, client: socket.socket) -> None:
        address, port = _local(client)
        head = b""
        while b"\r\n\r\n" not in head:
            data = client.recv(4096)
            if not data:
                self.asked.append(Asked(address, port, "", ""))
                return
            head += data
        first, *fields = head.decode("latin-1").split("\r\n")
        path = first.split(" ")[1]
        host = next((f.partition(":")[2].strip() for f in fields if f.lower()[:5] == "host:"), "")
        self.asked.append(Asked(address, port, path, host))
        if path.startswith("/to/"):
            answer = f"HTTP/1.1 302 Found\r\nLocation: {path[4:]}\r\nContent-Length: 0\r\n"
            client.sendall(f"{answer}Connection: close\r\n\r\n".encode())
            return
        body = f"{host}{path}"
        client.sendall(
            f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n"
            f"Connection: close\r\n\r\n{body}".encode()
        )

    def _secure(self, client: socket.socket) -> None:
        address, port = _local(client)
        self.asked.append(Asked(address, port, "", "(tls)"))
        with self._tls.wrap_socket(client, server_side=True) as secure:
            self._web(secure)

    def _server_name(self, connection: ssl.SSLObject, name: str | None, _: object) -> None:
        self.asked.append(Asked("", _TLS_PORT, "", f"(sni) {name}"))

    def _bulk(self, client: socket.socket) -> None:
        """``S`` and 10 digits: that many bytes. ``C``: how many bytes came. ``E``: all back."""
        self.asked.append(Asked(*_local(client), "", ""))
        kind = client.recv(1)
        if kind == b"S":
            left = int(client.recv(10))
            while left:
                left -= client.send(b"x" * min(left, 1 << 16))
        total = 0
        while data := client.recv(1 << 16):
            total += len(data)
            if kind == b"E":
                client.sendall(data)
        if kind == b"C":
            client.sendall(f"{total}\n".encode())

    def _resolve(self, server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                data, client = server.recvfrom(4096)
                with contextlib.suppress(ValueError, IndexError, struct.error):
                    server.sendto(self._answer(data), client)

    def _answer(self, query: bytes) -> bytes:
        labels, at = [], 12
        while query[at]:
            labels.append(query[at + 1 : at + 1 + query[at]].decode())
            at += 1 + query[at]
        end = at + 5
        kind = struct.unpack("!H", query[at + 1 : at + 3])[0]
        name = ".".join(labels).lower()
        self.queries.append(name)
        found = [ipaddress.ip_address(text) for text in self.names.get(name, ())]
        wanted = [a for a in found if a.version == {1: 4, 28: 6}.get(kind)]
        status = 0x8180 if name in self.names else 0x8183
        records = b"".join(
            struct.pack("!3HIH", 0xC00C, kind, 1, 1, len(a.packed)) + a.packed for a in wanted
        )
        counts = struct.pack("!5H", status, 1, len(wanted), 0, 0)
        return query[:2] + counts + query[12:end] + records

    # What left the host.

    def _watch(self, stack: ExitStack) -> None:
        def make() -> socket.socket:
            sniffer = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(3))
            sniffer.bind(("down0", 3))
            return sniffer

        sniffer = inside(self._world, make)
        sniffer.setsockopt(socket.SOL_SOCKET, 33, 16 << 20)  # SO_RCVBUFFORCE
        sniffer.settimeout(0.5)
        over = threading.Event()
        thread = threading.Thread(target=self._sniff, args=(sniffer, over), daemon=True)
        thread.start()
        stack.callback(sniffer.close)
        stack.callback(thread.join)
        stack.callback(over.set)

    def _sniff(self, sniffer: socket.socket, over: threading.Event) -> None:
        while not over.is_set():
            try:
                data, where = sniffer.recvfrom(128)
            except TimeoutError:
                continue
            if where[2] == socket.PACKET_OUTGOING:
                continue
            packet = _read_packet(data, where[1])
            if packet is not None:
                self.packets.add(packet)


def _read_packet(data: bytes, kind: int) -> Packet | None:
    """An IP packet, unless it is one more of a connection or finds neighbours."""
    if kind == _IPV4:
        protocol, address = data[9], str(ipaddress.IPv4Address(data[16:20]))
        rest = data[(data[0] & 15) * 4 :]
    elif kind == _IPV6:
        protocol, address = data[6], str(ipaddress.IPv6Address(data[24:40]))
        rest = data[40:]
        if protocol == socket.IPPROTO_ICMPV6 and rest[0] in (133, 135, 136, 143):
            return None
        if protocol == 0:  # a multicast listener report's hop-by-hop options
            return None
    else:
        return None
    if protocol == _TCP and rest[13] & 0x3F != _SYN_ONLY:
        return None
    port = struct.unpack("!H", rest[2:4])[0] if protocol in (_TCP, _UDP) else 0
    return Packet(protocol, address, port)


def _bound(kind: int, port: int) -> socket.socket:
    made = socket.socket(socket.AF_INET6, kind)
    made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if kind == socket.SOCK_DGRAM:
        # One address answers for itself: the kernel would choose another one as the source.
        made.close()
        made = socket.socket(socket.AF_INET, kind)
        made.bind((RESOLVER, port))
        return made
    made.bind(("::", port))
    made.listen(128)
    return made


def _local(client: socket.socket) -> tuple[str, int]:
    address, port = client.getsockname()[:2]
    return str(address).removeprefix("::ffff:"), int(port)


def _shut(listener: socket.socket) -> None:
    with contextlib.suppress(OSError):
        listener.shutdown(socket.SHUT_RDWR)


def _holder(stack: ExitStack, *namespaces: str) -> int:
    """The pid of a process in namespaces of its own."""
    popen = subprocess.Popen(["unshare", *namespaces, "sleep", "3600"])

    def end() -> None:
        popen.kill()
        popen.wait(10)

    stack.callback(end)
    own = os.readlink("/proc/self/ns/net")
    while os.readlink(f"/proc/{popen.pid}/ns/net") == own or b"sleep" not in _executed(popen.pid):
        assert popen.poll() is None
    return popen.pid


def _executed(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes().partition(b"\0")[0]


def _ip(pid: str, words: str) -> None:
    command = ["nsenter", f"--net=/proc/{pid}/ns/net", "ip", *words.split()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    assert done.returncode == 0, (words, done.stderr)


@contextlib.contextmanager
def internet(
    names: Mapping[str, tuple[str, ...]], tls: ssl.SSLContext, directory: Path
) -> Iterator[Internet]:
    """An Internet, and a host that uses its resolver."""
    with ExitStack() as stack:
        made = Internet(stack, names, tls)
        made.use_resolver(directory)
        yield made
