"""Images as ``docker save`` writes them.

``manifest.json`` lists for each image its config, its names and its layers. Up to Docker
24 the config is ``<image id>.json`` and a layer ``<some id>/layer.tar``; since Docker 25
both are ``blobs/sha256/<digest>``, and the archive is an OCI layout too, whose manifests
however are made up while saving. The image's id, the digest of its config, is what
survives a save (moby/moby#22011), so vmrun writes the manifest itself, always the same
for the same image.
"""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

from vmrun.image.compression import MAGIC_LENGTH, detect
from vmrun.image.config import parse_config
from vmrun.image.document import Document, parse_objects
from vmrun.image.files import ArchiveFiles, read_document
from vmrun.image.limits import ImageLimits
from vmrun.image.manifest import OCI_CONFIG, OCI_LAYER_TYPES, OCI_MANIFEST, parse_index
from vmrun.image.source import Resolved, Transfer
from vmrun.image.streams import CHUNK, Readable, read_exactly, reading
from vmrun.model.digest import Digest
from vmrun.model.errors import DigestMismatch, ImageError, ImageNotFound, ImageTooLarge
from vmrun.model.image import Compression, Descriptor

MANIFEST = "manifest.json"
_HEX = re.compile(r"[0-9a-f]{64}")
_SHOWN = 20


@dataclass(frozen=True, slots=True)
class SavedImage:
    """An image of ``manifest.json``."""

    config: str
    layers: tuple[str, ...]
    names: tuple[str, ...]


