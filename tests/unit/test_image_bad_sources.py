"""Sources that are missing, damaged, ambiguous or hostile: each is refused, and leaves nothing."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.images import (
    OCI_INDEX,
    OCI_LAYER,
    OCI_MANIFEST,
    REF_NAME,
    TestImage,
    assert_refused,
    blob_name,
    descriptor,
    dumps,
    file,
    image,
    plain_image,
    tar,
    write_archive,
    write_files,
)
from vmrun.image.fetch import fetch
from vmrun.image.limits import ImageLimits
from vmrun.image.reference import parse_reference
from vmrun.model.errors import (
    DigestMismatch,
    ImageError,
    ImageNotFound,
    ImageTooLarge,
    StateError,
)


def layout(made: TestImage, tmp_path: Path, **files: bytes) -> str:
    """A layout with some files replaced; keys are names with ``__`` for ``.``."""
    replaced = {name.replace("__", "."): data for name, data in files.items()}
    write_files({**made.files(), **replaced}, tmp_path / "layout")
    return f"oci:{tmp_path}/layout"


@pytest.mark.parametrize("transport", ["oci", "oci-archive", "docker-archive"])
def test_missing(tmp_path: Path, transport: str) -> None:
    assert_refused(f"{transport}:{tmp_path}/no", tmp_path, ImageNotFound, "does not exist", "path")


@pytest.mark.parametrize("transport", ["oci-archive", "docker-archive"])
@pytest.mark.parametrize("kind", ["directory", "fifo"])
def test_archive_is_not_a_file(tmp_path: Path, transport: str, kind: str) -> None:
    path = tmp_path / "it"
    path.mkdir() if kind == "directory" else os.mkfifo(path)
    assert_refused(f"{transport}:{path}", tmp_path, ImageError, "not a regular file")


@pytest.mark.parametrize("keep", [0, 100, 700, 2000, -513, -2000])
@pytest.mark.parametrize("transport", ["oci-archive", "docker-archive"])
def test_truncated_archive(tmp_path: Path, transport: str, keep: int) -> None:
    path = tmp_path / "a.tar"
    made = plain_image(compression="none")
    write = made.write_oci_archive if transport == "oci-archive" else made.write_docker_archive
    whole = write(path).read_bytes().rstrip(b"\0")
    path.write_bytes(whole[: keep or 0])
    with pytest.raises(ImageError) as caught:
        fetch(parse_reference(f"{transport}:{path}"), tmp_path / "new")
    assert caught.value.hint
    assert any(word in caught.value.message for word in ("truncated", "has no", "not an OCI"))
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("keep", [30, 300, -4])
def test_truncated_compressed_archive(tmp_path: Path, keep: int) -> None:
    path = plain_image(compression="none").write_docker_archive(tmp_path / "a.tar")
    path.write_bytes(gzip.compress(path.read_bytes())[:keep])
    assert_refused(f"docker-archive:{path}", tmp_path, ImageError, "truncated")


def test_truncated_blob_in_a_layout(tmp_path: Path) -> None:
    made = plain_image()
    name = blob_name(made.layers[0].blob)
    reference = layout(made, tmp_path, **{name: made.layers[0].blob[:-1]})
    assert_refused(reference, tmp_path, ImageError, "its descriptor says", name)


def test_not_a_tar(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"hello" * 1000)
    assert_refused(f"oci-archive:{path}", tmp_path, ImageError, "not a tar header")


def test_the_other_kind_of_archive(tmp_path: Path) -> None:
    docker = plain_image(compression="none").write_docker_archive(tmp_path / "d.tar")
    assert_refused(f"oci-archive:{docker}", tmp_path, ImageNotFound, "use docker-archive:")
    oci = plain_image().write_oci_archive(tmp_path / "o.tar")
    assert_refused(f"docker-archive:{oci}", tmp_path, ImageError, "use oci-archive:")


def test_blob_does_not_match_its_digest(tmp_path: Path) -> None:
    made = plain_image()
    for blob in (made.layers[0].blob, made.config, made.manifest):
        changed = bytes([blob[0] ^ 1]) + blob[1:]
        reference = layout(made, tmp_path, **{blob_name(blob): changed})
        assert_refused(reference, tmp_path, DigestMismatch, blob_name(blob)[13:], "hash")


def test_size_mismatch(tmp_path: Path) -> None:
    for delta in (-1, 1):
        made = plain_image()
        fields = made.manifest_fields()
        fields["layers"][0]["size"] += delta
        made = TestImage(made.layers, config=made.config, manifest=dumps(fields))
        assert_refused(layout(made, tmp_path), tmp_path, ImageError, "descriptor")
    made = plain_image()
    index = json.loads(made.index)
    index["manifests"][0]["size"] += 1
    reference = layout(made, tmp_path, index__json=dumps(index))
    assert_refused(reference, tmp_path, ImageError, "its descriptor says")


def test_config_and_manifest_disagree(tmp_path: Path) -> None:
    made = plain_image()
    fields = made.config_fields()
    fields["rootfs"]["diff_ids"].append("sha256:" + "0" * 64)
    made = TestImage(made.layers, config=dumps(fields))
    assert_refused(layout(made, tmp_path), tmp_path, ImageError, "2 diff_ids", "1 layers")
    fields["rootfs"]["diff_ids"] = ["sha256:" + "0" * 64]
    made = TestImage(made.layers, config=dumps(fields))
    assert_refused(layout(made, tmp_path), tmp_path, DigestMismatch, "the config says")


def test_docker_archive_parts_disagree(tmp_path: Path) -> None:
    made = plain_image(compression="none")
    files = made.docker_files()
    config, layer = made.docker_files().keys() - {"manifest.json"}, "layer.tar"
    name = next(key for key in config if key.endswith(".json"))
    tampered = {**files, name: files[name] + b" "}
    path = write_archive(tampered, tmp_path / "a.tar")
    assert_refused(f"docker-archive:{path}", tmp_path, DigestMismatch, "named sha256:")
    name = next(key for key in files if key.endswith(layer))
    tampered = {**files, name: files[name] + bytes(512)}
    path = write_archive(tampered, tmp_path / "a.tar")
    assert_refused(f"docker-archive:{path}", tmp_path, DigestMismatch, "expected sha256:")
    path = write_archive({k: v for k, v in files.items() if k != name}, tmp_path / "a.tar")
    assert_refused(f"docker-archive:{path}", tmp_path, ImageNotFound, "has no", name)
    listing = json.loads(files["manifest.json"])
    listing[0]["Layers"] *= 2
    path = write_archive({**files, "manifest.json": dumps(listing)}, tmp_path / "a.tar")
    assert_refused(f"docker-archive:{path}", tmp_path, ImageError, "2 layers")


def test_docker_archive_blob_that_is_not_what_its_name_says(tmp_path: Path) -> None:
    made = plain_image(compression="none")
    files = made.docker_files(new=True)
    name = blob_name(made.layers[0].blob)
    other = image([file("other")], compression="gzip").layers[0].blob
    path = write_archive({**files, name: other}, tmp_path / "a.tar")
    assert_refused(f"docker-archive:{path}", tmp_path, DigestMismatch, "its bytes are")


def test_ambiguous_and_unknown_tags(tmp_path: Path) -> None:
    one, two = plain_image(tag="one"), image([file("a")], tag="two")
    index = {"schemaVersion": 2, "manifests": [one.index_entry(), two.index_entry()]}
    files = {**one.files(), **two.files(), "index.json": dumps(index)}
    write_files(files, tmp_path / "layout")
    reference = f"oci:{tmp_path}/layout"
    assert_refused(reference, tmp_path, ImageError, "several images", "one, two")
    assert_refused(f"{reference}:no", tmp_path, ImageNotFound, "tagged 'no'", "one, two")
    archive = write_archive(files, tmp_path / "a.tar")
    assert_refused(f"oci-archive:{archive}", tmp_path, ImageError, "one, two")


def test_one_tag_for_two_images(tmp_path: Path) -> None:
    one, two = plain_image(), image([file("a")])
    platform = {"os": "linux", "architecture": "amd64"}
    entries = [made.index_entry(platform=platform) for made in (one, two)]
    index = dumps({"schemaVersion": 2, "manifests": entries})
    write_files({**one.files(), **two.files(), "index.json": index}, tmp_path / "layout")
    assert_refused(f"oci:{tmp_path}/layout:demo", tmp_path, ImageError, "a tag of its own")


def test_several_docker_images(tmp_path: Path) -> None:
    one, two = plain_image(compression="none"), image([file("a")], compression="none")
    files = {**one.docker_files("one:latest"), **two.docker_files("two:latest")}
    listing = [
        json.loads(made.docker_files(f"{name}:latest")["manifest.json"])[0]
        for made, name in ((one, "one"), (two, "two"))
    ]
    files["manifest.json"] = dumps(listing)
    path = write_archive(files, tmp_path / "a.tar")
    both = "one:latest, two:latest"
    assert_refused(f"docker-archive:{path}", tmp_path, ImageError, "several images", both)
    assert_refused(f"docker-archive:{path}:x", tmp_path, ImageNotFound, "named 'x'", both)
    fetch(parse_reference(f"docker-archive:{path}:two"), tmp_path / "two")


def test_member_twice(tmp_path: Path) -> None:
    made = plain_image()
    entries = [file(name, data) for name, data in made.files().items()]
    path = tmp_path / "a.tar"
    path.write_bytes(tar([*entries, file("./index.json", b"{}")]))
    assert_refused(f"oci-archive:{path}", tmp_path, ImageError, "holds 'index.json' twice")


def test_unknown_architecture(tmp_path: Path) -> None:
    made = plain_image(architecture="riscv64")
    reference = layout(made, tmp_path)
    assert_refused(reference, tmp_path, ImageError, "no image for linux/amd64", "linux/riscv64")
    assert_refused(
        reference, tmp_path, ImageError, "linux/arm64", "linux/riscv64", architecture="arm64"
    )
    windows = plain_image(os="windows")
    assert_refused(layout(windows, tmp_path), tmp_path, ImageError, "windows/amd64")


def test_index_without_our_platform(tmp_path: Path) -> None:
    made = plain_image()
    platforms = [{"os": "linux", "architecture": name} for name in ("arm64", "ppc64le")]
    entries = [made.index_entry(platform=platform) for platform in platforms]
    index = dumps({"schemaVersion": 2, "manifests": entries})
    reference = layout(made, tmp_path, index__json=index)
    assert_refused(reference, tmp_path, ImageError, "linux/arm64, linux/ppc64le")


def test_indexes_without_end(tmp_path: Path) -> None:
    made = plain_image()
    files = made.files()
    entry = made.index_entry()
    for _ in range(5):
        data = dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [entry]})
        files[blob_name(data)] = data
        entry = descriptor(OCI_INDEX, data)
    files["index.json"] = dumps({"schemaVersion": 2, "manifests": [entry]})
    write_files(files, tmp_path / "layout")
    assert_refused(f"oci:{tmp_path}/layout", tmp_path, ImageError, "more than 3 indexes")


Change = Callable[[dict[str, Any]], object]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(schemaVersion=1), "schema 1 is not supported"),
        (lambda m: m.update(schemaVersion=3), "unknown schemaVersion 3"),
        (lambda m: m.update(schemaVersion=True), "'schemaVersion' is not a whole number"),
        (lambda m: m.update(mediaType=OCI_INDEX), "its descriptor says"),
        (lambda m: m.update(manifests=[]), "holds both layers and manifests"),
        (lambda m: m.update(layers={}), "'layers' is not a list"),
        (lambda m: m.update(layers=[1]), "not a JSON object"),
        (lambda m: m.pop("layers"), "'layers' is not a list"),
        (lambda m: m.pop("config"), "'mediaType' is not a string"),
        (lambda m: m["config"].update(mediaType="application/x"), "an artifact, not an image"),
        (lambda m: m["config"].update(size=-1), "'size' is not a whole number"),
        (lambda m: m["config"].update(size=1.0), "'size' is not a whole number"),
        (lambda m: m["config"].update(digest="md5:00"), "not a digest"),
        (lambda m: m["config"].update(digest="sha256:../../x"), "not a digest"),
        (lambda m: m["layers"][0].update(mediaType="application/x"), "unknown media type"),
        (lambda m: m["layers"][0].update(mediaType=OCI_LAYER + "+encrypted"), "is encrypted"),
        (
            lambda m: m["layers"][0].update(
                mediaType="application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"
            ),
            "not part of the image",
        ),
        (
            lambda m: m["layers"][0].update(
                mediaType="application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
            ),
            "not part of the image",
        ),
    ],
)
def test_malformed_manifest(tmp_path: Path, change: Change, message: str) -> None:
    made = plain_image()
    fields = made.manifest_fields()
    change(fields)
    made = TestImage(made.layers, config=made.config, manifest=dumps(fields))
    assert_refused(layout(made, tmp_path), tmp_path, ImageError, message)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("architecture"), "'architecture' is not a string"),
        (lambda c: c.update(os=5), "'os' is not a string"),
        (lambda c: c.update(config=[]), "'config' is not an object"),
        (lambda c: c["config"].update(Env="A=b"), "'Env' is not a list of strings"),
        (lambda c: c["config"].update(Cmd=["a", 1]), "'Cmd[1]' is not a string"),
        (lambda c: c["config"].update(Cmd=["a\0b"]), "without NUL characters"),
        (lambda c: c["config"].update(Labels={"a": 1}), "'a' is not a string"),
        (lambda c: c["config"].update(Labels={"a\0": "b"}), "without NUL characters"),
        (lambda c: c["config"].update(User="\ud800"), "malformed JSON"),
        (lambda c: c["rootfs"].update(type="other"), "unknown type 'other'"),
    ],
)
def test_malformed_config(tmp_path: Path, change: Change, message: str) -> None:
    made = plain_image()
    fields = made.config_fields()
    change(fields)
    made = TestImage(made.layers, config=json.dumps(fields).encode())
    assert_refused(layout(made, tmp_path), tmp_path, ImageError, message)


def test_schema_1_has_a_hint(tmp_path: Path) -> None:
    made = plain_image()
    entry = made.index_entry()
    entry["mediaType"] = "application/vnd.docker.distribution.manifest.v1+prettyjws"
    index = dumps({"schemaVersion": 2, "manifests": [entry]})
    reference = layout(made, tmp_path, index__json=index)
    assert_refused(reference, tmp_path, ImageError, "schema 1", "skopeo copy")


@pytest.mark.parametrize(
    ("index", "error", "message"),
    [
        (b'{"schemaVersion": 2, "schemaVersion": 2}', ImageError, "duplicate key 'schemaVersion'"),
        (b"[" * 100_000, ImageError, "nested more than"),
        (b'{"a":' * 40 + b"1" + b"}" * 40, ImageError, "nested more than 32 deep"),
        (b'{"schemaVersion": NaN}', ImageError, "NaN is not JSON"),
        (b'{"schemaVersion": ' + b"9" * 5000 + b"}", ImageError, "malformed JSON"),
        (b"\xff\xfe{", ImageError, "malformed JSON"),
        (b"", ImageError, "malformed JSON"),
        (b"[]", ImageError, "not a JSON object"),
        (b" " * (5 * 1024 * 1024), ImageTooLarge, "more than 4194304 bytes"),
        (dumps({"schemaVersion": 2, "manifests": [1] * 2000}), ImageTooLarge, "limit is 1024"),
        (dumps({"schemaVersion": 2, "manifests": []}), ImageNotFound, "holds no image"),
        (dumps({"schemaVersion": 2}), ImageError, "'manifests' is not a list"),
        (dumps({"schemaVersion": 2, "mediaType": OCI_MANIFEST}), ImageError, "not an image index"),
        (dumps({"schemaVersion": 2, "layers": []}), ImageError, "cannot be both"),
    ],
)
def test_malformed_index(
    tmp_path: Path, index: bytes, error: type[ImageError], message: str
) -> None:
    reference = layout(plain_image(), tmp_path, index__json=index)
    assert_refused(reference, tmp_path, error, message, "index.json")


def test_malformed_docker_manifest(tmp_path: Path) -> None:
    made = plain_image(compression="none")
    for listing, message in (
        (b"{}", "is not a list"),
        (b"[1]", "not a JSON object"),
        (b'[{"Layers": []}]', "'Config' is not a string"),
        (b'[{"Config": "../../etc/passwd", "Layers": []}]', "has no '../../etc/passwd'"),
    ):
        files = {**made.docker_files(), "manifest.json": listing}
        path = write_archive(files, tmp_path / "a.tar")
        with pytest.raises(ImageError) as caught:
            fetch(parse_reference(f"docker-archive:{path}"), tmp_path / "new")
        assert message in caught.value.message


def test_huge_manifest_is_not_even_read(tmp_path: Path) -> None:
    made = plain_image()
    entry = {**made.index_entry(), "size": 5 * 1024 * 1024}
    index = dumps({"schemaVersion": 2, "manifests": [entry]})
    reference = layout(made, tmp_path, index__json=index)
    assert_refused(reference, tmp_path, ImageTooLarge, "the limit is 4194304")


def test_caps_on_number_and_size(tmp_path: Path) -> None:
    reference = layout(image([file("a")], [file("b", b"x" * 100)]), tmp_path)
    for limits, message in (
        (ImageLimits(layers=1), "'layers' has 2 entries, the limit is 1"),
        (ImageLimits(blobs=300), "more than 300 bytes"),
    ):
        assert_refused(reference, tmp_path, ImageTooLarge, message, limits=limits)
    path = plain_image().write_oci_archive(tmp_path / "a.tar")
    limits = ImageLimits(members=3)
    reference = f"oci-archive:{path}"
    assert_refused(reference, tmp_path, ImageTooLarge, "more than 3 members", limits=limits)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become somebody else")
def test_unreadable_file() -> None:
    nobody = 65534
    # Not below tmp_path, where nobody but root may go.
    with tempfile.TemporaryDirectory() as name:
        path = plain_image().write_oci_archive(Path(name, "a.tar"))
        path.chmod(0o600)
        Path(name).chmod(0o777)
        os.seteuid(nobody)
        try:
            assert_refused(
                f"oci-archive:{path}", Path(name), ImageError, "cannot read", "Permission denied"
            )
        finally:
            os.seteuid(0)


_FETCH_WITH_SMALL_FILES = """
import resource, sys
from pathlib import Path
from vmrun.image.fetch import fetch
from vmrun.image.reference import parse_reference
from vmrun.model.errors import StateError
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    fetch(parse_reference(sys.argv[1]), Path(sys.argv[2]))
except StateError as error:
    print(error.message, "|", error.hint)
