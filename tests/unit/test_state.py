"""vmrun's own files: names, slots, ownership by lock, and what is found of dead runs."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import resource
import signal
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from vmrun.model.errors import NameInUse, StateError
from vmrun.run.directories import StateDirectories
from vmrun.run.state import GuestDirectory, alive, claim, find, orphans, take

FORK = multiprocessing.get_context("fork")


@pytest.fixture
def directories(tmp_path: Path) -> Iterator[StateDirectories]:
    # Short, because Unix sockets need short paths.
    root = Path(os.path.realpath(tmp_path))
    link = Path(f"/tmp/vs{os.getpid()}")
    link.symlink_to(root)
    yield at(link)
    link.unlink()


def at(root: Path) -> StateDirectories:
    return StateDirectories(root / "guests", root / "cache", (root / "bases",))


def make(directories: StateDirectories, name: str | None = None) -> GuestDirectory:
    return claim(directories, name=name, tenant="default", connect="embedded")


def in_child(work: Callable[[], Any]) -> Any:
    """What ``work`` returns in a process of its own, which has ended by then."""
    receive, send = FORK.Pipe(duplex=False)

    def run() -> None:
        send.send(work())

    child = FORK.Process(target=run)
    child.start()
    send.close()
    try:
        return receive.recv()
    finally:
        child.join(10)
        receive.close()


@contextlib.contextmanager
def held_by_child(directories: StateDirectories, name: str) -> Iterator[tuple[int, str]]:
    """A guest whose owner is another process, until the block ends (it is then killed)."""
    receive, send = FORK.Pipe(duplex=False)

    def run() -> None:
        send.send(make(directories, name).intent.run_id)
        time.sleep(60)

    child = FORK.Process(target=run)
    child.start()
    send.close()
    try:
        assert child.pid is not None
        yield child.pid, receive.recv()
    finally:
        child.kill()
        child.join(10)
        receive.close()


def test_a_guest_has_a_directory_with_its_intent(directories: StateDirectories) -> None:
    made = make(directories, "web")
    stored = json.loads((made.path / "intent.json").read_text())
    assert stored["run_id"] == made.path.name == made.intent.run_id
    assert stored["name"] == "web"
    assert stored["owner"] == os.getpid()
    assert stored["domain"] == f"vmrun-{made.intent.run_id}"
    assert find(directories, "web") == find(directories, made.intent.run_id)
    made.remove()
    made.release()


def test_no_one_else_can_read_it(directories: StateDirectories) -> None:
    made = make(directories)
    for path in (directories.guests, made.path):
        assert stat.S_IMODE(path.stat().st_mode) & 0o066 == 0
    for path in made.path.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    made.release()


def test_a_run_without_a_name_is_called_by_its_id(directories: StateDirectories) -> None:
    made = make(directories)
    assert made.intent.name == made.intent.run_id


@pytest.mark.parametrize(
    "name", ["", "-a", "a-", "a b", "../x", "a/b", "a\n", "ä", "x" * 64, "a\0"]
)
def test_what_is_no_name_is_refused(directories: StateDirectories, name: str) -> None:
    with pytest.raises(StateError, match="not a name") as caught:
        make(directories, name)
    assert caught.value.hint
    assert not directories.guests.exists()


def test_a_name_is_taken_once(directories: StateDirectories) -> None:
    made = make(directories, "web")
    with pytest.raises(NameInUse, match=f"'web' is in use by run {made.intent.run_id}") as caught:
        make(directories, "web")
    assert str(os.getpid()) in caught.value.hint
    with pytest.raises(NameInUse):
        make(directories, made.intent.name)
    made.remove()
    made.release()
    make(directories, "web").release()


def test_slots_are_unique_and_used_again(directories: StateDirectories) -> None:
    guests = [make(directories) for _ in range(4)]
    assert [guest.intent.slot for guest in guests] == [0, 1, 2, 3]
    guests[1].remove()
    assert make(directories).intent.slot == 1
    assert make(directories).intent.slot == 4


def test_a_claim_that_fails_leaves_no_directory(directories: StateDirectories) -> None:
    make(directories, "web")
    before = set(directories.guests.iterdir())
    with pytest.raises(NameInUse):
        make(directories, "web")
    assert set(directories.guests.iterdir()) == before


# Orphans.


def test_no_orphans_before_the_first_run(directories: StateDirectories) -> None:
    assert list(orphans(directories)) == []
    assert not directories.guests.exists()


def test_a_guest_is_an_orphan_once_its_owner_is_gone(directories: StateDirectories) -> None:
    with held_by_child(directories, "web") as (pid, run_id):
        assert list(orphans(directories)) == []
        path, intent = find(directories, "web")
        assert intent.owner == pid
        with pytest.raises(StateError, match="'web' is alive") as caught:
            take(path, intent)
        assert f"kill {pid}" in caught.value.hint
    (orphan,) = orphans(directories)
    assert orphan.intent.run_id == run_id
    # It is ours now, and nobody else's.
    assert in_child(lambda: len(list(orphans(directories)))) == 0
    assert orphan.remove()
    orphan.release()
    assert list(orphans(directories)) == []


def test_a_recycled_pid_keeps_no_orphan(directories: StateDirectories) -> None:
    """Ownership is the lock; the pid in the intent is for people."""
    run_id = in_child(lambda: make(directories).intent.run_id)
    path = directories.guests / run_id / "intent.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "owner": os.getpid()}))
    assert [orphan.intent.run_id for orphan in orphans(directories)] == [run_id]


def test_a_kept_guest_is_left_until_its_time(directories: StateDirectories) -> None:
    def keep(seconds: float) -> str:
        made = make(directories)
        made.keep(seconds)
        return made.intent.run_id

    kept = in_child(lambda: keep(3600))
    expired = in_child(lambda: keep(-1))
    assert [orphan.intent.run_id for orphan in orphans(directories)] == [expired]
    path, intent = find(directories, kept)
    assert intent.kept_until > time.time() + 3000
    # Unless it is asked for by name.
    taken = take(path, intent)
    assert taken.remove()


@pytest.mark.parametrize("text", [None, "", "{", "[]", "null", "{}", '{"run_id": "x"}', "\x00"])
def test_a_half_written_intent_is_removed(directories: StateDirectories, text: str | None) -> None:
    live = make(directories)
    half = directories.guests / "0123456789ab"
    half.mkdir()
    if text is not None:
        (half / "intent.json").write_text(text)
        (half / "intent.json.partial").write_text(text)
    (found,) = orphans(directories)
    # All that is known is its id: it names the domain that may have been made.
    assert (found.path, found.intent.domain) == (half, "vmrun-0123456789ab")
    assert found.remove()
    found.release()
    assert not half.exists()
    assert live.path.exists()


@pytest.mark.parametrize(
    "change",
    [
        {"run_id": "ffffffffffff"},
        {"domain": "somebody-elses"},
        {"owner": "1"},
        {"slot": None},
        {"created": "now"},
        {"uuid": 7},
        {"keys": [1]},
        {"added_later": True},
    ],
)
def test_an_intent_that_is_not_its_directorys_is_not_believed(
    directories: StateDirectories, change: dict[str, Any]
) -> None:
    made = make(directories, "web")
    intent = json.loads((made.path / "intent.json").read_text())
    (made.path / "intent.json").write_text(json.dumps(intent | change))
    made.release()
    (found,) = orphans(directories)
    assert found.intent.domain == f"vmrun-{made.path.name}"
    assert found.intent.uuid == ""
    found.release()


def test_a_link_to_somewhere_else_is_no_guest(
    directories: StateDirectories, tmp_path: Path
) -> None:
    made = make(directories, "web")
    made.release()
    elsewhere = tmp_path / "elsewhere"
    made.path.rename(elsewhere)
    (directories.guests / elsewhere.name).symlink_to(elsewhere)
    made.path.symlink_to(elsewhere)
    before = sorted(path.name for path in elsewhere.iterdir())
    assert list(orphans(directories)) == []
    assert alive(directories) == ()
    assert sorted(path.name for path in elsewhere.iterdir()) == before
    with pytest.raises(StateError, match="no guest"):
        find(directories, "web")


def test_links_in_a_guests_directory_are_not_followed(
    directories: StateDirectories, tmp_path: Path
) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").write_text("mine")
    made = make(directories)
    (made.path / "link").symlink_to(precious)
    (made.path / "r").mkdir()
    (made.path / "r" / "link").symlink_to(precious)
    (made.path / "r" / "hard").symlink_to(precious / "file")
    assert made.remove()
    assert (precious / "file").read_text() == "mine"


def test_a_lock_that_is_a_link_is_not_followed(
    directories: StateDirectories, tmp_path: Path
) -> None:
    made = make(directories)
    made.release()
    (made.path / "owner").unlink()
    (made.path / "owner").symlink_to(tmp_path / "made-by-us")
    with pytest.raises(StateError, match="cannot write"):
        list(orphans(directories))
    assert not (tmp_path / "made-by-us").exists()


def test_a_full_disk_is_named(directories: StateDirectories) -> None:
    made = make(directories)
    made.path.chmod(0o500)
    (made.path / "intent.json.partial").mkdir()  # nobody can write it, root neither
    with pytest.raises(StateError, match="cannot write") as caught:
        made.keep(10)
    assert caught.value.hint
    made.adopt()
    assert made.intent.kept_until == 0.0


def test_what_is_no_guests_directory_is_left_alone(directories: StateDirectories) -> None:
    make(directories).release()
    others = [directories.guests / name for name in ("notes", "0123456789AB", "0123456789abc")]
    for other in others:
        other.mkdir()
    list(orphans(directories))
    assert all(other.exists() for other in others)


def test_nobody_is_found_under_an_unknown_name(directories: StateDirectories) -> None:
    for selector in ("web", "", "../x"):
        with pytest.raises(StateError, match="no guest"):
            find(directories, selector)


# Where it cannot be.


@pytest.mark.parametrize("name", ["x" * 40, "ä" * 20])
def test_a_path_too_long_for_sockets_is_refused_at_once(name: str) -> None:
    """Sockets' paths are bounded in bytes, not in letters."""
    long = Path("/tmp") / name
    with pytest.raises(StateError, match="too long a path") as caught:
        make(at(long))
    assert "VMRUN_STATE_DIR" in caught.value.hint
    assert not long.exists()


