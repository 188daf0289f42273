"""Pushing to and pulling from Debian's docker-registry: TLS under its own CA, and a password."""

from __future__ import annotations

import base64
import json
import os
import pty
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from images.workloads.registry import Registry, tamper
from tests.images import TestImage, assert_refused, file, image, plain_image, sha256
from tests.lying_registry import (
    Handler,
    LyingRegistry,
    endless,
    error,
    honest,
    in_turn,
    lying_registry,
    raw,
    redirect,
    status,
)
from tests.registry import PASSWORD, USER, RealRegistry
from vmrun.image.fetch import fetch
from vmrun.image.reference import parse_reference
from vmrun.image.registry.options import RegistryOptions
from vmrun.image.registry.push import Pushed, push_image
from vmrun.image.registry.repository import Repository
from vmrun.image.source import Transfer
from vmrun.image.store import ImageStore
from vmrun.model.digest import Digest
from vmrun.model.errors import (
    DigestMismatch,
    ImageError,
    ImageNotFound,
    UsageError,
    VmrunError,
)
from vmrun.model.image import Image


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vmrun.image.registry.transport._LONGEST_WAIT", 0.01)
    monkeypatch.setattr("vmrun.image.registry.repository._PAUSE", 0.01)


def three_layers() -> TestImage:
    """Of bytes that no other test has."""
    return image(*([file(str(number), os.urandom(3000))] for number in range(3)))


def local(made: TestImage, path: Path) -> Image:
    """The image, fetched from an archive."""
    archive = made.write_oci_archive(path / f"{sha256(made.manifest)[7:19]}.tar")
    target = path / f"local-{sha256(made.manifest)[7:19]}"
    return fetch(parse_reference(f"oci-archive:{archive}:demo"), target)


def push(made: TestImage, path: Path, reference: str, options: RegistryOptions) -> Pushed:
    return push_image(local(made, path), Repository(parse_reference(reference), options, push=True))


def pull(reference: str, path: Path, options: RegistryOptions, **more: Any) -> Image:
    return fetch(parse_reference(reference), path, registry=options, **more)


def size(made: TestImage) -> int:
    return len(made.config) + sum(len(layer.blob) for layer in made.layers)


# --- push, then pull -------------------------------------------------------------------------


def test_there_and_back(registry: RealRegistry, tmp_path: Path) -> None:
    made = three_layers()
    reference = f"{registry.host}/live/there:1"
    pushed = push(made, tmp_path, reference, registry.options)
    assert pushed == Pushed(
        reference, Digest.parse(sha256(made.manifest)), Transfer(4, 0, size(made)), USER
    )
    pulled = pull(reference, tmp_path / "pulled", registry.options)
    assert pulled.digest == pushed.digest
    assert pulled.blob_path(pulled.digest).read_bytes() == made.manifest
    again = pull(f"{registry.host}/live/there@{pushed.digest}", tmp_path / "a", registry.options)
    assert again.digest == pushed.digest
    both = pull(f"{reference}@{pushed.digest}", tmp_path / "b", registry.options)
    assert both.digest == pushed.digest
    assert Repository(parse_reference(reference), registry.options).tags() == ("1",)


def test_without_tls_and_password(plain_registry: RealRegistry, tmp_path: Path) -> None:
    made = three_layers()
    reference = f"{plain_registry.host}/live/plain:1"
    pushed = push(made, tmp_path, reference, plain_registry.options)
    assert pushed.account == ""
    assert pull(reference, tmp_path / "pulled", plain_registry.options).digest == pushed.digest


def test_a_large_blob_is_streamed(registry: RealRegistry, tmp_path: Path) -> None:
    made = image([file("large", os.urandom(9 * 1024 * 1024))], compression="none")
    reference = f"{registry.host}/live/large:1"
    before = len(registry.requests())
    assert push(made, tmp_path, reference, registry.options).transfer.moved == 2
    time.sleep(0.2)
    assert [m for m, _, _ in registry.requests()[before:]].count("PATCH") == 1
    assert str(pull(reference, tmp_path / "l", registry.options).digest) == sha256(made.manifest)


