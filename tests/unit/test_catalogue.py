"""A reader of a TUF catalogue against everything that whoever serves it can do."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from securesystemslib.signer import CryptoSigner  # type: ignore[attr-defined]
from tuf.api.metadata import (  # type: ignore[attr-defined]
    DelegatedRole,
    Delegations,
    Metadata,
    MetaFile,
    TargetFile,
    Targets,
)

from tests.catalogues import DAY, NAME, NEW, OLD, Catalogue
from vmrun.image.reference import parse_reference
from vmrun.model.digest import Digest
from vmrun.model.errors import ImageError, Refused, SettingsError, StateError
from vmrun.trust.catalogue import catalogue_name, check_catalogue
from vmrun.trust.tuf_published import load_published
from vmrun.trust.tuf_roles import Role
from vmrun.trust.tuf_sign import Lifetimes


@pytest.fixture(autouse=True)
def cheap_passphrases(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vmrun.trust.encrypted_key._N", 16)


@pytest.fixture
def catalogue(tmp_path: Path) -> Catalogue:
    made = Catalogue(tmp_path).init()
    made.add(OLD)
    return made


# --- what is accepted -----------------------------------------------------------------------


def test_a_listed_name_has_its_digest(catalogue: Catalogue) -> None:
    entry = catalogue.read()
    assert (entry.digest, entry.length, entry.unreachable) == (OLD, 500, "")
    assert entry.versions == {"root": 1, "timestamp": 2, "snapshot": 2, "targets": 2}
    assert entry.expires == pytest.approx(catalogue.now + 7 * DAY, abs=2)


def test_a_new_digest_takes_the_place_of_the_old(catalogue: Catalogue) -> None:
    catalogue.read()
    catalogue.add(NEW)
    assert catalogue.read().digest == NEW


def check(catalogue: Catalogue, *lineage: Digest) -> str:
    return check_catalogue(
        NAME,
        lineage,
        source=str(catalogue.directory),
        root=catalogue.first_root,
        state=catalogue.state,
        now=catalogue.now,
    )


def test_the_index_or_the_manifest_may_be_listed(catalogue: Catalogue) -> None:
    assert f"names {OLD} for {NAME}" in check(catalogue, OLD)
    assert "timestamp 2" in check(catalogue, OLD, NEW)
    assert check(catalogue, NEW, OLD)


def test_another_digest_is_refused_by_both_names(catalogue: Catalogue) -> None:
    with pytest.raises(Refused, match=f"led to {NEW}.*names {OLD}") as caught:
        check(catalogue, NEW)
    assert "vmrun catalogue add" in caught.value.hint


def test_a_name_that_is_not_listed_is_refused(catalogue: Catalogue) -> None:
    with pytest.raises(Refused, match=r"does not list registry\.example\.com/team/app:2\.0"):
        catalogue.read("registry.example.com/team/app:2.0")


def test_names_of_references() -> None:
    assert catalogue_name(parse_reference("registry.example.com:5000/a/b")) == (
        "registry.example.com:5000/a/b:latest"
    )
    both = parse_reference(f"registry.example.com/a:1@{OLD}")
    assert catalogue_name(both) == "registry.example.com/a:1"
    assert catalogue_name(parse_reference("oci:build/image:demo")) is None
    with pytest.raises(Refused, match="names no tag"):
        catalogue_name(parse_reference(f"registry.example.com/a@{OLD}"))


# --- revocation -----------------------------------------------------------------------------


def test_a_removed_name_is_refused(catalogue: Catalogue) -> None:
    catalogue.read()
    catalogue.publisher().remove(NAME)
    with pytest.raises(Refused, match="does not list"):
        catalogue.read()


@pytest.mark.parametrize("role", [Role.TARGETS, Role.SNAPSHOT, Role.TIMESTAMP])
def test_what_a_dropped_key_signs_is_refused(catalogue: Catalogue, role: Role) -> None:
    """A thief of the old key signs the next version, with everything else as it should be."""
    thief = Catalogue(catalogue.folder / "thief")
    shutil.copytree(catalogue.directory, thief.directory)
    shutil.copytree(catalogue.keys.directory, thief.keys.directory)
    catalogue.read()
    catalogue.publisher().rotate(role)
    assert catalogue.read().digest == OLD
    for _ in range(5):  # so that nothing is refused for its version
        thief.add(NEW)
    catalogue.restore(thief.directory)
    with pytest.raises(Refused, match="not signed by the keys that count"):
        catalogue.read()
    with pytest.raises(Refused, match="not signed by the keys that count"):
        catalogue.read(state=catalogue.folder / "another reader")


def test_readers_recover_from_a_thief_of_the_online_keys(catalogue: Catalogue) -> None:
    """Who has been shown version 40 would refuse ours, but for the new keys."""
    thief = Catalogue(catalogue.folder / "thief")
    shutil.copytree(catalogue.directory, thief.directory)
    shutil.copytree(catalogue.keys.directory, thief.keys.directory)
    for _ in range(40):
        thief.publisher().refresh(Role.SNAPSHOT)
    assert catalogue.read(source=str(thief.directory)).versions["snapshot"] == 42
    catalogue.add(NEW)
    with pytest.raises(Refused, match="older than what was seen before"):
        catalogue.read()
    catalogue.publisher().rotate(Role.TIMESTAMP)
    catalogue.publisher().rotate(Role.SNAPSHOT)
    catalogue.publisher().refresh()
    assert catalogue.read().digest == NEW


def test_a_delegated_role_speaks_for_its_paths_alone(catalogue: Catalogue) -> None:
    """As Notary delegates: another team signs its own names, and no others."""
    signer = CryptoSigner.generate_ed25519()
    expires = datetime.now(UTC) + timedelta(days=1)
    names = ("registry.example.com/other/a:1", "registry.example.com/team/b:1")
    listed = {name: TargetFile(5, {"sha256": NEW.hex}, name) for name in names}
    team = Metadata(Targets(1, expires=expires, targets=listed))
    team.sign(signer)
    (catalogue.directory / "1.other.json").write_bytes(team.to_bytes())
    role = DelegatedRole("other", [], 1, True, paths=["registry.example.com/other/*"])
    publisher = catalogue.publisher()
    at = load_published(catalogue.directory, catalogue.keys.recall)
    at.targets.signed.delegations = Delegations({}, {"other": role})
    at.targets.signed.add_key(signer.public_key, "other")
    at.snapshot.signed.meta["other.json"] = MetaFile(1)
    publisher.write(publisher.signatory.following(at, Role.TARGETS))
    assert catalogue.read(names[0]).digest == NEW
    with pytest.raises(Refused, match="does not list"):
        catalogue.read(names[1])
    catalogue.add(NEW)  # what we do not know we keep
    assert catalogue.read(names[0]).digest == NEW


def test_a_reader_that_was_away_follows_all_rotations(catalogue: Catalogue) -> None:
    catalogue.read()
    for role in Role:
        catalogue.publisher().rotate(role)
    catalogue.add(NEW)
    entry = catalogue.read()
    assert entry.digest == NEW
    assert entry.versions["root"] == 5
    assert catalogue.read(state=catalogue.folder / "new reader").digest == NEW


def test_a_root_that_its_predecessor_did_not_sign_is_refused(
    catalogue: Catalogue, tmp_path: Path
) -> None:
    other = Catalogue(tmp_path / "other").init()
    other.publisher().rotate(Role.ROOT)
    catalogue.restore(other.directory, "2.root.json")
    with pytest.raises(Refused, match="not signed by the keys that count"):
        catalogue.read()


def test_a_root_needs_its_threshold(tmp_path: Path) -> None:
    catalogue = Catalogue(tmp_path).init(root_keys=3, threshold=2)
    catalogue.add(OLD)
    catalogue.publisher().rotate(Role.TARGETS)
    assert catalogue.read().digest == OLD
    path = catalogue.directory / "2.root.json"
    document = json.loads(path.read_bytes())
    assert len(document["signatures"]) == 3
    document["signatures"] = document["signatures"][:1]
    path.write_text(json.dumps(document))
    with pytest.raises(Refused, match="signed by 1/2 keys"):
        catalogue.read(state=tmp_path / "new reader")


# --- rollback, freeze, mix and match --------------------------------------------------------


@pytest.mark.parametrize(
    "names",
    [(), ("timestamp.json",)],
    ids=["everything", "timestamp"],
)
def test_an_older_catalogue_is_refused(catalogue: Catalogue, names: tuple[str, ...]) -> None:
    saved = catalogue.copy("saved")
    catalogue.add(NEW)
    catalogue.read()
    catalogue.restore(saved, *names)
    with pytest.raises(Refused, match="older than what was seen before"):
        catalogue.read()


def test_an_older_catalogue_is_refused_after_a_key_was_changed(catalogue: Catalogue) -> None:
    saved = catalogue.copy("saved")
    catalogue.publisher().rotate(Role.TIMESTAMP)
    catalogue.read()
    shutil.rmtree(catalogue.directory)
    saved.rename(catalogue.directory)  # without the new root
    with pytest.raises(Refused, match="not signed by the keys that count"):
        catalogue.read()


@pytest.mark.parametrize("role", ["snapshot", "targets"])
def test_parts_of_different_versions_are_refused(catalogue: Catalogue, role: str) -> None:
    catalogue.add(NEW)
    (catalogue.directory / f"2.{role}.json").replace(catalogue.directory / f"3.{role}.json")
    with pytest.raises(Refused, match="do not belong together"):
        catalogue.read()


@pytest.mark.parametrize(
    ("lifetimes", "days", "what"),
    [
        (Lifetimes(), 8, "timestamp"),
        (Lifetimes(timestamp=300, targets=300), 31, "snapshot"),
        (Lifetimes(timestamp=300, snapshot=300), 91, "targets"),
        (Lifetimes(300, 3000, 3000, 3000), 301, "root"),
    ],
)
def test_a_frozen_catalogue_is_refused_when_it_expires(
    tmp_path: Path, lifetimes: Lifetimes, days: int, what: str
) -> None:
    """By python-tuf for the clock of this host, and for any later one that we are told."""
    past = Catalogue(tmp_path / "past").init(lifetimes=lifetimes)
    past.add(OLD)
    assert past.read(later=(days - 2) * DAY).digest == OLD
    with pytest.raises(Refused, match="has expired: it was good until"):
        past.read(later=days * DAY)

    old = Catalogue(tmp_path / "old", now=past.now - days * DAY).init(lifetimes=lifetimes)
    old.add(OLD)
    with pytest.raises(Refused, match=rf"has expired: .*{what}"):
        old.read()


# --- tampering ------------------------------------------------------------------------------


@pytest.mark.parametrize("file", ["timestamp.json", "2.snapshot.json", "2.targets.json"])
def test_a_changed_file_is_refused(catalogue: Catalogue, file: str) -> None:
    path = catalogue.directory / file
    document = json.loads(path.read_bytes())
    document["signed"]["x-added"] = 1
    path.write_text(json.dumps(document))
    with pytest.raises(Refused):
        catalogue.read()


GARBAGE = {
    "empty": b"",
    "no JSON": b"\0\1\2",
    "a list": b"[]",
    "nothing signed": b'{"signatures": [], "signed": {}}',
    "deep": b"[" * 15_000,
    "another role": None,
    "strange fields": b'{"signatures": [7], "signed": {"_type": "timestamp", "version": []}}',
}


@pytest.mark.parametrize("kind", GARBAGE)
def test_garbage_is_refused(catalogue: Catalogue, kind: str) -> None:
    data = GARBAGE[kind]
    if data is None:
        data = (catalogue.directory / "2.snapshot.json").read_bytes()
    (catalogue.directory / "timestamp.json").write_bytes(data)
    with pytest.raises(Refused):
        catalogue.read()


@pytest.mark.parametrize(
    ("file", "size"),
    [
        ("2.root.json", 512_001),
        ("timestamp.json", 16_385),
        ("2.snapshot.json", 500_001),
        ("2.targets.json", 50_000_000),
    ],
)
def test_oversized_files_are_refused(catalogue: Catalogue, file: str, size: int) -> None:
    with (catalogue.directory / file).open("ab") as stream:
        stream.truncate(size)
    with pytest.raises(Refused, match="is larger than allowed"):
        catalogue.read()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=5,
)


def places(value: object, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Where in a JSON document anything stands."""
    if path:
        yield path
    if isinstance(value, dict):
        for key in value:
            yield from places(value[key], (*path, key))
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from places(item, (*path, number))


@settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_no_document_makes_the_reader_fail_otherwise(
    catalogue: Catalogue, data: st.DataObject
) -> None:
    """Anything in the place of anything, in any file, the trusted root too."""
    name = data.draw(
        st.sampled_from(["1.root.json", "timestamp.json", "2.snapshot.json", "2.targets.json"])
    )
    path = catalogue.directory / name
    original = path.read_bytes()
    document = json.loads(original)
    *way, last = data.draw(st.sampled_from(list(places(document))))
    inner = document
    for step in way:
        inner = inner[step]
    inner[last] = data.draw(JSON)
    root = catalogue.first_root
    changed = json.dumps(document).encode("utf-8", "surrogatepass")
    path.write_bytes(changed)
    try:
        entry = catalogue.read(root=changed if "root" in name else root)
        assert entry.digest == OLD
    except (Refused, SettingsError):
        pass
    finally:
        path.write_bytes(original)
        shutil.rmtree(catalogue.state, ignore_errors=True)


@pytest.mark.parametrize("hashes", [{"sha512": "0" * 128}, {"sha256": "no hex"}])
def test_a_target_without_a_usable_sha256_is_refused(
    catalogue: Catalogue, hashes: dict[str, str]
) -> None:
    publisher = catalogue.publisher()
    at = load_published(catalogue.directory, catalogue.keys.recall)
    at.targets.signed.targets[NAME] = TargetFile(5, hashes, NAME)
    publisher.write(publisher.signatory.following(at, Role.TARGETS))
    with pytest.raises(Refused, match="gives no sha256"):
        catalogue.read()