@pytest.mark.parametrize(
    "root", ["/proc/vmrun", "/dev/null/vmrun"], ids=["not allowed", "not a directory"]
)
def test_where_nothing_can_be_written(root: str) -> None:
    with pytest.raises(StateError, match=f"cannot write {root}") as caught:
        make(at(Path(root)))
    assert "VMRUN_STATE_DIR" in caught.value.hint


@pytest.mark.skipif(os.geteuid() != 0, reason="gives up root for another user")
def test_a_directory_of_someone_else(directories: StateDirectories) -> None:
    make(directories).release()
    directories.guests.chmod(0o700)

    def as_nobody() -> list[str]:
        os.setresuid(65534, 65534, 65534)
        said = []
        for work in (
            lambda: make(directories),
            lambda: list(orphans(directories)),
            lambda: find(directories, "web"),
        ):
            try:
                work()
            except StateError as error:
                said.append(error.message)
        return said

    said = in_child(as_nobody)
    assert len(said) == 3
    assert all("Permission denied" in message for message in said)


def test_a_full_disk_leaves_nothing_behind(directories: StateDirectories) -> None:
    make(directories).release()
    before = sorted(directories.guests.iterdir())

    def full() -> str:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
        try:
            make(directories)
        except StateError as error:
            return f"{error.message}; {error.hint}"
        return "made"

    said = in_child(full)
    assert "cannot write" in said
    assert "free disk space" in said
    assert sorted(directories.guests.iterdir()) == before


