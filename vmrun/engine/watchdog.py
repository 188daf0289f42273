"""Deadlines for reads and writes that have none of their own."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType

from vmrun.model.errors import DeadlineExceeded, VmrunError


class Watchdog:
    """Closes something when a block of code takes too long.

    ``with Watchdog(30, process.close, "the image was not delivered"):`` — a blocked read or
    write inside then fails, and the block ends in :class:`DeadlineExceeded`.
    """

    def __init__(self, seconds: float, close: Callable[[], None], message: str) -> None:
        self._seconds = seconds
        self._close = close
        self._message = message
        self._expired = threading.Event()
        self._timer = threading.Timer(seconds, self._expire)
        self._timer.daemon = True

    def _expire(self) -> None:
        self._expired.set()
        self._close()

    def __enter__(self) -> Watchdog:
        self._timer.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._timer.cancel()
        if self._expired.is_set() and (error is None or isinstance(error, VmrunError | OSError)):
            raise DeadlineExceeded(f"{self._message} within {self._seconds:g} s") from error
