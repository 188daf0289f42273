"""Several blobs at a time, and none of them any longer once one has failed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from threading import Event

from vmrun.image.registry.options import Progress
from vmrun.image.streams import Readable
from vmrun.model.errors import ImageError
from vmrun.model.image import Descriptor

THREADS = 4


class Work:
    """Shared by the threads: whether to go on, and how far they are."""

    def __init__(self, progress: Progress | None) -> None:
        self._progress = progress
        self._stop = Event()

    def stop(self) -> None:
        """Let every thread end with its next piece."""
        self._stop.set()

    def moved(self, size: int) -> None:
        """``size`` more bytes were moved. Raises :class:`ImageError` when it is time to stop."""
        if self._stop.is_set():
            raise ImageError("the transfer was given up")
        if self._progress is not None:
            self._progress.advance(size)

    def reading(self, stream: Readable) -> Readable:
        """``stream``, watched."""
        return _Watched(stream, self)


class _Watched:
    def __init__(self, stream: Readable, work: Work) -> None:
        self._stream = stream
        self._work = work

    def read(self, size: int, /) -> bytes:
        data = self._stream.read(size)
        self._work.moved(len(data))
        return data


def in_parallel(
    blobs: Sequence[Descriptor],
    task: Callable[[Descriptor, Work], None],
    progress: Progress | None = None,
) -> None:
    """Do ``task`` for every blob, a few at a time; the first failure, or an interrupt, ends the
    others and is raised."""
    work = Work(progress)
    executor = ThreadPoolExecutor(THREADS)
    try:
        for done in as_completed([executor.submit(task, blob, work) for blob in blobs]):
            done.result()
    finally:
        work.stop()
        executor.shutdown(cancel_futures=True)
