"""Attaching to an image in cosign's two ways: what is there stays, unless it says the same."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from vmrun.image.artifacts import EMPTY_DATA, EMPTY_TYPE, ArtifactStore
from vmrun.image.document import Document, parse_object
from vmrun.image.limits import ImageLimits
from vmrun.image.manifest import OCI_CONFIG, OCI_MANIFEST
from vmrun.model.digest import Digest
from vmrun.model.errors import ImageError, TrustError
from vmrun.model.image import Descriptor
from vmrun.trust.attached import MOST, PREDICATE, descriptor_of, suffix_tag
from vmrun.trust.bundle import MEDIA_TYPE

_LIMITS = ImageLimits()
_TRIES = 5


@dataclass(frozen=True, slots=True)
class NewLayer:
    """A layer to add to the manifest of a tag.

    ``outdates`` is asked about each layer of the same media type and the same names of
    annotations that is there, by its bytes and annotations: what it accepts gives way.
    """

    media_type: str
    data: bytes
    annotations: Mapping[str, str]
    outdates: Callable[[bytes, Mapping[str, str]], bool] = field(compare=False)
    largest: int
    """Bytes of a layer that ``outdates`` is asked about."""


def append_under_tag(store: ArtifactStore, digest: Digest, suffix: str, layer: NewLayer) -> None:
    """Add a layer to the manifest ``sha256-HEX.SUFFIX``; the other layers stay as they are.

    A registry cannot add to a tag, only move it, so the result is read again, and the addition
    repeated when somebody else's took its place.
    Raises :class:`TrustError` when that manifest is full, is none, or keeps changing.
    """
    tag = suffix_tag(digest, suffix)
    entry = {
        **_entry(store.put_blob(layer.media_type, layer.data)),
        "annotations": dict(layer.annotations),
    }
    entries = _entries(store, tag)
    for _ in range(_TRIES):
        kept = [old for old in entries if old != entry and not _outdated(store, old, layer)]
        if len(kept) >= MOST:
            raise TrustError(
                f"{tag} in {store.describe()}: has {MOST} layers, more are not read",
                hint="remove that tag, and sign again what should stay",
            )
        _put(store, tag, [*kept, entry])
        entries = _entries(store, tag)
        if entry in entries:
            return
    raise TrustError(
        f"{tag} in {store.describe()} keeps changing",
        hint="others are signing the same image; try again",
    )


def _entries(store: ArtifactStore, tag: str) -> list[dict[str, object]]:
    found = store.manifest(tag)
    if found is None:
        return []
    try:
        layers = parse_object(found.data, f"{tag} in {store.describe()}", _LIMITS)
        for layer in layers.objects("layers", MOST):
            descriptor_of(layer)
            layer.text_map("annotations")
    except ImageError as error:
        raise TrustError(
            f"cannot add to what is there: {error.message}", hint="remove that tag first"
        ) from None
    entries: list[dict[str, object]] = json.loads(found.data)["layers"]
    return entries


def _outdated(store: ArtifactStore, entry: dict[str, object], layer: NewLayer) -> bool:
    document = Document(entry, "layer")
    notes = document.text_map("annotations")
    descriptor = descriptor_of(document)
    if descriptor.media_type != layer.media_type or notes.keys() != layer.annotations.keys():
        return False
    if descriptor.size > layer.largest:
        return False
    return layer.outdates(store.blob(descriptor, layer.largest), notes)


def _put(store: ArtifactStore, tag: str, entries: list[dict[str, object]]) -> None:
    config = store.put_blob(OCI_CONFIG, _config([str(entry["digest"]) for entry in entries]))
    manifest = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": _entry(config),
        "layers": entries,
    }
    store.put_manifest(OCI_MANIFEST, _json(manifest), tag)


def attach_bundle(
    store: ArtifactStore, subject: Descriptor, bundle: bytes, predicate_type: str, created: str
) -> None:
    """Store a bundle as a manifest that refers to ``subject``; ``created`` is RFC 3339.

    Raises :class:`TrustError` when so many refer to it that this one would not be read.
    """
    if len(store.referrers(subject.digest)) >= MOST:
        raise TrustError(
            f"{store.describe()}: {MOST} manifests refer to {subject.digest}, more are not read",
            hint="delete old ones there, or sign with --format simple",
        )
    config = store.put_blob(EMPTY_TYPE, EMPTY_DATA)
    layer = store.put_blob(MEDIA_TYPE, bundle)
    manifest = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "artifactType": MEDIA_TYPE,
        "config": _entry(config),
        "layers": [_entry(layer)],
        "subject": _entry(subject),
        "annotations": {
            "dev.sigstore.bundle.content": "dsse-envelope",
            PREDICATE: predicate_type,
            "org.opencontainers.image.created": created,
        },
    }
    store.put_referrer(subject.digest, OCI_MANIFEST, _json(manifest))


def _entry(descriptor: Descriptor) -> dict[str, object]:
    return {
        "mediaType": descriptor.media_type,
        "size": descriptor.size,
        "digest": str(descriptor.digest),
    }


def _config(diff_ids: list[str]) -> bytes:
    """A config in the shape of an image's, as cosign writes one for its payloads."""
    return _json(
        {
            "architecture": "",
            "os": "",
            "config": {},
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        }
    )


def _json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()
