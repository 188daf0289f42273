"""A registry and token server that lies on demand, and remembers what it was asked.

It is honest until :meth:`LyingRegistry.lie` says otherwise. One per test, each at a port, and so an
origin, of its own. With :func:`certified` it speaks TLS.
"""

from __future__ import annotations

import datetime
import ipaddress
import json
import re
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socketserver import TCPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.images import OCI_MANIFEST, TestImage, sha256

Answer = Callable[["Handler"], None]
NAME = "team/app"


@dataclass(frozen=True, slots=True)
class Seen:
    """A request as it came in."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes = b""

    @property
    def authorization(self) -> str | None:
        return self.headers.get("authorization")


@dataclass(frozen=True, slots=True)
class Identity:
    """A server's certificate with its key, and the CA that issued it."""

    chain: Path
    key: Path
    authority: Path


@dataclass
class LyingRegistry:
    """``host`` is ``127.0.0.1:PORT``; everything is in the repository :data:`NAME`."""

    host: str
    scheme: str
    seen: list[Seen] = field(default_factory=list)
    manifests: dict[str, tuple[str, bytes]] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)
    uploads: dict[str, bytes] = field(default_factory=dict)
    lies: list[tuple[str, re.Pattern[str], Answer]] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"{self.scheme}://{self.host}"

    @property
    def reference(self) -> str:
        return f"{self.host}/{NAME}:1"

    def hold(self, image: TestImage, tag: str = "1") -> TestImage:
        """Have an image under a tag."""
        self.hold_manifest(image.manifest, OCI_MANIFEST, tag)
        for blob in (image.config, *(layer.blob for layer in image.layers)):
            self.blobs[sha256(blob)] = blob
        return image

    def hold_manifest(self, data: bytes, media_type: str, tag: str) -> None:
        """Have a manifest, or what claims to be one."""
        self.manifests[tag] = self.manifests[sha256(data)] = (media_type, data)

    def lie(self, method: str, path: str, answer: Answer) -> None:
        """Answer so where method and pattern of the path fit; the latest lie counts."""
        self.lies.insert(0, (method, re.compile(path), answer))

    def asked(self, method: str, path: str = "") -> list[Seen]:
        """Requests by method, and by a pattern of the path."""
        return [s for s in self.seen if s.method == method and re.search(path, s.path)]


class Handler(BaseHTTPRequestHandler):
    """Answers a request: with a lie, or as the distribution specification says."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    registry: LyingRegistry
    body: bytes

    def log_message(self, *_: object) -> None:
        return

    def do_any(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        self.body = self.rfile.read(length)
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.registry.seen.append(Seen(self.command, self.path, headers, self.body))
        for method, pattern, answer in self.registry.lies:
            if method == self.command and pattern.search(self.path):
                answer(self)
                return
        self.honest()

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_any

    def send(self, status: int, body: bytes = b"", **headers: str) -> None:
        """An answer; header names with underscores for hyphens."""
        self.send_response(status)
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        for name, value in {"Content-Length": str(len(body)), **names}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def honest(self) -> None:
        kind, _, name = urlsplit(self.path).path.removeprefix(f"/v2/{NAME}/").partition("/")
        if self.command in ("GET", "HEAD"):
            self._give(kind, name)
        else:
            self._take(kind, name)

    def _give(self, kind: str, name: str) -> None:
        if kind == "manifests" and name in self.registry.manifests:
            media_type, data = self.registry.manifests[name]
            self.send(200, data, Content_Type=media_type, Docker_Content_Digest=sha256(data))
        elif kind == "blobs" and name in self.registry.blobs:
            self.send(200, self.registry.blobs[name])
        else:
            code = "MANIFEST_UNKNOWN" if kind == "manifests" else "BLOB_UNKNOWN"
            self.send(404, error(code))

    def _take(self, kind: str, name: str) -> None:
        if kind == "manifests":
            self.registry.hold_manifest(self.body, self.headers["Content-Type"], name)
            self.send(201)
            return
        upload = name.rpartition("/")[2] or str(len(self.registry.seen))
        data = self.registry.uploads.get(upload, b"") + self.body
        self.registry.uploads[upload] = data
        if self.command == "PUT":
            digest = parse_qs(urlsplit(self.path).query)["digest"][0]
            if sha256(data) != digest:
                self.send(400, error("DIGEST_INVALID"))
                return
            self.registry.blobs[digest] = data
            self.send(201)
            return
        self.send(202, Location=f"/v2/{NAME}/blobs/uploads/{upload}")


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def server_bind(self) -> None:
        """Without HTTPServer's, which asks the DNS for this host's name."""
        TCPServer.server_bind(self)

    def handle_error(self, *_: object) -> None:
        """Clients that go away are what many of these tests are about."""


@contextmanager
def lying_registry(identity: Identity | None = None) -> Iterator[LyingRegistry]:
    """A server for as long as the block runs."""
    handler = type("_Handler", (Handler,), {})
    server = _Server(("127.0.0.1", 0), handler)
    if identity is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(identity.chain, identity.key)
        server.socket = context.wrap_socket(
            server.socket, server_side=True, do_handshake_on_connect=False
        )
    host = f"127.0.0.1:{server.server_address[1]}"
    registry = LyingRegistry(host, "https" if identity else "http")
    handler.registry = registry  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, args=(0.005,), daemon=True)
    thread.start()
    try:
        yield registry
    finally:
        server.shutdown()
        server.socket.close()


# --- answers -------------------------------------------------------------------------------


def error(code: str) -> bytes:
    """An error's body as the distribution specification has it."""
    return json.dumps({"errors": [{"code": code, "message": code.lower()}]}).encode()


