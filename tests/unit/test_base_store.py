"""The store of bases and the manifest: strict, content-addressed, verified."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmrun.base import manifest, store
from vmrun.model.base import Base, BaseFile, Flavour, Verity
from vmrun.model.digest import Digest
from vmrun.model.errors import BaseError


def put(bases: Path, flavour: Flavour = Flavour.MINIMAL, content: bytes = b"kernel") -> Base:
    """Install a small base."""
    with store.building(bases) as workspace:
        finished = workspace / "base"
        finished.mkdir()
        for name in manifest.FILES:
            (finished / name).write_bytes(content + name.encode())
        files = {
            name: BaseFile(name, *reversed(store.hash_file(finished / name)))  # type: ignore[arg-type]
            for name in manifest.FILES
        }
        base = Base(
            digest=Digest.of(b""),
            flavour=flavour,
            architecture="x86_64",
            kernel_release="6.12",
            contract=manifest.CONTRACT,
            verity=Verity("a" * 64, "b" * 64, 1, 1),
            files=files,
            packages={"crun": "1.21-1"},
            directory=finished,
            recipe=Digest.of(b"recipe"),
        )
        (finished / store.MANIFEST).write_bytes(manifest.serialise(base))
        return store.install(finished, bases)


def test_finds_what_was_installed(tmp_path: Path) -> None:
    base = put(tmp_path)
    assert base.directory.name == base.digest.hex
    for selector in ("minimal", str(base.digest), base.digest.hex, base.digest.hex[:12]):
        assert store.find_base([tmp_path / "missing", tmp_path], selector) == base
    store.verify_base(base)
    assert store.list_bases([tmp_path, tmp_path]) == [base]
    assert {path.name for path in tmp_path.iterdir()} == {".lock", "minimal", base.digest.hex}
    assert base.directory.stat().st_mode & 0o777 == 0o755
    assert base.kernel.stat().st_mode & 0o777 == 0o644


def test_the_newest_of_a_flavour_is_the_current_one(tmp_path: Path) -> None:
    old, new = put(tmp_path), put(tmp_path, content=b"newer")
    assert store.find_base([tmp_path], "minimal") == new
    assert store.find_base([tmp_path], old.digest.hex) == old
    assert put(tmp_path, content=b"newer") == new


def test_removal(tmp_path: Path) -> None:
    base = put(tmp_path)
    store.remove_base(base)
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]
    with pytest.raises(BaseError) as caught:
        store.find_base([tmp_path], "minimal")
    assert caught.value.hint == "vmrun base build --flavour minimal"


@pytest.mark.parametrize(
    "selector", ["", "other", "abc", "A" * 12, "../../etc", "sha512:" + "a" * 64]
)
def test_odd_selectors(tmp_path: Path, selector: str) -> None:
    with pytest.raises(BaseError):
        store.find_base([tmp_path], selector)


def test_a_link_cannot_name_something_else(tmp_path: Path) -> None:
    put(tmp_path)
    (tmp_path / "docker").symlink_to("/etc")
    with pytest.raises(BaseError, match="not a base"):
        store.find_base([tmp_path], "docker")


@pytest.mark.parametrize("name", [*manifest.FILES, store.MANIFEST])
@pytest.mark.parametrize("damage", ["flip", "grow", "cut", "remove", "link", "fifo"])
def test_any_damage_is_seen(tmp_path: Path, name: str, damage: str) -> None:
    base = put(tmp_path)
    path = base.directory / name
    data = path.read_bytes()
    path.unlink()
    if damage == "flip":
        path.write_bytes(data[:-2] + bytes([data[-2] ^ 1]) + data[-1:])
    elif damage == "grow":
        path.write_bytes(data + b"\0")
    elif damage == "cut":
        path.write_bytes(data[:-1])
    elif damage == "link":
        (tmp_path / "elsewhere").write_bytes(data)
        path.symlink_to(tmp_path / "elsewhere")
    elif damage == "fifo":
        os.mkfifo(path)
    with pytest.raises(BaseError) as caught:
        store.verify_base(base)
    assert caught.value.hint or damage in ("fifo", "link")


def test_what_a_killed_builder_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / ".building-dead" / "root").mkdir(parents=True)
    with store.building(tmp_path) as workspace:
        assert not (tmp_path / ".building-dead").exists()
    assert not workspace.exists()


def good() -> dict[str, Any]:
    file = {"digest": "sha256:" + "0" * 64, "size": 1}
    return {
        "architecture": "x86_64",
        "contract": "vmrun/1",
        "files": {name: dict(file) for name in manifest.FILES},
        "flavour": "minimal",
        "kernel_release": "6.12.0",
        "packages": {"crun": "1.21-1"},
        "recipe": "sha256:" + "1" * 64,
        "verity": {"data_blocks": 1, "hash_start": 1, "root_hash": "a" * 64, "salt": "b" * 64},
    }


def encode(document: object) -> bytes:
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode() + b"\n"


def test_a_good_manifest_round_trips(tmp_path: Path) -> None:
    data = encode(good())
    base = manifest.parse(data, tmp_path)
    assert base.digest == Digest.of(data)
    assert manifest.serialise(base) == data


@pytest.mark.parametrize("key", sorted(good()))
@pytest.mark.parametrize(
    "value", [None, 1, "", "x y", [], {}, {"a": 1}, True, "sha256:" + "0" * 63]
)
def test_odd_values_are_refused(tmp_path: Path, key: str, value: object) -> None:
    if key == "packages" and value == {}:
        return
    with pytest.raises(BaseError):
        manifest.parse(encode({**good(), key: value}), tmp_path)


@pytest.mark.parametrize("key", ["data_blocks", "hash_start"])
@pytest.mark.parametrize("value", [0, -1, True, 1.0, "1", 1 << 60])
def test_odd_verity_numbers_are_refused(tmp_path: Path, key: str, value: object) -> None:
    document = good()
    document["verity"][key] = value
    with pytest.raises(BaseError):
        manifest.parse(encode(document), tmp_path)


def test_only_the_canonical_form_is_read(tmp_path: Path) -> None:
    for data in (
        json.dumps(good(), sort_keys=True, indent=1).encode(),
        encode(good())[:-1],
        encode(good()) + b"\n",
        encode({**good(), "extra": 1}),
        encode({key: value for key, value in good().items() if key != "recipe"}),
        b'{"a":1,"a":1}\n',
        b"\xff",
    ):
        with pytest.raises(BaseError):
            manifest.parse(data, tmp_path)


@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_a_base_error(data: bytes) -> None:
    with pytest.raises(BaseError):
        manifest.parse(data, Path("/base"))


def test_deep_nesting_is_a_base_error() -> None:
    with pytest.raises(BaseError):
        manifest.parse(b"[" * 100_000, Path("/base"))