def test_dockers_own_media_types_stay(registry: RealRegistry, tmp_path: Path) -> None:
    archive = plain_image().write_docker_archive(tmp_path / "docker.tar")
    fetched = fetch(parse_reference(f"docker-archive:{archive}"), tmp_path / "docker")
    reference = parse_reference(f"{registry.host}/live/docker:1")
    pushed = push_image(fetched, Repository(reference, registry.options, push=True))
    assert pushed.digest == fetched.digest
    found = Repository(reference, registry.options).manifest("1")
    assert found is not None
    assert found[0] == fetched.manifest


# --- only what is missing moves ----------------------------------------------------------------


def test_a_second_push_moves_nothing(registry: RealRegistry, tmp_path: Path) -> None:
    made = three_layers()
    reference = f"{registry.host}/live/twice:1"
    push(made, tmp_path, reference, registry.options)
    before = len(registry.requests())
    again = push(made, tmp_path / "..", reference, registry.options)
    assert again.transfer == Transfer(0, 4, 0)
    assert [method for method, _, _ in registry.requests()[before:]].count("POST") == 0


def test_blobs_are_mounted_from_a_neighbour(registry: RealRegistry, tmp_path: Path) -> None:
    made = three_layers()
    push(made, tmp_path, f"{registry.host}/live/neighbour:1", registry.options)
    pulled = pull(f"{registry.host}/live/neighbour:1", tmp_path / "pulled", registry.options)
    target = parse_reference(f"{registry.host}/live/mounted:1")
    pushed = push_image(pulled, Repository(target, registry.options, push=True))
    assert pushed.transfer == Transfer(0, 4, 0)
    assert pull(str(target), tmp_path / "mounted", registry.options).digest == pulled.digest


def test_only_missing_blobs_are_downloaded(registry: RealRegistry, tmp_path: Path) -> None:
    first = three_layers()
    second = TestImage([*first.layers[:2], *three_layers().layers[:1]])
    store = ImageStore(tmp_path / "store")
    for name, made in (("first", first), ("second", second)):
        push(made, tmp_path, f"{registry.host}/live/{name}:1", registry.options)
    pull(f"{registry.host}/live/first:1", tmp_path / "1", registry.options, store=store)

    def blobs_asked(name: str) -> int:
        found = registry.requests()
        return len([u for m, u, _ in found if m == "GET" and f"{name}/blobs/" in u])

    assert blobs_asked("live/first") == 4
    pull(f"{registry.host}/live/second:1", tmp_path / "2", registry.options, store=store)
    assert blobs_asked("live/second") == 2
    pull(f"{registry.host}/live/second:1", tmp_path / "3", registry.options, store=store)
    assert blobs_asked("live/second") == 2
    assert store.blob_path(Digest.parse(sha256(second.manifest))).exists()


# --- refused ---------------------------------------------------------------------------------


def credentials(host: str, password: str, path: Path) -> Path:
    auth = base64.b64encode(f"{USER}:{password}".encode()).decode()
    (path / "config.json").write_text(json.dumps({"auths": {host: {"auth": auth}}}))
    return path / "config.json"


@pytest.mark.parametrize("password", ["wrong", "", PASSWORD + "x", PASSWORD[:-1]])
def test_a_wrong_password(password: str, registry: RealRegistry, tmp_path: Path) -> None:
    options = replace(registry.options, auth_file=credentials(registry.host, password, tmp_path))
    reference = f"{registry.host}/live/any:1"
    assert_refused(reference, tmp_path, ImageError, "401", "docker login", registry=options)
    with pytest.raises(ImageError, match="401"):
        push(plain_image(), tmp_path, reference, options)


