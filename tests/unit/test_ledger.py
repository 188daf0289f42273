"""The ledger only moves forward, survives racing and dying writers, and damage is an error."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmrun.model.digest import Digest
from vmrun.model.errors import StateError
from vmrun.trust.ledger import Ledger, LedgerEntry

NAME = "registry.example.com/app:1"


def entry(signed_at: float, name: str = NAME) -> LedgerEntry:
    return LedgerEntry(name, Digest.of(f"{name} {signed_at}".encode()), signed_at)


def only_file(directory: Path) -> Path:
    [path] = directory.glob("*.json")
    return path


def test_a_new_name_has_no_history(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger")
    assert ledger.newest(NAME) is None
    assert ledger.entries() == ()
    assert not ledger.forget(NAME)


def test_it_moves_forward_only(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger")
    assert ledger.advance(entry(2)) == entry(2)
    assert ledger.advance(entry(1)) == entry(2)
    assert Ledger(tmp_path / "ledger").newest(NAME) == entry(2)
    assert ledger.advance(entry(3)) == entry(3)
    assert ledger.newest(NAME) == entry(3)


def test_names_are_apart(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger")
    for name in ("b.example.com/x:1", "a.example.com/x:1", "a.example.com/x:2"):
        ledger.advance(entry(5, name))
    assert [e.name for e in ledger.entries()] == [
        "a.example.com/x:1", "a.example.com/x:2", "b.example.com/x:1",
    ]  # fmt: skip


def test_forgetting_one_name(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger")
    ledger.advance(entry(5))
    ledger.advance(entry(5, "b.example.com/x:1"))
    assert ledger.forget(NAME)
    assert ledger.newest(NAME) is None
    assert ledger.newest("b.example.com/x:1") is not None
    assert ledger.advance(entry(1)) == entry(1)


def test_only_its_owner_may_look(tmp_path: Path) -> None:
    Ledger(tmp_path / "state" / "ledger").advance(entry(1))
    assert (tmp_path / "state" / "ledger").stat().st_mode & 0o777 == 0o700
    assert only_file(tmp_path / "state" / "ledger").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    "damage",
    [b"", b"{", b"[]", b"{}", b"\0" * 100, b'{"name": "x"}', b"x" * 100_000,
     b'{"name": "NAME", "digest": "sha256:0", "signed_at": 1}',
     b'{"name": "NAME", "digest": "DIGEST", "signed_at": -1}',
     b'{"name": "NAME", "digest": "DIGEST", "signed_at": "1"}',
     b'{"name": "NAME", "digest": "DIGEST", "signed_at": 1e400}',
     b'{"name": "NAME", "digest": "DIGEST", "signed_at": ' + b"9" * 400 + b"}",
     b'{"name": "registry.example.com/other:1", "digest": "DIGEST", "signed_at": 1}'],
)  # fmt: skip
def test_damage_is_an_error_and_never_no_history(damage: bytes, tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger")
    ledger.advance(entry(5))
    damage = damage.replace(b"NAME", NAME.encode()).replace(b"DIGEST", b"sha256:" + b"a" * 64)
    only_file(tmp_path / "ledger").write_bytes(damage)
    for look in (lambda: ledger.newest(NAME), ledger.entries, lambda: ledger.advance(entry(9))):
        with pytest.raises(StateError, match="ledger"):
            look()
    assert only_file(tmp_path / "ledger").read_bytes() == damage
    assert ledger.forget(NAME)  # deliberately


def test_a_file_in_place_of_an_entry_or_of_the_ledger(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger")
    ledger.advance(entry(5))
    path = only_file(tmp_path / "ledger")
    path.unlink()
    path.mkdir()
    with pytest.raises(StateError):
        ledger.newest(NAME)
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("file", "link"):
        for look in (
            Ledger(tmp_path / name).entries,
            lambda n=name: Ledger(tmp_path / n).newest(NAME),
        ):
            with pytest.raises(StateError, match="damaged"):
                look()


def test_a_ledger_that_others_can_write_is_not_believed(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger")
    ledger.advance(entry(5))
    (tmp_path / "ledger").chmod(0o777)
    for look in (lambda: ledger.newest(NAME), ledger.entries, lambda: ledger.advance(entry(9))):
        with pytest.raises(StateError, match="others can write"):
            look()


def test_a_ledger_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger")
    ledger.advance(entry(5))
    (tmp_path / "ledger").chmod(0)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65532)  # root may read everything
    try:
        for look in (lambda: ledger.newest(NAME), ledger.entries):
            with pytest.raises(StateError, match="Permission denied"):
                look()
    finally:
        os.seteuid(user)
        (tmp_path / "ledger").chmod(0o700)


def test_where_it_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StateError):
        Ledger(tmp_path / "file" / "ledger").advance(entry(1))


@settings(max_examples=30)
@given(times=st.lists(st.integers(0, 10**9), min_size=1, max_size=20))
def test_the_newest_of_any_order_stays(
    times: list[int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    ledger = Ledger(tmp_path_factory.mktemp("ledger"))
    for time_ in times:
        ledger.advance(entry(time_))
    assert ledger.newest(NAME) == entry(max(times))


def test_writers_that_race_lose_nothing(tmp_path: Path) -> None:
    """Threads have locks of their own here, because each opens the directory anew."""
    ledger = Ledger(tmp_path / "ledger")
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda at: ledger.advance(entry(at)), [(at * 37) % 200 for at in range(200)]))
    assert ledger.newest(NAME) == entry(199)


WRITER = """
import sys
from pathlib import Path
from vmrun.model.digest import Digest
from vmrun.trust.ledger import Ledger, LedgerEntry
ledger, at = Ledger(Path(sys.argv[1])), int(sys.argv[2])
print("go", flush=True)
while True:
    name = "registry.example.com/app:1"
    ledger.advance(LedgerEntry(name, Digest.of(f"{name} {float(at)}".encode()), float(at)))
    at += 3
"""


def test_writers_that_are_killed_leave_it_whole(tmp_path: Path) -> None:
    directory = tmp_path / "ledger"
    for _ in range(2):
        writers = [
            subprocess.Popen(
                [sys.executable, "-c", WRITER, str(directory), str(start)], stdout=subprocess.PIPE
            )
            for start in range(3)
        ]
        for writer in writers:
            assert writer.stdout is not None
            writer.stdout.readline()
        seen = 0.0
        end = time.monotonic() + 0.5
        while time.monotonic() < end:
            newest = Ledger(directory).newest(NAME)
            if newest is not None:
                assert newest.signed_at >= seen
                seen = newest.signed_at
        for writer in writers:
            writer.send_signal(signal.SIGKILL)
            writer.wait()
            assert writer.stdout is not None
            writer.stdout.close()
        newest = Ledger(directory).newest(NAME)
        assert newest is not None
        assert newest.signed_at >= seen
        assert newest == entry(newest.signed_at)
    assert Ledger(directory).advance(entry(10**9)) == entry(10**9)
    name = hashlib.sha256(NAME.encode()).hexdigest()
    assert json.loads((directory / f"{name}.json").read_text())["signed_at"] == 10**9
