"""Whatever the bytes, the readers end, and only ever raise an ImageError."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from contextlib import suppress
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.images import Entry, compress, directory, file, hardlink, symlink, tar
from vmrun.image.config import parse_config
from vmrun.image.flatten import GATE, Flattener
from vmrun.image.layer import Budget, read_layer
from vmrun.image.limits import ImageLimits
from vmrun.image.manifest import parse_index, parse_manifest
from vmrun.image.tar import TarReader
from vmrun.model.digest import Digest
from vmrun.model.errors import ImageError
from vmrun.model.image import Compression, Descriptor, Layer

LIMITS = ImageLimits(layer_unpacked=1 << 20, unpacked=1 << 20, entries=500)
SEEDS = [
    tar([directory("d"), file("d/f", b"x" * 700), symlink("l", "d"), hardlink("h", "d/f")], form)
    for form in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT)
] + [
    tar([file("n" * 200, b"x"), symlink("l", "t" * 200)], tarfile.GNU_FORMAT),
    tar([file("\u00fc" * 120, b"x", pax_headers={"size": "1"})], tarfile.PAX_FORMAT),
]
relaxed = settings(
    deadline=None, max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A good tar with some bytes changed, and its header checksums mostly put right."""
    data = bytearray(draw(st.sampled_from(SEEDS)))
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, len(data) - 1) | st.integers(0, 511))
        data[at] = draw(st.integers(0, 255))
    if draw(st.booleans()):
        for at in range(0, len(data), 512):
            if data[at + 257 : at + 262] == b"ustar":
                data[at + 148 : at + 156] = b" " * 8
                data[at + 148 : at + 156] = b"%06o\0 " % sum(data[at : at + 512])
    return bytes(data[: draw(st.integers(0, len(data)))] if draw(st.booleans()) else data)


@relaxed
@given(st.binary(max_size=4096) | mutated())
def test_tar_reader(data: bytes) -> None:
    try:
        entries = list(TarReader(io.BytesIO(data)))
    except ImageError:
        return
    assert sum(entry.size for entry in entries) <= len(data)


@relaxed
@given(data=st.binary(max_size=2048) | mutated(), form=st.sampled_from(Compression))
def test_layer(tmp_path: Path, data: bytes, form: Compression) -> None:
    blob = tmp_path / "blob"
    blob.write_bytes(compress(data, form))
    _judge(blob, data, form)


@relaxed
@given(data=st.data(), form=st.sampled_from([Compression.GZIP, Compression.ZSTD]))
def test_damaged_compression(tmp_path: Path, data: st.DataObject, form: Compression) -> None:
    packed = bytearray(compress(SEEDS[0], form))
    for _ in range(data.draw(st.integers(1, 4))):
        packed[data.draw(st.integers(0, len(packed) - 1))] = data.draw(st.integers(0, 255))
    blob = tmp_path / "blob"
    blob.write_bytes(packed[: data.draw(st.integers(0, len(packed)))])
    _judge(blob, SEEDS[0], form)


PARTS = st.sampled_from(["a", "b", "c", "..", ".", "", ".wh.a", ".wh..wh..opq", ".vmrun-gate"])
PATHS = st.lists(PARTS, min_size=1, max_size=4).map("/".join)
ENTRIES = st.one_of(
    st.builds(file, PATHS, st.binary(max_size=3)),
    st.builds(directory, PATHS),
    st.builds(symlink, PATHS, PATHS),
    st.builds(hardlink, PATHS, PATHS),
)


@relaxed
@given(st.lists(st.lists(ENTRIES, max_size=6), max_size=4))
def test_the_tree_stays_sound(tmp_path: Path, layers: list[list[Entry]]) -> None:
    flattener = Flattener()
    for entries in layers:
        data = tar(entries)
        blob = tmp_path / "blob"
        blob.write_bytes(data)
        try:
            judged = read_layer(blob, _layer(data, Compression.NONE), Budget(LIMITS))
            flattener.apply(judged, "layer")
        except ImageError:
            continue
    for path, entry in flattener.entries.items():
        assert path == "/" or flattener.entries[path.rpartition("/")[0] or "/"].kind == "dir"
        assert not set(path.split("/")) & {"..", "."}
        assert (path in flattener.contents) == (entry.kind == "file")
        assert ".wh." not in path
    assert GATE not in flattener.entries
    on_disk = sum(content.on_disk for content in set(flattener.contents.values()))
    assert 0 <= on_disk <= flattener.peak_bytes


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
)


@relaxed
@given(st.binary(max_size=200) | JSON.map(lambda value: json.dumps(value).encode()))
def test_documents_and_what_is_in_them(data: bytes) -> None:
    with suppress(ImageError):
        parse_index(data, "index", None, LIMITS)
    with suppress(ImageError):
        parse_config(data, "config", LIMITS)


FIELDS = st.dictionaries(
    st.sampled_from(
        [
            "schemaVersion",
            "mediaType",
            "manifests",
            "layers",
            "config",
            "digest",
            "size",
            "architecture",
            "os",
            "rootfs",
            "diff_ids",
            "Env",
            "Labels",
            "User",
            "annotations",
        ]
    ),
    st.sampled_from([2, "linux", "sha256:" + "0" * 64]) | JSON,
)
NESTED = st.recursive(
    FIELDS,
    lambda inner: st.dictionaries(
        st.sampled_from(["config", "rootfs", "manifests", "layers", "platform"]),
        inner | st.lists(inner, max_size=3),
    ),
)


@relaxed
@given(NESTED)
def test_documents_of_the_right_fields(value: object) -> None:
    data = json.dumps({"schemaVersion": 2, **value}).encode()  # type: ignore[dict-item]
    descriptor = Descriptor("", Digest.of(data), len(data))
    with suppress(ImageError):
        parse_index(data, "index", None, LIMITS)
    with suppress(ImageError):
        parse_manifest(data, descriptor, LIMITS)
    with suppress(ImageError):
        parse_config(data, "config", LIMITS)


def _layer(data: bytes, form: Compression) -> Layer:
    digest = Digest("sha256", hashlib.sha256(data).hexdigest())
    return Layer(Descriptor("", digest, len(data)), form, digest)


def _judge(blob: Path, data: bytes, form: Compression) -> None:
    with suppress(ImageError):
        Flattener().apply(read_layer(blob, _layer(data, form), Budget(LIMITS)), "layer")