def test_no_password(registry: RealRegistry, tmp_path: Path) -> None:
    (tmp_path / "none.json").write_text("{}")
    options = replace(registry.options, auth_file=tmp_path / "none.json")
    assert_refused(
        f"{registry.host}/live/any:1", tmp_path, ImageError, "refuses us", registry=options
    )


def test_no_ca(registry: RealRegistry, tmp_path: Path) -> None:
    options = replace(registry.options, cert_dirs=())
    reference = f"{registry.host}/live/any:1"
    assert_refused(
        reference, tmp_path, ImageError, "certificate verify failed", "--cert-dir", registry=options
    )


def test_tls_where_plain_http_is_spoken(registry: RealRegistry, tmp_path: Path) -> None:
    options = replace(registry.options, plain_http=True)
    with pytest.raises(ImageError):
        pull(f"{registry.host}/live/any:1", tmp_path / "image", options)


def test_plain_http_where_tls_is_spoken(plain_registry: RealRegistry, tmp_path: Path) -> None:
    options = replace(plain_registry.options, plain_http=False)
    with pytest.raises(ImageError):
        pull(f"{plain_registry.host}/live/any:1", tmp_path / "image", options)


def test_what_does_not_exist(registry: RealRegistry, tmp_path: Path) -> None:
    push(plain_image(), tmp_path, f"{registry.host}/live/there-is:1", registry.options)
    for reference in (
        f"{registry.host}/live/there-is-not:1",
        f"{registry.host}/live/there-is:2",
        f"{registry.host}/live/there-is@{sha256(b'nothing')}",
    ):
        assert_refused(
            reference, tmp_path, ImageNotFound, "does not exist", registry=registry.options
        )
    with pytest.raises(ImageNotFound):
        Repository(parse_reference(f"{registry.host}/live/there-is-not:1"), registry.options).tags()


def test_bytes_that_were_changed_on_the_registrys_disk(
    registry: RealRegistry, tmp_path: Path
) -> None:
    made = three_layers()
    push(made, tmp_path, f"{registry.host}/live/changed:1", registry.options)
    running = Registry(registry.host, tmp_path, tmp_path, registry.storage, registry.log)
    tamper(running, sha256(made.layers[1].blob))
    reference = f"{registry.host}/live/changed:1"
    with pytest.raises(DigestMismatch, match=sha256(made.layers[1].blob)):
        pull(reference, tmp_path / "image", registry.options)


@pytest.mark.parametrize("what", ["no tag", "other digest"])
def test_targets(what: str, registry: RealRegistry, tmp_path: Path) -> None:
    made = three_layers()
    digest = sha256(made.manifest if what == "no tag" else b"else")
    reference = f"{registry.host}/live/by-digest@{digest}"
    if what == "other digest":
        with pytest.raises(UsageError, match="another digest"):
            push(made, tmp_path, reference, registry.options)
    else:
        assert push(made, tmp_path, reference, registry.options).reference.endswith("/by-digest")
        assert str(pull(reference, tmp_path / "p", registry.options).digest) == digest


# --- pushing to a registry that misbehaves ------------------------------------------------------


@pytest.fixture
def liar() -> Iterator[LyingRegistry]:
    with lying_registry() as registry:
        yield registry


@pytest.fixture
def options(liar: LyingRegistry, tmp_path: Path) -> RegistryOptions:
    return RegistryOptions(plain_http=True, auth_file=credentials(liar.host, "x", tmp_path))


