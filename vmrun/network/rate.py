"""How often a guest is listened to."""

from __future__ import annotations

import time
from collections.abc import Callable


class Rate:
    """Allows ``per_second`` events a second on average, and as many at once. Not thread-safe."""

    def __init__(self, per_second: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_second = per_second
        self._clock = clock
        self._tokens = float(per_second)
        self._last = clock()

    def allow(self) -> bool:
        """Whether one more is within the rate; counts it if so."""
        now = self._clock()
        earned = (now - self._last) * self._per_second
        self._tokens = min(self._per_second, self._tokens + earned)
        self._last = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True
