"""Keeping a catalogue: what is written when, whatever is killed, and what is never signed."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tuf.api.metadata import Key, Metadata, Root  # type: ignore[attr-defined]

from tests.catalogues import DAY, NAME, NEW, OLD, Catalogue, passphrase
from vmrun.model.digest import Digest
from vmrun.model.errors import Refused, StateError, TrustError, UsageError, VmrunError
from vmrun.trust import catalogue_publish
from vmrun.trust.catalogue_publish import Publisher, create_catalogue, list_catalogue
from vmrun.trust.tuf_keys import KeyFolder
from vmrun.trust.tuf_roles import KeyType, Role
from vmrun.trust.tuf_sign import Lifetimes


@pytest.fixture(autouse=True)
def cheap_passphrases(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vmrun.trust.encrypted_key._N", 16)


@pytest.fixture
def catalogue(tmp_path: Path) -> Catalogue:
    made = Catalogue(tmp_path).init()
    made.add(OLD)
    return made


def published(catalogue: Catalogue) -> set[str]:
    return {path.name for path in catalogue.directory.iterdir()}


# --- what is written ------------------------------------------------------------------------


def test_a_new_catalogue(tmp_path: Path) -> None:
    catalogue = Catalogue(tmp_path).init()
    assert published(catalogue) == {
        "1.root.json", "1.targets.json", "1.snapshot.json", "timestamp.json"
    }  # fmt: skip
    keys = catalogue.keys.directory
    assert keys.stat().st_mode & 0o777 == 0o700
    pems = {path.name.partition("-")[0]: path for path in keys.glob("*.pem")}
    assert pems.keys() == {role.value for role in Role}
    for role, path in pems.items():
        assert path.stat().st_mode & 0o777 == 0o600
        assert (b"ENCRYPTED" in path.read_bytes()) == (role in ("root", "targets"))
    for path in catalogue.directory.iterdir():
        assert path.stat().st_mode & 0o777 == 0o644
        assert b"PRIVATE" not in path.read_bytes()


def test_ecdsa_keys_do_as_well(tmp_path: Path) -> None:
    catalogue = Catalogue(tmp_path)
    create_catalogue(catalogue.directory, catalogue.keys, now=catalogue.now, kind=KeyType.ECDSA)
    catalogue.add(NEW)
    catalogue.publisher().rotate(Role.TARGETS)
    assert catalogue.read().digest == NEW
    root = json.loads((catalogue.directory / "2.root.json").read_bytes())
    assert {key["keytype"] for key in root["signed"]["keys"].values()} == {"ecdsa"}


def test_names_and_dates_are_listed(catalogue: Catalogue) -> None:
    catalogue.publisher().add("registry.example.com/b:2", NEW, 7)
    listing = list_catalogue(catalogue.directory, catalogue.keys)
    assert listing.names == {"registry.example.com/b:2": (NEW, 7), NAME: (OLD, 500)}
    version, expires = listing.roles["targets"]
    assert version == 3
    assert expires == pytest.approx(catalogue.now + 90 * DAY, abs=2)
    assert list_catalogue(catalogue.directory) == listing


def test_lifetimes_are_kept(tmp_path: Path) -> None:
    catalogue = Catalogue(tmp_path).init(lifetimes=Lifetimes(10, 9, 8, 1))
    catalogue.publisher().rotate(Role.ROOT)
    listing = catalogue.publisher().add(NAME, OLD, 1)
    days = {role: (e - catalogue.now) / DAY for role, (_, e) in listing.roles.items()}
    assert days == pytest.approx({"root": 10, "targets": 9, "snapshot": 8, "timestamp": 1}, 1e-3)


def test_a_refresh_needs_the_timestamp_key_only(catalogue: Catalogue) -> None:
    for path in catalogue.keys.directory.glob("*.pem"):
        if not path.name.startswith("timestamp"):
            path.unlink()
    before = published(catalogue)
    catalogue.publisher(later=6 * DAY).refresh()
    assert published(catalogue) == before
    assert catalogue.read(later=12 * DAY).digest == OLD


def test_a_refresh_renews_the_snapshot_in_time(catalogue: Catalogue) -> None:
    listing = catalogue.publisher(later=16 * DAY).refresh()
    assert listing.roles["snapshot"][1] == pytest.approx(catalogue.now + 46 * DAY, abs=2)
    assert listing.roles["targets"][0] == 2


@pytest.mark.parametrize("role", [Role.TARGETS, Role.ROOT])
def test_what_has_expired_can_be_renewed(tmp_path: Path, role: Role) -> None:
    catalogue = Catalogue(tmp_path, now=time.time() - 400 * DAY).init()
    catalogue.add(OLD)
    with pytest.raises(Refused, match="has expired"):
        catalogue.read()
    catalogue.publisher(later=400 * DAY).refresh(role)
    with pytest.raises(Refused, match="has expired"):
        catalogue.read()
    other = Role.TARGETS if role is Role.ROOT else Role.ROOT
    catalogue.publisher(later=400 * DAY).refresh(other)
    assert catalogue.read().digest == OLD


def test_an_offline_root_key_changes_keys_alone(tmp_path: Path) -> None:
    """The root is signed where no other key is."""
    catalogue = Catalogue(tmp_path).init(root_keys=2)
    catalogue.add(OLD)
    catalogue.read()
    away = tmp_path / "away"
    away.mkdir()
    for path in catalogue.keys.directory.glob("*.pem"):
        if not path.name.startswith("root"):
            path.rename(away / path.name)
    catalogue.publisher().rotate(Role.ROOT)
    catalogue.publisher().refresh(Role.ROOT)
    assert catalogue.read().versions["root"] == 3


# --- keys -----------------------------------------------------------------------------------


def test_old_private_keys_are_gone_after_a_rotation(catalogue: Catalogue) -> None:
    before = {path.name for path in catalogue.keys.directory.glob("*.pem")}
    _, fresh = catalogue.publisher().rotate(Role.TARGETS)
    after = {path.name for path in catalogue.keys.directory.glob("*.pem")}
    assert len(before) == len(after) == 4
    assert after - before == {f"targets-{fresh[0][:16]}.pem"}


def test_a_lost_root_key_is_replaced_by_the_others(tmp_path: Path) -> None:
    catalogue = Catalogue(tmp_path).init(root_keys=3, threshold=2)
    catalogue.add(OLD)
    catalogue.read()
    lost = sorted(catalogue.keys.directory.glob("root-*.pem"))[0]
    lost.unlink()
    key_id = lost.stem.removeprefix("root-")
    catalogue.publisher().rotate(Role.ROOT, key_id)
    root = json.loads((catalogue.directory / "2.root.json").read_bytes())["signed"]
    names = root["roles"]["root"]["keyids"]
    assert len(names) == 3
    assert not any(name.startswith(key_id) for name in names)
    assert catalogue.read().digest == OLD


@pytest.mark.parametrize("role", [Role.TARGETS, Role.SNAPSHOT, Role.TIMESTAMP])
def test_a_lost_key_is_replaced_by_the_root(catalogue: Catalogue, role: Role) -> None:
    catalogue.read()
    next(catalogue.keys.directory.glob(f"{role}-*.pem")).unlink()
    catalogue.publisher().rotate(role)
    assert catalogue.read().digest == OLD


def test_without_enough_root_keys_no_key_is_changed(tmp_path: Path) -> None:
    catalogue = Catalogue(tmp_path).init(root_keys=2, threshold=2)
    catalogue.add(OLD)
    next(catalogue.keys.directory.glob("root-*.pem")).unlink()
    before = published(catalogue), set(catalogue.keys.directory.iterdir())
    with pytest.raises(TrustError, match="root needs 2 of its keys"):
        catalogue.publisher().rotate(Role.TIMESTAMP)
    assert (published(catalogue), set(catalogue.keys.directory.iterdir())) == before
    assert catalogue.read().digest == OLD


def test_a_wrong_passphrase(catalogue: Catalogue) -> None:
    keys = KeyFolder(catalogue.keys.directory, lambda: b"wrong")
    with pytest.raises(TrustError, match="wrong passphrase") as caught:
        Publisher(catalogue.directory, keys, now=catalogue.now).add(NAME, NEW, 1)
    assert "VMRUN_CATALOGUE_PASSPHRASE" in caught.value.hint
    assert catalogue.read().digest == OLD


@pytest.mark.parametrize("data", [b"", b"-----BEGIN PRIVATE KEY-----\nAAAA\n"])
def test_a_damaged_key(catalogue: Catalogue, data: bytes) -> None:
    next(catalogue.keys.directory.glob("timestamp-*.pem")).write_bytes(data)
    with pytest.raises(TrustError, match="is damaged"):
        catalogue.publisher().refresh()


def test_a_key_under_another_name(catalogue: Catalogue) -> None:
    snapshot, timestamp = (
        next(catalogue.keys.directory.glob(f"{role}-*.pem")) for role in ("snapshot", "timestamp")
    )
    shutil.copy(snapshot, timestamp)
    with pytest.raises(TrustError, match="not the key that its name says"):
        catalogue.publisher().refresh()


def test_a_folder_of_keys_that_others_may_enter(catalogue: Catalogue) -> None:
    catalogue.keys.directory.chmod(0o750)
    with pytest.raises(TrustError, match="open to others"):
        catalogue.publisher().refresh()


@pytest.mark.parametrize("place", ["catalogue/keys", "catalogue", "."])
def test_keys_are_never_among_what_is_published(tmp_path: Path, place: str) -> None:
    keys = KeyFolder(tmp_path / place, passphrase)
    with pytest.raises(UsageError, match="would lie with the published files"):
        create_catalogue(tmp_path / "catalogue", keys, now=time.time())
    assert not (tmp_path / "catalogue").exists()


def test_keys_are_not_published_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "catalogue")
    with pytest.raises(UsageError, match="would lie with the published files"):
        create_catalogue(
            tmp_path / "catalogue", KeyFolder(tmp_path / "link" / "keys", passphrase), now=1e9
        )


# --- whatever is killed ---------------------------------------------------------------------


class Killed(BaseException):
    pass


def dies_at(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """The ``count``-th write of a published file does not happen, and nothing after it."""
    left = [count]
    write = catalogue_publish.replace_file

    def replace_file(path: Path, data: bytes, *, mode: int) -> None:
        if left[0] == 0:
            raise Killed
        left[0] -= 1
        write(path, data, mode=mode)

    monkeypatch.setattr(catalogue_publish, "replace_file", replace_file)


CHANGES: dict[str, Callable[[Publisher], object]] = {
    "add": lambda p: p.add(NAME, NEW, 5),
    "refresh": lambda p: p.refresh(),
    **{f"rotate {role}": lambda p, role=role: p.rotate(role) for role in Role},  # type: ignore[misc]
}


@pytest.mark.parametrize("count", range(4))
@pytest.mark.parametrize("change", CHANGES)
def test_a_publisher_that_is_killed_leaves_a_catalogue(
    catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch, change: str, count: int
) -> None:
    catalogue.read()
    with monkeypatch.context() as patch:
        dies_at(patch, count)
        try:
            CHANGES[change](catalogue.publisher())
            killed = False
        except Killed:
            killed = True
    fresh = catalogue.folder / "new reader"
    for state in (catalogue.state, fresh):
        assert catalogue.read(state=state).digest == (
            NEW if change == "add" and not killed else OLD
        )
    CHANGES[change](catalogue.publisher())
    catalogue.add(NEW)
    for state in (catalogue.state, fresh):
        assert catalogue.read(state=state).digest == NEW


@pytest.mark.parametrize("count", range(4))
@pytest.mark.parametrize("role", [Role.TARGETS, Role.SNAPSHOT, Role.TIMESTAMP])
def test_replacing_a_lost_key_can_be_taken_up_again(
    catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch, role: Role, count: int
) -> None:
    """Between the new root and the timestamp readers refuse; the publisher can go on."""
    catalogue.read()
    next(catalogue.keys.directory.glob(f"{role}-*.pem")).unlink()
    with monkeypatch.context() as patch:
        dies_at(patch, count)
        with contextlib.suppress(Killed):
            catalogue.publisher().rotate(role)
    if (catalogue.directory / "2.root.json").exists():
        catalogue.publisher().refresh()
    else:
        catalogue.publisher().rotate(role)
    assert catalogue.read().digest == OLD
    assert catalogue.read(state=catalogue.folder / "new reader").digest == OLD


def test_a_real_kill_at_any_moment(catalogue: Catalogue) -> None:
    code = (
        "import sys, time; from pathlib import Path\n"
        "import vmrun.trust.encrypted_key as e; e._N = 16\n"
        "from tests.catalogues import NEW, OLD, Catalogue\n"
        "c = Catalogue(Path(sys.argv[1])); print('ready', flush=True)\n"
        "while True: c.add(NEW); c.add(OLD)"
    )
    dice = random.Random(7)
    for _ in range(6):
        process = subprocess.Popen(
            [sys.executable, "-c", code, str(catalogue.folder)], stdout=subprocess.PIPE
        )
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        time.sleep(dice.uniform(0.0, 0.06))
        os.kill(process.pid, signal.SIGKILL)
        process.wait(10)
        process.stdout.close()
        assert catalogue.read().digest in (OLD, NEW)
        catalogue.add(NEW)
        assert catalogue.read().digest == NEW


def test_a_full_disk_is_an_error_of_ours(
    catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    def replace_file(path: Path, data: bytes, *, mode: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(catalogue_publish, "replace_file", replace_file)
        with pytest.raises(StateError, match="No space left"):
            catalogue.add(NEW)
    assert catalogue.read().digest == OLD


# --- what is never signed -------------------------------------------------------------------


def test_what_a_stranger_added_is_not_signed(catalogue: Catalogue) -> None:
    path = catalogue.directory / "2.targets.json"
    path.write_bytes(path.read_bytes().replace(OLD.hex.encode(), NEW.hex.encode()))
    with pytest.raises(Refused, match="do not belong together"):
        catalogue.publisher().add("registry.example.com/b:1", NEW, 1)


def test_what_a_strangers_keys_signed_is_not_signed(catalogue: Catalogue, tmp_path: Path) -> None:
    other = Catalogue(tmp_path / "other").init()
    for _ in range(3):
        other.add(NEW)
    catalogue.restore(other.directory)
    with pytest.raises(Refused, match="not signed by the keys that count"):
        catalogue.add(OLD)


def test_a_strangers_root_with_our_keys_in_it_is_not_followed(
    catalogue: Catalogue, tmp_path: Path
) -> None:
    """It names our targets key and the stranger's: our signature below would be good everywhere."""
    stranger = Catalogue(tmp_path / "stranger").init()
    stranger.add(NEW)
    ours = json.loads(catalogue.first_root)["signed"]
    root: Metadata[Root] = Metadata.from_bytes(stranger.first_root)
    for role in (Role.TARGETS, Role.SNAPSHOT, Role.TIMESTAMP):
        (key_id,) = ours["roles"][role]["keyids"]
        root.signed.add_key(Key.from_dict(key_id, dict(ours["keys"][key_id])), role)
    (signer,) = stranger.keys.signers(Role.ROOT, root.signed.roles["root"].keyids)
    root.sign(signer)
    shutil.rmtree(catalogue.directory)
    shutil.copytree(stranger.directory, catalogue.directory)
    (catalogue.directory / "1.root.json").write_bytes(root.to_bytes())
    with pytest.raises(Refused, match="not signed by the keys that count"):
        catalogue.add(OLD)
    shutil.rmtree(catalogue.keys.directory / "published")
    with pytest.raises(TrustError, match=r"has no published/root\.json"):
        catalogue.add(OLD)