@pytest.mark.parametrize("large", [False, True])
def test_a_broken_upload_is_begun_anew(
    large: bool, liar: LyingRegistry, options: RegistryOptions, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    if large:
        monkeypatch.setattr("vmrun.image.registry.repository._LARGE", 100)
    made = three_layers()
    liar.lie("PATCH" if large else "PUT", "/uploads/", in_turn(raw(b""), status(502), honest))
    pushed = push(made, tmp_path, liar.reference, options)
    assert pushed.transfer.moved == 4
    assert len(liar.asked("POST")) == 6
    assert str(pull(liar.reference, tmp_path / "back", options).digest) == sha256(made.manifest)


@pytest.mark.parametrize(
    ("method", "answer"),
    [
        ("HEAD", status(403)),
        ("HEAD", status(500)),
        ("HEAD", redirect("/v2/team/app/elsewhere")),
        ("POST", status(200)),
        ("POST", status(202)),
        ("POST", status(202, Location="ftp://127.0.0.1/")),
        ("POST", redirect("/elsewhere")),
        ("POST", status(413, error("SIZE_INVALID"))),
        ("PUT", status(200)),
        ("PUT", status(401)),
        ("PUT", status(500)),
        ("PUT", raw(b"garbage")),
        ("PUT", redirect("/elsewhere")),
    ],
)
def test_a_push_that_fails_moves_no_tag(
    method: str, answer: Any, liar: LyingRegistry, options: RegistryOptions, tmp_path: Path
) -> None:
    liar.lie(method, "/v2/", answer)
    with pytest.raises(ImageError):
        push(three_layers(), tmp_path, liar.reference, options)
    assert not liar.asked("PUT", "/manifests/")
    assert not liar.manifests


def test_an_upload_elsewhere_gets_no_authorization(
    liar: LyingRegistry, options: RegistryOptions, tmp_path: Path
) -> None:
    from tests.lying_registry import needs

    made = three_layers()
    auth = json.loads((tmp_path / "config.json").read_text())["auths"][liar.host]["auth"]
    liar.lie("HEAD", "/v2/", needs(f"Basic {auth}", "Basic realm=x"))
    with lying_registry() as other:
        other.lie("PUT", "/upload", status(201))
        liar.lie("POST", "/uploads/", status(202, Location=f"{other.url}/upload?state=1"))
        push(made, tmp_path, liar.reference, options)
        assert len(other.seen) == 4
        assert all(seen.authorization is None for seen in other.seen)
        assert all("?state=1&digest=sha256%3A" in seen.path for seen in other.seen)


def test_a_file_that_changes_while_it_is_pushed(
    liar: LyingRegistry, options: RegistryOptions, tmp_path: Path
) -> None:
    fetched = local(three_layers(), tmp_path)
    blob = fetched.blob_path(fetched.layers[0].blob.digest)
    blob.chmod(0o600)
    blob.write_bytes(bytes(blob.stat().st_size))
    with pytest.raises(VmrunError):
        push_image(fetched, Repository(parse_reference(liar.reference), options, push=True))
    assert not liar.manifests


def test_blobs_come_side_by_side(
    liar: LyingRegistry, options: RegistryOptions, tmp_path: Path
) -> None:
    made = liar.hold(image(*([file(str(number))] for number in range(8))))
    barrier = threading.Barrier(4, timeout=10)

    def together(handler: Handler) -> None:
        if "sha256" in handler.path and handler.path[-64:] in first:
            barrier.wait()  # passes only while four are on their way at the same time
        handler.honest()

    first = {sha256(layer.blob)[7:] for layer in made.layers[:8]}
    liar.lie("GET", "/blobs/", together)
    pull(liar.reference, tmp_path / "image", options)
    assert len(liar.asked("GET", "/blobs/")) == 9


# --- the commands ------------------------------------------------------------------------------


def arguments(registry: RealRegistry) -> list[str]:
    (cert_dir,) = registry.options.cert_dirs
    return ["--cert-dir", str(cert_dir), "--authfile", str(registry.options.auth_file)]


def test_the_commands(registry: RealRegistry, vmrun: Any, tmp_path: Path) -> None:
    made = three_layers()
    archive = made.write_oci_archive(tmp_path / "image.tar")
    target = f"{registry.host}/live/command:1"
    source = f"oci-archive:{archive}:demo"
    pushed = vmrun("image", "push", *arguments(registry), source, target)
    assert (pushed.status, pushed.out) == (0, f"{target}@{sha256(made.manifest)}\n")
    assert "4 blobs moved" in pushed.err
    assert "\x1b" not in pushed.err
    again = vmrun("image", "push", "--json", *arguments(registry), source, target)
    assert json.loads(again.out) == {
        "reference": target,
        "digest": sha256(made.manifest),
        "transfer": {"moved": 0, "present": 4, "bytes": 0},
        "account": USER,
    }
    pulled = vmrun("image", "pull", "--quiet", *arguments(registry), target)
    assert pulled.out.endswith(f"@{sha256(made.manifest)}\n")
    assert (pulled.status, pulled.err) == (0, "")
    more = vmrun("image", "pull", "--json", *arguments(registry), target)
    assert json.loads(more.out)["transfer"] == {"moved": 0, "present": 4, "bytes": 0}


def test_the_commands_refuse(registry: RealRegistry, vmrun: Any, tmp_path: Path) -> None:
    target = f"{registry.host}/live/none:1"
    absent = vmrun("image", "pull", *arguments(registry), target)
    assert absent.status == 1
    assert "does not exist in the registry" in absent.err
    assert absent.out == ""
    remote = vmrun("image", "pull", "--plain-http", "registry.example.com/team/app:1")
    assert remote.status == 2
    assert "--plain-http is for registries on this host" in remote.err
    local = vmrun("image", "pull", f"oci:{tmp_path}")
    assert local.status == 2
    assert "is not in a registry" in local.err


def on_a_terminal(words: list[str]) -> tuple[int, str, bytes]:
    """Status and stdout of a command whose stderr is a terminal, and what it wrote there."""
    leader, follower = pty.openpty()
    try:
        process = subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=follower, text=True
        )
        out, _ = process.communicate(timeout=60)
        os.set_blocking(leader, False)
        try:
            err = os.read(leader, 65536)
        except BlockingIOError:
            err = b""
        return process.returncode, out, err
    finally:
        os.close(leader)
        os.close(follower)


