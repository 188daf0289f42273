"""Registries that lie: each lie is an error, and none is read as 'there is no such image'."""

from __future__ import annotations

import json
import os
import time
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.images import (
    OCI_INDEX,
    OCI_MANIFEST,
    TestImage,
    assert_refused,
    descriptor,
    dumps,
    file,
    image,
    plain_image,
    sha256,
)
from tests.lying_registry import (
    Answer,
    LyingRegistry,
    endless,
    error,
    honest,
    in_turn,
    lying_registry,
    raw,
    status,
    truncated,
)
from vmrun.image.fetch import fetch
from vmrun.image.limits import ImageLimits
from vmrun.image.reference import parse_reference
from vmrun.image.registry.artifacts import open_artifacts
from vmrun.image.registry.options import RegistryOptions
from vmrun.image.registry.repository import Repository
from vmrun.image.registry.source import RegistrySource
from vmrun.image.store import ImageStore
from vmrun.model.digest import Digest
from vmrun.model.errors import (
    DigestMismatch,
    ImageError,
    ImageNotFound,
    ImageTooLarge,
    UsageError,
    VmrunError,
)
from vmrun.model.image import Descriptor

MIB = 1024 * 1024


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vmrun.image.registry.transport._LONGEST_WAIT", 0.01)
    monkeypatch.setattr("vmrun.image.registry.source._PAUSE", 0.01)
    monkeypatch.setattr("vmrun.image.registry.repository._PAUSE", 0.01)


@pytest.fixture
def options(tmp_path: Path) -> RegistryOptions:
    (tmp_path / "nobody.json").write_text("{}")
    return RegistryOptions(plain_http=True, auth_file=tmp_path / "nobody.json")


@pytest.fixture
def liar() -> Iterator[LyingRegistry]:
    with lying_registry() as registry:
        yield registry


@pytest.fixture
def held(liar: LyingRegistry) -> TestImage:
    return liar.hold(plain_image())


def refused(
    liar: LyingRegistry,
    options: RegistryOptions,
    path: Path,
    kind: type[VmrunError],
    *contents: str,
    **more: object,
) -> None:
    assert_refused(liar.reference, path, kind, *contents, registry=options, **more)


def layer(held: TestImage) -> bytes:
    return held.layers[0].blob


def blob_path(data: bytes) -> str:
    return f"/blobs/{sha256(data)}$"


# --- bytes ---------------------------------------------------------------------------------


def test_an_honest_registry_is_believed(
    liar: LyingRegistry, held: TestImage, options: RegistryOptions, tmp_path: Path
) -> None:
    fetched = fetch(parse_reference(liar.reference), tmp_path / "image", registry=options)
    assert str(fetched.digest) == sha256(held.manifest)
    assert len(liar.asked("GET", "/manifests/")) == 1
    assert len(liar.asked("GET", "/blobs/")) == 2


def test_other_bytes_under_a_pinned_digest(
    liar: LyingRegistry, held: TestImage, options: RegistryOptions, tmp_path: Path
) -> None:
    other = plain_image(settings={"Cmd": ["evil"]}).manifest
    liar.manifests[sha256(held.manifest)] = (OCI_MANIFEST, other)
    pinned = f"{liar.host}/team/app@{sha256(held.manifest)}"
    assert_refused(pinned, tmp_path, DigestMismatch, "hash to", registry=options)


def test_other_bytes_for_a_manifest_of_an_index(
    liar: LyingRegistry, held: TestImage, options: RegistryOptions, tmp_path: Path
) -> None:
    platform = {"os": "linux", "architecture": "amd64"}
    entry = descriptor(OCI_MANIFEST, held.manifest, platform=platform)
    index = dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [entry]})
    liar.hold_manifest(index, OCI_INDEX, "1")
    fetched = fetch(parse_reference(liar.reference), tmp_path / "good", registry=options)
    assert [str(digest) for digest in fetched.lineage] == [sha256(index), sha256(held.manifest)]
    liar.manifests[sha256(held.manifest)] = (OCI_MANIFEST, held.manifest + b" ")
    refused(liar, options, tmp_path, DigestMismatch, "hash to")


