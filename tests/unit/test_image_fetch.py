"""Fetching good images by every transport that needs no daemon."""

from __future__ import annotations

import gzip
import json
import os
import stat
import tarfile
import tracemalloc
from pathlib import Path

import pytest

from tests.images import (
    OCI_INDEX,
    REF_NAME,
    TestImage,
    blob_name,
    busybox_image,
    compress,
    descriptor,
    dumps,
    fetched,
    file,
    image,
    plain_image,
    sha256,
    symlink,
    tar,
    write_archive,
    write_files,
)
from vmrun.image.fetch import fetch
from vmrun.image.reference import parse_reference
from vmrun.model.errors import StateError
from vmrun.model.image import Compression, Image


def check(found: Image, made: TestImage) -> None:
    """All blobs are in the layout, private, and the layout is one that others can read."""
    assert str(found.config_blob.digest) == sha256(made.config)
    for digest in (found.digest, found.config_blob.digest, *(x.blob.digest for x in found.layers)):
        path = found.blob_path(digest)
        assert sha256(path.read_bytes()) == str(digest)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(found.layout.stat().st_mode) == 0o700
    index = json.loads((found.layout / "index.json").read_bytes())
    assert [item["digest"] for item in index["manifests"]] == [str(found.digest)]
    assert sorted(os.listdir(found.layout)) == ["blobs", "index.json", "oci-layout"]


@pytest.mark.parametrize("compression", ["none", "gzip", "zstd"])
@pytest.mark.parametrize("transport", ["oci", "oci-archive"])
def test_oci(tmp_path: Path, transport: str, compression: str) -> None:
    made = plain_image(compression=compression)
    path = tmp_path / "source"
    made.write_layout(path) if transport == "oci" else made.write_oci_archive(path)
    found = fetched(f"{transport}:{path}:demo", tmp_path)
    check(found, made)
    assert str(found.digest) == sha256(made.manifest)
    assert found.layers[0].compression is Compression(compression)
    assert found.tree.entries["/bin/hello"].mode == 0o755


@pytest.mark.parametrize("new", [False, True])
@pytest.mark.parametrize("packed", [False, True])
def test_docker_archive_keeps_the_image_id(tmp_path: Path, new: bool, packed: bool) -> None:
    made = plain_image(compression="none")
    path = made.write_docker_archive(tmp_path / "saved.tar", new=new)
    if packed:
        path.write_bytes(gzip.compress(path.read_bytes()))
    first = fetched(f"docker-archive:{path}:demo", tmp_path)
    check(first, made)
    again = fetch(parse_reference(f"docker-archive:{path}"), tmp_path / "again")
    assert again.digest == first.digest


def test_docker_archive_of_compressed_layers(tmp_path: Path) -> None:
    made = plain_image()
    path = made.write_docker_archive(tmp_path / "saved.tar", new=True)
    found = fetched(f"docker-archive:{path}", tmp_path)
    check(found, made)
    assert found.layers[0].compression is Compression.GZIP


def test_docker_archive_whose_layers_are_shared_by_links(tmp_path: Path) -> None:
    made = image([file("a", b"x")], [file("a", b"x")], compression="none")
    layer = made.layers[0].blob
    config = sha256(made.config)[7:] + ".json"
    listing = [{"Config": config, "RepoTags": None, "Layers": ["one/layer.tar", "two/layer.tar"]}]
    link = tarfile.TarInfo("two/layer.tar")
    link.type, link.linkname = tarfile.SYMTYPE, "../one/layer.tar"
    path = tmp_path / "saved.tar"
    path.write_bytes(
        tar(
            [
                file("one/layer.tar", layer),
                (link, b""),
                file(config, made.config),
                file("manifest.json", dumps(listing)),
            ]
        )
    )
    check(fetched(f"docker-archive:{path}", tmp_path), made)


def test_picks_the_platform_in_a_nested_index(tmp_path: Path) -> None:
    ours = plain_image()
    other = image([file("a")], architecture="s390x")
    inner = dumps(
        {
            "schemaVersion": 2,
            "mediaType": OCI_INDEX,
            "manifests": [
                other.index_entry(platform={"os": "linux", "architecture": "s390x"}),
                ours.index_entry(platform={"os": "linux", "architecture": "amd64"}),
            ],
        }
    )
    entry = descriptor(OCI_INDEX, inner, annotations={REF_NAME: "demo"})
    outer = dumps({"schemaVersion": 2, "manifests": [entry]})
    files = {**ours.files(), **other.files(), blob_name(inner): inner, "index.json": outer}
    write_files(files, tmp_path / "layout")
    reference = parse_reference(f"oci:{tmp_path}/layout:demo")
    check(fetch(reference, tmp_path / "amd64"), ours)
    check(fetch(reference, tmp_path / "s390x", architecture="s390x"), other)


