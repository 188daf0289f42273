"""Signatures in OCI layouts: nothing is lost or half there, and hostile layouts are refused."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import stat
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.images import OCI_INDEX, OCI_MANIFEST, REF_NAME, blob_name, dumps, fetched, plain_image
from tests.unit.test_state import in_child
from vmrun.image.artifacts import EMPTY_DATA, EMPTY_TYPE
from vmrun.image.layout_artifacts import LayoutArtifacts
from vmrun.image.limits import ImageLimits
from vmrun.model.digest import Digest
from vmrun.model.errors import (
    DigestMismatch,
    ImageError,
    ImageNotFound,
    ImageTooLarge,
    StateError,
    VmrunError,
)
from vmrun.model.image import Descriptor

FORK = multiprocessing.get_context("fork")
KIND = "kind"
COSIGN = "dev.cosignproject.cosign"
IMAGE = plain_image()
SUBJECT = Digest.of(IMAGE.manifest)
SIGNATURE_TAG = f"sha256-{SUBJECT.hex}.sig"
BUNDLE = "application/vnd.dev.sigstore.bundle.v0.3+json"


@pytest.fixture
def layout(tmp_path: Path) -> Path:
    return IMAGE.write_layout(tmp_path / "layout")


def manifest(note: str = "", **more: object) -> bytes:
    config = {"mediaType": EMPTY_TYPE, "digest": str(Digest.of(EMPTY_DATA)), "size": 2}
    fields = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": []}
    return dumps({**fields, "annotations": {"note": note}, **more})


def about(subject: Digest = SUBJECT, note: str = "") -> bytes:
    named = {"mediaType": OCI_MANIFEST, "digest": str(subject), "size": len(IMAGE.manifest)}
    return manifest(note, subject=named, artifactType=BUNDLE)


def entries(layout: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((layout / "index.json").read_bytes())["manifests"]
    return found


def set_entries(layout: Path, *found: dict[str, Any], **more: object) -> None:
    index = {"schemaVersion": 2, "manifests": list(found), **more}
    (layout / "index.json").write_bytes(dumps(index))


def runs(layout: Path, tmp_path: Path, tag: str = ":demo") -> bool:
    target = tmp_path / f"copy{time.monotonic_ns()}"
    target.mkdir()
    return fetched(f"oci:{layout}{tag}", target).digest == SUBJECT


# --- what is put is found ------------------------------------------------------------------------


def test_what_is_put_is_found(layout: Path) -> None:
    store = LayoutArtifacts(layout)
    blob = store.put_blob("text/plain", b"signature")
    assert store.blob(blob, 100) == b"signature"
    tagged = store.put_manifest(OCI_MANIFEST, manifest(), SIGNATURE_TAG)
    assert (found := store.manifest(SIGNATURE_TAG)) is not None
    assert (found.descriptor, found.data) == (tagged, manifest())
    assert store.manifest(tagged.digest) == found
    assert store.manifest("absent") is store.manifest(Digest.of(b"absent")) is None
    assert store.manifest("") is None
    referrer = store.put_referrer(SUBJECT, OCI_MANIFEST, about())
    (one,) = store.referrers(SUBJECT)
    assert (one.descriptor, one.artifact_type) == (referrer, BUNDLE)
    assert one.annotations == {"note": ""}
    assert store.referrers(Digest.of(b"absent")) == ()


def test_a_tag_moves(layout: Path) -> None:
    store = LayoutArtifacts(layout)
    for note in ("one", "two"):
        store.put_manifest(OCI_MANIFEST, manifest(note), SIGNATURE_TAG)
    assert [entry["annotations"][REF_NAME] for entry in entries(layout)] == ["demo", SIGNATURE_TAG]
    found = store.manifest(SIGNATURE_TAG)
    assert found is not None
    assert found.data == manifest("two")


def test_what_is_put_twice_is_listed_once(layout: Path) -> None:
    store = LayoutArtifacts(layout)
    for _ in range(2):
        store.put_referrer(SUBJECT, OCI_MANIFEST, about())
    assert len(entries(layout)) == 2


def test_entries_of_others_keep_their_meaning(layout: Path) -> None:
    foreign = {
        "mediaType": "application/x",
        "digest": "sha512:" + "0" * 128,
        "size": 1 << 60,
        "annotations": {REF_NAME: "other", "ключ": "значение\u2028"},
        "urls": ["https://example.com/ä"],
        "data": None,
        "new": {"a": [1, 2.5, True, None]},
    }
    listed = {**json.loads(json.dumps(entries(layout)[0])), "x-note": [1]}
    same = {
        "mediaType": OCI_MANIFEST,
        "digest": str(Digest.of(about())),
        "size": len(about()),
        "annotations": {"of": "somebody else"},
    }
    set_entries(layout, foreign, listed, same, annotations={"a": "b"}, extra=[1])
    store = LayoutArtifacts(layout)
    store.put_referrer(SUBJECT, OCI_MANIFEST, about())
    store.put_manifest(OCI_MANIFEST, manifest(), "another")
    index = json.loads((layout / "index.json").read_bytes())
    assert index["manifests"][:3] == [foreign, listed, same]
    assert len(index["manifests"]) == 4
    assert (index["annotations"], index["extra"]) == ({"a": "b"}, [1])


def test_modes(layout: Path) -> None:
    (layout / "index.json").chmod(0o640)
    blob = LayoutArtifacts(layout).put_manifest(OCI_MANIFEST, manifest(), "t")
    assert stat.S_IMODE((layout / "index.json").stat().st_mode) == 0o640
    path = layout / "blobs" / "sha256" / blob.digest.hex
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


# --- signatures beside an image do not hide it ---------------------------------------------------


def test_an_image_is_selected_in_spite_of_its_signatures(layout: Path, tmp_path: Path) -> None:
    store = LayoutArtifacts(layout)
    for tag in (SIGNATURE_TAG, f"sha256-{SUBJECT.hex}.att", f"sha256-{SUBJECT.hex}"):
        store.put_manifest(OCI_MANIFEST, manifest(tag), tag)
    store.put_referrer(SUBJECT, OCI_MANIFEST, about())
    assert len(entries(layout)) == 5
    assert runs(layout, tmp_path)
    assert runs(layout, tmp_path, "")


def test_a_signature_cannot_be_run(layout: Path, tmp_path: Path) -> None:
    LayoutArtifacts(layout).put_manifest(OCI_MANIFEST, manifest(), SIGNATURE_TAG)
    with pytest.raises(ImageNotFound, match="no image tagged"):
        fetched(f"oci:{layout}:{SIGNATURE_TAG}", tmp_path)


def test_an_image_whose_tag_only_looks_like_a_signatures_is_one(tmp_path: Path) -> None:
    image = plain_image(tag="v1.sig")
    layout = image.write_layout(tmp_path / "layout")
    assert runs(layout, tmp_path, ":v1.sig")
    LayoutArtifacts(layout).put_manifest(OCI_MANIFEST, manifest(), "v2.sig")
    assert all(KIND not in entry["annotations"] for entry in entries(layout))


# --- cosign's marks ------------------------------------------------------------------------------


def kinds(layout: Path) -> dict[str, str]:
    notes = [entry.get("annotations", {}) for entry in entries(layout)]
    return {note.get(REF_NAME, ""): note[KIND] for note in notes if KIND in note}


def test_the_first_image_that_is_signed_is_marked_for_cosign(layout: Path) -> None:
    store = LayoutArtifacts(layout)
    other = plain_image(tag="other", settings={"Labels": {"of": "other"}})
    set_entries(layout, *entries(layout), other.index_entry())
    assert kinds(layout) == {}
    for note in ("one", "again"):
        store.put_manifest(OCI_MANIFEST, manifest(note), SIGNATURE_TAG)
    expected = {"demo": f"{COSIGN}/image", SIGNATURE_TAG: f"{COSIGN}/sigs"}
    assert kinds(layout) == expected
    store.put_manifest(OCI_MANIFEST, manifest(), f"sha256-{Digest.of(other.manifest).hex}.sig")
    assert kinds(layout) == expected
    store.put_manifest(OCI_MANIFEST, manifest(), f"sha256-{SUBJECT.hex}.att")
    assert kinds(layout)[f"sha256-{SUBJECT.hex}.att"] == f"{COSIGN}/atts"


def test_an_index_is_marked_as_one(layout: Path) -> None:
    index = dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries(layout)})
    (layout / blob_name(index)).write_bytes(index)
    entry = {"mediaType": OCI_INDEX, "digest": str(Digest.of(index)), "size": len(index)}
    set_entries(layout, {**entry, "annotations": {REF_NAME: "all"}})
    tag = f"sha256-{Digest.of(index).hex}.sig"
    LayoutArtifacts(layout).put_manifest(OCI_MANIFEST, manifest(), tag)
    assert kinds(layout) == {"all": f"{COSIGN}/imageIndex", tag: f"{COSIGN}/sigs"}


def test_marks_of_somebody_else_stay(layout: Path) -> None:
    (image,) = entries(layout)
    image["annotations"][KIND] = f"{COSIGN}/image"
    theirs = {**image, "annotations": {KIND: f"{COSIGN}/sigs"}}
    set_entries(layout, image, theirs)
    LayoutArtifacts(layout).put_manifest(OCI_MANIFEST, manifest(), SIGNATURE_TAG)
    assert entries(layout)[:2] == [image, theirs]
    assert KIND not in entries(layout)[2]["annotations"]


# --- crashes and crowds --------------------------------------------------------------------------


def test_a_killed_writer_leaves_the_layout_whole(layout: Path, tmp_path: Path) -> None:
    chance = random.Random(11)

    def sign() -> None:
        store = LayoutArtifacts(layout)
        for number in range(10_000):
            store.put_blob("text/plain", b"%d" % number)
            store.put_manifest(OCI_MANIFEST, manifest(str(number)), SIGNATURE_TAG)
            store.put_manifest(OCI_MANIFEST, about(note=str(number % 20)))

    for _ in range(15):
        child = FORK.Process(target=sign)
        child.start()
        time.sleep(chance.uniform(0.002, 0.05))
        child.kill()
        child.join(10)
        assert runs(layout, tmp_path)
        store = LayoutArtifacts(layout)
        for entry in entries(layout):
            assert store.manifest(Digest.parse(entry["digest"])) is not None
    assert store.manifest(SIGNATURE_TAG) is not None


def test_two_writers_lose_nothing(layout: Path) -> None:
    def sign(name: str) -> None:
        store = LayoutArtifacts(layout)
        for number in range(15):
            store.put_manifest(OCI_MANIFEST, manifest(f"{name}{number}"), f"{name}{number}")
            store.put_referrer(SUBJECT, OCI_MANIFEST, about(note=f"{name}{number}"))

    children = [FORK.Process(target=sign, args=(name,)) for name in ("a", "b", "c")]
    for child in children:
        child.start()
    for child in children:
        child.join(60)
    assert [child.exitcode for child in children] == [0, 0, 0]
    assert len(entries(layout)) == 1 + 3 * 15 * 2
    assert len(LayoutArtifacts(layout).referrers(SUBJECT)) == 45


# --- hostile and broken layouts ------------------------------------------------------------------


def twice(layout: Path) -> None:
    path = layout / "index.json"
    path.write_bytes(path.read_bytes().replace(b'"size":', b'"size": 1, "size":'))


def pipe(layout: Path) -> None:
    (layout / "index.json").unlink()
    os.mkfifo(layout / "index.json")


HOSTILE: dict[str, Callable[[Path], object]] = {
    "no index": lambda layout: (layout / "index.json").unlink(),
    "empty": lambda layout: (layout / "index.json").write_bytes(b""),
    "huge": lambda layout: (layout / "index.json").write_bytes(b" " * (5 << 20)),
    "deep": lambda layout: (layout / "index.json").write_bytes(b"[" * 100_000),
    "list": lambda layout: (layout / "index.json").write_bytes(b"[]"),
    "twice": twice,
    "pipe": pipe,
    "many": lambda layout: set_entries(layout, *entries(layout) * 1025),
    "no list": lambda layout: (layout / "index.json").write_bytes(
        b'{"schemaVersion": 2, "manifests": {}}'
    ),
    "digest": lambda layout: set_entries(layout, {**entries(layout)[0], "digest": "../../x"}),
    "number": lambda layout: set_entries(layout, {**entries(layout)[0], "size": "1"}),
    "note": lambda layout: set_entries(layout, {**entries(layout)[0], "annotations": {"a": 1}}),
}


@pytest.mark.parametrize("how", HOSTILE)
def test_a_hostile_index_is_refused_and_not_touched(layout: Path, how: str) -> None:
    HOSTILE[how](layout)
    path = layout / "index.json"
    before = path.read_bytes() if path.is_file() else None
    store = LayoutArtifacts(layout)
    for work in (
        lambda: store.manifest(SIGNATURE_TAG),
        lambda: store.referrers(SUBJECT),
        lambda: store.put_manifest(OCI_MANIFEST, manifest(), SIGNATURE_TAG),
        lambda: store.put_referrer(SUBJECT, OCI_MANIFEST, about()),
    ):
        with pytest.raises(ImageError):
            work()
    assert (path.read_bytes() if path.is_file() else None) == before
    assert not list(layout.rglob(".partial-*"))


def test_a_full_index_stays_readable(layout: Path, tmp_path: Path) -> None:
    (image,) = entries(layout)
    notes = [{"annotations": {REF_NAME: f"t{number}"}} for number in range(1023)]
    set_entries(layout, image, *({**image, **note} for note in notes))
    with pytest.raises(ImageTooLarge):
        LayoutArtifacts(layout).put_manifest(OCI_MANIFEST, manifest(), SIGNATURE_TAG)
    assert runs(layout, tmp_path)


def listed_blob(layout: Path, data: bytes = b"listed") -> tuple[Path, Descriptor]:
    blob = LayoutArtifacts(layout).put_blob("text/plain", data)
    return layout / "blobs" / "sha256" / blob.digest.hex, blob


@pytest.mark.parametrize("data", [b"Listed", b"liste", b"listed!"])
def test_a_blob_of_other_bytes_is_refused(layout: Path, data: bytes) -> None:
    path, blob = listed_blob(layout)
    path.write_bytes(data)
    with pytest.raises(DigestMismatch):
        LayoutArtifacts(layout).blob(blob, 100)


def test_blobs_that_are_none(layout: Path, tmp_path: Path) -> None:
    path, blob = listed_blob(layout)
    store = LayoutArtifacts(layout)
    with pytest.raises(ImageTooLarge):
        store.blob(blob, 5)
    path.unlink()
    with pytest.raises(ImageNotFound):
        store.blob(blob, 100)
    os.mkfifo(path)
    with pytest.raises(ImageError, match="not a regular file"):
        store.blob(blob, 100)
    path.unlink()
    (tmp_path / "secret").write_bytes(b"secret")
    path.symlink_to(tmp_path / "secret")
    with pytest.raises(DigestMismatch) as caught:
        store.blob(blob, 100)
    assert "secret" not in caught.value.message
    store.put_blob("text/plain", b"listed")  # replaces the link, not what it leads to
    assert (tmp_path / "secret").read_bytes() == b"secret"
    assert store.blob(blob, 100) == b"listed"


@pytest.mark.parametrize("name", ["blobs", "blobs/sha256"])
def test_nothing_is_written_through_a_link(layout: Path, tmp_path: Path, name: str) -> None:
    (layout / name).rename(tmp_path / "elsewhere")
    (layout / name).symlink_to(tmp_path / "elsewhere")
    before = sorted((tmp_path / "elsewhere").rglob("*"))
    with pytest.raises(ImageError, match="symbolic link"):
        LayoutArtifacts(layout).put_manifest(OCI_MANIFEST, manifest(), SIGNATURE_TAG)
    assert sorted((tmp_path / "elsewhere").rglob("*")) == before


def test_manifests_that_are_listed_without_being_there_refer_to_nothing(layout: Path) -> None:
    store = LayoutArtifacts(layout)
    gone = store.put_referrer(SUBJECT, OCI_MANIFEST, about(note="gone"))
    store.put_referrer(SUBJECT, OCI_MANIFEST, about())
    (layout / "blobs" / "sha256" / gone.digest.hex).unlink()
    assert [one.annotations["note"] for one in store.referrers(SUBJECT)] == [""]
    with pytest.raises(ImageNotFound):
        store.manifest(gone.digest)


def test_looking_for_referrers_has_an_end(layout: Path) -> None:
    limits = ImageLimits(document=4096)
    store = LayoutArtifacts(layout, limits)
    for number in range(9):
        store.put_manifest(OCI_MANIFEST, about(note=f"{number}" + "x" * 3400))
        if number < 7:
            assert len(store.referrers(SUBJECT)) == number + 1
    with pytest.raises(ImageTooLarge, match="too large to look through"):
        store.referrers(SUBJECT)


def test_a_layout_that_cannot_be_written() -> None:
    with tempfile.TemporaryDirectory() as folder:  # which nobody else may enter by itself
        Path(folder).chmod(0o755)
        layout = IMAGE.write_layout(Path(folder) / "layout")
        said = in_child(lambda: sign_as_nobody(layout)) if os.geteuid() == 0 else ""
        assert len(entries(layout)) == 1
    if said:
        assert said.startswith(f"{StateError.__name__}: cannot write to layout")
        assert "copy it to where you may write" in said


def sign_as_nobody(layout: Path) -> str:
    os.setgroups([])
    os.setresgid(65534, 65534, 65534)
    os.setresuid(65534, 65534, 65534)
    store = LayoutArtifacts(layout)
    assert store.manifest("demo") is not None
    try:
        store.put_manifest(OCI_MANIFEST, manifest(), SIGNATURE_TAG)
    except VmrunError as error:
        return f"{type(error).__name__}: {error.message}; {error.hint}"
    return "written"
