"""An image in a registry: resolved once, its missing blobs downloaded side by side."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from io import BytesIO

from vmrun.image.limits import ImageLimits
from vmrun.image.registry.parallel import Work, in_parallel
from vmrun.image.registry.repository import Repository
from vmrun.image.registry.response import Passing
from vmrun.image.select import follow
from vmrun.image.source import Resolved, Transfer
from vmrun.image.store import ImageStore
from vmrun.image.streams import Readable
from vmrun.model.digest import Digest
from vmrun.model.errors import ImageError, ImageNotFound, ImageTooLarge
from vmrun.model.image import Descriptor

_DOWNLOADS = 3
_PAUSE = 1.0


class RegistrySource:
    """The :class:`~vmrun.image.source.Source` of a registry reference.

    Manifests and blobs are kept in ``store``; who reads a blob from there hashes it again.
    """

    def __init__(
        self, repository: Repository, store: ImageStore, architecture: str, limits: ImageLimits
    ) -> None:
        self._repository = repository
        self._store = store
        self._architecture = architecture
        self._limits = limits
        self._documents: dict[Descriptor, bytes] = {}

    def resolve(self) -> Resolved:
        """Ask for the tag once; from its answer on everything is asked for by digest."""
        reference = self._repository.reference
        name: str | Digest = reference.digest or reference.tag or ""
        found = self._repository.manifest(name)
        if found is None:
            raise ImageNotFound(
                f"{reference} does not exist in the registry",
                hint="check the name and the tag, and that you may see it",
            )
        top, data = found

        def read(descriptor: Descriptor) -> bytes:
            found = data if descriptor.digest == top.digest else self._manifest(descriptor)
            self._documents[descriptor] = found
            return found

        return follow(top, str(reference), self._architecture, read, self._limits)

    def prepare(self, blobs: Sequence[Descriptor]) -> Transfer:
        """Download what the store lacks, several blobs at a time."""
        wanted = {blob.digest: blob for blob in blobs}
        if sum(blob.size for blob in wanted.values()) > self._limits.blobs:
            raise ImageTooLarge(
                f"{self._repository.reference} has more than {self._limits.blobs} bytes",
                hint="use a smaller image",
            )
        missing = [blob for blob in wanted.values() if not self._store.has(blob)]
        progress = self._repository.progress
        if progress is not None:
            progress.expect(sum(blob.size for blob in missing))
        in_parallel(missing, self._download, progress)
        for document, data in self._documents.items():
            if not self._store.has(document):
                self._store.add(document, BytesIO(data), f"manifest {document.digest}")
        return Transfer(
            len(missing), len(wanted) - len(missing), sum(blob.size for blob in missing)
        )

    def open(self, blob: Descriptor) -> AbstractContextManager[Readable]:
        """A blob that :meth:`prepare` has seen to."""
        return self._store.open(blob)

    def describe(self, blob: Descriptor) -> str:
        """Names a blob and where it is from."""
        return f"blob {blob.digest} of {self._repository}"

    def _manifest(self, descriptor: Descriptor) -> bytes:
        found = self._repository.manifest(descriptor.digest)
        if found is None:
            raise ImageNotFound(
                f"{self._repository} lacks manifest {descriptor.digest}",
                hint="the image is incomplete there; push it again",
            )
        return found[1]

    def _download(self, blob: Descriptor, work: Work) -> None:
        for more in reversed(range(_DOWNLOADS)):
            try:
                with self._repository.blob(blob) as stream:
                    self._store.add(blob, work.reading(stream), self.describe(blob))
                return
            except Passing as failure:
                if not more:
                    raise ImageError(failure.message, hint=failure.hint) from None
                time.sleep(_PAUSE)