def test_what_was_put_back_is_not_signed(catalogue: Catalogue) -> None:
    saved = catalogue.copy("saved")
    catalogue.publisher().remove(NAME)
    catalogue.restore(saved)
    with pytest.raises(Refused, match=r"is older .*than what was published last"):
        catalogue.publisher().add("registry.example.com/b:1", NEW, 1)
    with pytest.raises(Refused, match="is older"):
        catalogue.publisher().refresh()


def test_a_second_publisher_with_the_same_keys_may_go_on(catalogue: Catalogue) -> None:
    """As a pipeline that restores the keys, as they were once, from its secrets."""
    once = catalogue.folder / "once.keys"
    shutil.copytree(catalogue.keys.directory, once)
    catalogue.add(NEW)
    other = Publisher(catalogue.directory, KeyFolder(once, passphrase), now=catalogue.now)
    other.add("registry.example.com/b:1", OLD, 1)
    catalogue.publisher().refresh()
    assert catalogue.read().digest == NEW
    assert catalogue.read("registry.example.com/b:1").digest == OLD


@pytest.mark.parametrize(
    ("digest", "length"),
    [(OLD, 0), (OLD, -1), (Digest("sha512", "0" * 128), 5)],
)
def test_what_cannot_be_listed(catalogue: Catalogue, digest: Digest, length: int) -> None:
    with pytest.raises(UsageError, match="cannot be listed"):
        catalogue.publisher().add(NAME, digest, length)


