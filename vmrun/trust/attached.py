"""What is attached to an image in cosign's two ways, found and bounded, not yet believed.

``sha256-HEX.sig`` and ``sha256-HEX.att`` are tags of manifests whose layers are payloads (cosign's
SIGNATURE_SPEC). Bundles are manifests of their own whose ``subject`` is the image (referrers).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from vmrun.image.artifacts import EMPTY_DATA, EMPTY_TYPE, ArtifactStore, Referrer
from vmrun.image.document import Document, parse_object
from vmrun.image.limits import MIB, ImageLimits
from vmrun.image.manifest import OCI_CONFIG, OCI_MANIFEST
from vmrun.model.digest import Digest
from vmrun.model.errors import ImageError, TrustError
from vmrun.model.image import Descriptor
from vmrun.trust.bundle import LARGEST_BUNDLE, MEDIA_TYPE

MOST = 128
"""Signatures, or attestations, that are looked at for one digest."""
_MOST_BYTES = 64 * MIB
_LIMITS = ImageLimits()


@dataclass(frozen=True, slots=True)
class Attached:
    """A layer of an attached manifest: its bytes and annotations, and where it was found."""

    digest: Digest
    """What it is attached to."""
    media_type: str
    data: bytes
    annotations: Mapping[str, str]
    where: str


@dataclass(frozen=True, slots=True)
class Malformed:
    """Something attached that cannot be read: no reason to trust, and none to stop."""

    reason: str


def suffix_tag(digest: Digest, suffix: str) -> str:
    """``sha256-HEX.sig`` and the like."""
    return f"{digest.algorithm}-{digest.hex}.{suffix}"


def under_tag(
    store: ArtifactStore, digest: Digest, suffix: str, media_type: str, largest: int
) -> Iterator[Attached | Malformed]:
    """Layers of the manifest ``sha256-HEX.SUFFIX`` that have ``media_type``."""
    tag = suffix_tag(digest, suffix)
    where = f"{tag} in {store.describe()}"
    found = store.manifest(tag)
    if found is None:
        return
    try:
        layers = parse_object(found.data, where, _LIMITS).objects("layers", MOST)
    except ImageError as error:
        yield Malformed(error.message)
        return
    left = _MOST_BYTES
    for number, layer in enumerate(layers):
        at = f"{where}, layer {number}"
        try:
            descriptor = _descriptor(layer)
            annotations = layer.text_map("annotations")
        except ImageError as error:
            yield Malformed(error.message)
            continue
        left -= descriptor.size
        if descriptor.media_type != media_type:
            yield Malformed(f"{at}: is {descriptor.media_type[:80]!r}, not {media_type!r}")
        elif descriptor.size > largest or left < 0:
            yield Malformed(f"{at}: {descriptor.size} bytes are too many")
        else:
            data = store.blob(descriptor, largest)
            yield Attached(digest, media_type, data, annotations, at)


def bundles(store: ArtifactStore, digest: Digest) -> Iterator[Attached | Malformed]:
    """Sigstore bundles that refer to ``digest``. What a list of referrers says of them is not
    relied on: cosign 2 files them under another type than their own."""
    referrers = [r for r in store.referrers(digest) if r.descriptor.media_type == OCI_MANIFEST]
    if len(referrers) > MOST:
        yield Malformed(f"{store.describe()}: only {MOST} referrers of {digest} were looked at")
    left = _MOST_BYTES
    for referrer in referrers[:MOST]:
        left -= referrer.descriptor.size
        if left < 0:
            yield Malformed(f"{store.describe()}: the referrers of {digest} are too large")
            return
        yield from _bundle(store, digest, referrer)


def _bundle(
    store: ArtifactStore, digest: Digest, referrer: Referrer
) -> Iterator[Attached | Malformed]:
    where = f"referrer {referrer.descriptor.digest} in {store.describe()}"
    found = store.manifest(referrer.descriptor.digest)
    if found is None:
        yield Malformed(f"{where}: is listed, but not there")
        return
    try:
        document = parse_object(found.data, where, _LIMITS)
        subject = document.nested("subject").text("digest", "")
        layers = document.objects("layers", MOST)
        if not layers or layers[0].text("mediaType") != MEDIA_TYPE:
            return  # an SBOM, or anything else that is not ours to judge
        if subject != str(digest):
            yield Malformed(f"{where}: is about {subject[:80]!r}")
            return
        descriptor = _descriptor(layers[0])
    except ImageError as error:
        yield Malformed(error.message)
        return
    if descriptor.size > LARGEST_BUNDLE:
        yield Malformed(f"{where}: {descriptor.size} bytes are too many")
        return
    data = store.blob(descriptor, LARGEST_BUNDLE)
    yield Attached(digest, MEDIA_TYPE, data, {}, where)


def _descriptor(item: Document) -> Descriptor:
    return Descriptor(
        item.text("mediaType"), Digest.parse(item.text("digest")), item.integer("size")
    )


def append_under_tag(
    store: ArtifactStore,
    digest: Digest,
    suffix: str,
    layers: Sequence[tuple[str, bytes, Mapping[str, str]]],
) -> None:
    """Add layers (media type, bytes, annotations) to the manifest ``sha256-HEX.SUFFIX``.

    What is there stays; a layer that is there already is not added again.
    Raises :class:`TrustError` when that manifest is full or is none.
    """
    tag = suffix_tag(digest, suffix)
    where = f"{tag} in {store.describe()}"
    found = store.manifest(tag)
    entries: list[dict[str, object]] = []
    if found is not None:
        try:
            parse_object(found.data, where, _LIMITS).objects("layers", MOST)
        except ImageError as error:
            raise TrustError(
                f"cannot add to what is there: {error.message}", hint="remove that tag first"
            ) from None
        entries = json.loads(found.data)["layers"]
    for media_type, data, notes in layers:
        blob = store.put_blob(media_type, data)
        entry = {**_entry(blob), "annotations": dict(notes)}
        if entry not in entries:
            entries.append(entry)
    if len(entries) > MOST:
        raise TrustError(
            f"{where}: would have more than {MOST} layers", hint="remove that tag first"
        )
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
    """Store a bundle as a manifest that refers to ``subject``; ``created`` is RFC 3339."""
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
            "dev.sigstore.bundle.predicateType": predicate_type,
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
