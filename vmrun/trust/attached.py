"""What is attached to an image in cosign's two ways, found and bounded, not yet believed.

``sha256-HEX.sig`` and ``sha256-HEX.att`` are tags of manifests whose layers are payloads (cosign's
SIGNATURE_SPEC). Bundles are manifests of their own whose ``subject`` is the image (referrers).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from vmrun.image.artifacts import ArtifactStore
from vmrun.image.document import Document, parse_object
from vmrun.image.limits import MIB, ImageLimits
from vmrun.image.manifest import OCI_MANIFEST
from vmrun.model.digest import Digest
from vmrun.model.errors import ImageError
from vmrun.model.image import Descriptor
from vmrun.trust.bundle import MEDIA_TYPE

MOST = 128
"""Signatures, or attestations, that are looked at for one digest in one form."""
PREDICATE = "dev.sigstore.bundle.predicateType"
"""The annotation of a bundle's manifest that says what is in it (cosign, pkg/oci/remote)."""
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


class _Budget:
    """How many bytes may still be read; what is too large to be read costs nothing."""

    def __init__(self, largest: int) -> None:
        self._largest = largest
        self._left = _MOST_BYTES

    def refuses(self, size: int) -> str:
        """Why ``size`` bytes may not be read; empty when they may."""
        if size > self._largest:
            return f"{size} bytes, the limit is {self._largest}"
        if size > self._left:
            return f"more than {_MOST_BYTES} bytes together with the others"
        self._left -= size
        return ""


def under_tag(
    store: ArtifactStore, digest: Digest, suffix: str, media_type: str, largest: int
) -> Iterator[Attached | Malformed]:
    """Layers of the manifest ``sha256-HEX.SUFFIX`` that have ``media_type``; ``largest`` bounds
    one, in bytes."""
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
    budget = _Budget(largest)
    for number, layer in enumerate(layers):
        at = f"{where}, layer {number}"
        try:
            blob = descriptor_of(layer)
            annotations = layer.text_map("annotations")
        except ImageError as error:
            yield Malformed(error.message)
            continue
        if blob.media_type != media_type:
            yield Malformed(f"{at}: is {blob.media_type[:80]!r}, not {media_type!r}")
        elif reason := budget.refuses(blob.size):
            yield Malformed(f"{at}: {reason}")
        else:
            data = store.blob(blob, largest)
            yield Attached(digest, media_type, data, annotations, at)


def bundles(
    store: ArtifactStore, digest: Digest, predicate_type: str, largest: int
) -> Iterator[Attached | Malformed]:
    """Sigstore bundles that refer to ``digest``, but for those whose manifest says that they hold
    a statement of another type: a signature that is labelled wrongly is not found.

    What a list of referrers says of them is not relied on: cosign 2 files them under another type
    than their own. ``largest`` bounds a bundle, in bytes.
    """
    referrers = [r for r in store.referrers(digest) if r.descriptor.media_type == OCI_MANIFEST]
    if len(referrers) > MOST:
        yield Malformed(f"{store.describe()}: only {MOST} referrers of {digest} were looked at")
    budget = _Budget(largest)
    for referrer in referrers[:MOST]:
        where = f"referrer {referrer.descriptor.digest} in {store.describe()}"
        found = store.manifest(referrer.descriptor.digest)
        if found is None:
            yield Malformed(f"{where}: is listed, but not there")
            continue
        try:
            blob = _bundle_layer(found.data, digest, predicate_type, where)
        except ImageError as error:
            yield Malformed(error.message)
            continue
        if blob is None:
            continue
        if reason := budget.refuses(blob.size):
            yield Malformed(f"{where}: {reason}")
        else:
            yield Attached(digest, MEDIA_TYPE, store.blob(blob, largest), {}, where)


def _bundle_layer(
    data: bytes, digest: Digest, predicate_type: str, where: str
) -> Descriptor | None:
    """The only layer of a bundle's manifest; None for an SBOM or anything else that is not ours
    to judge. Raises :class:`ImageError`."""
    document = parse_object(data, where, _LIMITS)
    layers = document.objects("layers", MOST)
    if not layers or layers[0].text("mediaType") != MEDIA_TYPE:
        return None
    if document.text_map("annotations").get(PREDICATE, predicate_type) != predicate_type:
        return None
    subject = document.nested("subject").text("digest", "")
    if subject != str(digest):
        raise ImageError(f"{where}: is about {subject[:80]!r}")
    if len(layers) != 1:
        raise ImageError(f"{where}: has {len(layers)} layers, a bundle has one")
    return descriptor_of(layers[0])


def descriptor_of(item: Document) -> Descriptor:
    """A layer's descriptor. Raises :class:`ImageError`."""
    return Descriptor(
        item.text("mediaType"), Digest.parse(item.text("digest")), item.integer("size")
    )
