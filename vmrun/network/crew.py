"""Threads for what a guest asks, never more than a fixed number."""

from __future__ import annotations

import threading
from collections.abc import Callable


class Crew:
    """At most ``limit`` threads at a time; none when there is nothing to do."""

    def __init__(self, name: str, limit: int) -> None:
        self._name = name
        self._free = threading.BoundedSemaphore(limit)

    def start(self, work: Callable[[], None]) -> bool:
        """Run ``work`` in a thread; False when all are busy, or no more can be made."""
        if not self._free.acquire(blocking=False):
            return False
        thread = threading.Thread(target=self._run, args=(work,), name=self._name, daemon=True)
        try:
            thread.start()
        except RuntimeError:  # the process has as many as it may have
            self._free.release()
            return False
        return True

    def _run(self, work: Callable[[], None]) -> None:
        try:
            work()
        finally:
            self._free.release()