def test_prefers_the_plainest_variant_and_skips_attestations(tmp_path: Path) -> None:
    plain, newer = plain_image(), image([file("a")])
    platform = {"os": "linux", "architecture": "amd64"}
    attestation = newer.index_entry(platform={"os": "unknown", "architecture": "unknown"})
    attestation["annotations"]["vnd.docker.reference.type"] = "attestation-manifest"
    entries = [
        attestation,
        newer.index_entry(platform={**platform, "variant": "v3"}),
        plain.index_entry(platform=platform),
    ]
    files = {**plain.files(), **newer.files()}
    files["index.json"] = dumps({"schemaVersion": 2, "manifests": entries})
    write_files(files, tmp_path / "layout")
    check(fetched(f"oci:{tmp_path}/layout", tmp_path), plain)


def test_gzip_members_and_zstd_frames_may_follow_each_other(tmp_path: Path) -> None:
    for compression in ("gzip", "zstd"):
        made = plain_image(compression=compression)
        layer = made.layers[0]
        halves = layer.tar[:700], layer.tar[700:]
        layer.blob = b"".join(compress(half, compression) for half in halves)
        made.manifest = made.index = b""
        made.__post_init__()
        path = made.write_oci_archive(tmp_path / compression)
        check(fetch(parse_reference(f"oci-archive:{path}"), tmp_path / f"{compression}-out"), made)


def test_zstd_skippable_frame(tmp_path: Path) -> None:
    made = plain_image(compression="zstd")
    made.layers[0].blob += b"\x50\x2a\x4d\x18" + (4).to_bytes(4, "little") + b"toc!"
    made.manifest = made.index = b""
    made.__post_init__()
    check(fetched(f"oci:{made.write_layout(tmp_path / 'layout')}", tmp_path), made)


def test_accounts_come_from_the_final_layers(tmp_path: Path) -> None:
    made = image(
        [file("etc/passwd", b"old:x:1:1::/:\n"), file("usr/etc/group", b"g:x:7:new,other\n")],
        [
            file("big", bytes(700_000)),
            file("etc/passwd", b"# comment\nnew:x:5:6:New:/home/new:/bin/sh\nbad:x:y:z:::\n"),
            symlink("etc/group", "../usr/etc/group"),
        ],
    )
    found = fetched(f"oci:{made.write_layout(tmp_path / 'layout')}", tmp_path)
    assert [(a.name, a.uid, a.gid, a.home) for a in found.tree.accounts] == [
        ("new", 5, 6, "/home/new")
    ]
    assert found.tree.accounts[0].groups == (7,)
    assert found.tree.groups == {"g": 7}


def test_busybox(tmp_path: Path) -> None:
    made = busybox_image()
    found = fetched(f"oci-archive:{made.write_oci_archive(tmp_path / 'a.tar')}", tmp_path)
    check(found, made)
    assert found.config.cmd == ("sh",)
    assert found.tree.entries["/bin/sh"].target == "busybox"


def test_memory_stays_small(tmp_path: Path) -> None:
    made = image([file("big", os.urandom(64 * 1024 * 1024))], compression="zstd")
    path = made.write_oci_archive(tmp_path / "a.tar")
    del made
    tracemalloc.start()
    fetched(f"oci-archive:{path}", tmp_path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8 * 1024 * 1024


def test_directory_must_be_empty_and_is_not_touched(tmp_path: Path) -> None:
    path = plain_image().write_layout(tmp_path / "layout")
    target = tmp_path / "target"
    target.mkdir()
    (target / "precious").write_text("x")
    with pytest.raises(StateError, match="is not empty"):
        fetch(parse_reference(f"oci:{path}"), target)
    assert [p.name for p in target.iterdir()] == ["precious"]


def test_members_of_an_archive_may_start_with_a_dot(tmp_path: Path) -> None:
    made = plain_image()
    files = {f"./{name}": data for name, data in made.files().items()}
    check(fetched(f"oci-archive:{write_archive(files, tmp_path / 'a')}", tmp_path), made)
