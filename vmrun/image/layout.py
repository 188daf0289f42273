"""vmrun's own OCI layout of one image (OCI image-spec, image-layout.md).

Every blob is hashed while it is copied and gets its name only when the digest is the one
that was asked for. Nobody but the owner may read or change the files.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from vmrun.image.limits import ImageLimits
from vmrun.image.streams import CHUNK, Readable, reading
from vmrun.model.digest import Digest
from vmrun.model.errors import DigestMismatch, ImageError, ImageTooLarge, StateError
from vmrun.model.image import Descriptor

_PARTIAL = ".partial"


class LayoutWriter:
    """Fills a layout in an empty directory."""

    def __init__(self, directory: Path, limits: ImageLimits) -> None:
        self.directory = directory
        self._limits = limits
        self._stored: set[Digest] = set()
        self._bytes = 0

    def add(self, blob: Descriptor, stream: Readable, what: str) -> None:
        """Copy a blob; ``what`` names where it comes from. Refuses bytes that do not have
        the blob's digest or size. A blob that is there already is not copied again."""
        if blob.digest in self._stored:
            return
        self._bytes += blob.size
        if self._bytes > self._limits.blobs:
            raise ImageTooLarge(
                f"the image has more than {self._limits.blobs} bytes", hint="use a smaller image"
            )
        with writing(self.directory):
            path = self.blob_path(blob.digest)
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            partial = path.parent / _PARTIAL
            with _create(partial) as file:
                copy_exactly(blob, stream, file, what)
            partial.rename(path)
        self._stored.add(blob.digest)

    def finish(self, manifest: Descriptor) -> None:
        """Write the files that make the directory a layout of this one manifest."""
        index = {
            "schemaVersion": 2,
            "manifests": [
                {
                    "mediaType": manifest.media_type,
                    "digest": str(manifest.digest),
                    "size": manifest.size,
                }
            ],
        }
        with writing(self.directory):
            for name, content in (
                ("oci-layout", {"imageLayoutVersion": "1.0.0"}),
                ("index.json", index),
            ):
                with _create(self.directory / name) as file:
                    _write(file, json.dumps(content, sort_keys=True).encode())

    def blob_path(self, digest: Digest) -> Path:
        """Where the layout keeps a blob."""
        return self.directory / "blobs" / digest.algorithm / digest.hex


@contextmanager
def new_layout(directory: Path, limits: ImageLimits) -> Iterator[LayoutWriter]:
    """A layout in ``directory``, which is created, or empty. What was written is removed
    again, and the directory when it was created, unless all goes well."""
    with writing(directory):
        existed = directory.exists()
        directory.mkdir(mode=0o700, exist_ok=True)
        if any(directory.iterdir()):
            raise StateError(
                f"{str(directory)!r} is not empty", hint="give a directory of its own for the image"
            )
    try:
        yield LayoutWriter(directory, limits)
    except BaseException:
        for path in list(directory.iterdir()):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
        if not existed:
            directory.rmdir()
        raise


@contextmanager
def spool(stream: Readable, directory: Path, limit: int, what: str) -> Iterator[BinaryIO]:
    """A temporary file of what the stream gives, for sources that cannot be sought. It has
    no name, so nothing is left whatever happens."""
    with writing(directory):
        descriptor, path = tempfile.mkstemp(dir=directory)
        os.unlink(path)
    with os.fdopen(descriptor, "w+b", buffering=0) as file:
        size = 0
        while chunk := _read(stream, CHUNK, what):
            size += len(chunk)
            if size > limit:
                raise ImageTooLarge(f"{what}: more than {limit} bytes", hint="use a smaller image")
            with writing(directory):
                _write(file, chunk)
        yield file


@contextmanager
def writing(directory: Path) -> Iterator[None]:
    """Failures of vmrun's own files: a full disk, a quota, a missing permission."""
    try:
        yield
    except OSError as error:
        raise StateError(
            f"cannot write to {str(directory)!r}: {error.strerror or error}",
            hint="check that it exists and has free space, or choose another state directory",
        ) from None


def _create(path: Path) -> BinaryIO:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.fdopen(os.open(path, flags, 0o600), "wb", buffering=0)


def copy_exactly(blob: Descriptor, stream: Readable, file: BinaryIO, what: str) -> None:
    """Copy a blob, hashing it; refuses bytes of another digest or size."""
    hasher = blob.digest.hasher()
    left = blob.size
    # One byte more than is left shows whether the blob ends where it should.
    while chunk := _read(stream, min(CHUNK, left + 1), what):
        if len(chunk) > left:
            raise _wrong_size(what, f"it has more than the {blob.size} bytes of its descriptor")
        left -= len(chunk)
        hasher.update(chunk)
        _write(file, chunk)
    if left:
        raise _wrong_size(what, f"it has {blob.size - left} bytes, its descriptor says {blob.size}")
    if hasher.hexdigest() != blob.digest.hex:
        raise DigestMismatch(
            f"{what}: expected {blob.digest},"
            f" its bytes hash to {blob.digest.algorithm}:{hasher.hexdigest()}",
            hint="the image is damaged or was tampered with; fetch it again from its origin",
        )


def _wrong_size(what: str, why: str) -> ImageError:
    return ImageError(
        f"{what}: {why}", hint="the image is truncated or damaged; build or save it again"
    )


def _read(stream: Readable, size: int, what: str) -> bytes:
    with reading(what):
        return stream.read(size)


def _write(file: BinaryIO, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]
