"""Named volumes: each tenant's own, one user at a time, there whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from vmrun.model.errors import DeadlineExceeded, StateError, VmrunError
from vmrun.volume import luks, store
from vmrun.volume.passphrase import read_passphrase
from vmrun.volume.store import HeldVolume, VolumeStore

SIZE = 16 << 20


@pytest.fixture
def passphrase(tmp_path: Path) -> Path:
    path = tmp_path / "passphrase"
    path.write_text("correct horse battery staple\nnot this\n")
    path.chmod(0o600)
    return path


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("template") / "disk.qcow2"
    luks.create_disk(path, SIZE, b"correct horse battery staple", guessable=False)
    return path


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, template: Path) -> None:
    """The disks are real, but made once: making one takes seconds."""

    def copy(path: Path, size: int, key: bytes) -> None:
        assert (size, key) == (SIZE, b"correct horse battery staple")
        shutil.copyfile(template, path)
        path.chmod(0o600)

    monkeypatch.setattr(store, "create_disk", copy)


@pytest.fixture
def volumes(tmp_path: Path) -> VolumeStore:
    return VolumeStore(tmp_path / "volumes", "alice")


def test_created_listed_found_and_removed(volumes: VolumeStore, passphrase: Path) -> None:
    made = volumes.create("db", SIZE, passphrase_file=passphrase)
    assert volumes.list() == (made,)
    found = volumes.get("db")
    assert (found.size, found.tenant, found.passphrase_file) == (SIZE, "alice", passphrase)
    assert found.in_use_by == ""
    luks.check_disk(made.path / "disk.qcow2", b"correct horse battery staple")
    volumes.remove("db")
    assert volumes.list() == ()
    assert not made.path.exists()
    with pytest.raises(StateError, match="tenant 'alice' has no volume 'db'"):
        volumes.get("db")


def test_it_is_private_and_has_no_passphrase_in_it(
    volumes: VolumeStore, passphrase: Path, tmp_path: Path
) -> None:
    made = volumes.create("db", SIZE, passphrase_file=passphrase)
    for path in (tmp_path / "volumes", made.path.parent, made.path):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
    for path in made.path.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert b"battery" not in path.read_bytes()


def test_a_tenant_cannot_name_anothers(
    volumes: VolumeStore, passphrase: Path, tmp_path: Path
) -> None:
    volumes.create("db", SIZE, passphrase_file=passphrase)
    bob = VolumeStore(tmp_path / "volumes", "bob")
    assert bob.list() == ()
    for name in ("db", "../alice/db", "alice/db", "/alice/db", "..", ".", "", "db/.", "db\0"):
        with pytest.raises(StateError):
            bob.get(name)
        with pytest.raises(StateError):
            bob.remove(name)
    assert len(volumes.list()) == 1


@pytest.mark.parametrize("tenant", ["", "..", ".", "a/b", "/", "-x", "a\nb", "ä", "x" * 64])
def test_a_tenant_is_no_path(tmp_path: Path, tenant: str) -> None:
    with pytest.raises(StateError, match="not a tenant's name"):
        VolumeStore(tmp_path, tenant)


def test_a_volume_that_was_moved_to_another_tenant_is_not_taken(
    volumes: VolumeStore, passphrase: Path, tmp_path: Path
) -> None:
    made = volumes.create("db", SIZE, passphrase_file=passphrase)
    bob = VolumeStore(tmp_path / "volumes", "bob")
    (tmp_path / "volumes" / "bob").mkdir()
    made.path.rename(tmp_path / "volumes" / "bob" / "db")
    with pytest.raises(StateError, match="is that of 'db' of tenant 'alice'"):
        bob.get("db")


def test_there_is_one_of_a_name(volumes: VolumeStore, passphrase: Path) -> None:
    volumes.create("db", SIZE, passphrase_file=passphrase)
    with pytest.raises(StateError, match="there is a volume 'db' already"):
        volumes.create("db", SIZE, passphrase_file=passphrase)


def test_one_guest_at_a_time(volumes: VolumeStore, passphrase: Path) -> None:
    made = volumes.create("db", SIZE, passphrase_file=passphrase)
    held = HeldVolume.take(made, "0123456789ab")
    assert volumes.get("db").in_use_by == "0123456789ab"
    with pytest.raises(StateError, match="'db' is in use by 0123456789ab"):
        HeldVolume.take(made, "ba9876543210")
    with pytest.raises(StateError, match="in use"):
        volumes.remove("db")
    assert held.release()
    assert volumes.get("db").in_use_by == ""
    HeldVolume.take(made, "ba9876543210").release()
    volumes.remove("db")


def test_a_holder_that_was_killed_holds_nothing(volumes: VolumeStore, passphrase: Path) -> None:
    made = volumes.create("db", SIZE, passphrase_file=passphrase)
    program = (
        "import sys, time; from pathlib import Path\n"
        "from vmrun.volume.store import HeldVolume, VolumeStore\n"
        "v = VolumeStore(Path(sys.argv[1]), 'alice').get('db')\n"
        "held = HeldVolume.take(v, 'victim'); print('held', flush=True); time.sleep(60)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(made.path.parent.parent)],
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        assert volumes.get("db").in_use_by == "victim"
        other.kill()
    assert volumes.get("db").in_use_by == ""


def test_lent_to_qemu_under_a_name_of_the_guests(
    volumes: VolumeStore, passphrase: Path, tmp_path: Path
) -> None:
    made = volumes.create("db", SIZE, passphrase_file=passphrase)
    held = HeldVolume.take(made, "0123456789ab")
    owner = (2_000_000_001, 2_000_000_001) if os.geteuid() == 0 else None
    lent = tmp_path / "guest.qcow2"
    held.lend(lent, owner)
    assert lent.samefile(held.disk)
    if owner is not None:
        assert lent.stat().st_uid == 2_000_000_001
    assert not held.release(), "the guest still has its name of it"
    lent.unlink()
    assert made.path.joinpath("disk.qcow2").stat().st_uid == os.geteuid()


def test_what_a_killed_creation_left_is_no_volume_and_goes(
    volumes: VolumeStore, passphrase: Path
) -> None:
    made = volumes.create("db", SIZE, passphrase_file=passphrase)
    left = made.path.parent / ".partial-abc"
    left.mkdir()
    (left / "disk.qcow2").write_text("half")
    assert [volume.name for volume in volumes.list()] == ["db"]
    volumes.create("other", SIZE, passphrase_file=passphrase)
    assert not left.exists()


def test_a_failed_creation_leaves_nothing(
    volumes: VolumeStore, passphrase: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(*_arguments: object) -> None:
        raise StateError("no room")

    monkeypatch.setattr(store, "create_disk", fail)
    with pytest.raises(StateError, match="no room"):
        volumes.create("db", SIZE, passphrase_file=passphrase)
    assert [path.name for path in (tmp_path / "volumes" / "alice").iterdir()] == [".lock"]


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[]",
        b"{}",
        b"\xff",
        b"[" * 60000,
        b'{"name": "db", "name": "db"}',
        b"x" * 70000,
    ],
)
def test_a_damaged_description_is_an_error(
    volumes: VolumeStore, passphrase: Path, text: bytes
) -> None:
    made = volumes.create("db", SIZE, passphrase_file=passphrase)
    (made.path / "volume.json").write_bytes(text)
    with pytest.raises(StateError, match=r"volume\.json"):
        volumes.get("db")
    with pytest.raises(StateError):
        volumes.list()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("size", -1),
        ("size", True),
        ("size", "1"),
        ("passphrase_file", ""),
        ("passphrase_command", "also"),
        ("created", None),
        ("extra", 1),
    ],
)
def test_a_description_with_a_wrong_field_is_an_error(
    volumes: VolumeStore, passphrase: Path, key: str, value: object
) -> None:
    made = volumes.create("db", SIZE, passphrase_file=passphrase)
    path = made.path / "volume.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    with pytest.raises(StateError, match=r"volume\.json"):
        volumes.get("db")


# --- passphrases ----------------------------------------------------------------------------


def test_it_is_the_first_line_of_what_a_command_prints() -> None:
    said: list[str] = []
    assert read_passphrase(None, "printf 'a b\\r\\nmore\\n'", note=said.append) == b"a b"
    assert said == []


def test_no_shell_reads_the_command(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    command = f"echo x; touch {mark}"
    assert read_passphrase(None, command, note=print) == f"x; touch {mark}".encode()
    assert not mark.exists()


def test_a_file_that_others_may_read_is_told(passphrase: Path) -> None:
    said: list[str] = []
    passphrase.chmod(0o644)
    assert read_passphrase(passphrase, "", note=said.append) == b"correct horse battery staple"
    assert len(said) == 1
    assert f"chmod 600 {passphrase}" in said[0]


@pytest.mark.parametrize(
    "command", ["false", "sh -c 'echo x; exit 3'", "/no/such/program", "'", "true", "printf '\\n'"]
)
def test_a_command_that_fails_or_says_nothing_is_an_error(command: str) -> None:
    with pytest.raises(StateError):
        read_passphrase(None, command, note=print)


def test_a_command_that_never_ends_is_ended() -> None:
    with pytest.raises(DeadlineExceeded):
        read_passphrase(None, "sleep 60", note=print, deadline=0.2)


def test_a_command_that_never_stops_talking_is_cut() -> None:
    with pytest.raises(VmrunError):
        read_passphrase(None, "yes a", note=print, deadline=5)


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="cannot read the passphrase"):
        read_passphrase(tmp_path / "none", "", note=print)
