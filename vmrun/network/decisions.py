"""Every decision is recorded; a container cannot flood the journal with them.

The first of each kind is recorded at once. Its repetitions within a minute are counted, and the
count is recorded when the minute is over. A container that thinks of ever new destinations has
those beyond :data:`MAX_KINDS` a minute counted together. Nothing is left out of the counts, and
memory is bounded.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from vmrun.model.errors import VmrunError

ALLOW = "network.allow"
DENY = "network.deny"
WINDOW = 60.0
MAX_KINDS = 32
"""Distinct decisions of one event and container that are recorded one by one in a window."""

Record = Callable[[str, Mapping[str, str]], None]


@dataclass(frozen=True, slots=True)
class Decision:
    """One decision. ``via`` is the way that the container took (http, socks, direct, dns)."""

    container: str
    via: str
    name: str
    address: str
    port: int
    reason: str

    def fields(self) -> dict[str, str]:
        return {
            "container": self.container,
            "via": self.via,
            "name": printable(self.name),
            "address": printable(self.address),
            "port": str(self.port) if self.port else "",
            "reason": self.reason,
        }


class Decisions:
    """Records decisions through ``record``; :meth:`close` records what has been counted."""

    def __init__(
        self,
        record: Record,
        *,
        window: float = WINDOW,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._record = record
        self._window = window
        self._clock = clock
        self._lock = threading.Lock()
        self._counts: dict[tuple[str, Decision], int] = {}
        self._kinds: dict[tuple[str, str], int] = {}
        self._until = 0.0
        self._timer: threading.Timer | None = None
        self._closed = False

    def allow(self, decision: Decision) -> None:
        """Raises what ``record`` raises: what is not recorded must not happen."""
        self._put(ALLOW, decision)

    def deny(self, decision: Decision) -> None:
        """Raises what ``record`` raises."""
        self._put(DENY, decision)

    def _put(self, event: str, decision: Decision) -> None:
        with self._lock:
            self._roll()
            key = (event, decision)
            if key not in self._counts:
                group = (event, decision.container)
                kinds = self._kinds.get(group, 0)
                if kinds < MAX_KINDS:
                    # Recorded before it is counted: a failure leaves it to be recorded again.
                    self._record(event, decision.fields())
                    self._kinds[group] = kinds + 1
                    self._counts[key] = 0
                    return
                others = replace(
                    decision, via="", name="", address="", port=0, reason="many others"
                )
                key = (event, others)
            self._counts[key] = self._counts.get(key, 0) + 1
            self._arm()

    def _roll(self) -> None:
        """Begin a new window when the last one is over."""
        now = self._clock()
        if now >= self._until:
            self._flush()
            self._until = now + self._window

    def _flush(self) -> None:
        for key in [key for key, count in self._counts.items() if count]:
            event, decision = key
            self._record(event, {**decision.fields(), "repeated": str(self._counts[key])})
            self._counts[key] = 0
        self._counts.clear()
        self._kinds.clear()

    def _arm(self) -> None:
        """Have the counts recorded even if nothing more happens."""
        if self._timer is None and not self._closed:
            self._timer = threading.Timer(self._window, self._timed)
            self._timer.daemon = True
            self._timer.start()

    def _timed(self) -> None:
        with self._lock:
            self._timer = None
            try:
                self._flush()
            except VmrunError:
                # The counts are kept; the next decision meets the same error, and is not made.
                self._arm()

    def flush(self) -> None:
        """Record what has been counted so far, and begin anew. Raises what ``record`` raises."""
        with self._lock:
            self._flush()

    def close(self) -> None:
        """Record what has been counted. Raises what ``record`` raises."""
        with self._lock:
            self._closed = True
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            self._flush()


def printable(text: str) -> str:
    """``text`` of a container, short and in visible ASCII."""
    return "".join(c if "!" <= c <= "~" else "?" for c in text[:255])
