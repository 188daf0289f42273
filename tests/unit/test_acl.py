"""A directory that one more user may walk through, and nobody else; asked of the kernel."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vmrun.host.acl import open_to

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")

UID, OTHER = 2_000_000_123, 2_000_000_124


def can_walk(path: Path, uid: int, *, gid: int | None = None) -> bool:
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setresgid(*[uid if gid is None else gid] * 3)
            os.setresuid(uid, uid, uid)
            os.stat(path)
            os._exit(0)
        except OSError:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.fixture
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("acl")
    # Up to the folder that all of pytest's are in, however many there are between.
    for parent in (base, *base.parents):
        if parent.name.startswith("pytest-of-") or any(
            above.name.startswith("pytest-of-") for above in parent.parents
        ):
            parent.chmod(0o711)
    made = base / "guest"
    made.mkdir(mode=0o711)
    (made / "file").touch()
    return made


def test_the_one_user_can_walk_through_and_no_other(directory: Path) -> None:
    assert can_walk(directory / "file", OTHER)
    if not open_to(directory, UID):
        pytest.skip("this file system has no access control lists")
    assert can_walk(directory / "file", UID)
    assert can_walk(directory / "file", UID, gid=OTHER)
    assert not can_walk(directory / "file", OTHER)
    assert not can_walk(directory / "file", OTHER, gid=UID)
    assert not can_walk(directory / "file", OTHER, gid=0)
    assert os.stat(directory).st_mode & 0o777 == 0o710


def test_a_file_system_without_lists_is_said(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "setxattr", refuse)
    assert not open_to(directory, UID)
    monkeypatch.undo()
    with pytest.raises(FileNotFoundError):
        open_to(directory / "missing", UID)