@pytest.mark.parametrize("part", ["config", "layer"])
def test_other_bytes_for_a_blob(
    part: str, liar: LyingRegistry, held: TestImage, options: RegistryOptions, tmp_path: Path
) -> None:
    data = held.config if part == "config" else layer(held)
    liar.blobs[sha256(data)] = bytes([data[0] ^ 1]) + data[1:]
    store = ImageStore(tmp_path / "store")
    refused(liar, options, tmp_path, DigestMismatch, sha256(data), store=store)
    assert sha256(data) not in {str(digest) for digest in store.digests()}
    assert not [path for path in (tmp_path / "store").rglob("*") if "partial" in path.name]


@pytest.mark.parametrize("change", [lambda data: data + b"x", lambda data: data[:-1]])
def test_more_or_fewer_bytes_than_the_descriptor_says(
    change: Callable[[bytes], bytes],
    liar: LyingRegistry,
    held: TestImage,
    options: RegistryOptions,
    tmp_path: Path,
) -> None:
    liar.blobs[sha256(layer(held))] = change(layer(held))
    refused(liar, options, tmp_path, ImageError, "its descriptor")


def test_a_header_that_names_another_digest(
    liar: LyingRegistry, held: TestImage, options: RegistryOptions, tmp_path: Path
) -> None:
    lie = status(
        200, held.manifest, Content_Type=OCI_MANIFEST, Docker_Content_Digest=sha256(b"else")
    )
    liar.lie("GET", "/manifests/", lie)
    refused(liar, options, tmp_path, DigestMismatch, "the registry calls it", sha256(b"else")[:40])


def test_a_header_cannot_turn_other_bytes_into_the_pinned_ones(
    liar: LyingRegistry, held: TestImage, options: RegistryOptions, tmp_path: Path
) -> None:
    lie = status(
        200,
        held.manifest + b" ",
        Content_Type=OCI_MANIFEST,
        Docker_Content_Digest=sha256(held.manifest),
    )
    liar.lie("GET", "/manifests/", lie)
    pinned = f"{liar.host}/team/app:1@{sha256(held.manifest)}"
    assert_refused(pinned, tmp_path, DigestMismatch, "hash to", registry=options)


def test_a_tag_that_moves_is_asked_for_once(
    liar: LyingRegistry, held: TestImage, options: RegistryOptions, tmp_path: Path
) -> None:
    moved = plain_image(settings={"Cmd": ["evil"]})
    liar.hold(moved, tag="moved")
    liar.lie(
        "GET",
        "/manifests/1$",
        in_turn(honest, status(200, moved.manifest, Content_Type=OCI_MANIFEST)),
    )
    fetched = fetch(parse_reference(liar.reference), tmp_path / "image", registry=options)
    assert str(fetched.digest) == sha256(held.manifest)
    assert len([s for s in liar.seen if s.path.endswith("/manifests/1")]) == 1


def test_a_reference_with_a_digest_never_asks_for_the_tag(
    liar: LyingRegistry, held: TestImage, options: RegistryOptions, tmp_path: Path
) -> None:
    pinned = f"{liar.host}/team/app:1@{sha256(held.manifest)}"
    fetch(parse_reference(pinned), tmp_path / "image", registry=options)
    assert not [s for s in liar.seen if s.path.endswith("/manifests/1")]


