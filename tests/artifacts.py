"""An ArtifactStore in memory, which tests can fill with anything."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from vmrun.image.artifacts import Referrer, StoredManifest
from vmrun.image.manifest import OCI_MANIFEST
from vmrun.model.digest import Digest
from vmrun.model.errors import ImageNotFound, ImageTooLarge
from vmrun.model.image import Descriptor


class MemoryArtifacts:
    """What was put, by digest and tag; every blob that was read is counted."""

    def __init__(self) -> None:
        self.manifests: dict[Digest, StoredManifest] = {}
        self.tags: dict[str, Digest] = {}
        self.blobs: dict[Digest, bytes] = {}
        self.read_bytes = 0

    def describe(self) -> str:
        return "memory"

    def manifest(self, name: str | Digest) -> StoredManifest | None:
        digest = name if isinstance(name, Digest) else self.tags.get(name)
        return self.manifests.get(digest) if digest else None

    def blob(self, descriptor: Descriptor, limit: int) -> bytes:
        if descriptor.size > limit:
            raise ImageTooLarge(f"{descriptor.digest} is too large")
        if descriptor.digest not in self.blobs:
            raise ImageNotFound(f"no blob {descriptor.digest}")
        data = self.blobs[descriptor.digest]
        self.read_bytes += len(data)
        return data

    def referrers(self, subject: Digest) -> tuple[Referrer, ...]:
        found = []
        for stored in self.manifests.values():
            if f'"{subject}"'.encode() not in stored.data:
                continue
            fields = json.loads(stored.data)
            if "subject" in fields and fields["subject"]["digest"] == str(subject):
                found.append(Referrer(stored.descriptor, fields.get("artifactType", ""), {}))
        return tuple(found)

    def put_blob(self, media_type: str, data: bytes) -> Descriptor:
        blob = Descriptor(media_type, Digest.of(data), len(data))
        self.blobs[blob.digest] = data
        return blob

    def put_manifest(self, media_type: str, data: bytes, tag: str | None = None) -> Descriptor:
        manifest = Descriptor(media_type, Digest.of(data), len(data))
        self.manifests[manifest.digest] = StoredManifest(manifest, data)
        if tag:
            self.tags[tag] = manifest.digest
        return manifest

    def put_referrer(self, subject: Digest, media_type: str, data: bytes) -> Descriptor:
        return self.put_manifest(media_type, data)

    # What follows is for tests only: it puts what no honest tool would.

    def put_image(self, name: str = "image") -> Descriptor:
        """Something that can be signed."""
        return self.put_manifest(OCI_MANIFEST, json.dumps({"of": name}).encode())

    def put_layers(
        self, tag: str, *layers: tuple[str, bytes, Mapping[str, str]], **fields: Any
    ) -> None:
        """A manifest of these layers under a tag."""
        listed = [
            {**described(self.put_blob(kind, data)), "annotations": dict(notes)}
            for kind, data, notes in layers
        ]
        manifest = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "layers": listed, **fields}
        self.put_manifest(OCI_MANIFEST, json.dumps(manifest).encode(), tag)

    def layers(self, tag: str) -> list[dict[str, Any]]:
        """The layers of the manifest under a tag."""
        found = self.manifest(tag)
        assert found is not None
        listed: list[dict[str, Any]] = json.loads(found.data)["layers"]
        return listed


def described(descriptor: Descriptor) -> dict[str, Any]:
    """A descriptor as JSON."""
    return {
        "mediaType": descriptor.media_type,
        "digest": str(descriptor.digest),
        "size": descriptor.size,
    }