class DockerArchiveSource:
    """An image of a docker archive, chosen by name."""

    def __init__(
        self,
        files: ArchiveFiles,
        name: str | None,
        limits: ImageLimits,
        *,
        image_id: Digest | None = None,
    ) -> None:
        """``image_id`` is what the archive was asked for, when a daemon made it."""
        self._files = files
        self._wanted = name
        self._limits = limits
        self._image_id = image_id
        self._members: dict[Digest, str] = {}

    def resolve(self) -> Resolved:
        """Find the image by name and write its manifest."""
        image = self._choose(self._images())
        config, diff_ids = self._config(image)
        if len(diff_ids) != len(image.layers):
            raise ImageError(
                f"{self._files.describe(MANIFEST)}: {len(image.layers)} layers,"
                f" the config lists {len(diff_ids)}",
                hint="the image's layers and config do not belong together; save it again",
            )
        layers = [
            self._layer(name, diff_id) for name, diff_id in zip(image.layers, diff_ids, strict=True)
        ]
        data = _manifest(config, layers)
        return Resolved(Descriptor(OCI_MANIFEST, Digest.of(data), len(data)), data)

    def prepare(self, blobs: Sequence[Descriptor]) -> Transfer:
        """Nothing moves: the blobs are here."""
        return Transfer(present=len(blobs))

    def open(self, blob: Descriptor) -> AbstractContextManager[Readable]:
        """The bytes of the config or a layer."""
        return self._files.open(self._members[blob.digest])

    def describe(self, blob: Descriptor) -> str:
        """Names a blob and where it lies."""
        return self._files.describe(self._members[blob.digest])

    def _images(self) -> list[SavedImage]:
        if MANIFEST not in self._files and "index.json" in self._files:
            raise ImageError(
                f"{self._files.describe('index.json')}: an OCI archive, not a docker archive",
                hint="use oci-archive: instead of docker-archive:",
            )
        data = read_document(self._files, MANIFEST, self._limits)
        where = self._files.describe(MANIFEST)
        return [self._image(item) for item in parse_objects(data, where, self._limits)]

    def _image(self, item: Document) -> SavedImage:
        layers = item.texts("Layers")
        if len(layers) > self._limits.layers:
            raise ImageTooLarge(
                f"{item.where}: {len(layers)} layers, the limit is {self._limits.layers}"
            )
        return SavedImage(item.text("Config"), layers, item.texts("RepoTags"))

    def _choose(self, images: Sequence[SavedImage]) -> SavedImage:
        where = self._files.describe(MANIFEST)
        names = sorted({name for image in images for name in image.names})
        hint = f"it has: {', '.join(names[:_SHOWN]) or 'no names'}"
        if self._wanted is None:
            found = list(images)
        else:
            wanted = with_tag(self._wanted)
            found = [image for image in images if wanted in image.names]
        if not found:
            what = f"no image named {self._wanted!r}" if self._wanted else "it holds no image"
            raise ImageNotFound(f"{where}: {what}", hint=hint)
        if len(found) > 1:
            raise ImageError(f"{where}: holds several images", hint=hint)
        return found[0]

    def _config(self, image: SavedImage) -> tuple[Descriptor, tuple[Digest, ...]]:
        where = self._files.describe(image.config)
        data = read_document(self._files, image.config, self._limits)
        digest = Digest.of(data)
        named = _digest_in_name(image.config)
        if named is None:
            raise ImageError(f"{where}: the config is not named by its digest")
        if named != digest:
            raise _renamed(where, named, digest)
        if self._image_id not in (None, digest) and self._image_id not in self._manifests():
            raise DigestMismatch(
                f"{where}: asked for image {self._image_id}, got {digest}",
                hint="the daemon gave another image; try again",
            )
        self._members[digest] = image.config
        _, diff_ids = parse_config(data, where, self._limits)
        return Descriptor(OCI_CONFIG, digest, len(data)), diff_ids

    def _manifests(self) -> set[Digest]:
        """What ``index.json`` lists. With containerd's image store an image's id is the
        digest of its manifest or index, not of its config."""
        if "index.json" not in self._files:
            return set()
        data = read_document(self._files, "index.json", self._limits)
        entries = parse_index(data, self._files.describe("index.json"), None, self._limits)
        return {entry.descriptor.digest for entry in entries}

    def _layer(self, name: str, diff_id: Digest) -> Descriptor:
        """A layer's descriptor. The digest of a plain tar is its diff_id, which copying will
        check; a compressed layer must be hashed to learn its digest."""
        what = self._files.describe(name)
        with self._files.open(name) as stream, reading(what):
            compression = detect(read_exactly(stream, MAGIC_LENGTH))
        digest = diff_id if compression is Compression.NONE else self._hash(name)
        named = _digest_in_name(name)
        if name.startswith("blobs/") and named != digest:
            raise _renamed(what, named, digest)
        self._members.setdefault(digest, name)
        return Descriptor(OCI_LAYER_TYPES[compression], digest, self._files.size(name))

    def _hash(self, name: str) -> Digest:
        hasher = Digest.of(b"").hasher()
        with self._files.open(name) as stream, reading(self._files.describe(name)):
            while chunk := stream.read(CHUNK):
                hasher.update(chunk)
        return Digest("sha256", hasher.hexdigest())


def with_tag(name: str) -> str:
    """``name``, with the tag that Docker adds when there is none."""
    return name if ":" in name.rpartition("/")[2] else f"{name}:latest"


def _digest_in_name(name: str) -> Digest | None:
    stem = posixpath.basename(name).removesuffix(".json").removeprefix("sha256:")
    return Digest("sha256", stem) if _HEX.fullmatch(stem) else None


def _renamed(where: str, named: Digest | None, found: Digest) -> DigestMismatch:
    return DigestMismatch(
        f"{where}: named {named}, its bytes are {found}",
        hint="the image is damaged or was tampered with; save it again",
    )


def _manifest(config: Descriptor, layers: Sequence[Descriptor]) -> bytes:
    def fields(descriptor: Descriptor) -> dict[str, object]:
        return {
            "mediaType": descriptor.media_type,
            "digest": str(descriptor.digest),
            "size": descriptor.size,
        }

    document = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": fields(config),
        "layers": [fields(layer) for layer in layers],
    }
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()
