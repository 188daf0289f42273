"""Ends connections that stand still: one thread for all of them.

Reads from a guest cannot be given a deadline, so a connection is ended from outside: its ``abort``
is called, and whoever reads or writes it wakes with an error.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable

from vmrun.model.errors import VmrunError

TICK = 0.5
"""How late, in seconds, a connection may be ended."""


class Watched:
    """One connection under watch."""

    def __init__(self, abort: Callable[[], None], idle: float, limit: float | None) -> None:
        self.abort = abort
        self.expired = False
        self._idle = idle
        self._last = time.monotonic()
        self._deadline = None if limit is None else self._last + limit

    def touch(self) -> None:
        """Something moved."""
        self._last = time.monotonic()

    def limit(self, seconds: float | None) -> None:
        """End it that long from now whatever moves, or (``None``) only when it stands still. A
        limit that runs already is not put off."""
        if seconds is None:
            self._deadline = None
        elif self._deadline is None:
            self._deadline = time.monotonic() + seconds

    def over(self, now: float) -> bool:
        deadline = self._deadline
        return now - self._last >= self._idle or (deadline is not None and now >= deadline)


class Watch:
    """Watches connections until :meth:`close`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._items: set[Watched] = set()
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None
        self._closed = False

    def add(self, abort: Callable[[], None], *, idle: float, limit: float | None = None) -> Watched:
        """Call ``abort`` once nothing has moved for ``idle`` seconds or ``limit`` are over; at
        once when the watch is closed."""
        item = Watched(abort, idle, limit)
        with self._lock:
            closed = self._closed
            if not closed:
                self._items.add(item)
                if self._thread is None:
                    self._thread = threading.Thread(
                        target=self._run, name="network-watch", daemon=True
                    )
                    self._thread.start()
        if closed:
            item.expired = True
            abort()
        return item

    def remove(self, item: Watched) -> None:
        """Watch it no longer."""
        with self._lock:
            self._items.discard(item)

    def _run(self) -> None:
        while not self._wake.wait(TICK):
            now = time.monotonic()
            with self._lock:
                late = [item for item in self._items if item.over(now)]
                self._items.difference_update(late)
            self._end(late)

    def close(self) -> None:
        """End every connection under watch."""
        with self._lock:
            self._closed = True
            late = list(self._items)
            self._items.clear()
        self._wake.set()
        self._end(late)

    @staticmethod
    def _end(items: list[Watched]) -> None:
        for item in items:
            item.expired = True
            # One that cannot be ended must not keep the others.
            with contextlib.suppress(OSError, VmrunError):
                item.abort()
