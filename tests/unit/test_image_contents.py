"""Bytes of files of a fetched image: those of the final tree, each layer unpacked at most once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.images import Entry, compress, directory, fetched, file, hardlink, image, whiteout
from vmrun.image import contents
from vmrun.image.contents import read_files
from vmrun.image.streams import CHUNK
from vmrun.model.errors import ImageError, ImageTooLarge
from vmrun.model.image import Image

LARGE = bytes(range(256)) * (3 * CHUNK // 256) + b"end"
LOWER = [
    directory("etc"),
    file("etc/gone", b"gone"),
    file("etc/old", b"old"),
    file("etc/large", LARGE),
    file("etc/kept", b"kept"),
    hardlink("etc/again", "etc/large"),
    file("etc/empty"),
]
UPPER = [file("etc/old", b"new"), whiteout("etc/gone")]


def made(path: Path, *layers: list[Entry], compression: str = "gzip") -> Image:
    layout = image(*layers, compression=compression).write_layout(path / "layout")
    return fetched(f"oci:{layout}", path)


def read(
    found: Image, wanted: Callable[[str], bool] = lambda _: True, **more: int
) -> dict[str, bytes]:
    limits = {"largest": 1 << 30, "total": 1 << 30, **more}
    return {one.path: one.data for one in read_files(found, wanted, **limits)}


@pytest.mark.parametrize("compression", ["gzip", "zstd", "none"])
def test_the_final_tree_counts(tmp_path: Path, compression: str) -> None:
    found = made(tmp_path, LOWER, UPPER, compression=compression)
    assert read(found) == {
        "/etc/old": b"new",
        "/etc/large": LARGE,
        "/etc/again": LARGE,
        "/etc/kept": b"kept",
        "/etc/empty": b"",
    }
    layers = {
        one.path: one.layer
        for one in read_files(found, lambda _: True, largest=1 << 30, total=1 << 30)
    }
    assert layers["/etc/old"] == found.layers[1]
    assert layers["/etc/kept"] == found.layers[0]


def test_only_the_first_bytes(tmp_path: Path) -> None:
    found = made(tmp_path, LOWER)
    assert read(found, first=3, largest=3, total=3 * 6) == {
        "/etc/gone": b"gon",
        "/etc/old": b"old",
        "/etc/large": LARGE[:3],
        "/etc/again": LARGE[:3],
        "/etc/kept": b"kep",
        "/etc/empty": b"",
    }


def test_layers_without_wanted_files_are_not_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, unpacked = made(tmp_path, LOWER, UPPER, [file("a")]), []
    real = contents.decompress

    def counted(stream, compression, where):  # type: ignore[no-untyped-def]
        unpacked.append(where)
        return real(stream, compression, where)

    monkeypatch.setattr(contents, "decompress", counted)
    assert len(read(found, lambda path: path in ("/etc/old", "/a"))) == 2
    assert unpacked == [f"layer {layer.blob.digest}" for layer in found.layers[1:]]


def test_limits(tmp_path: Path) -> None:
    found = made(tmp_path, [file("a", b"12345"), file("b", b"123")])
    assert len(read(found, largest=5, total=8)) == 2
    with pytest.raises(ImageTooLarge, match="'/a' of the image has 5 bytes, the limit is 4"):
        read(found, largest=4)
    with pytest.raises(ImageTooLarge, match="2 files of the image to be read are too large"):
        read(found, total=7)
    assert read(found, lambda path: path == "/b", largest=4) == {"/b": b"123"}


@pytest.mark.parametrize("damage", [b"", b"\x1f\x8b garbage", compress(b"short", "gzip")])
def test_a_layer_that_changed_since(tmp_path: Path, damage: bytes) -> None:
    found = made(tmp_path, LOWER)
    found.blob_path(found.layers[0].blob.digest).write_bytes(damage)
    with pytest.raises(ImageError) as caught:
        read(found)
    assert str(found.layers[0].blob.digest) in caught.value.message
