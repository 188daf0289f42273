"""The docker engine's own parts: the archive, the attached streams, the tunnel, dockerd's words.

dockerd itself is played by a small HTTP server behind the tunnel.
"""

from __future__ import annotations

import http.server
import io
import json
import socket
import socketserver
import stat
import struct
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.engine_fakes import FakeConnection, FakeProcess, Remote
from tests.engine_samples import container_plan, image_of, plan_of, tar_of
from vmrun.engine.archive import archive
from vmrun.engine.attach import AttachedOutput, request
from vmrun.engine.daemon import Daemon
from vmrun.engine.tunnel import Tunnel
from vmrun.model.errors import DeadlineExceeded, DigestMismatch, EngineError, ImageError
from vmrun.model.image import Image

ID = "ab" * 32


@pytest.fixture
def image(tmp_path: Path) -> Image:
    layers = [tar_of({"a": b"1" * 700}), tar_of({"b": b"2" * 1024})]
    return image_of(tmp_path, [*layers, layers[0]])


def test_archive(image: Image) -> None:
    data = b"".join(archive(image))
    assert len(data) % 512 == 0
    with tarfile.open(fileobj=io.BytesIO(data)) as opened:
        names = opened.getnames()
        files = {name: opened.extractfile(name).read() for name in names}  # type: ignore[union-attr]
    assert len(names) == len(set(names)) == 4  # a layer that occurs twice is sent once
    (entry,) = json.loads(files["manifest.json"])
    assert entry["RepoTags"] is None
    assert entry["Config"] == f"{image.config_blob.digest.hex}.json"
    assert entry["Layers"] == [f"{layer.blob.digest.hex}.tar" for layer in image.layers]
    for layer in image.layers:
        blob = image.blob_path(layer.blob.digest).read_bytes()
        assert files[f"{layer.blob.digest.hex}.tar"] == blob


def test_archive_of_a_blob_that_is_shorter_than_it_says(image: Image) -> None:
    image.blob_path(image.layers[0].blob.digest).write_bytes(b"short")
    with pytest.raises(ImageError):
        list(archive(image))


def frame(stream: int, data: bytes) -> bytes:
    return struct.pack(">BxxxL", stream, len(data)) + data


class Bytes:
    """A process whose stdout arrives in the given pieces."""

    def __init__(self, *pieces: bytes) -> None:
        self._pieces = list(pieces)

    def read(self, size: int) -> bytes:
        return self._pieces.pop(0) if self._pieces else b""


def attached(*pieces: bytes) -> AttachedOutput:
    return AttachedOutput(Bytes(*pieces))  # type: ignore[arg-type]


def demultiplex(*pieces: bytes) -> tuple[bytes, bytes]:
    out, err = io.BytesIO(), io.BytesIO()
    attached(*pieces).frames(out.write, err.write)  # type: ignore[arg-type]
    return out.getvalue(), err.getvalue()


@given(st.lists(st.tuples(st.sampled_from([1, 2]), st.binary(max_size=50))), st.integers(1, 40))
def test_frames(sent: list[tuple[int, bytes]], step: int) -> None:
    text = b"".join(frame(stream, data) for stream, data in sent)
    pieces = [text[i : i + step] for i in range(0, len(text), step)]
    assert demultiplex(*pieces) == tuple(
        b"".join(data for stream, data in sent if stream == wanted) for wanted in (1, 2)
    )


@pytest.mark.parametrize(
    "text",
    [
        frame(1, b"hello")[:-1],
        frame(1, b"hello")[:5],
        frame(7, b"x"),
        b"\x01\0\0\0\xff\xff\xff\xff",
    ],
)
def test_frames_that_are_none(text: bytes) -> None:
    with pytest.raises(EngineError):
        demultiplex(text)


def test_the_head_is_taken_off() -> None:
    output = attached(b"HTTP/1.1 101 UPGRADED\r\nA: b\r", b"\n\r\nfirst", b"second")
    output.accept()
    assert output.raw(3) + output.raw(100) + output.raw(100) == b"firstsecond"
    assert output.raw(1) == b""


@pytest.mark.parametrize(
    "head", [b"", b"HTTP/1.1 404 Not Found\r\n\r\n", b"x" * 70_000, b"HTTP/1.1 101"]
)
def test_a_head_that_is_none(head: bytes) -> None:
    with pytest.raises(EngineError):
        attached(head).accept()


def test_the_request_names_a_container_id_only() -> None:
    assert b"/v1.44/containers/" + ID.encode() in request(ID, version="1.44", stdin=True)
    with pytest.raises(EngineError):
        request("x HTTP/1.1\r\n", version="1.44", stdin=True)


def echo(remote: Remote) -> int:
    while data := remote.read(4096):
        remote.write(data)
    return 0


def test_the_tunnel_joins_and_hands_on_the_end(tmp_path: Path) -> None:
    connection = FakeConnection({"guest dial": echo})
    tunnel = Tunnel(connection)
    assert stat.S_IMODE(tunnel.path.parent.stat().st_mode) == 0o700
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(10)
    client.connect(str(tunnel.path))
    client.sendall(b"hello")
    assert client.recv(100) == b"hello"
    client.shutdown(socket.SHUT_WR)
    assert client.recv(100) == b""
    tunnel.close()
    assert not tunnel.path.parent.exists()


def test_closing_the_tunnel_ends_what_is_open() -> None:
    tunnel = Tunnel(FakeConnection({"guest dial": echo}))
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(10)
    client.connect(str(tunnel.path))
    client.sendall(b"x")
    assert client.recv(1) == b"x"
    tunnel.close()
    assert client.recv(1) == b""


