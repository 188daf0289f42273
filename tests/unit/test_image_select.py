"""Which entry of a layout is the image, when signatures and other things lie beside it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.images import (
    OCI_CONFIG,
    OCI_MANIFEST,
    REF_NAME,
    TestImage,
    assert_refused,
    blob_name,
    descriptor,
    dumps,
    fetched,
    plain_image,
)
from vmrun.image.layout_artifacts import LayoutArtifacts
from vmrun.model.errors import DigestMismatch, ImageError, ImageNotFound

EMPTY = b"{}"
EMPTY_TYPE = "application/vnd.oci.empty.v1+json"
BUNDLE = "application/vnd.dev.sigstore.bundle.v0.3+json"


def attached(image: TestImage, **more: object) -> bytes:
    """The manifest of something that says it is about the image."""
    return dumps(
        {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": descriptor(EMPTY_TYPE, EMPTY),
            "layers": [descriptor(EMPTY_TYPE, EMPTY)],
            "subject": descriptor(OCI_MANIFEST, image.manifest),
            **more,
        }
    )


def layout(path: Path, image: TestImage, *beside: tuple[bytes, Mapping[str, Any]]) -> str:
    """A layout of the image with manifests beside it; each has fields of its own in the index."""
    entries = [image.index_entry()]
    for data, fields in beside:
        # Tools that add at the front exist as well.
        entries.insert(0, descriptor(OCI_MANIFEST, data, **fields))
    image.index = dumps({"schemaVersion": 2, "manifests": entries})
    place = image.write_layout(path / "layout")
    for data in (EMPTY, *(data for data, _ in beside)):
        (place / blob_name(data)).write_bytes(data)
    return f"oci:{place}"


def tagged(name: str) -> dict[str, Any]:
    return {"annotations": {REF_NAME: name}}


HEX = "ab" * 32
BESIDE: dict[str, Mapping[str, Any]] = {
    "cosign's signature": tagged(f"sha256-{HEX}.sig"),
    "cosign's attestation": tagged(f"sha256-{HEX}.att"),
    "cosign's SBOM": tagged(f"sha256-{HEX}.sbom"),
    "the index of referrers": tagged(f"sha256-{HEX}"),
    "an artifact by its type": {"artifactType": BUNDLE},
    "an artifact by its subject alone": {},
    "one with a tag, by its subject": tagged("provenance"),
}


@pytest.mark.parametrize("kind", BESIDE)
def test_what_is_attached_is_no_image(tmp_path: Path, kind: str) -> None:
    image = plain_image()
    place = layout(tmp_path, image, (attached(image), BESIDE[kind]))
    assert str(fetched(place, tmp_path).digest) == image.index_entry()["digest"]


@pytest.mark.parametrize("kind", BESIDE)
def test_the_tag_still_finds_the_image(tmp_path: Path, kind: str) -> None:
    image = plain_image()
    place = layout(tmp_path, image, (attached(image), BESIDE[kind]))
    assert str(fetched(f"{place}:demo", tmp_path).digest) == image.index_entry()["digest"]


def test_all_of_them_together(tmp_path: Path) -> None:
    image = plain_image()
    beside = [(attached(image, annotations={"n": name}), BESIDE[name]) for name in BESIDE]
    place = layout(tmp_path, image, *beside)
    assert str(fetched(place, tmp_path).digest) == image.index_entry()["digest"]


def test_a_signed_layout_is_still_one_image(tmp_path: Path) -> None:
    """Signed by vmrun's own means, as a tag and as a referrer."""
    image = plain_image()
    place = image.write_layout(tmp_path / "layout")
    store = LayoutArtifacts(place)
    store.put_blob(EMPTY_TYPE, EMPTY)
    digest = image.index_entry()["digest"]
    store.put_manifest(OCI_MANIFEST, attached(image), f"{digest.replace(':', '-')}.sig")
    store.put_manifest(OCI_MANIFEST, attached(image, artifactType=BUNDLE))
    assert str(fetched(f"oci:{place}", tmp_path).digest) == digest


def test_two_images_are_two_whatever_lies_beside(tmp_path: Path) -> None:
    image, other = plain_image(), plain_image(settings={"Cmd": ["x"]}, tag="other")
    place = layout(tmp_path, image, (attached(image), {}), (other.manifest, tagged("other")))
    other.write_layout(tmp_path / "other")
    assert_refused(place, tmp_path, ImageError, "several images", "demo, other")


def test_a_layout_of_attached_things_alone_holds_no_image(tmp_path: Path) -> None:
    image = plain_image()
    place = layout(tmp_path, image, (attached(image, a="1"), {}), (attached(image, a="2"), {}))
    index = tmp_path / "layout" / "index.json"
    entries = json.loads(index.read_bytes())["manifests"][:2]
    index.write_bytes(dumps({"schemaVersion": 2, "manifests": entries}))
    assert_refused(place, tmp_path, ImageNotFound, "holds no image")


def test_an_attached_thing_is_not_run_by_its_tag(tmp_path: Path) -> None:
    image = plain_image()
    place = layout(tmp_path, image, (attached(image), tagged("provenance")))
    assert_refused(f"{place}:provenance", tmp_path, ImageError, "artifact, not an image")


def test_a_manifest_that_was_changed_is_not_believed_to_be_attached(tmp_path: Path) -> None:
    """Else whoever changes a manifest chooses which of two images is meant."""
    image, other = plain_image(), plain_image(settings={"Cmd": ["x"]}, tag="other")
    place = layout(tmp_path, image, (other.manifest, tagged("other")))
    lie = dumps({**json.loads(other.manifest), "subject": descriptor(OCI_CONFIG, b"")})
    size = len(other.manifest)
    (tmp_path / "layout" / blob_name(other.manifest)).write_bytes(lie[:size].ljust(size))
    assert_refused(place, tmp_path, DigestMismatch, "hash to")


def test_a_manifest_that_is_listed_but_not_there_counts_as_an_image(tmp_path: Path) -> None:
    """It cannot be told what it is, so it is not passed over."""
    image = plain_image()
    data = attached(image)
    place = layout(tmp_path, image, (data, {}))
    (tmp_path / "layout" / blob_name(data)).unlink()
    assert_refused(place, tmp_path, ImageError, "several images")


def test_manifests_of_other_platforms_need_not_be_there(tmp_path: Path) -> None:
    image = plain_image()
    foreign = plain_image(architecture="arm64")
    entries = [
        descriptor(OCI_MANIFEST, made.manifest, platform={"os": "linux", "architecture": name})
        for made, name in ((image, "amd64"), (foreign, "arm64"))
    ]
    image.index = dumps({"schemaVersion": 2, "manifests": entries})
    place = image.write_layout(tmp_path / "layout")
    assert str(fetched(f"oci:{place}", tmp_path).digest) == image.index_entry()["digest"]


def test_many_images_are_not_read_to_find_one(tmp_path: Path) -> None:
    image = plain_image()
    beside = [(attached(image, n=str(number)), {}) for number in range(40)]
    place = layout(tmp_path, image, *beside)
    assert_refused(place, tmp_path, ImageError, "several images")
    assert str(fetched(f"{place}:demo", tmp_path).digest) == image.index_entry()["digest"]