def test_progress_is_for_terminals(
    registry: RealRegistry, vmrun_program: list[str], tmp_path: Path
) -> None:
    made = three_layers()
    push(made, tmp_path, f"{registry.host}/live/progress:1", registry.options)
    words = [*vmrun_program, "image", "pull", *arguments(registry)]
    code, out, err = on_a_terminal([*words, f"{registry.host}/live/progress:1"])
    assert code == 0
    assert out.endswith(f"@{sha256(made.manifest)}\n")
    assert b" of " in err
    assert b"\r\x1b[Kvmrun: 4 blobs moved" in err  # the line is gone before the result
    quiet = on_a_terminal([*words, "--quiet", f"{registry.host}/live/progress:1"])
    assert quiet == (0, out, b"")


def test_an_interrupt_ends_all_downloads(
    liar: LyingRegistry, options: RegistryOptions, vmrun_program: list[str], tmp_path: Path
) -> None:
    """Also those that still wait for a thread; and it leaves nothing half-written behind."""
    liar.hold(image(*([file(str(number), os.urandom(9000))] for number in range(8))))
    liar.lie("GET", "/blobs/", endless(b"x", pause=0.02))
    store = tmp_path / "state"
    flags = ["--plain-http", "--authfile", str(options.auth_file)]
    process = subprocess.Popen(
        [*vmrun_program, "image", "pull", *flags, liar.reference],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "VMRUN_STATE_DIR": str(store)},
    )
    deadline = time.monotonic() + 30
    while len(liar.asked("GET", "/blobs/")) < 4 and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    began = time.monotonic()
    out, _ = process.communicate(timeout=30)
    assert time.monotonic() - began < 5
    assert process.returncode != 0
    assert out == b""
    assert len(liar.asked("GET", "/blobs/")) == 4
    assert not [path for path in store.rglob("*") if path.is_file() and "blobs" in path.parts]
