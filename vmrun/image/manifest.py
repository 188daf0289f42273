"""Manifests and indexes: OCI image-spec (manifest.md, image-index.md) and the Docker
image manifest, version 2, schema 2, which has the same shape under other names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from vmrun.image.document import Document, parse_object
from vmrun.image.limits import ImageLimits
from vmrun.model.digest import Digest
from vmrun.model.errors import ImageError, ImageTooLarge
from vmrun.model.image import Compression, Descriptor

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
DOCKER_INDEX = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar"

INDEX_TYPES = frozenset({OCI_INDEX, DOCKER_INDEX})
MANIFEST_TYPES = frozenset({OCI_MANIFEST, DOCKER_MANIFEST})
CONFIG_TYPES = frozenset({OCI_CONFIG, DOCKER_CONFIG})
LAYER_TYPES: Mapping[str, Compression] = {
    OCI_LAYER: Compression.NONE,
    OCI_LAYER + "+gzip": Compression.GZIP,
    OCI_LAYER + "+zstd": Compression.ZSTD,
    DOCKER_LAYER: Compression.NONE,
    DOCKER_LAYER + ".gzip": Compression.GZIP,
    DOCKER_LAYER + ".zstd": Compression.ZSTD,
}
OCI_LAYER_TYPES: Mapping[Compression, str] = {
    compression: name for name, compression in LAYER_TYPES.items() if name.startswith(OCI_LAYER)
}

REF_NAME = "org.opencontainers.image.ref.name"
_ATTACHED = re.compile(r"sha256-[0-9a-f]{64}(?:\.(?:sig|att|sbom))?")
_COSIGN_KINDS = frozenset(f"dev.cosignproject.cosign/{kind}" for kind in ("sigs", "atts", "sboms"))
"""How 'cosign save' marks what it saves beside an image, without naming it."""
_ATTESTATION = ("vnd.docker.reference.type", "attestation-manifest")
_SCHEMA_1 = "application/vnd.docker.distribution.manifest.v1"


@dataclass(frozen=True, slots=True)
class Platform:
    """What a manifest in an index says it runs on."""

    os: str
    architecture: str
    variant: str = ""

    def __str__(self) -> str:
        return "/".join(filter(None, (self.os, self.architecture, self.variant)))


@dataclass(frozen=True, slots=True)
class IndexEntry:
    """One descriptor of an image index."""

    descriptor: Descriptor
    platform: Platform | None
    ref_name: str
    attestation: bool
    """Whether it describes another image rather than being one: BuildKit's provenance, cosign's
    signatures (by the tag that they have), or an artifact of any other type."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """The config and the layers, lowest first."""

    config: Descriptor
    layers: tuple[Descriptor, ...]


def parse_manifest(data: bytes, descriptor: Descriptor, limits: ImageLimits) -> Manifest:
    """Read the manifest that ``descriptor`` names (its digest was checked before)."""
    where = f"manifest {descriptor.digest}"
    document = parse_object(data, where, limits)
    _check_type(document, descriptor, "manifests")
    config = _descriptor(document.nested("config"))
    if config.media_type not in CONFIG_TYPES:
        raise ImageError(
            f"{where}: its config is {config.media_type[:120]!r}: an artifact, not an image",
            hint="name an image that holds a root file system",
        )
    layers = document.objects("layers", limit=limits.layers)
    return Manifest(config, tuple(_layer_descriptor(layer) for layer in layers))


def parse_index(
    data: bytes, where: str, descriptor: Descriptor | None, limits: ImageLimits
) -> tuple[IndexEntry, ...]:
    """Read an image index. A layout's ``index.json`` has no descriptor of its own."""
    document = parse_object(data, where, limits)
    _check_type(document, descriptor, "layers")
    return tuple(_entry(item) for item in document.objects("manifests", limit=limits.manifests))


def layer_compression(descriptor: Descriptor) -> Compression:
    """How the media type says the layer is compressed; refuses what vmrun cannot unpack."""
    found = LAYER_TYPES.get(descriptor.media_type)
    if found is not None:
        return found
    name = descriptor.media_type[:120]
    if "nondistributable" in name or ".foreign." in name:
        raise ImageError(
            f"layer {descriptor.digest} is {name!r}: its content is not part of the image",
            hint="rebuild the image on a base whose layers may be distributed",
        )
    if name.endswith("+encrypted"):
        raise ImageError(
            f"layer {descriptor.digest} is encrypted ({name!r})",
            hint="decrypt the image first, e.g. with: skopeo copy --decryption-key",
        )
    raise ImageError(f"layer {descriptor.digest} has unknown media type {name!r}")


def _check_type(document: Document, descriptor: Descriptor | None, foreign: str) -> None:
    """One document, one meaning: version, media type and fields must agree.

    A document that is both a manifest and an index is read differently by different
    tools (CVE-2021-41190), so it is refused.
    """
    where = document.where
    if document.integer("schemaVersion") == 1:
        raise _schema_1(where)
    if document.integer("schemaVersion") != 2:
        raise ImageError(f"{where}: unknown schemaVersion {document.integer('schemaVersion')}")
    stated = document.text("mediaType", "")
    if descriptor is not None and stated and stated != descriptor.media_type:
        raise ImageError(
            f"{where}: says it is {stated[:120]!r}, its descriptor says {descriptor.media_type!r}"
        )
    if descriptor is None and stated and stated not in INDEX_TYPES:
        raise ImageError(f"{where}: says it is {stated[:120]!r}, not an image index")
    if foreign in document:
        raise ImageError(f"{where}: holds both layers and manifests; it cannot be both")


def _schema_1(where: str) -> ImageError:
    return ImageError(
        f"{where}: Docker's manifest schema 1 is not supported",
        hint="convert the image, e.g. with: skopeo copy --format oci",
    )


def _descriptor(item: Document) -> Descriptor:
    return Descriptor(
        media_type=item.text("mediaType"),
        digest=Digest.parse(item.text("digest")),
        size=item.integer("size"),
    )


def _layer_descriptor(item: Document) -> Descriptor:
    descriptor = _descriptor(item)
    layer_compression(descriptor)
    return descriptor


def _entry(item: Document) -> IndexEntry:
    descriptor = _descriptor(item)
    if descriptor.media_type.startswith(_SCHEMA_1):
        raise _schema_1(item.where)
    annotations = item.text_map("annotations")
    platform = None
    if "platform" in item:
        fields = item.nested("platform")
        platform = Platform(
            fields.text("os"), fields.text("architecture"), fields.text("variant", "")
        )
    key, value = _ATTESTATION
    name = annotations.get(REF_NAME, "")
    kind = annotations.get("kind", "")
    attached = bool(
        item.text("artifactType", "") or _ATTACHED.fullmatch(name) or kind in _COSIGN_KINDS
    )
    return IndexEntry(descriptor, platform, name, annotations.get(key) == value or attached)


def check_document_size(descriptor: Descriptor, limits: ImageLimits) -> None:
    """Refuse a manifest, index or config that says it is larger than any should be."""
    if descriptor.size > limits.document:
        raise ImageTooLarge(
            f"{descriptor.digest} ({descriptor.media_type[:120]}) has {descriptor.size} bytes,"
            f" the limit is {limits.document}"
        )
