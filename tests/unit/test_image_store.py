"""The store of blobs: only whole and right ones get their names, whatever else happens."""

from __future__ import annotations

import io
import multiprocessing
import os
import random
import signal
import stat
import threading
import time
from pathlib import Path

import pytest

from vmrun.image.durable import PARTIAL
from vmrun.image.layout import copy_exactly
from vmrun.image.limits import ImageLimits
from vmrun.image.store import ImageStore
from vmrun.model.digest import Digest
from vmrun.model.errors import DigestMismatch, ImageError, ImageTooLarge, StateError
from vmrun.model.image import Descriptor

FORK = multiprocessing.get_context("fork")
DATA = bytes(range(256)) * 4096


def blob(data: bytes = DATA, size: int | None = None) -> Descriptor:
    return Descriptor("application/test", Digest.of(data), len(data) if size is None else size)


def files(store: ImageStore) -> list[str]:
    return sorted(path.name for path in (store.root / "blobs").rglob("*") if path.is_file())


class Broken:
    """A stream that breaks off."""

    def __init__(self, data: bytes, error: Exception) -> None:
        self._stream, self._error = io.BytesIO(data), error

    def read(self, size: int, /) -> bytes:
        data = self._stream.read(size)
        if not data:
            raise self._error
        return data


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    return ImageStore(tmp_path / "state" / "images")


def test_what_was_added_is_there(store: ImageStore) -> None:
    assert not store.has(blob())
    store.add(blob(), io.BytesIO(DATA), "test")
    assert store.has(blob())
    with store.open(blob()) as stream:
        assert stream.read(len(DATA) + 1) == DATA
    assert list(store.digests()) == [Digest.of(DATA)]


def test_only_its_owner_may_enter(store: ImageStore) -> None:
    store.add(blob(), io.BytesIO(DATA), "test")
    assert stat.S_IMODE(store.root.stat().st_mode) == 0o700
    assert stat.S_IMODE(store.blob_path(Digest.of(DATA)).stat().st_mode) == 0o600


@pytest.mark.parametrize(
    ("wanted", "given", "error"),
    [
        (blob(), b"x" * len(DATA), DigestMismatch),
        (blob(), DATA[:-1], ImageError),
        (blob(), DATA + b"x", ImageError),
        (blob(size=len(DATA) + 1), DATA, ImageError),
        (blob(size=len(DATA) - 1), DATA, ImageError),
        (blob(size=0), DATA, ImageError),
    ],
    ids=["other bytes", "too short", "too long", "size too large", "size too small", "size 0"],
)
def test_wrong_bytes_leave_nothing(
    store: ImageStore, wanted: Descriptor, given: bytes, error: type[Exception]
) -> None:
    with pytest.raises(error):
        store.add(wanted, io.BytesIO(given), "test")
    assert files(store) == []
    assert not store.has(wanted)


@pytest.mark.parametrize("error", [OSError("reset"), RuntimeError("bug")])
def test_a_stream_that_breaks_off_leaves_nothing(store: ImageStore, error: Exception) -> None:
    with pytest.raises((ImageError, RuntimeError)):
        store.add(blob(), Broken(DATA[:1000], error), "test")
    assert files(store) == []


def test_a_blob_above_the_limit_is_not_begun(tmp_path: Path) -> None:
    store = ImageStore(tmp_path, ImageLimits(blobs=len(DATA) - 1))
    with pytest.raises(ImageTooLarge):
        store.add(blob(), io.BytesIO(DATA), "test")
    assert not (tmp_path / "blobs").exists()


def test_a_store_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "images").write_bytes(b"")
    with pytest.raises(StateError, match="images"):
        ImageStore(tmp_path / "images").add(blob(), io.BytesIO(DATA), "test")


def test_a_damaged_blob_is_dropped_by_who_finds_it(store: ImageStore) -> None:
    store.add(blob(), io.BytesIO(DATA), "test")
    path = store.blob_path(Digest.of(DATA))
    path.write_bytes(b"x" + DATA[1:])
    assert store.has(blob())  # of that size
    with pytest.raises(DigestMismatch, match="damaged") as caught, store.open(blob()) as stream:
        copy_exactly(blob(), stream, io.BytesIO(), "test")
    assert "try again" in caught.value.hint
    assert not store.has(blob())


def test_a_good_blob_stays_when_its_reader_fails(store: ImageStore) -> None:
    store.add(blob(), io.BytesIO(DATA), "test")
    with pytest.raises(ImageError, match="elsewhere"), store.open(blob()):
        raise ImageError("elsewhere")
    assert store.has(blob())


def test_what_is_no_blob_is_passed_over(store: ImageStore) -> None:
    store.add(blob(), io.BytesIO(DATA), "test")
    for name in ("README", "0" * 63, ".hidden", f"{PARTIAL}x"):
        store.blob_path(Digest.of(DATA)).with_name(name).write_bytes(b"")
    (store.root / "blobs" / "md5").mkdir()
    assert list(store.digests()) == [Digest.of(DATA)]


def test_threads_and_processes_may_add_the_same_blob(store: ImageStore) -> None:
    def add() -> None:
        for _ in range(5):
            store.add(blob(), io.BytesIO(DATA), "test")

    def many() -> None:
        threads = [threading.Thread(target=add) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    children = [FORK.Process(target=many) for _ in range(3)]
    for child in children:
        child.start()
    for child in children:
        child.join(30)
    assert [child.exitcode for child in children] == [0, 0, 0]
    assert files(store) == [Digest.of(DATA).hex]
    assert store.blob_path(Digest.of(DATA)).read_bytes() == DATA


def test_a_killed_writer_leaves_only_what_is_cleared(store: ImageStore) -> None:
    chance = random.Random(7)

    def add() -> None:
        for number in range(10_000):
            data = number.to_bytes(4, "big") * 20_000
            store.add(blob(data), io.BytesIO(data), "test")

    for _ in range(12):
        child = FORK.Process(target=add)
        child.start()
        time.sleep(chance.uniform(0.005, 0.06))
        child.kill()
        child.join(10)
        assert child.exitcode == -signal.SIGKILL
    found = list(store.digests())
    assert found
    for digest in found:
        assert Digest.of(store.blob_path(digest).read_bytes()) == digest
    store.clear_abandoned(older_than=0)
    assert files(store) == [digest.hex for digest in found]


def test_only_old_halves_are_cleared(store: ImageStore) -> None:
    store.add(blob(), io.BytesIO(DATA), "test")
    folder = store.blob_path(Digest.of(DATA)).parent
    for name, age in (("young", 3600), ("old", 2 * 86400)):
        path = folder / f"{PARTIAL}{name}"
        path.write_bytes(b"12345")
        os.utime(path, (time.time() - age, time.time() - age))
    assert store.clear_abandoned() == 5
    assert files(store) == sorted([f"{PARTIAL}young", Digest.of(DATA).hex])


def test_it_is_had_alone_only_while_nobody_uses_it(store: ImageStore) -> None:
    store.add(blob(), io.BytesIO(DATA), "test")
    other = ImageStore(store.root)
    with other.alone() as alone:
        assert not alone
    assert other.has(blob())


def test_it_is_given_up_with_its_object(tmp_path: Path) -> None:
    store = ImageStore(tmp_path)
    store.add(blob(), io.BytesIO(DATA), "test")
    with ImageStore(tmp_path).alone() as alone:
        assert not alone
    del store
    with ImageStore(tmp_path).alone() as alone:
        assert alone