# Several at once.


def test_many_claims_at_once(directories: StateDirectories) -> None:
    start = FORK.Event()
    done = FORK.Event()
    results: Any = FORK.Queue()

    def run() -> None:
        start.wait(10)
        unnamed = make(directories)
        try:
            make(directories, "web")
            won = True
        except NameInUse:
            won = False
        results.put((unnamed.intent.slot, unnamed.intent.run_id, won))
        done.wait(20)

    children = [FORK.Process(target=run) for _ in range(8)]
    for child in children:
        child.start()
    start.set()
    found = [results.get(timeout=20) for _ in children]
    try:
        assert list(orphans(directories)) == []
        assert sum(won for _, _, won in found) == 1
        intents = [json.loads(p.read_text()) for p in directories.guests.glob("*/intent.json")]
        assert sorted(intent["slot"] for intent in intents) == list(range(9))
    finally:
        done.set()
        for child in children:
            child.join(10)
    assert len(list(orphans(directories))) == 9


def test_each_orphan_is_given_to_one_reclaimer(directories: StateDirectories) -> None:
    ids = {in_child(lambda: make(directories).intent.run_id) for _ in range(6)}
    start, done = FORK.Event(), FORK.Event()
    results: Any = FORK.Queue()

    def run() -> None:
        start.wait(10)
        mine = list(orphans(directories))
        results.put([orphan.intent.run_id for orphan in mine])
        done.wait(20)

    children = [FORK.Process(target=run) for _ in range(4)]
    for child in children:
        child.start()
    start.set()
    found = [run_id for _ in children for run_id in results.get(timeout=20)]
    done.set()
    for child in children:
        child.join(10)
    assert sorted(found) == sorted(ids)


def test_a_live_guest_whose_intent_was_damaged_is_left_alone(
    directories: StateDirectories,
) -> None:
    mine = make(directories)
    (mine.path / "intent.json").write_text("{")
    assert list(orphans(directories)) == []
    assert mine.path.exists()
    mine.release()
    assert [found.path for found in orphans(directories)] == [mine.path]
