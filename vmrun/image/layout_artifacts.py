"""Signatures and attestations in an OCI layout, beside the image (image-layout.md).

Manifests are entries of ``index.json``: with a tag as their ``org.opencontainers.image.ref.name``,
or without one, found by the ``subject`` that they name. Entries of other tools stay as they are.
What is written becomes visible only with the last step, the replacement of ``index.json``, so a
writer that is killed leaves the layout as it was.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from vmrun.image.artifacts import Referrer, StoredManifest
from vmrun.image.document import parse_object
from vmrun.image.durable import locked_directory, replace_file
from vmrun.image.files import DirectoryFiles, read_document
from vmrun.image.layout import writing
from vmrun.image.limits import ImageLimits
from vmrun.image.manifest import (
    INDEX_TYPES,
    MANIFEST_TYPES,
    REF_NAME,
    IndexEntry,
    check_document_size,
    parse_index,
)
from vmrun.image.streams import open_regular, read_exactly, reading
from vmrun.model.digest import Digest
from vmrun.model.errors import DigestMismatch, ImageError, ImageTooLarge
from vmrun.model.image import Descriptor

_KIND = "kind"
_COSIGN = {"sig": "dev.cosignproject.cosign/sigs", "att": "dev.cosignproject.cosign/atts"}
"""How cosign's ``--local-image`` finds what is attached (cosign, pkg/oci/layout)."""


class LayoutArtifacts:
    """The :class:`~vmrun.image.artifacts.ArtifactStore` of one layout."""

    def __init__(self, directory: Path, limits: ImageLimits | None = None) -> None:
        self._directory = directory
        self._limits = limits or ImageLimits()
        self._files = DirectoryFiles(directory)

    def describe(self) -> str:
        """Names the layout."""
        return f"layout {str(self._directory)!r}"

    def manifest(self, name: str | Digest) -> StoredManifest | None:
        """A manifest by tag or digest, its bytes hashed; None when the index has none."""
        for entry in self._entries():
            if name == entry.descriptor.digest or (name and name == entry.ref_name):
                return self._stored(entry.descriptor)
        return None

    def blob(self, descriptor: Descriptor, limit: int) -> bytes:
        """A small blob, hashed."""
        what = f"blob {descriptor.digest} of {self.describe()}"
        if descriptor.size > limit:
            raise ImageTooLarge(f"{what}: {descriptor.size} bytes, the limit is {limit}")
        with open_regular(self._path(descriptor.digest), "blob") as file, reading(what):
            data = read_exactly(file, descriptor.size + 1)
        hasher = descriptor.digest.hasher()
        hasher.update(data)
        if len(data) != descriptor.size or hasher.hexdigest() != descriptor.digest.hex:
            raise DigestMismatch(
                f"{what}: its bytes are not those of its descriptor",
                hint="the layout is damaged or was tampered with",
            )
        return data

    def referrers(self, subject: Digest) -> tuple[Referrer, ...]:
        """Manifests of the index whose ``subject`` is ``subject``."""
        found = []
        for entry in self._entries():
            if entry.descriptor.media_type not in MANIFEST_TYPES:
                continue
            stored = self._stored(entry.descriptor)
            where = f"manifest {entry.descriptor.digest}"
            document = parse_object(stored.data, where, self._limits)
            if document.nested("subject").text("digest", "") == str(subject):
                kind = document.text("artifactType", "")
                notes = document.text_map("annotations")
                found.append(Referrer(stored.descriptor, kind, notes))
        return tuple(found)

    def put_blob(self, media_type: str, data: bytes) -> Descriptor:
        """Store a small blob."""
        blob = Descriptor(media_type, Digest.of(data), len(data))
        path = self._path(blob.digest)
        with writing(self._directory):
            path.parent.mkdir(parents=True, exist_ok=True)
            replace_file(path, data, mode=0o644)
        return blob

    def put_manifest(self, media_type: str, data: bytes, tag: str | None = None) -> Descriptor:
        """Store a manifest and list it, under a tag or without."""
        manifest = self.put_blob(media_type, data)
        fields: dict[str, object] = {
            "mediaType": media_type,
            "digest": str(manifest.digest),
            "size": manifest.size,
        }
        document = parse_object(data, f"manifest {manifest.digest}", self._limits)
        if "artifactType" in document:
            # Also what tells it from an image for who looks for one without a tag.
            fields["artifactType"] = document.text("artifactType")
        if tag:
            kind = _COSIGN.get(tag.rpartition(".")[2])
            fields["annotations"] = {REF_NAME: tag, **({_KIND: kind} if kind else {})}

        def change(entries: list[dict[str, object]]) -> list[dict[str, object]]:
            kept = [e for e in entries if not (_tag(e) == tag if tag else _same(e, fields))]
            return [*kept, fields]

        self._change_index(change)
        return manifest

    def put_referrer(self, subject: Digest, media_type: str, data: bytes) -> Descriptor:
        """Store a manifest that names ``subject``; being listed is enough to be found."""
        return self.put_manifest(media_type, data)

    def _entries(self) -> tuple[IndexEntry, ...]:
        data = read_document(self._files, "index.json", self._limits)
        return parse_index(data, self._files.describe("index.json"), None, self._limits)

    def _stored(self, descriptor: Descriptor) -> StoredManifest:
        if descriptor.media_type not in INDEX_TYPES | MANIFEST_TYPES:
            raise ImageError(
                f"{descriptor.digest} in {self.describe()} is {descriptor.media_type[:80]!r}"
            )
        check_document_size(descriptor, self._limits)
        return StoredManifest(descriptor, self.blob(descriptor, self._limits.document))

    def _path(self, digest: Digest) -> Path:
        return self._directory / "blobs" / digest.algorithm / digest.hex

    def _change_index(
        self, change: Callable[[list[dict[str, object]]], list[dict[str, object]]]
    ) -> None:
        with writing(self._directory), locked_directory(self._directory):
            self._entries()  # judged before it is changed
            path = self._directory / "index.json"
            index = json.loads(path.read_bytes())
            index["manifests"] = change(index["manifests"])
            data = json.dumps(index, separators=(",", ":")).encode()
            replace_file(path, data, mode=0o644)


def _tag(entry: dict[str, object]) -> object:
    notes = entry.get("annotations")
    return notes.get(REF_NAME) if isinstance(notes, dict) else None


def _same(entry: dict[str, object], fields: dict[str, object]) -> bool:
    return entry.get("digest") == fields["digest"] and not _tag(entry)
