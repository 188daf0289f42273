"""The phases of a run, timed from the command's own start."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from vmrun.model.report import Phase


def process_start() -> float:
    """When this process was started, as a :func:`time.monotonic` value (proc(5), starttime)."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    started = int(fields[19]) / 100
    return started + time.monotonic() - time.clock_gettime(time.CLOCK_BOOTTIME)


class PhaseClock:
    """Collects phases; ``announce`` is told each one's name as it begins."""

    def __init__(self, announce: Callable[[str], None]) -> None:
        self._origin = process_start()
        self._announce = announce
        self._phases: list[Phase] = []
        now = time.monotonic()
        self._phases.append(Phase("load", 0.0, max(0.0, now - self._origin)))

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time the block as one phase, also when it fails."""
        self._announce(name)
        start = time.monotonic()
        try:
            yield
        finally:
            end = time.monotonic()
            self._phases.append(Phase(name, start - self._origin, end - start))

    @property
    def phases(self) -> tuple[Phase, ...]:
        """Those that have ended, in order."""
        return tuple(self._phases)
