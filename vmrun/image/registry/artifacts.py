"""Signatures and attestations in a registry's repository, beside their image."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from random import SystemRandom

from vmrun.image.artifacts import Referrer, StoredManifest, checked
from vmrun.image.document import Document, parse_object
from vmrun.image.limits import ImageLimits
from vmrun.image.manifest import OCI_INDEX, OCI_MANIFEST
from vmrun.image.registry.options import RegistryOptions
from vmrun.image.registry.repository import Repository
from vmrun.image.streams import CHUNK, read_exactly
from vmrun.model.digest import Digest
from vmrun.model.errors import ImageError, ImageTooLarge
from vmrun.model.image import Descriptor, Reference, Transport

_TRIES = 6
_SETTLE = 0.5
"""Seconds after which nobody should write who had read before."""
_CHANCE = SystemRandom()


@dataclass(frozen=True, slots=True)
class Bytes:
    """A request's body that is in memory."""

    data: bytes

    def chunks(self) -> Iterator[bytes]:
        """The bytes, a piece at a time."""
        for at in range(0, len(self.data), CHUNK):
            yield self.data[at : at + CHUNK]


class RegistryArtifacts:
    """The :class:`~vmrun.image.artifacts.ArtifactStore` of one repository."""

    def __init__(self, repository: Repository) -> None:
        self._repository = repository
        self._limits = repository.limits

    def describe(self) -> str:
        """Names the repository."""
        return str(self._repository)

    def manifest(self, name: str | Digest) -> StoredManifest | None:
        """A manifest by tag or digest, its bytes hashed; None when there is none."""
        found = self._repository.manifest(name)
        return StoredManifest(*found) if found else None

    def blob(self, descriptor: Descriptor, limit: int) -> bytes:
        """A small blob, hashed."""
        what = f"blob {descriptor.digest} of {self._repository}"
        if descriptor.size > limit:
            raise ImageTooLarge(f"{what}: {descriptor.size} bytes, the limit is {limit}")
        with self._repository.blob(descriptor) as stream:
            data = read_exactly(stream, descriptor.size + 1)
        return checked(data, descriptor, what)

    def referrers(self, subject: Digest) -> tuple[Referrer, ...]:
        """What refers to ``subject``: by the referrers API, and where the registry has none, by
        the index under the fallback tag (distribution-spec, "Referrers Tag Schema")."""
        pages = self._repository.referrers(subject)
        if pages is None:
            found = self._listing(subject)
            pages = [found] if found else []
        where = f"referrers of {subject} in {self._repository}"
        referrers = [r for page in pages for r in parse_referrers(page, where, self._limits)]
        if len(referrers) > self._limits.manifests:
            raise ImageTooLarge(f"{where}: more than {self._limits.manifests}")
        return tuple(referrers)

    def _listing(self, subject: Digest) -> bytes | None:
        """The index under the fallback tag. 'cosign copy' puts the subject itself there, which
        lists nothing."""
        found = self._repository.manifest(fallback_tag(subject))
        return found[1] if found and found[0].digest != subject else None

    def put_blob(self, media_type: str, data: bytes) -> Descriptor:
        """Store a small blob unless it is there."""
        blob = Descriptor(media_type, Digest.of(data), len(data))
        if not self._repository.has_blob(blob.digest):
            self._repository.put_blob(blob, Bytes(data))
        return blob

    def put_manifest(self, media_type: str, data: bytes, tag: str | None = None) -> Descriptor:
        """Store a manifest, under its digest or a tag."""
        manifest = Descriptor(media_type, Digest.of(data), len(data))
        self._repository.put_manifest(manifest, data, tag or manifest.digest)
        return manifest

    def put_referrer(self, subject: Digest, media_type: str, data: bytes) -> Descriptor:
        """Store a manifest whose subject is ``subject``; list it under the fallback tag where
        the registry does not say that it has listed it itself."""
        manifest = Descriptor(media_type, Digest.of(data), len(data))
        if self._repository.put_manifest(manifest, data, manifest.digest) != str(subject):
            self._list(subject, manifest, data)
        return manifest

    def _list(self, subject: Digest, manifest: Descriptor, data: bytes) -> None:
        """Add to the fallback index. HTTP has no atomic change of a tag here: whoever read the
        index before we wrote it may put his own in its place a moment later. So it is read again
        after a while, longer than others need from reading to writing, and the addition repeated
        if it is gone. That is as good as it gets without the API."""
        entry = referrer_entry(manifest, data, self._limits)
        tag = fallback_tag(subject)
        for _ in range(_TRIES):
            index = updated_index(self._listing(subject), entry, tag, self._limits)
            if index is None:
                return
            self.put_manifest(OCI_INDEX, index, tag)
            time.sleep(_CHANCE.uniform(_SETTLE, 2 * _SETTLE))
        found = self._listing(subject)
        if found and updated_index(found, entry, tag, self._limits) is None:
            return
        raise ImageError(
            f"{self._repository}: the list of what refers to {subject} keeps changing",
            hint="others are writing there; try again",
        )


def fallback_tag(subject: Digest) -> str:
    """The tag under which referrers of ``subject`` are listed without the API."""
    return f"{subject.algorithm}-{subject.hex}"


def parse_referrers(data: bytes, where: str, limits: ImageLimits) -> tuple[Referrer, ...]:
    """The entries of an index of referrers."""
    document = parse_object(data, where, limits)
    return tuple(_referrer(item) for item in document.objects("manifests", limits.manifests))


def _referrer(item: Document) -> Referrer:
    descriptor = Descriptor(
        item.text("mediaType"), Digest.parse(item.text("digest")), item.integer("size")
    )
    return Referrer(descriptor, item.text("artifactType", ""), item.text_map("annotations"))


def referrer_entry(manifest: Descriptor, data: bytes, limits: ImageLimits) -> dict[str, object]:
    """The descriptor that lists a manifest among the referrers of its subject."""
    document = parse_object(data, f"manifest {manifest.digest}", limits)
    kind = document.text("artifactType", "") or document.nested("config").text("mediaType", "")
    entry: dict[str, object] = {
        "mediaType": manifest.media_type or OCI_MANIFEST,
        "digest": str(manifest.digest),
        "size": manifest.size,
        "artifactType": kind,
    }
    if annotations := document.text_map("annotations"):
        entry["annotations"] = annotations
    return entry


def updated_index(
    data: bytes | None, entry: dict[str, object], where: str, limits: ImageLimits
) -> bytes | None:
    """The index with ``entry`` added; None when it has that digest already."""
    entries: list[object] = []
    if data is not None:
        listed = parse_referrers(data, where, limits)
        if any(str(item.descriptor.digest) == entry["digest"] for item in listed):
            return None
        entries = json.loads(data)["manifests"]
    index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [*entries, entry]}
    return json.dumps(index, separators=(",", ":")).encode()


def open_artifacts(
    reference: Reference, options: RegistryOptions, *, push: bool = False
) -> RegistryArtifacts:
    """The artifacts of a registry reference's repository; ``push`` asks to write, too."""
    if reference.transport is not Transport.DOCKER:
        raise ImageError(f"{reference} is not in a registry")
    return RegistryArtifacts(Repository(reference, options, push=push))
