"""What the host sends to the relay: any thread queues, one thread writes."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

from vmrun.model.errors import ChannelError, GuestError

_BATCH = 128 << 10
_OVERHEAD = 64
"""Bytes of memory that a frame in the queue takes besides its own, about."""


class Outbox:
    """A queue of frames that never takes more than ``limit`` bytes of memory. Windows bound what
    an honest relay makes the host queue; one that asks and does not read meets the limit."""

    def __init__(
        self,
        write: Callable[[bytes], None],
        on_failure: Callable[[ChannelError], None],
        *,
        limit: int,
    ) -> None:
        self._write = write
        self._on_failure = on_failure
        self._limit = limit
        self._changed = threading.Condition()
        self._queue: deque[bytes] = deque()
        self._size = 0
        self._closed = False
        threading.Thread(target=self._run, name="wire-out", daemon=True).start()

    def put(self, data: bytes) -> None:
        """Queue ``data``; never blocks. Raises :class:`GuestError` at the limit."""
        with self._changed:
            if self._closed:
                return
            if self._size + len(data) + _OVERHEAD > self._limit:
                self._shut()
                raise GuestError("the relay does not read what it asked for")
            self._queue.append(data)
            self._size += len(data) + _OVERHEAD
            self._changed.notify()

    def close(self) -> None:
        """Drop what is queued."""
        with self._changed:
            self._shut()

    def _shut(self) -> None:
        self._closed = True
        self._queue.clear()
        self._changed.notify()

    def _run(self) -> None:
        try:
            while batch := self._take():
                self._write(batch)
        except ChannelError as error:
            self._on_failure(error)

    def _take(self) -> bytes:
        """Some of the queue, as one piece; empty when closed."""
        with self._changed:
            while not self._queue and not self._closed:
                self._changed.wait()
            pieces, size = [], 0
            while self._queue and size < _BATCH:
                piece = self._queue.popleft()
                pieces.append(piece)
                size += len(piece)
            self._size -= size + len(pieces) * _OVERHEAD
            return b"".join(pieces)