def test_a_name_that_is_not_there_cannot_be_removed(catalogue: Catalogue) -> None:
    with pytest.raises(UsageError, match="does not list"):
        catalogue.publisher().remove("registry.example.com/b:1")


def test_a_catalogue_that_no_reader_would_take(
    catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vmrun.trust.tuf_sign.LARGEST_TARGETS", 1000)
    for number in range(4):
        catalogue.add(NEW, f"registry.example.com/n:{number}")
    with pytest.raises(UsageError, match="readers accept 1000"):
        catalogue.add(NEW, "registry.example.com/n:4")
    assert catalogue.read().digest == OLD


@pytest.mark.parametrize(
    "options",
    [
        {"root_threshold": 2},
        {"root_keys": 0, "root_threshold": 0},
        {"root_keys": 17},
        {"lifetimes": Lifetimes(timestamp=0)},
        {"lifetimes": Lifetimes(root=10**9)},
    ],
)
def test_catalogues_that_cannot_be(tmp_path: Path, options: dict[str, object]) -> None:
    catalogue = Catalogue(tmp_path)
    with pytest.raises(UsageError):
        create_catalogue(catalogue.directory, catalogue.keys, now=1e9, **options)  # type: ignore[arg-type]
    assert not catalogue.keys.directory.exists()


def test_no_catalogue_is_made_over_another(catalogue: Catalogue) -> None:
    with pytest.raises(UsageError, match="is not empty"):
        catalogue.init()
    shutil.rmtree(catalogue.directory)
    with pytest.raises(StateError):
        catalogue.init()  # the keys are still there


@pytest.mark.parametrize("what", ["directory", "keys"])
def test_what_is_not_there(catalogue: Catalogue, what: str) -> None:
    shutil.rmtree(catalogue.directory if what == "directory" else catalogue.keys.directory)
    with pytest.raises(VmrunError, match="No such file"):
        catalogue.publisher().refresh()
