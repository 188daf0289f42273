"""The archive that dockerd's ``POST /images/load`` takes, as a stream of bytes.

docker's own save format: ``manifest.json``, the image's config, and each layer once. dockerd
names what it loads by content: the image by its config's digest, each layer by the digest of
its unpacked tar, which must be the one that the config states (moby, image/tarexport/load.go).
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator

from vmrun.engine.blob import read_blob
from vmrun.model.image import Descriptor, Image

_BLOCK = 512


def archive(image: Image) -> Iterator[bytes]:
    """The archive of ``image``, made of the blobs in its layout."""
    config = f"{image.config_blob.digest.hex}.json"
    names = {layer.blob.digest: f"{layer.blob.digest.hex}.tar" for layer in image.layers}
    manifest = json.dumps(
        [
            {
                "Config": config,
                "RepoTags": None,
                "Layers": [names[layer.blob.digest] for layer in image.layers],
            }
        ]
    ).encode()
    yield _header("manifest.json", len(manifest))
    yield manifest + _padding(len(manifest))
    yield from _member(config, image, image.config_blob)
    blobs = {layer.blob.digest: layer.blob for layer in image.layers}
    for digest, blob in blobs.items():
        yield from _member(names[digest], image, blob)
    yield bytes(2 * _BLOCK)


def _member(name: str, image: Image, blob: Descriptor) -> Iterator[bytes]:
    yield _header(name, blob.size)
    yield from read_blob(image.blob_path(blob.digest), blob)
    yield _padding(blob.size)


def _header(name: str, size: int) -> bytes:
    entry = tarfile.TarInfo(name)
    entry.size = size
    entry.mode = 0o400
    return entry.tobuf(tarfile.USTAR_FORMAT)


def _padding(size: int) -> bytes:
    return bytes(-size % _BLOCK)
