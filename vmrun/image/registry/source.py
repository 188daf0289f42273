"""An image in a registry: resolved once, its missing blobs downloaded side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager

from vmrun.image.limits import ImageLimits
from vmrun.image.registry.repository import Repository
from vmrun.image.select import follow
from vmrun.image.source import Resolved, Transfer
from vmrun.image.store import ImageStore
from vmrun.image.streams import Readable
from vmrun.model.digest import Digest
from vmrun.model.errors import ImageNotFound, ImageTooLarge
from vmrun.model.image import Descriptor

THREADS = 4


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
            return data if descriptor.digest == top.digest else self._manifest(descriptor)

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
        in_parallel(missing, self._download)
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

    def _download(self, blob: Descriptor) -> None:
        with self._repository.blob(blob) as stream:
            self._store.add(blob, stream, self.describe(blob))


def in_parallel(blobs: Sequence[Descriptor], work: Callable[[Descriptor], None]) -> None:
    """Do ``work`` for every blob, a few at a time; the first failure ends it and is raised."""
    with ThreadPoolExecutor(THREADS) as executor:
        tasks = [executor.submit(work, blob) for blob in blobs]
        done, waiting = wait(tasks, return_when=FIRST_EXCEPTION)
        for task in waiting:
            task.cancel()
    for task in done:
        task.result()