def status(code: int, body: bytes = b"", **headers: str) -> Answer:
    """That status."""
    return lambda handler: handler.send(code, body, **headers)


def redirect(url: str) -> Answer:
    """Somewhere else."""
    return status(307, Location=url)


def raw(data: bytes) -> Answer:
    """Just these bytes, and the end of the connection."""

    def answer(handler: Handler) -> None:
        handler.close_connection = True
        handler.wfile.write(data)

    return answer


def truncated(data: bytes, **headers: str) -> Answer:
    """The first half of what Content-Length promises."""

    def answer(handler: Handler) -> None:
        handler.close_connection = True
        handler.send(200, data[: len(data) // 2], Content_Length=str(len(data)), **headers)

    return answer


def endless(piece: bytes, pause: float = 0.0, **headers: str) -> Answer:
    """``piece`` again and again, in chunks without a length."""

    def answer(handler: Handler) -> None:
        handler.close_connection = True
        handler.send_response(200)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        with suppress(OSError):
            while True:
                handler.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
                time.sleep(pause)

    return answer


def in_turn(*answers: Answer) -> Answer:
    """One after the other, the last one for good."""
    left = list(answers)
    lock = threading.Lock()

    def answer(handler: Handler) -> None:
        with lock:
            now = left.pop(0) if len(left) > 1 else left[0]
        now(handler)

    return answer


def honest(handler: Handler) -> None:
    """As if there were no lie."""
    handler.honest()


def needs(token: str, challenge: str) -> Answer:
    """401 with that challenge, unless ``token`` is the Authorization."""

    def answer(handler: Handler) -> None:
        if handler.headers.get("Authorization") == token:
            handler.honest()
        else:
            handler.send(401, error("UNAUTHORIZED"), WWW_Authenticate=challenge)

    return answer


# --- certificates --------------------------------------------------------------------------


def certified(directory: Path) -> Identity:
    """A certificate for 127.0.0.1 under a CA of its own."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    now = datetime.datetime.now(datetime.UTC)

    def issue(name: str, issuer: Any, extensions: list[Any]) -> Any:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        signer, signing_key = issuer or (subject, key)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(signer)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(days=1))
        )
        for extension in extensions:
            builder = builder.add_extension(extension, critical=False)
        return builder.sign(signing_key, hashes.SHA256()), (subject, key)

    authority, issuer = issue("test CA", None, [x509.BasicConstraints(ca=True, path_length=0)])
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    server, (_, key) = issue("server", issuer, [x509.SubjectAlternativeName([address])])
    pem = serialization.Encoding.PEM
    written = {
        "ca.crt": authority.public_bytes(pem),
        "server.crt": server.public_bytes(pem),
        "server.key": key.private_bytes(
            pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ),
    }
    for name, data in written.items():
        (directory / name).write_bytes(data)
    return Identity(directory / "server.crt", directory / "server.key", directory / "ca.crt")


def trusting(directory: Path, identity: Identity, *hosts: str) -> Path:
    """A certs.d folder that trusts the identity's CA for these hosts."""
    for host in hosts:
        folder = directory / "certs.d" / host
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "ca.crt").write_bytes(identity.authority.read_bytes())
    return directory / "certs.d"
