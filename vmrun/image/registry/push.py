"""Pushing a fetched image: the registry gets the bytes that were hashed, and only what it lacks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from vmrun.image.registry.repository import Repository
from vmrun.image.registry.source import in_parallel
from vmrun.image.source import Transfer
from vmrun.image.streams import CHUNK, open_regular
from vmrun.model.digest import Digest
from vmrun.model.errors import ImageError, UsageError
from vmrun.model.image import Descriptor, Image


@dataclass(frozen=True, slots=True)
class Pushed:
    """What a push did. ``account`` is the registry's name for who pushed, empty for nobody."""

    reference: str
    digest: Digest
    transfer: Transfer
    account: str


@dataclass(frozen=True, slots=True)
class BlobFile:
    """A request's body that is read from a file as it is sent."""

    path: Path
    blob: Descriptor

    def chunks(self) -> Iterator[bytes]:
        """The bytes, a piece at a time; a file that has changed since is an :class:`ImageError`."""
        hasher = self.blob.digest.hasher()
        with open_regular(self.path, "blob") as file:
            while chunk := file.read(CHUNK):
                hasher.update(chunk)
                yield chunk
        if hasher.hexdigest() != self.blob.digest.hex:
            raise ImageError(
                f"{self.path} changed while it was sent", hint="find out who else writes there"
            )


def push_image(image: Image, repository: Repository) -> Pushed:
    """Upload what the repository lacks, blobs first, side by side, then the manifest as it is.

    The digest stays the same, so signatures stay valid. Raises :class:`UsageError` when the
    target has no tag or names another digest.
    """
    target = repository.reference
    if target.digest is not None and target.digest != image.digest:
        raise UsageError(
            f"{target} names another digest than the image's, {image.digest}",
            hint="leave the digest out",
        )
    blobs = {
        blob.digest: blob for blob in (image.config_blob, *(layer.blob for layer in image.layers))
    }
    missing = [blob for blob in blobs.values() if not repository.has_blob(blob.digest)]

    def upload(blob: Descriptor) -> None:
        repository.put_blob(blob, BlobFile(image.blob_path(blob.digest), blob))

    in_parallel(missing, upload)
    data = image.blob_path(image.digest).read_bytes()
    repository.put_manifest(image.manifest, data, target.tag or image.digest)
    return Pushed(
        reference=f"{target.path}" + (f":{target.tag}" if target.tag else ""),
        digest=image.digest,
        transfer=Transfer(
            len(missing), len(blobs) - len(missing), sum(blob.size for blob in missing)
        ),
        account=repository.account,
    )
