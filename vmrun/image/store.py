"""The local store of blobs: what was pulled once is not pulled again.

It is a cache and nothing more: a blob is hashed on its way in, and hashed again whenever an
image is made of it. Processes share it without locks, because a blob appears under its name
only complete, and equal names mean equal bytes.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, suppress
from pathlib import Path

from vmrun.image.durable import PARTIAL
from vmrun.image.layout import copy_exactly, writing
from vmrun.image.limits import ImageLimits
from vmrun.image.streams import Readable, open_regular
from vmrun.model.digest import Digest
from vmrun.model.errors import ImageTooLarge
from vmrun.model.image import Descriptor

_ABANDONED = 24 * 3600.0


class ImageStore:
    """Blobs by digest in ``root``, which only its owner may enter."""

    def __init__(self, root: Path, limits: ImageLimits | None = None) -> None:
        self.root = root
        self._limits = limits or ImageLimits()

    def blob_path(self, digest: Digest) -> Path:
        """Where a blob is, or would be."""
        return self.root / "blobs" / digest.algorithm / digest.hex

    def has(self, blob: Descriptor) -> bool:
        """Whether the blob is there with its size."""
        try:
            return self.blob_path(blob.digest).stat().st_size == blob.size
        except OSError:
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

    def open(self, blob: Descriptor) -> AbstractContextManager[Readable]:
        """The blob's bytes, to be hashed by who reads them."""
        return open_regular(self.blob_path(blob.digest), f"stored blob {blob.digest}")

    def digests(self) -> Iterator[Digest]:
        """All blobs that are there."""
        for folder in sorted(self._folders()):
            for path in sorted(folder.iterdir()):
                if not path.name.startswith(PARTIAL):
                    yield Digest.parse(f"{folder.name}:{path.name}")

    def remove(self, digest: Digest) -> int:
        """Delete a blob; the bytes that this freed."""
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

        ``older_than`` seconds: a younger one may be somebody's download.
        """
        freed = 0
        with writing(self.root):
            for folder in self._folders():
                for path in folder.glob(f"{PARTIAL}*"):
                    with suppress(FileNotFoundError):
                        status = path.stat()
                        if status.st_mtime < time.time() - older_than:
                            path.unlink()
                            freed += status.st_size
        return freed

    def _folders(self) -> list[Path]:
        blobs = self.root / "blobs"
        return [path for path in blobs.iterdir() if path.is_dir()] if blobs.is_dir() else []
