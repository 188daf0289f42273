"""Images in a Docker daemon: a real one, and one that misbehaves."""

from __future__ import annotations

import http.server
import json
import socketserver
import threading
from collections.abc import Iterator
from pathlib import Path

import docker
import pytest

from tests.images import (
    TestImage,
    assert_refused,
    busybox_image,
    fetched,
    file,
    image,
    plain_image,
    sha256,
)
from vmrun.image.command import resolve_command
from vmrun.image.fetch import fetch
from vmrun.image.reference import parse_reference
from vmrun.model.errors import DigestMismatch, ImageError, ImageNotFound


@pytest.fixture
def daemon(dockerd: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[docker.DockerClient]:
    monkeypatch.setenv("DOCKER_HOST", dockerd)
    client = docker.DockerClient(base_url=dockerd)
    yield client
    client.close()


def test_real_daemon(tmp_path: Path, daemon: docker.DockerClient) -> None:
    made = busybox_image(compression="none")
    path = made.write_docker_archive(tmp_path / "a.tar", name="demo:v1")
    with path.open("rb") as archive:
        daemon.images.load(archive)
    assert daemon.images.get("demo:v1").id == sha256(made.config)

    found = fetched("docker-daemon:demo:v1", tmp_path)
    assert str(found.config_blob.digest) == sha256(made.config)
    assert resolve_command(found.config, found.tree, []).executable == "/bin/busybox"
    again = fetch(parse_reference(f"docker-daemon:{sha256(made.config)}"), tmp_path / "again")
    assert again.digest == found.digest
    # The same image by another way has the same digest.
    archived = fetch(parse_reference(f"docker-archive:{path}"), tmp_path / "archived")
    assert archived.digest == found.digest


def test_image_that_a_real_daemon_built(tmp_path: Path, daemon: docker.DockerClient) -> None:
    made = busybox_image(compression="none")
    path = made.write_docker_archive(tmp_path / "a.tar", name="base:v1")
    with path.open("rb") as archive:
        daemon.images.load(archive)
    container = daemon.containers.create(
        "base:v1", ["sh", "-c", "rm /bin/ls; echo hi > /etc/motd; ln /etc/motd /etc/issue"]
    )
    container.start()
    assert container.wait(timeout=60)["StatusCode"] == 0
    container.commit("changed", tag="v1", conf={"User": "app"})
    container.remove()

    found = fetched("docker-daemon:changed:v1", tmp_path)
    assert len(found.layers) == 2
    assert found.config.user == "app"
    assert "/bin/ls" not in found.tree.entries
    assert found.tree.entries["/etc/issue"].size == 3


def test_unknown_image(tmp_path: Path, daemon: docker.DockerClient) -> None:
    assert_refused(
        "docker-daemon:nope", tmp_path, ImageNotFound, "no image 'nope'", "docker images"
    )


def test_no_daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none.sock")
    assert_refused("docker-daemon:demo", tmp_path, ImageError, "cannot get image", "docker version")


class FakeDaemon(socketserver.ThreadingUnixStreamServer):
    """Answers as a daemon does, with any archive; ``hang`` stops it halfway."""

    daemon_threads = True
    image_id = ""
    archive = b""
    hang: threading.Event | None = None


class _Handler(http.server.BaseHTTPRequestHandler):
    server: FakeDaemon

    def address_string(self) -> str:
        return "unix"

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        if self.path.endswith("/get"):
            self._send(self.server.archive)
        else:
            self._send(json.dumps({"ApiVersion": "1.41", "Id": self.server.image_id}).encode())

    def _send(self, data: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        half = len(data) // 2 if self.server.hang and self.path.endswith("/get") else len(data)
        self.wfile.write(data[:half])
        if half < len(data) and self.server.hang:
            self.server.hang.wait(30)


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeDaemon]:
    path = tmp_path / "docker.sock"
    monkeypatch.setenv("DOCKER_HOST", f"unix://{path}")
    with FakeDaemon(str(path), _Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()


def serve(fake: FakeDaemon, made: TestImage, tmp_path: Path, *, new: bool = False) -> None:
    fake.image_id = sha256(made.config)
    fake.archive = made.write_docker_archive(tmp_path / "served.tar", new=new).read_bytes()


def test_daemon_gives_another_image(tmp_path: Path, fake: FakeDaemon) -> None:
    serve(fake, plain_image(compression="none"), tmp_path)
    fake.image_id = sha256(b"another")
    assert_refused("docker-daemon:demo", tmp_path, DigestMismatch, "asked for image", "got sha256:")


def test_containerd_s_image_store_names_images_by_their_manifest(
    tmp_path: Path, fake: FakeDaemon
) -> None:
    made = plain_image()
    serve(fake, made, tmp_path, new=True)
    fake.image_id = sha256(made.manifest)
    found = fetched("docker-daemon:demo", tmp_path)
    assert str(found.config_blob.digest) == sha256(made.config)


def test_daemon_gives_nonsense(tmp_path: Path, fake: FakeDaemon) -> None:
    fake.image_id = "nonsense"
    assert_refused("docker-daemon:demo", tmp_path, ImageError, "not a digest")
    fake.image_id = sha256(b"")
    fake.archive = b"nonsense"
    assert_refused("docker-daemon:demo", tmp_path, ImageError, "truncated in a header")


def test_daemon_hangs(tmp_path: Path, fake: FakeDaemon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vmrun.image.docker_daemon._READ_SECONDS", 0.3)
    serve(fake, image([file("a", bytes(10_000))], compression="none"), tmp_path)
    fake.hang = threading.Event()
    assert_refused("docker-daemon:demo", tmp_path, ImageError, "timed out")
    fake.hang.set()


def test_daemon_goes_away(tmp_path: Path, fake: FakeDaemon) -> None:
    serve(fake, image([file("a", bytes(10_000))], compression="none"), tmp_path)
    fake.hang = threading.Event()
    fake.hang.set()
    assert_refused("docker-daemon:demo", tmp_path, ImageError, "cannot get image 'demo'")