# --- sizes ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "answer",
    [
        status(200, b" " * (ImageLimits().document + 1), Content_Type=OCI_MANIFEST),
        endless(b" " * 65536, Content_Type=OCI_MANIFEST),
        raw(
            b"HTTP/1.1 200 OK\r\nContent-Type: a/b\r\nContent-Length: 99999999999999999999\r\n\r\n"
        ),
    ],
    ids=["sized", "endless", "promised"],
)
def test_a_gigantic_manifest(
    answer: Answer, liar: LyingRegistry, options: RegistryOptions, tmp_path: Path
) -> None:
    liar.lie("GET", "/manifests/", answer)
    refused(liar, options, tmp_path, ImageTooLarge, "the answer has more than")


def test_an_endless_blob_ends_at_its_size(
    liar: LyingRegistry, held: TestImage, options: RegistryOptions, tmp_path: Path
) -> None:
    liar.lie("GET", blob_path(layer(held)), endless(b"x" * 65536))
    refused(liar, options, tmp_path, ImageError, "it has more than")


def test_more_bytes_than_an_image_may_have_are_not_downloaded(
    liar: LyingRegistry, held: TestImage, options: RegistryOptions, tmp_path: Path
) -> None:
    limits = ImageLimits(blobs=100)
    refused(liar, options, tmp_path, ImageTooLarge, "more than 100 bytes", limits=limits)
    assert not liar.asked("GET", "/blobs/")


def test_large_blobs_go_straight_to_disk(
    liar: LyingRegistry, options: RegistryOptions, tmp_path: Path
) -> None:
    layers = [[file(str(number), os.urandom(8 * MIB))] for number in range(4)]
    held = liar.hold(image(*layers, compression="none"))
    blobs = [
        Descriptor("a/b", Digest.parse(sha256(made.blob)), len(made.blob)) for made in held.layers
    ]
    store = ImageStore(tmp_path / "store")
    source = RegistrySource(
        Repository(parse_reference(liar.reference), options), store, "amd64", ImageLimits()
    )
    tracemalloc.start()
    try:
        source.prepare(blobs)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert all(store.has(blob) for blob in blobs)
    assert peak < 8 * MIB


# --- streams that break off, stall or trickle --------------------------------------------------


def test_a_truncated_blob_is_asked_for_again(
    liar: LyingRegistry, held: TestImage, options: RegistryOptions, tmp_path: Path
) -> None:
    liar.lie("GET", blob_path(layer(held)), in_turn(truncated(layer(held)), honest))
    fetch(parse_reference(liar.reference), tmp_path / "image", registry=options)
    assert len(liar.asked("GET", blob_path(layer(held)))) == 2


def test_a_blob_that_is_always_truncated(
    liar: LyingRegistry, held: TestImage, options: RegistryOptions, tmp_path: Path
) -> None:
    liar.lie("GET", blob_path(layer(held)), truncated(layer(held)))
    refused(liar, options, tmp_path, ImageError, "the answer broke off")


def test_wrong_bytes_are_not_asked_for_again(
    liar: LyingRegistry, held: TestImage, options: RegistryOptions, tmp_path: Path
) -> None:
    data = layer(held)
    liar.blobs[sha256(data)] = bytes(len(data))
    with pytest.raises(DigestMismatch):
        fetch(parse_reference(liar.reference), tmp_path / "image", registry=options)
    assert len(liar.asked("GET", blob_path(data))) == 1


def test_a_truncated_manifest(
    liar: LyingRegistry, held: TestImage, options: RegistryOptions, tmp_path: Path
) -> None:
    liar.lie("GET", "/manifests/", truncated(held.manifest, Content_Type=OCI_MANIFEST))
    with pytest.raises(ImageError, match="broke off"):
        fetch(parse_reference(liar.reference), tmp_path / "image", registry=options)


