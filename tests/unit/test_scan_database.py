"""Offline databases: found, indexed once, and unusable as a whole when any part of them is bad."""

from __future__ import annotations

import io
import json
import random
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.advisories import advisory, real_advisories, write_database
from vmrun.model.errors import ScanError, StateError, VmrunError
from vmrun.scan.database import OsvDatabase, open_database


def ids(database: OsvDatabase | None, name: str = "parrot") -> list[str]:
    assert database is not None
    return [found.id for found in database.advisories(name)]


def write_zip(folder: Path, fill: Callable[[zipfile.ZipFile], None]) -> Path:
    path = folder / "PyPI" / "all.zip"
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        fill(archive)
    return path


def good() -> bytes:
    return json.dumps(advisory()).encode()


def assert_unusable(folder: Path, *said: str) -> None:
    with pytest.raises(ScanError) as caught:
        open_database(folder, "PyPI", folder / "cache")
    for text in said:
        assert text in caught.value.message
    assert not list((folder / "cache").glob("*.sqlite"))


@pytest.mark.parametrize("below", ["", "osv-scanner", "osv-scalibr"])
def test_every_layout_is_found(tmp_path: Path, below: str) -> None:
    write_database(tmp_path, "PyPI", advisory(), advisory("TEST-2", name="slug"), below=below)
    database = open_database(tmp_path, "PyPI", tmp_path / "cache")
    assert ids(database) == ["TEST-1"]
    assert ids(database, "slug") == ["TEST-2"]
    assert ids(database, "cheese") == []
    assert database is not None
    assert database.description.advisories == 2
    assert database.description.dated == 1_789_948_800.0  # the newest modification


def test_no_database_is_none(tmp_path: Path) -> None:
    assert open_database(tmp_path, "PyPI", tmp_path / "cache") is None
    write_database(tmp_path, "npm", advisory(ecosystem="npm"))
    assert open_database(tmp_path, "PyPI", tmp_path / "cache") is None
    assert not (tmp_path / "cache").exists()


def test_a_database_of_all_releases_serves_each(tmp_path: Path) -> None:
    write_database(
        tmp_path,
        "Debian",
        advisory("TEST-11", ecosystem="Debian:11", name="bash"),
        advisory("TEST-12", ecosystem="Debian:12", name="bash"),
        advisory("TEST-ALL", ecosystem="Debian", name="bash"),
    )
    cache = tmp_path / "cache"
    assert ids(open_database(tmp_path, "Debian:12", cache), "bash") == ["TEST-12", "TEST-ALL"]
    write_database(tmp_path, "Debian:12", advisory("OWN", ecosystem="Debian:12", name="bash"))
    assert ids(open_database(tmp_path, "Debian:12", cache), "bash") == ["OWN"]


def test_an_image_cannot_lead_out_of_the_folder(tmp_path: Path) -> None:
    write_database(tmp_path / "elsewhere", "PyPI", advisory())
    folder = tmp_path / "advisories"
    (folder / "Debian:x").mkdir(parents=True)
    assert open_database(folder, "Debian:x/../../elsewhere/PyPI", tmp_path / "cache") is None


