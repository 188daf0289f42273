"""`guest receive`: bytes get a name only if they hash to it."""

from __future__ import annotations

import hashlib
import stat
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from .base_binaries import guest


def blob(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}:{len(data)}"


def test_names_blobs_by_their_digest(tmp_path: Path) -> None:
    first, second = b"one" * 100_000, b""
    target = tmp_path / "blobs"
    result = guest("receive", target, blob(first), blob(second), stdin=first + second)
    assert result.returncode == 0, result.stderr
    assert {path.name: path.read_bytes() for path in target.iterdir()} == {
        hashlib.sha256(data).hexdigest(): data for data in (first, second)
    }
    assert stat.S_IMODE(target.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in target.iterdir()} == {0o400}


def test_wrong_bytes_leave_nothing(tmp_path: Path) -> None:
    result = guest("receive", tmp_path / "b", blob(b"good"), stdin=b"evil")
    assert result.returncode == 3
    assert result.stderr.startswith(b"vmrun-guest: ")
    assert result.stderr.count(b"\n") == 1
    assert list((tmp_path / "b").iterdir()) == []


def test_short_stream_leaves_nothing(tmp_path: Path) -> None:
    result = guest("receive", tmp_path / "b", blob(b"long enough"), stdin=b"long")
    assert result.returncode == 4
    assert list((tmp_path / "b").iterdir()) == []


def test_good_blobs_before_a_bad_one_stay(tmp_path: Path) -> None:
    result = guest("receive", tmp_path / "b", blob(b"a"), blob(b"b"), stdin=b"ax")
    assert result.returncode == 3
    assert [path.read_bytes() for path in (tmp_path / "b").iterdir()] == [b"a"]


def test_does_not_follow_a_link_in_place_of_the_directory(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "b").symlink_to("elsewhere")
    assert guest("receive", tmp_path / "b", blob(b"a"), stdin=b"a").returncode == 5
    assert list((tmp_path / "elsewhere").iterdir()) == []


@pytest.mark.parametrize(
    "argument",
    [
        "sha256:" + "0" * 63 + ":1",
        "sha256:" + "0" * 64,
        "sha256:" + "A" * 64 + ":1",
        "sha256:" + "0" * 64 + ":-1",
        "sha256:" + "0" * 64 + ":99999999999999999999",
        "sha256:../../etc/passwd:1",
        "md5:" + "0" * 64 + ":1",
        "",
    ],
)
def test_malformed_arguments_are_refused_before_reading(tmp_path: Path, argument: str) -> None:
    assert guest("receive", tmp_path / "b", blob(b"a"), argument, stdin=b"a").returncode == 2
    assert not (tmp_path / "b").exists()


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.binary(max_size=300))
def test_hashes_as_hashlib_does(tmp_path: Path, data: bytes) -> None:
    result = guest("receive", tmp_path / "b", blob(data), stdin=data)
    assert result.returncode == 0, result.stderr