def test_roots_without_end_are_refused_in_time(catalogue: Catalogue) -> None:
    for _ in range(3):
        catalogue.publisher().refresh(Role.ROOT)
    os.link(catalogue.directory / "4.root.json", catalogue.directory / "5.root.json")
    with pytest.raises(Refused, match="older than what was seen before"):
        catalogue.read()


@pytest.mark.parametrize("file", ["timestamp.json", "2.snapshot.json", "2.targets.json"])
def test_a_missing_file_is_an_error_and_no_absence(catalogue: Catalogue, file: str) -> None:
    (catalogue.directory / file).unlink()
    with pytest.raises(ImageError, match="is incomplete"):
        catalogue.read()


def test_another_root_is_refused(catalogue: Catalogue, tmp_path: Path) -> None:
    other = Catalogue(tmp_path / "other").init()
    with pytest.raises(Refused, match="not signed by the keys that count"):
        catalogue.read(root=other.first_root)


@pytest.mark.parametrize("root", [b"", b"{}", b"\xff", b"[" * 100_000])
def test_a_root_that_is_none_is_a_bad_setting(catalogue: Catalogue, root: bytes) -> None:
    with pytest.raises(SettingsError, match="root metadata"):
        catalogue.read(root=root)


def test_a_root_that_was_changed_is_a_bad_setting(catalogue: Catalogue) -> None:
    changed = catalogue.first_root.replace(b'"threshold":1', b'"threshold":2', 1)
    with pytest.raises(SettingsError, match="root metadata"):
        catalogue.read(root=changed)


