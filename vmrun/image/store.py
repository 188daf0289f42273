"""The local store of blobs: what was pulled once is not pulled again.

It is a cache and nothing more: a blob is hashed on its way in, and hashed again whenever an
image is made of it. Processes add to it without waiting for each other, because a blob appears
under its name only complete, and equal names mean equal bytes. Who adds or relies on a blob holds
a shared flock(2) on the store meanwhile; blobs are only deleted by who can have it alone.
"""

from __future__ import annotations

import fcntl
import os
import re
import tempfile
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Lock

from vmrun.image.durable import PARTIAL
from vmrun.image.layout import copy_exactly, writing
from vmrun.image.limits import ImageLimits
from vmrun.image.streams import CHUNK, Readable, open_regular
from vmrun.model.digest import Digest
from vmrun.model.errors import DigestMismatch, ImageError, ImageTooLarge
from vmrun.model.image import Descriptor

_ABANDONED = 24 * 3600.0
_HEX = {"sha256": re.compile("[0-9a-f]{64}"), "sha512": re.compile("[0-9a-f]{128}")}


class ImageStore:
    """Blobs by digest in ``root``, which only its owner may enter.

    From the first blob that is asked for on, nobody deletes any, until this object is gone.
    """

    def __init__(self, root: Path, limits: ImageLimits | None = None) -> None:
        self.root = root
        self._limits = limits or ImageLimits()
        self._blobs = root / "blobs"
        self._guard = Lock()
        self._in_use = False

    def blob_path(self, digest: Digest) -> Path:
        """Where a blob is, or would be."""
        return self._blobs / digest.algorithm / digest.hex

    def has(self, blob: Descriptor) -> bool:
        """Whether the blob is there with its size; it then stays. Raises :class:`StateError`."""
        with writing(self.root):
            if not self._blobs.is_dir():
                return False
            self._use()
            try:
                return self.blob_path(blob.digest).stat().st_size == blob.size
            except FileNotFoundError:
                return False

    def add(self, blob: Descriptor, stream: Readable, what: str) -> None:
        """Store a blob from a stream, hashed as it comes; ``what`` names its origin.

        Wrong bytes, a wrong size or an interrupted stream leave nothing. Raises
        :class:`DigestMismatch`, :class:`ImageError`, :class:`StateError`.
        """
        if blob.size > self._limits.blobs:
            raise ImageTooLarge(f"{what}: {blob.size} bytes, the limit is {self._limits.blobs}")
        path = self.blob_path(blob.digest)
        with writing(self.root):
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._use()
            descriptor, name = tempfile.mkstemp(prefix=PARTIAL, dir=path.parent)
            try:
                with os.fdopen(descriptor, "wb", buffering=0) as file:
                    copy_exactly(blob, stream, file, what)
                    os.fsync(file.fileno())
                os.replace(name, path)
            except BaseException:
                with suppress(OSError):
                    os.unlink(name)
                raise

    @contextmanager
    def open(self, blob: Descriptor) -> Iterator[Readable]:
        """The blob's bytes, to be hashed by who reads them.

        When the reader finds them wrong, the blob is deleted if it is: it is downloaded anew then.
        """
        with open_regular(self.blob_path(blob.digest), f"stored blob {blob.digest}") as file:
            try:
                yield file
            except ImageError as error:
                if not self._damaged(blob):
                    raise
                with suppress(OSError):
                    self.blob_path(blob.digest).unlink()
                raise DigestMismatch(
                    f"stored blob {blob.digest} was damaged", hint="it was deleted; try again"
                ) from error

    def digests(self) -> Iterator[Digest]:
        """All blobs that are there. Raises :class:`StateError`."""
        for folder in self._folders():
            for path in self._inside(folder):
                if _HEX[folder.name].fullmatch(path.name):
                    yield Digest(folder.name, path.name)

    @contextmanager
    def alone(self) -> Iterator[bool]:
        """Whether nobody uses the store; nobody can begin to until the block ends."""
        with writing(self.root):
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._blobs.mkdir(mode=0o700, exist_ok=True)
            descriptor = os.open(self._blobs, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    yield False
                else:
                    yield True
            finally:
                os.close(descriptor)

    def remove(self, digest: Digest) -> int:
        """Delete a blob; the bytes that this freed. To be called :meth:`alone`."""
        path = self.blob_path(digest)
        with writing(self.root):
            try:
                size = path.stat().st_size
                path.unlink()
            except FileNotFoundError:
                return 0
        return size

    def clear_abandoned(self, *, older_than: float = _ABANDONED) -> int:
        """Delete what killed processes have left half-written; the bytes that this freed.

        ``older_than`` seconds: a younger one may be somebody's download, unless :meth:`alone`.
        """
        freed = 0
        with writing(self.root):
            for folder in self._folders():
                for path in self._inside(folder):
                    if path.name.startswith(PARTIAL):
                        freed += _remove_older(path, time.time() - older_than)
        return freed

    def _use(self) -> None:
        """Hold the store, once; the lock goes with this object or its process."""
        with self._guard:
            if self._in_use:
                return
            descriptor = os.open(self._blobs, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            weakref.finalize(self, os.close, descriptor)
            fcntl.flock(descriptor, fcntl.LOCK_SH)
            self._in_use = True

    def _damaged(self, blob: Descriptor) -> bool:
        """Whether the stored bytes are not the blob's; not if that cannot be told."""
        hasher, size = blob.digest.hasher(), 0
        try:
            with open_regular(self.blob_path(blob.digest), "stored blob") as file:
                while chunk := file.read(CHUNK):
                    hasher.update(chunk)
                    size += len(chunk)
        except (ImageError, OSError):
            return False
        return size != blob.size or hasher.hexdigest() != blob.digest.hex

    def _folders(self) -> list[Path]:
        with writing(self.root):
            return [path for name in _HEX if (path := self._blobs / name).is_dir()]

    def _inside(self, folder: Path) -> list[Path]:
        with writing(self.root):
            return sorted(folder.iterdir())


def _remove_older(path: Path, than: float) -> int:
    try:
        status = path.stat()
        if status.st_mtime > than:
            return 0
        path.unlink()
    except FileNotFoundError:
        return 0
    return status.st_size
