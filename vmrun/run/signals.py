"""INT, TERM and HUP end a run in an orderly way. A second one changes nothing: teardown waits for
nobody's goodwill, so there is nothing in it to hurry."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from vmrun.model.errors import Interrupted

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class SignalGuard:
    """While work goes on a signal raises :class:`Interrupted` in the main thread; once teardown
    has begun signals are only counted, because nothing may interrupt it."""

    def __init__(self) -> None:
        self.received = 0
        self._protected = False

    def protect(self) -> None:
        """From here on signals raise nothing."""
        self._protected = True

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        self.received += 1
        if not self._protected and self.received == 1:
            raise Interrupted(f"interrupted by {signal.Signals(number).name}")


@contextmanager
def signal_guard() -> Iterator[SignalGuard]:
    """Handle the signals for the length of the block (main thread only)."""
    guard = SignalGuard()
    before = {number: signal.signal(number, guard._handle) for number in _SIGNALS}
    try:
        yield guard
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