"""


@pytest.mark.parametrize("transport", ["oci", "docker-archive"])
def test_file_size_limit(tmp_path: Path, transport: str) -> None:
    made = image([file("a", os.urandom(200_000))])
    path = made.write_layout(tmp_path / "layout")
    if transport == "docker-archive":
        path = made.write_docker_archive(tmp_path / "a.tar")
    target = tmp_path / "new"
    done = subprocess.run(
        [sys.executable, "-c", _FETCH_WITH_SMALL_FILES, f"{transport}:{path}", target],
        check=True,
        capture_output=True,
        text=True,
    )
    assert "cannot write to" in done.stdout
    assert "File too large" in done.stdout
    assert not target.exists()


@pytest.fixture
def full_disk(tmp_path: Path) -> Any:
    """A file system of 128 KiB."""
    target = tmp_path / "small"
    target.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", target]
    if os.geteuid() != 0 or subprocess.run(command, check=False).returncode:
        pytest.skip("needs the right to mount")
    yield target
    subprocess.run(["umount", target], check=True)


@pytest.mark.parametrize("form", ["layout", "compressed archive"])
def test_full_disk(tmp_path: Path, full_disk: Path, form: str) -> None:
    made = image([file("a", os.urandom(200_000))], compression="none")
    reference = f"oci:{made.write_layout(tmp_path / 'layout')}"
    if form != "layout":
        path = made.write_docker_archive(tmp_path / "a.tar")
        path.write_bytes(gzip.compress(path.read_bytes()))
        reference = f"docker-archive:{path}"
    assert_refused(reference, full_disk, StateError, "No space left on device", "free space")


def test_annotation_is_the_only_tag(tmp_path: Path) -> None:
    made = plain_image()
    entry = {**made.index_entry(), "annotations": {REF_NAME: 5}}
    index = dumps({"schemaVersion": 2, "manifests": [entry]})
    reference = layout(made, tmp_path, index__json=index)
    assert_refused(reference, tmp_path, ImageError, "is not a string")
