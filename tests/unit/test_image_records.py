"""Records of images: strict reading, selection, what rm and prune keep, many writers, the CLI."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import stat
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.unit.test_state import directories, held_by_child
from vmrun.cli.main import make_app
from vmrun.image.durable import PARTIAL
from vmrun.image.records import ImageRecords
from vmrun.image.store import ImageStore
from vmrun.model.digest import Digest
from vmrun.model.errors import StateError
from vmrun.model.image import Descriptor
from vmrun.model.record import Checkup, ImageRecord, PushedBy, SeenAs
from vmrun.model.scan import Verdict
from vmrun.model.trust import Claim, SignatureFormat
from vmrun.run.directories import StateDirectories

__all__ = ["directories"]

FORK = multiprocessing.get_context("fork")
ONE, TWO, THREE = (Digest.of(text) for text in (b"one", b"two", b"three"))
NAME = "registry.example.com/team/app:1"


def seen(reference: str = NAME, at: float = 100.0) -> Callable[[ImageRecord], ImageRecord]:
    return lambda record: replace(record, seen=(SeenAs(reference, at), *record.seen))


def with_blobs(*blobs: Digest) -> Callable[[ImageRecord], ImageRecord]:
    return lambda record: replace(record, blobs=blobs, seen=(SeenAs(NAME, time.time()),))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "images"


@pytest.fixture
def records(root: Path) -> ImageRecords:
    return ImageRecords(root)


def path_of(root: Path, digest: Digest) -> Path:
    return root / "records" / f"sha256-{digest.hex}.json"


def filled(root: Path, *datas: bytes) -> ImageStore:
    store = ImageStore(root)
    for data in datas:
        blob = Descriptor("application/test", Digest.of(data), len(data))
        ImageStore(root).add(blob, io.BytesIO(data), "test")
    return store


# --- reading and writing -------------------------------------------------------------------------


def test_what_was_written_is_read(records: ImageRecords, root: Path) -> None:
    whole = ImageRecord(
        ONE,
        (SeenAs(NAME, 5.0),),
        12,
        (TWO, THREE),
        PushedBy("alice@host", "robot", NAME, 4.0),
        (Claim("sha256:" + "0" * 64, ONE, NAME, SignatureFormat.BUNDLE, 3.0, "vmrun"),),
        6.0,
        Checkup(Verdict.PASS, 7.0, {"low": 2}),
        8,
        "0123456789ab",
        9.0,
    )
    records.change(ONE, lambda _: whole)
    assert ImageRecords(root).get(ONE) == whole
    assert records.get(TWO) is None
    assert stat.S_IMODE(root.stat().st_mode) == 0o700
    assert stat.S_IMODE(path_of(root, ONE).stat().st_mode) == 0o600


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[:-2],
        lambda text: "",
        lambda text: "[]",
        lambda text: text.replace('"runs": 0', '"runs": -1'),
        lambda text: text.replace('"runs": 0', '"runs": 0, "runs": 1'),
        lambda text: text.replace('"size": 0', '"size": "0"'),
        lambda text: text.replace(ONE.hex, TWO.hex),
        lambda text: text.replace(ONE.hex, "x"),
        lambda text: " " * (1 << 20) + text,
    ],
    ids=["cut", "empty", "list", "negative", "twice", "type", "other", "digest", "large"],
)
def test_a_damaged_record_is_an_error_that_names_it(
    records: ImageRecords, root: Path, damage: Callable[[str], str]
) -> None:
    records.change(ONE, seen())
    path = path_of(root, ONE)
    path.write_text(damage(path.read_text()))
    for look in (records.all, lambda: records.get(ONE), lambda: records.find(NAME)):
        with pytest.raises(StateError, match="damaged") as caught:
            look()
        assert str(path) in f"{caught.value.message} {caught.value.hint}"


def test_a_pipe_in_place_of_a_record_does_not_block(records: ImageRecords, root: Path) -> None:
    records.change(ONE, seen())
    path_of(root, ONE).unlink()
    os.mkfifo(path_of(root, ONE))
    with pytest.raises(StateError, match="not a regular file"):
        records.all()


def test_a_directory_that_cannot_be_read_is_not_empty(tmp_path: Path) -> None:
    (tmp_path / "records").write_bytes(b"")
    with pytest.raises(StateError, match="cannot read"):
        ImageRecords(tmp_path).all()


def test_names_are_kept_once_the_newest_first_and_no_more_than_fifty(
    records: ImageRecords,
) -> None:
    for number in range(120):
        records.change(ONE, seen(f"registry.example.com/a:{number % 60}", float(number)))
    record = records.get(ONE)
    assert record is not None
    assert [item.at for item in record.seen] == [float(at) for at in range(119, 69, -1)]


def test_a_record_never_grows_past_what_is_read(records: ImageRecords) -> None:
    claims = tuple(
        Claim(f"sha256:{n:064}", ONE, "\U0001f512" * 5000, SignatureFormat.BUNDLE, 1.0, "é" * 5000)
        for n in range(200)
    )
    names = tuple(SeenAs(f"oci:/{n}/" + "\U0001f512" * 5000, n) for n in range(200))
    records.change(ONE, lambda record: replace(record, claims=claims, seen=names))
    record = records.get(ONE)
    assert record is not None
    assert record.claims
    assert record.seen[0].reference.startswith("oci:/199/")


def test_names_that_are_no_text_can_be_read_again(records: ImageRecords) -> None:
    records.change(ONE, seen("oci:/srv/\udcff\0"))
    record = records.get(ONE)
    assert record is not None
    assert record.seen[0].reference == "oci:/srv/\\udcff\\0"


def count(root: Path, times: int) -> None:
    for _ in range(times):
        ImageRecords(root).change(ONE, lambda record: replace(record, runs=record.runs + 1))


def test_changes_of_several_processes_are_all_kept(root: Path) -> None:
    children = [FORK.Process(target=count, args=(root, 25)) for _ in range(4)]
    for child in children:
        child.start()
    for child in children:
        child.join(30)
    record = ImageRecords(root).get(ONE)
    assert record is not None
    assert record.runs == 100


# --- finding -------------------------------------------------------------------------------------


def test_find(records: ImageRecords) -> None:
    records.change(ONE, seen())
    records.change(TWO, seen("oci:/srv/image:demo"))
    for selector in (str(ONE), ONE.hex, ONE.hex[:6], f"sha256:{ONE.hex[:6]}", NAME):
        assert records.find(selector).digest == ONE
    assert records.find(f"registry.example.com/team/app@{ONE}").digest == ONE
    assert records.find("not this", "oci:/srv/image:demo").digest == TWO


@pytest.mark.parametrize("selector", ["", "a", ONE.hex[:5], f"sha512:{ONE.hex[:8]}", "*", "../x"])
def test_what_selects_nothing(records: ImageRecords, selector: str) -> None:
    records.change(ONE, seen())
    with pytest.raises(StateError, match="no image") as caught:
        records.find(selector)
    assert "image ls" in caught.value.hint


def test_a_prefix_of_several_is_refused(records: ImageRecords) -> None:
    same = [Digest("sha256", "abcdef" + letter * 58) for letter in "01"]
    for digest in same:
        records.change(digest, seen())
    with pytest.raises(StateError, match="begins 2 digests"):
        records.find("abcdef")
    assert records.find("abcdef0").digest == same[0]


def test_a_name_means_the_image_last_met_under_it(records: ImageRecords) -> None:
    records.change(ONE, seen(NAME, 50.0))
    records.change(TWO, seen(NAME, 60.0))
    records.change(ONE, seen("registry.example.com/other:1", 70.0))
    assert records.find(NAME).digest == TWO


# --- rm and prune --------------------------------------------------------------------------------


def test_rm_keeps_what_others_need(records: ImageRecords, root: Path) -> None:
    filled(root, b"one", b"two", b"three")
    one = records.change(ONE, with_blobs(ONE, TWO))
    records.change(THREE, with_blobs(THREE, TWO))
    freed = records.remove(one, ImageStore(root))
    assert (freed.bytes, freed.busy) == (3, False)
    assert set(ImageStore(root).digests()) == {TWO, THREE}
    assert [record.digest for record in records.all()] == [THREE]


def test_rm_and_prune_wait_for_downloads(records: ImageRecords, root: Path) -> None:
    downloading = filled(root, b"one", b"two")
    assert downloading.has(Descriptor("application/test", TWO, 3))
    one = records.change(ONE, with_blobs(ONE))
    assert records.remove(one, ImageStore(root)).busy
    assert records.prune(ImageStore(root)).busy
    assert set(ImageStore(root).digests()) == {ONE, TWO}
    del downloading
    freed = records.prune(ImageStore(root))
    assert (freed.bytes, freed.busy) == (6, False)
    assert list(ImageStore(root).digests()) == []


def test_prune_leaves_what_a_record_names_and_young_halves_of_others(
    records: ImageRecords, root: Path
) -> None:
    downloading = filled(root, b"one", b"two")
    records.change(ONE, with_blobs(ONE))
    half = root / "blobs" / "sha256" / f"{PARTIAL}half"
    half.write_bytes(b"12345")
    (root / "records" / f"{PARTIAL}x").write_bytes(b"")
    downloading.has(Descriptor("application/test", ONE, 3))
    records.prune(ImageStore(root))
    assert half.exists()
    del downloading
    assert records.prune(ImageStore(root)).bytes == len(b"two") + 5
    assert not half.exists()
    assert list(ImageStore(root).digests()) == [ONE]
    assert [path.name for path in (root / "records").iterdir()] == [path_of(root, ONE).name]


def test_prune_deletes_nothing_when_a_record_cannot_be_read(
    records: ImageRecords, root: Path
) -> None:
    filled(root, b"one", b"two")
    records.change(ONE, with_blobs(ONE))
    path_of(root, ONE).write_text("{")
    with pytest.raises(StateError, match="damaged"):
        records.prune(ImageStore(root))
    assert set(ImageStore(root).digests()) == {ONE, TWO}


def test_prune_forgets_what_was_not_met_for_long(records: ImageRecords, root: Path) -> None:
    records.change(ONE, seen(at=time.time() - 91 * 86400))
    records.change(TWO, seen(at=time.time() - 89 * 86400))
    records.prune(ImageStore(root))
    assert [record.digest for record in records.all()] == [TWO]


# --- commands ------------------------------------------------------------------------------------


@pytest.fixture
def call(
    directories: StateDirectories,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Callable[..., tuple[str, str]]:
    monkeypatch.setenv("VMRUN_STATE_DIR", str(directories.guests.parent))

    def run(*words: str) -> tuple[str, str]:
        make_app()(list(words), standalone_mode=False)
        captured = capsys.readouterr()
        return captured.out, captured.err

    return run


Call = Callable[..., tuple[str, str]]


def test_ls_on_a_fresh_host(call: Call) -> None:
    header = "IMAGE DIGEST SIZE PUSHED BY SIGNED BY SCAN RUNS"
    assert " ".join(call("image", "ls")[0].split()) == header
    assert json.loads(call("image", "ls", "--json")[0]) == []
    assert call("image", "ls", "-q")[0] == ""


def test_ls_shows_what_is_known(call: Call, directories: StateDirectories) -> None:
    claim = Claim("sha256:" + "ab" * 32, ONE, NAME, SignatureFormat.BUNDLE)

    def change(record: ImageRecord) -> ImageRecord:
        return replace(
            record,
            seen=(SeenAs(NAME, 1.0),),
            size=2048,
            claims=(claim,),
            pushed=PushedBy("alice@host", "robot", NAME, 1.0),
            checkup=Checkup(Verdict.PASS, time.time() - 7200, {}),
            runs=3,
        )

    ImageRecords(directories.images).change(ONE, change)
    out = call("image", "ls")[0]
    for cell in (NAME, ONE.short, "2.0 KiB", "alice@host as robot", "ab" * 6, "2 h ago"):
        assert cell in out
    assert str(ONE) not in out
    assert str(ONE) in call("image", "ls", "--digests")[0]
    assert call("image", "ls", "-q")[0] == f"{ONE}\n"
    (listed,) = json.loads(call("image", "ls", "--json")[0])
    assert listed.keys() == {*ImageRecord.__dataclass_fields__, "running"}
    assert (listed["digest"], listed["running"], listed["runs"]) == (str(ONE), [], 3)
    assert json.loads(call("image", "inspect", ONE.hex[:8])[0])["size"] == 2048


def test_an_image_is_found_by_the_reference_that_was_meant(
    call: Call, directories: StateDirectories
) -> None:
    ImageRecords(directories.images).change(ONE, seen("registry.example.com/app:latest"))
    assert str(ONE) in call("image", "inspect", "registry.example.com/app")[0]


def note_image(directories: StateDirectories, run_id: str, digest: Digest) -> None:
    path = directories.guests / run_id / "intent.json"
    intent: dict[str, Any] = json.loads(path.read_text())
    intent |= {"image": NAME, "image_digest": str(digest), "digests": [str(digest)]}
    path.write_text(json.dumps(intent))


def test_rm_refuses_what_a_live_guest_uses(call: Call, directories: StateDirectories) -> None:
    records = ImageRecords(directories.images)
    records.change(ONE, seen())
    with held_by_child(directories, "web") as (_, run_id):
        note_image(directories, run_id, ONE)
        assert "in web" in call("image", "ls")[0]
        with pytest.raises(StateError, match="runs in web"):
            call("image", "rm", ONE.hex)
        assert records.get(ONE) is not None
        assert call("image", "rm", "--force", ONE.hex)[0] == f"{ONE}\n"
        assert records.get(ONE) is None
    records.change(ONE, seen())
    call("image", "rm", NAME)  # its owner is gone
    assert records.get(ONE) is None


def test_prune_says_what_it_freed(call: Call, directories: StateDirectories) -> None:
    assert json.loads(call("image", "prune", "--json")[0]) == {"freed": 0, "busy": False}
    filled(directories.images, b"one")
    assert call("image", "prune")[0] == "freed 3 B\n"
