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
        self._received = 0
        self._protected = False

    def protect(self) -> None:
        """From here on signals raise nothing."""
        self._protected = True

    @property
    def received(self) -> bool:
        """Whether a signal has come, also while they raise nothing."""
        return bool(self._received)

    def check(self) -> None:
        """Raise :class:`Interrupted` if a signal came while work goes on.

        The handler does so itself; but where it strikes in a destructor or a callback of C code
        Python drops what it raises, so that every phase asks again.
        """
        if self._received and not self._protected:
            raise Interrupted(f"interrupted by {signal.Signals(self._received).name}")

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        self._received = number
        self.check()


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