# --- not reached ----------------------------------------------------------------------------


def test_what_is_remembered_counts_while_it_is_good(catalogue: Catalogue) -> None:
    catalogue.read()
    catalogue.directory.rename(catalogue.folder / "unmounted")
    root = (catalogue.folder / "unmounted" / "1.root.json").read_bytes()
    entry = catalogue.read(root=root)
    assert entry.digest == OLD
    assert entry.unreachable == "No such file or directory"
    assert "not reached now" in str(entry)
    with pytest.raises(Refused, match=r"cannot be reached .*has expired"):
        catalogue.read(root=root, later=8 * DAY)
    with pytest.raises(Refused, match="does not list"):
        catalogue.read("registry.example.com/other:1", root=root)


def test_what_is_remembered_expires_by_this_hosts_clock(tmp_path: Path) -> None:
    """By python-tuf's own check: what was remembered eight days ago."""
    old = Catalogue(tmp_path, now=time.time() - 8 * DAY).init()
    old.add(OLD)
    old.state.mkdir(mode=0o700)
    for role in ("timestamp", "snapshot", "targets"):
        name = "timestamp.json" if role == "timestamp" else f"2.{role}.json"
        shutil.copy(old.directory / name, old.state / f"{role}.json")
    with pytest.raises(Refused, match=r"cannot be reached .*timestamp\.json is expired"):
        old.read(source=str(tmp_path / "unmounted"))


