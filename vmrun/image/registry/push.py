"""Pushing a fetched image: the registry gets the bytes that were hashed, and only what it lacks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from vmrun.image.registry.parallel import Work, in_parallel
from vmrun.image.registry.repository import Repository
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
    work: Work

    def chunks(self) -> Iterator[bytes]:
        """The bytes, a piece at a time; a file that has changed since is an :class:`ImageError`."""
        hasher = self.blob.digest.hasher()
        with open_regular(self.path, "blob") as file:
            while chunk := file.read(CHUNK):
                hasher.update(chunk)
                self.work.moved(len(chunk))
                yield chunk
        if hasher.hexdigest() != self.blob.digest.hex:
            raise ImageError(
                f"{self.path} changed while it was sent", hint="find out who else writes there"
            )


def push_image(image: Image, repository: Repository) -> Pushed:
    """Upload what the repository lacks, blobs first, side by side, then the manifest as it is.

    Blobs of an image that is from another repository of the same registry are mounted from there
    where the registry agrees.

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
    sent: list[Descriptor] = []
    origin = image.reference
    near = origin.host == target.host and origin.repository != target.repository
    if repository.progress is not None:
        repository.progress.expect(sum(blob.size for blob in blobs.values()))

    def upload(blob: Descriptor, work: Work) -> None:
        if repository.has_blob(blob.digest):
            work.moved(blob.size)
            return
        body = BlobFile(image.blob_path(blob.digest), blob, work)
        if repository.put_blob(blob, body, mount_from=origin.repository if near else ""):
            sent.append(blob)

    in_parallel(list(blobs.values()), upload, repository.progress)
    data = image.blob_path(image.digest).read_bytes()
    repository.put_manifest(image.manifest, data, target.tag or image.digest)
    return Pushed(
        reference=f"{target.path}" + (f":{target.tag}" if target.tag else ""),
        digest=image.digest,
        transfer=Transfer(len(sent), len(blobs) - len(sent), sum(blob.size for blob in sent)),
        account=repository.account,
    )
