"""Signatures and attestations in an OCI layout, beside the image (image-layout.md).

Manifests are entries of ``index.json``: with a tag as their ``org.opencontainers.image.ref.name``,
or without one, found by the ``subject`` that they name. Entries of other tools stay as they are.
What is written becomes visible only with the last step, the replacement of ``index.json``, so a
writer that is killed leaves the layout as it was. What is written can be read again: an index that
would be too large is refused instead.
"""

from __future__ import annotations

import json
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vmrun.image.artifacts import Referrer, StoredManifest, checked
from vmrun.image.document import parse_object
from vmrun.image.durable import locked_directory, replace_file
from vmrun.image.files import DirectoryFiles, read_document
from vmrun.image.layout_marks import Entry, mark, tag_of
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
from vmrun.model.errors import (
    ImageError,
    ImageNotFound,
    ImageTooLarge,
    StateError,
)
from vmrun.model.image import Descriptor

_REFERRERS = 8
"""How many documents of the largest size are read to find referrers."""


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
        return checked(data, descriptor, what)

    def referrers(self, subject: Digest) -> tuple[Referrer, ...]:
        """Manifests of the index whose ``subject`` is ``subject``. What is listed without being
        there refers to nothing."""
        found = []
        left = _REFERRERS * self._limits.document
        for descriptor in dict.fromkeys(entry.descriptor for entry in self._entries()):
            if descriptor.media_type not in MANIFEST_TYPES:
                continue
            left -= descriptor.size
            if left < 0:
                raise ImageTooLarge(
                    f"{self.describe()}: its manifests are too large to look through",
                    hint="copy the image into a layout of its own",
                )
            try:
                stored = self._stored(descriptor)
            except ImageNotFound:
                continue
            document = parse_object(stored.data, f"manifest {descriptor.digest}", self._limits)
            if document.nested("subject").text("digest", "") == str(subject):
                kind = document.text("artifactType", "")
                notes = document.text_map("annotations")
                found.append(Referrer(stored.descriptor, kind, notes))
        return tuple(found)

    def put_blob(self, media_type: str, data: bytes) -> Descriptor:
        """Store a small blob. Raises :class:`StateError`."""
        blob = Descriptor(media_type, Digest.of(data), len(data))
        path = self._path(blob.digest)
        with self._writing():
            path.parent.mkdir(parents=True, exist_ok=True)
            for folder in (path.parent, path.parent.parent):
                if folder.is_symlink():
                    raise ImageError(
                        f"{str(folder)!r} is a symbolic link", hint="copy the layout, then sign it"
                    )
            replace_file(path, data, mode=0o644)
        return blob

    def put_manifest(self, media_type: str, data: bytes, tag: str | None = None) -> Descriptor:
        """Store a manifest and list it, under a tag or without.

        Raises :class:`StateError` when the layout cannot be written, :class:`ImageTooLarge` when
        its index is full.
        """
        self._entries()  # judged before anything is written
        document = parse_object(data, "the new manifest", self._limits)
        manifest = self.put_blob(media_type, data)
        entry: Entry = {
            "mediaType": media_type,
            "digest": str(manifest.digest),
            "size": manifest.size,
        }
        if "artifactType" in document:
            # Also what tells it from an image for who looks for one without a tag.
            entry["artifactType"] = document.text("artifactType")
        if tag:
            entry["annotations"] = {REF_NAME: tag}
        self._list(entry)
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

    def _list(self, new: Entry) -> None:
        """Add to the index; a tag moves there from where it was."""
        path, where = self._directory / "index.json", self._files.describe("index.json")
        tag = tag_of(new)
        with self._writing(), locked_directory(self._directory):
            data = read_document(self._files, "index.json", self._limits)
            parse_index(data, where, None, self._limits)
            index = json.loads(data)
            entries: list[Entry] = index["manifests"]
            if tag:
                entries = [entry for entry in entries if tag_of(entry) != tag]
            elif any(entry["digest"] == new["digest"] and not tag_of(entry) for entry in entries):
                return
            index["manifests"] = [*entries, new]
            mark(index["manifests"], new)
            data = json.dumps(index, separators=(",", ":")).encode()
            parse_index(data, where, None, self._limits)
            replace_file(path, data, mode=stat.S_IMODE(path.stat().st_mode) | 0o600)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StateError(
                f"cannot write to {self.describe()}: {error.strerror or error}",
                hint="signatures are stored beside the image: copy it to where you may write",
            ) from None