def test_nothing_remembered_and_not_reached(catalogue: Catalogue) -> None:
    with pytest.raises(ImageError, match="no whole copy"):
        catalogue.read(source=str(catalogue.folder / "absent"))


def test_a_revocation_that_was_seen_holds_when_not_reached(catalogue: Catalogue) -> None:
    root = catalogue.first_root
    catalogue.read()
    catalogue.publisher().remove(NAME)
    with pytest.raises(Refused):
        catalogue.read()
    catalogue.directory.rename(catalogue.folder / "unmounted")
    with pytest.raises(Refused, match="does not list"):
        catalogue.read(root=root)


def test_a_bad_answer_is_not_hidden_by_what_is_remembered(catalogue: Catalogue) -> None:
    catalogue.read()
    (catalogue.directory / "timestamp.json").write_bytes(b"{}")
    with pytest.raises(Refused):
        catalogue.read()


# --- what the reader remembers --------------------------------------------------------------


def test_the_state_is_its_owners_alone(catalogue: Catalogue) -> None:
    catalogue.read()
    assert catalogue.state.stat().st_mode & 0o777 == 0o700
    catalogue.state.chmod(0o770)
    with pytest.raises(StateError, match="can be changed by others"):
        catalogue.read()


@pytest.mark.parametrize("file", ["root.json", "timestamp.json", "snapshot.json"])
def test_damaged_memory_does_not_pass_for_none(catalogue: Catalogue, file: str) -> None:
    catalogue.read()
    (catalogue.state / file).write_bytes(b"")
    with pytest.raises(StateError, match="is damaged"):
        catalogue.read()


def test_a_state_that_cannot_be(catalogue: Catalogue) -> None:
    catalogue.state.write_text("")
    with pytest.raises(StateError):
        catalogue.read()


def test_threads_may_look_up_at_the_same_time(catalogue: Catalogue) -> None:
    found: list[Digest] = []
    threads = [
        threading.Thread(target=lambda: found.append(catalogue.read().digest)) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert found == [OLD] * 8


def test_processes_may_look_up_while_it_is_published(catalogue: Catalogue) -> None:
    code = (
        "import sys; from pathlib import Path; from tests.catalogues import Catalogue\n"
        "c = Catalogue(Path(sys.argv[1]))\n"
        "for _ in range(15): print(c.read().digest)"
    )
    command = [sys.executable, "-c", code, str(catalogue.folder)]
    readers = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(2)
    ]
    published = 0
    while any(reader.poll() is None for reader in readers):
        catalogue.add(NEW if published % 2 else OLD)
        published += 1
    assert published > 5
    for reader in readers:
        out, err = reader.communicate(timeout=60)
        assert (reader.returncode, err) == (0, b"")
        assert len(out.split()) == 15
        assert set(out.decode().split()) <= {str(OLD), str(NEW)}
