"""What a transport has to offer, and the files that a transport may find it in."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from vmrun.image.streams import Readable
from vmrun.model.digest import Digest
from vmrun.model.image import Descriptor


@dataclass(frozen=True, slots=True)
class Resolved:
    """The manifest that a reference leads to on one platform."""

    descriptor: Descriptor
    data: bytes
    indexes: tuple[Digest, ...] = ()
    """The indexes that led to it, outermost first; each was hashed."""

    @property
    def lineage(self) -> tuple[Digest, ...]:
        """The digests of all that led to the manifest, and its own."""
        return (*self.indexes, self.descriptor.digest)


@dataclass(frozen=True, slots=True)
class Transfer:
    """How many blobs moved over a network, and how many were where they should be already;
    ``bytes`` are those that moved."""

    moved: int = 0
    present: int = 0
    bytes: int = 0


class Source(Protocol):
    """An image where it was found. Nothing that it gives is trusted."""

    def resolve(self) -> Resolved:
        """Find the manifest."""
        ...

    def prepare(self, blobs: Sequence[Descriptor]) -> Transfer:
        """Told once which blobs will be opened, so that they can be got all together."""
        ...

    def open(self, blob: Descriptor) -> AbstractContextManager[Readable]:
        """The bytes of the config or of a layer."""
        ...

    def describe(self, blob: Descriptor) -> str:
        """Names a blob and where it lies, for messages."""
        ...


class Files(Protocol):
    """Named files: a directory's, or the members of an archive."""

    def open(self, name: str) -> AbstractContextManager[Readable]:
        """A file's bytes; :class:`ImageNotFound` when there is none of that name."""
        ...

    def describe(self, name: str) -> str:
        """Names a file and where it lies, for messages."""
        ...