def test_the_index_is_private_small_and_the_only_one(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    many = [
        {"package": {"ecosystem": "PyPI", "name": f"p{number}"}, "versions": ["1"]}
        for number in range(2000)
    ]
    path = write_database(tmp_path, "PyPI", {**advisory(), "affected": many})
    assert ids(open_database(tmp_path, "PyPI", cache), "p77") == ["TEST-1"]
    (index,) = cache.iterdir()
    assert index.stat().st_mode & 0o077 == 0
    assert cache.stat().st_mode & 0o077 == 0
    # An advisory is stored once, not once for each package: that would be 400 MB.
    assert index.stat().st_size < 4 * len(zipfile.ZipFile(path).read("0.json"))
    write_database(tmp_path, "PyPI", advisory("NEW"))
    assert ids(open_database(tmp_path, "PyPI", cache)) == ["NEW"]
    assert len(list(cache.iterdir())) == 1


@pytest.mark.parametrize("damage", [b"", b"not a database at all", None])
def test_a_damaged_index_is_made_again(tmp_path: Path, damage: bytes | None) -> None:
    cache = tmp_path / "cache"
    write_database(tmp_path, "PyPI", advisory())
    open_database(tmp_path, "PyPI", cache)
    (index,) = cache.iterdir()
    index.write_bytes(index.read_bytes()[:5000] if damage is None else damage)
    assert ids(open_database(tmp_path, "PyPI", cache)) == ["TEST-1"]


def test_an_index_that_breaks_while_it_is_used_is_no_clean_answer(tmp_path: Path) -> None:
    write_database(tmp_path, "PyPI", advisory())
    database = open_database(tmp_path, "PyPI", tmp_path / "cache")
    (index,) = (tmp_path / "cache").iterdir()
    index.write_bytes(b"x" * 4096)
    with pytest.raises(ScanError):
        ids(database)


def test_a_cache_that_others_can_write_is_not_trusted(tmp_path: Path) -> None:
    write_database(tmp_path, "PyPI", advisory())
    (tmp_path / "cache").mkdir(mode=0o777)
    (tmp_path / "cache").chmod(0o777)
    with pytest.raises(StateError, match="others can write"):
        open_database(tmp_path, "PyPI", tmp_path / "cache")


@pytest.mark.parametrize("data", [b"", b"PK", b"<html>404 Not Found</html>" * 100])
def test_what_is_no_zip(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "PyPI" / "all.zip"
    path.parent.mkdir()
    path.write_bytes(data)
    assert_unusable(tmp_path, "not a zip")


def test_a_link_to_a_device_or_a_fifo_is_refused(tmp_path: Path) -> None:
    (tmp_path / "PyPI").mkdir()
    (tmp_path / "PyPI" / "all.zip").symlink_to("/dev/zero")
    assert_unusable(tmp_path, "not a regular file")


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "malformed JSON"),
        (b"[]", "not a JSON object"),
        (b"{" + good()[1:-1] + b', "id": "again"}', "duplicate key"),
        (b"[" * 100_000, "nested"),
        (good()[:-20], "malformed JSON"),
        (b'{"affected": []}', "'id'"),
    ],
)
def test_one_bad_advisory_spoils_all(tmp_path: Path, data: bytes, said: str) -> None:
    write_database(tmp_path, "PyPI", advisory(), data, advisory("TEST-3"))
    assert_unusable(tmp_path, "1.json", said)


def test_a_bomb_is_refused_before_it_goes_off(tmp_path: Path) -> None:
    def fill(archive: zipfile.ZipFile) -> None:
        archive.writestr("bomb.json", b" " * (7 << 20) + good())

    write_zip(tmp_path, fill)
    assert_unusable(tmp_path, "bomb.json", "too large")


def test_a_large_advisory_is_refused(tmp_path: Path) -> None:
    noise = random.Random(1).randbytes(6 << 20).hex().encode()

    def fill(archive: zipfile.ZipFile) -> None:
        archive.writestr("large.json", b'{"details": "' + noise + b'"}')

    write_zip(tmp_path, fill)
    assert_unusable(tmp_path, "large.json", "too large")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_name_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    def fill(archive: zipfile.ZipFile) -> None:
        archive.writestr("a.json", good())
        archive.writestr("a.json", json.dumps(advisory(withdrawn="2026-01-01T00:00:00Z")))

    write_zip(tmp_path, fill)
    assert_unusable(tmp_path, "twice")


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_damage_of_any_compression_is_found(tmp_path: Path, method: int) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        archive.writestr("a.json", good() + b" " * 3000)
    data = bytearray(buffer.getvalue())
    data[60:90] = b"\xa5" * 30
    path = tmp_path / "PyPI" / "all.zip"
    path.parent.mkdir()
    path.write_bytes(data)
    assert_unusable(tmp_path)


def test_no_damage_escapes_as_anything_else(tmp_path: Path) -> None:
    path = write_database(tmp_path, "PyPI", *(advisory(f"TEST-{n}") for n in range(3)))
    data, chance = path.read_bytes(), random.Random(7)
    for _ in range(150):
        broken = bytearray(data)
        for _ in range(3):
            broken[chance.randrange(len(broken))] = chance.randrange(256)
        path.write_bytes(broken[: chance.choice([len(broken), chance.randrange(len(broken))])])
        try:
            database = open_database(tmp_path, "PyPI", tmp_path / "cache")
        except VmrunError:
            continue
        assert database is not None


def test_real_databases(tmp_path: Path) -> None:
    folder = real_advisories()
    database = open_database(folder, "PyPI", tmp_path)
    assert database is not None
    assert database.description.advisories > 2000
    assert {"PYSEC-2018-28", "PYSEC-2023-74"} <= set(ids(database, "requests"))
