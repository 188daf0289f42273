"""Real sockets around the host's decisions: what a container connects to, and what it reaches.

Servers on 127.0.0.1 stand for public addresses. Only the resolver and the last step, connecting to
an address that has been judged, are replaced.
"""

from __future__ import annotations

import contextlib
import dataclasses
import socket
import ssl
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from vmrun.model.errors import ChannelError
from vmrun.network.egress import Egress
from vmrun.network.frames import Endpoint
from vmrun.policy.egress import parse_allows

GATEWAY = "10.88.0.1"
CONTAINER = "10.88.0.2"
PUBLIC = "93.184.216.34"
OTHER = "151.101.1.1"


class SocketStream:
    """A container's connection, over a socket of this host."""

    def __init__(self, sock: socket.socket, peer: Endpoint, destination: Endpoint) -> None:
        self.peer = peer
        self.destination = destination
        self._socket = sock

    def read(self, size: int) -> bytes:
        try:
            return self._socket.recv(size)
        except OSError as error:
            raise ChannelError(str(error)) from error

    def write(self, data: bytes) -> None:
        try:
            self._socket.sendall(data)
        except OSError as error:
            raise ChannelError(str(error)) from error

    def close_write(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)


@dataclasses.dataclass(frozen=True)
class Event:
    event: str
    fields: Mapping[str, str]


class World:
    """One network with one container, CONTAINER, and the rules given."""

    def __init__(
        self,
        *allow: str,
        hosts: Mapping[str, Iterable[str]] | None = None,
        servers: Mapping[tuple[str, int], int] | None = None,
        names: Mapping[str, str] | None = None,
        streams: int = 64,
    ) -> None:
        self.rules = parse_allows(allow)
        self.hosts = {name: tuple(addresses) for name, addresses in (hosts or {}).items()}
        self.servers = dict(servers or {})
        self.events: list[Event] = []
        self.resolved: list[str] = []
        self.connected: list[tuple[str, int]] = []
        self.record_error: Exception | None = None
        self.egress = Egress(
            lambda address: self.rules if address == CONTAINER else (),
            names or {},
            self._record,
            gateway=GATEWAY,
            resolve=self._resolve,
            connect=self._connect,
            streams=streams,
        )
        self._listeners: list[socket.socket] = []

    def _record(self, event: str, fields: Mapping[str, str]) -> None:
        if self.record_error is not None:
            raise self.record_error
        self.events.append(Event(event, dict(fields)))

    def _resolve(self, name: str) -> tuple[str, ...]:
        self.resolved.append(name)
        return self.hosts.get(name, ())

    def _connect(self, address: str, port: int, timeout: float) -> socket.socket:
        self.connected.append((address, port))
        if (address, port) not in self.servers:
            raise ConnectionRefusedError
        return socket.create_connection(("127.0.0.1", self.servers[address, port]), timeout)

    def denied(self) -> list[str]:
        return [e.fields["reason"] for e in self.events if e.event == "network.deny"]

    def allowed(self) -> list[tuple[str, str, str]]:
        return [
            (e.fields["name"], e.fields["address"], e.fields["reason"])
            for e in self.events
            if e.event == "network.allow"
        ]

    def open(self, address: str, port: int, container: str = CONTAINER) -> socket.socket:
        """The container's end of a connection that it makes."""
        inside, outside = socket.socketpair()
        inside.settimeout(10)
        self._serve(outside, Endpoint(container, 40000), Endpoint(address, port))
        return inside

    def _serve(self, sock: socket.socket, peer: Endpoint, there: Endpoint) -> threading.Thread:
        def run() -> None:
            with sock, contextlib.suppress(Exception):
                self.egress.stream(SocketStream(sock, peer, there))

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        return thread

    def listen(self, address: str, port: int) -> int:
        """A port of this host whose connections are the container's to ``address`` and ``port``:
        for clients that are programs."""
        listener = socket.create_server(("127.0.0.1", 0))
        self._listeners.append(listener)

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    client, _ = listener.accept()
                    self._serve(client, Endpoint(CONTAINER, 40000), Endpoint(address, port))

        threading.Thread(target=accept, daemon=True).start()
        return int(listener.getsockname()[1])

    def close(self) -> None:
        for listener in self._listeners:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()
        self.egress.close()


class Web(ThreadingHTTPServer):
    """A web server that remembers what it was asked."""

    daemon_threads = True

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.asked: list[tuple[str, str, str]] = []
        self.heads: list[dict[str, str]] = []
        self.bodies: list[bytes] = []
        self.redirect = ""
        if context is not None:
            self.socket = context.wrap_socket(
                self.socket, server_side=True, do_handshake_on_connect=False
            )
        self.port = int(self.server_address[1])
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    def fresh(self) -> Web:
        """It has forgotten all."""
        self.asked.clear()
        self.heads.clear()
        self.bodies.clear()
        self.redirect = ""
        return self

    def handle_error(self, request: object, client_address: object) -> None:
        """Connections that are cut are what is tested."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Web

    def do_GET(self) -> None:
        self.server.asked.append((self.command, self.path, self.headers["Host"]))
        self.server.heads.append({name.lower(): value for name, value in self.headers.items()})
        body = b""
        if self.headers["Transfer-Encoding"] == "chunked":
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        elif length := int(self.headers["Content-Length"] or 0):
            body = self.rfile.read(length)
        self.server.bodies.append(body)
        if self.server.redirect:
            self.send_response(302)
            self.send_header("Location", self.server.redirect)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        answer = f"{self.headers['Host']}{self.path}".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    do_POST = do_GET
    do_PUT = do_GET

    def log_message(self, *_: object) -> None:
        """Nothing."""


@contextlib.contextmanager
def tcp_server(serve: Callable[[socket.socket], None]) -> Iterator[int]:
    """A server that handles each connection with ``serve``; its port."""
    listener = socket.create_server(("127.0.0.1", 0))

    def run(client: socket.socket) -> None:
        with client, contextlib.suppress(OSError):
            client.settimeout(10)
            serve(client)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = listener.accept()
                threading.Thread(target=run, args=(client,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield int(listener.getsockname()[1])
    finally:
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()


def receive_all(sock: socket.socket) -> bytes:
    """Until the end, or a reset."""
    data = b""
    with contextlib.suppress(ConnectionError):
        while part := sock.recv(65536):
            data += part
    return data


def tls_context(directory: Path) -> ssl.SSLContext:
    """A server's context; its certificate, for the names that are used here, is ``cert.pem``."""
    import subprocess

    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
         "-nodes", "-keyout", "key.pem", "-out", "cert.pem", "-days", "2", "-subj", "/CN=test",
         "-addext",
         "subjectAltName=DNS:www.example.com,DNS:evil.example.net,IP:93.184.216.34"],
        cwd=directory, check=True, capture_output=True, timeout=30,
    )  # fmt: skip
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(directory / "cert.pem", directory / "key.pem")
    return context