class Dockerd(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    """Answers from a table of (method, path) to (status, document)."""

    daemon_threads = True

    def __init__(self, path: Path) -> None:
        super().__init__(str(path), Handler)
        self.answers: dict[tuple[str, str], tuple[int, Any]] = {
            ("GET", "/_ping"): (200, "OK"),
        }
        self.bodies: dict[str, bytes] = {}
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def dial(self, remote: Remote) -> int:
        """What ``guest dial`` does."""
        client = socket.socket(socket.AF_UNIX)
        client.connect(str(self.server_address))

        def forward() -> None:
            while data := remote.read(4096):
                client.sendall(data)
            client.shutdown(socket.SHUT_WR)

        threading.Thread(target=forward, daemon=True).start()
        while data := client.recv(4096):
            remote.write(data)
        return 0


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Dockerd

    def address_string(self) -> str:
        return "local"

    def log_message(self, *arguments: object) -> None:
        pass

    def _answer(self) -> None:
        path = self.path.partition("?")[0].removeprefix("/v1.44")
        self.server.bodies[path] = self._body()
        status, document = self.server.answers.get((self.command, path), (404, {"message": path}))
        data = document.encode() if isinstance(document, str) else json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_POST = _answer

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body


@pytest.fixture
def dockerd(tmp_path: Path) -> Iterator[Dockerd]:
    server = Dockerd(tmp_path / "d.sock")
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def daemon(dockerd: Dockerd) -> Iterator[Daemon]:
    client = Daemon(FakeConnection({"guest dial": dockerd.dial}), 10)
    yield client
    client.close()


def loaded(image: Image) -> dict[str, Any]:
    return {
        "Id": str(image.config_blob.digest),
        "RootFS": {"Layers": [str(layer.diff_id) for layer in image.layers]},
    }


def test_load_sends_the_archive(daemon: Daemon, dockerd: Dockerd, image: Image) -> None:
    dockerd.answers["POST", "/images/load"] = (200, {"stream": "Loaded"})
    daemon.wait_until_ready(5)
    daemon.load(image)
    assert dockerd.bodies["/images/load"] == b"".join(archive(image))


@pytest.mark.parametrize(
    ("reason", "kind"),
    [
        ('invalid diffID for layer 0: expected "a", got "b"', DigestMismatch),
        ("write /x: no space left on device", EngineError),
        ("archive/tar: invalid tar header", EngineError),
    ],
)
def test_load_that_fails(
    daemon: Daemon, dockerd: Dockerd, image: Image, reason: str, kind: type[Exception]
) -> None:
    dockerd.answers["POST", "/images/load"] = (200, {"error": reason})
    with pytest.raises(kind, match=reason.split(":")[0].split("/")[0]):
        daemon.load(image)


def test_check(daemon: Daemon, dockerd: Dockerd, image: Image) -> None:
    path = f"/images/{image.config_blob.digest}/json"
    dockerd.answers["GET", path] = (200, loaded(image))
    daemon.check(image)
    for lie in (
        {**loaded(image), "Id": f"sha256:{ID}"},
        {**loaded(image), "RootFS": {"Layers": [f"sha256:{ID}"]}},
        {**loaded(image), "RootFS": None},
    ):
        dockerd.answers["GET", path] = (200, lie)
        with pytest.raises(DigestMismatch):
            daemon.check(image)
    dockerd.answers["GET", path] = (404, {"message": "no such image"})
    with pytest.raises(EngineError, match="no such image"):
        daemon.check(image)


def test_a_warning_is_a_limit_that_is_not_kept(
    daemon: Daemon, dockerd: Dockerd, image: Image
) -> None:
    plan = plan_of(image, container_plan())
    created = {"Id": ID, "Warnings": ["Your kernel does not support swap limit capabilities"]}
    dockerd.answers["POST", "/containers/create"] = (201, created)
    with pytest.raises(EngineError, match="swap limit"):
        daemon.create(plan)
    dockerd.answers["POST", "/containers/create"] = (201, {"Id": ID, "Warnings": None})
    assert daemon.create(plan) == ID
    body = json.loads(dockerd.bodies["/containers/create"])
    assert body["Image"] == str(image.config_blob.digest)


def test_start_and_exit_status(daemon: Daemon, dockerd: Dockerd) -> None:
    dockerd.answers["POST", f"/containers/{ID}/start"] = (204, "")
    path = f"/containers/{ID}/json"
    dockerd.answers["GET", path] = (200, {"State": {"Pid": 77}})
    assert daemon.start(ID) == 77
    dockerd.answers["GET", path] = (200, {"State": {"Pid": 0, "Error": "no such gate"}})
    with pytest.raises(EngineError, match="no such gate"):
        daemon.start(ID)
    dockerd.answers["POST", f"/containers/{ID}/wait"] = (200, {"StatusCode": 42})
    assert daemon.exit_status(ID) == 42


def test_a_dockerd_that_does_not_come_up() -> None:
    client = Daemon(FakeConnection({"guest dial": lambda remote: 1}), 10)
    with pytest.raises(DeadlineExceeded, match="not ready"):
        client.wait_until_ready(0.6)
    client.close()


def test_a_guest_that_is_gone(dockerd: Dockerd) -> None:
    client = Daemon(FakeConnection({"guest dial": lambda remote: None}), 10)
    with pytest.raises(EngineError):
        client.exit_status(ID)
    client.close()


def test_fake_process_is_a_remote_process() -> None:
    process = FakeProcess(echo)
    process.write(b"x")
    assert process.read(1) == b"x"
    process.close()