def test_a_stalled_blob(
    liar: LyingRegistry,
    held: TestImage,
    options: RegistryOptions,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("vmrun.image.registry.connections.STALL_TIMEOUT", 0.2)
    monkeypatch.setattr("vmrun.image.registry.source._DOWNLOADS", 1)
    liar.lie("GET", blob_path(layer(held)), endless(b"x", pause=5))
    began = time.monotonic()
    with pytest.raises(ImageError, match="broke off"):
        fetch(parse_reference(liar.reference), tmp_path / "image", registry=options)
    assert time.monotonic() - began < 4


def test_a_trickle_that_never_stalls(
    liar: LyingRegistry,
    held: TestImage,
    options: RegistryOptions,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("vmrun.image.registry.response.PATIENCE", 0.3)
    liar.lie("GET", blob_path(layer(held)), endless(b"x", pause=0.05))
    began = time.monotonic()
    with pytest.raises(ImageError, match="is too slow"):
        fetch(parse_reference(liar.reference), tmp_path / "image", registry=options)
    assert time.monotonic() - began < 4


def test_headers_that_trickle(
    liar: LyingRegistry,
    options: RegistryOptions,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def trickle(handler) -> None:  # type: ignore[no-untyped-def]
        handler.close_connection = True
        try:
            for byte in b"HTTP/1.1 200 OK\r\nX: " + b"x" * 1000:
                handler.wfile.write(bytes([byte]))
                time.sleep(0.05)
        except OSError:
            return

    monkeypatch.setattr("vmrun.image.registry.connections.HEADERS_TIMEOUT", 0.3)
    liar.lie("GET", "/manifests/", trickle)
    began = time.monotonic()
    with pytest.raises(ImageError):
        fetch(parse_reference(liar.reference), tmp_path / "image", registry=options)
    assert time.monotonic() - began < 8


def test_the_first_failure_ends_the_other_downloads(
    liar: LyingRegistry, options: RegistryOptions, tmp_path: Path
) -> None:
    held = liar.hold(image([file("a")], [file("b", os.urandom(8 * MIB))], compression="none"))
    liar.blobs[sha256(held.layers[0].blob)] = bytes(len(held.layers[0].blob))
    liar.lie("GET", blob_path(held.layers[1].blob), endless(b"x" * 2000, pause=0.1))
    began = time.monotonic()
    with pytest.raises(DigestMismatch):
        fetch(parse_reference(liar.reference), tmp_path / "image", registry=options)
    assert time.monotonic() - began < 10


# --- statuses ------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [201, 204, 206, 304, 400, 401, 403, 405, 410, 418, 429, 500, 503])
@pytest.mark.parametrize("what", ["manifest", "by digest", "has_blob", "referrers", "tags"])
def test_only_a_404_means_absent(
    code: int, what: str, liar: LyingRegistry, held: TestImage, options: RegistryOptions
) -> None:
    for method in ("GET", "HEAD"):
        liar.lie(method, "/v2/", status(code, error("MANIFEST_UNKNOWN") if code != 304 else b""))
    repository = Repository(parse_reference(liar.reference), options)
    digest = Digest.parse(sha256(layer(held)))
    artifacts = open_artifacts(parse_reference(liar.reference), options)
    looks: dict[str, Callable[[], object]] = {
        "manifest": lambda: repository.manifest("1"),
        "by digest": lambda: artifacts.manifest(digest),
        "has_blob": lambda: repository.has_blob(digest),
        "referrers": lambda: artifacts.referrers(digest),
        "tags": repository.tags,
    }
    with pytest.raises(ImageError) as caught:
        looks[what]()
    assert not isinstance(caught.value, ImageNotFound)
    assert str(code) in caught.value.message
    if code in (401, 403):
        assert f"docker login {liar.host}" in caught.value.hint


@pytest.mark.parametrize("body", [b"", b"not here", error("MANIFEST_UNKNOWN"), error("NOT_FOUND")])
def test_a_404_of_the_registry_means_absent(
    body: bytes, liar: LyingRegistry, options: RegistryOptions, tmp_path: Path
) -> None:
    liar.lie("GET", "/manifests/", status(404, body))
    assert open_artifacts(parse_reference(liar.reference), options).manifest("1") is None
    refused(liar, options, tmp_path, ImageNotFound, "does not exist in the registry")


@pytest.mark.parametrize("code", ["DENIED", "UNAUTHORIZED", "TOOMANYREQUESTS"])
def test_a_404_that_says_denied_does_not_mean_absent(
    code: str, liar: LyingRegistry, options: RegistryOptions
) -> None:
    liar.lie("GET", "/manifests/", status(404, error(code)))
    with pytest.raises(ImageError, match="404") as caught:
        open_artifacts(parse_reference(liar.reference), options).manifest("1")
    assert not isinstance(caught.value, ImageNotFound)


@pytest.mark.parametrize("code", [429, 500, 502, 503, 504])
def test_what_may_pass_is_asked_again(
    code: int, liar: LyingRegistry, held: TestImage, options: RegistryOptions, tmp_path: Path
) -> None:
    passing = status(code, Retry_After="3600")
    liar.lie("GET", "/manifests/", in_turn(passing, passing, honest))
    fetched = fetch(parse_reference(liar.reference), tmp_path / "image", registry=options)
    assert str(fetched.digest) == sha256(held.manifest)
    assert len(liar.asked("GET", "/manifests/")) == 3


def test_what_does_not_pass_is_given_up(liar: LyingRegistry, options: RegistryOptions) -> None:
    liar.lie("GET", "/manifests/", status(503, b"come \x1b[2Jback\r\nlater " + b"x" * 5000))
    with pytest.raises(ImageError) as caught:
        Repository(parse_reference(liar.reference), options).manifest("1")
    assert len(liar.asked("GET")) == 4
    assert caught.value.message.isprintable()
    assert len(caught.value.message) < 600


def test_nobody_listens(options: RegistryOptions, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="refused"):
        fetch(parse_reference("127.0.0.1:1/team/app:1"), tmp_path / "image", registry=options)


# --- headers -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x00\xff garbage\r\n\r\n",
        b"HTTP/1.1 abc\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Type: \x1b[2J\r\nContent-Length: 2\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nContent-Type: a/b\r\nContent-Length: 1, 2\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nContent-Type: a/b\r\nContent-Length: -5\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 200 + b"\r\n{}",
        b"HTTP/1.1 200 OK\r\nX: " + b"y" * 100_000 + b"\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 2\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nContent-Type: a/b\r\nDocker-Content-Digest: sha256:\x1b[2J\r\n\r\n{}",
        b"HTTP/1.1 307 See\r\nLocation: http://[::1\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 307 See\r\nLocation: gopher://127.0.0.1/\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 307 See\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 401 No\r\nWWW-Authenticate: \x01\x02\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 401 No\r\nWWW-Authenticate: Bearer realm=\"\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 401 No\r\nWWW-Authenticate: Bearer realm=\"http://[\"\r\n\r\n",
    ],
)  # fmt: skip
def test_garbage_is_an_image_error(
    data: bytes, liar: LyingRegistry, options: RegistryOptions, tmp_path: Path
) -> None:
    liar.lie("GET", "/manifests/", raw(data))
    with pytest.raises(ImageError) as caught:
        fetch(parse_reference(liar.reference), tmp_path / "image", registry=options)
    assert not isinstance(caught.value, ImageNotFound)
    assert caught.value.message.isprintable()


def test_a_compressed_answer_is_not_unpacked(
    liar: LyingRegistry, held: TestImage, options: RegistryOptions, tmp_path: Path
) -> None:
    import gzip

    body = gzip.compress(held.manifest)
    liar.lie(
        "GET",
        "/manifests/",
        status(200, body, Content_Type=OCI_MANIFEST, Content_Encoding="gzip"),
    )
    with pytest.raises(ImageError):
        fetch(parse_reference(liar.reference), tmp_path / "image", registry=options)


# --- lists ---------------------------------------------------------------------------------


def test_endless_pages_of_referrers(liar: LyingRegistry, options: RegistryOptions) -> None:
    page = dumps({"schemaVersion": 2, "manifests": []})
    liar.lie(
        "GET",
        "/referrers/",
        status(200, page, Content_Type=OCI_INDEX, Link='</v2/team/app/referrers/x>; rel="next"'),
    )
    with pytest.raises(ImageTooLarge, match="more than 32 pages"):
        open_artifacts(parse_reference(liar.reference), options).referrers(Digest.of(b""))
    assert len(liar.asked("GET")) == 32


def test_huge_pages_of_tags_are_bounded_together(
    liar: LyingRegistry, options: RegistryOptions
) -> None:
    page = dumps({"name": "team/app", "tags": ["x" * 100] * 15_000})
    link = "</v2/team/app/tags/list?n=1000&last=x>; rel=next"
    liar.lie("GET", "/tags/list", status(200, page, Link=link))
    with pytest.raises(ImageTooLarge):
        Repository(parse_reference(liar.reference), options).tags()
    assert len(liar.asked("GET")) <= 3


def test_the_next_page_is_the_registrys_own(liar: LyingRegistry, options: RegistryOptions) -> None:
    page = dumps({"schemaVersion": 2, "manifests": []})
    with lying_registry() as other:
        liar.lie("GET", "/referrers/", status(200, page, Link=f'<{other.url}/x>; rel="next"'))
        with pytest.raises(ImageError, match="another host"):
            open_artifacts(parse_reference(liar.reference), options).referrers(Digest.of(b""))
        assert not other.seen


def test_pages_are_put_together(liar: LyingRegistry, options: RegistryOptions) -> None:
    liar.lie("GET", "/tags/list", status(200, dumps({"name": "a", "tags": ["b"]})))
    first = status(200, dumps({"name": "a", "tags": ["a"]}), Link='<list?last=a>; rel="next"')
    liar.lie("GET", r"/tags/list\?n=1000$", first)
    assert Repository(parse_reference(liar.reference), options).tags() == ("a", "b")


@pytest.mark.parametrize(
    "listing",
    [
        b"[]",
        b'{"manifests": {}}',
        b'{"manifests": [{"mediaType": "a", "digest": "sha256:0", "size": 1}]}',
        b'{"manifests": [], "manifests": []}',
        json.dumps({"manifests": [descriptor("a/b", b"")] * 1025}).encode(),
    ],
)
def test_malformed_referrers(listing: bytes, liar: LyingRegistry, options: RegistryOptions) -> None:
    liar.lie("GET", "/referrers/", status(200, listing))
    with pytest.raises(ImageError):
        open_artifacts(parse_reference(liar.reference), options).referrers(Digest.of(b""))


def test_blobs_of_artifacts_are_bounded_and_hashed(
    liar: LyingRegistry, held: TestImage, options: RegistryOptions
) -> None:
    artifacts = open_artifacts(parse_reference(liar.reference), options)
    found = artifacts.manifest("1")
    assert found is not None
    config = replace(
        found.descriptor, digest=Digest.parse(sha256(held.config)), size=len(held.config)
    )
    assert artifacts.blob(config, 4096) == held.config
    with pytest.raises(ImageTooLarge):
        artifacts.blob(config, 10)
    liar.blobs[sha256(held.config)] = held.config[:-1] + b" "
    with pytest.raises(DigestMismatch):
        artifacts.blob(config, 4096)
    liar.lie("GET", "/blobs/", endless(b"x" * 65536))
    with pytest.raises(DigestMismatch):
        artifacts.blob(config, 4096)


# --- plain HTTP ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host", ["registry.example.com", "10.0.0.1:5000", "127.0.0.1.example.com", "localhost.example"]
)
def test_plain_http_is_for_this_host_only(host: str, options: RegistryOptions) -> None:
    with pytest.raises(UsageError, match="--plain-http"):
        Repository(parse_reference(f"{host}/team/app:1"), options)
