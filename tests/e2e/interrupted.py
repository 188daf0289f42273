"""A vmrun that is hit by a signal in a phase of its run.

With a terminal as stderr vmrun says which phase it is in; that is where the signal is sent.
"""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tests.conftest import REPOSITORY

_PHASE = re.compile(rb"\x1b\[K\xe2\x80\xa6 ([a-z ]+)")


@dataclass(slots=True)
class TerminalRun:
    """A vmrun with a terminal as its stderr."""

    command: Sequence[str]
    stdin: int = subprocess.DEVNULL
    environment: Mapping[str, str] | None = None
    process: subprocess.Popen[bytes] = field(init=False)
    seen: bytes = b""
    _terminal: int = -1

    def __post_init__(self) -> None:
        self._terminal, slave = pty.openpty()
        self.process = subprocess.Popen(
            self.command,
            stdin=self.stdin,
            stdout=subprocess.PIPE,
            stderr=slave,
            start_new_session=True,
            cwd=REPOSITORY,
            env=self.environment,
        )
        os.close(slave)

    def wait_for_phase(self, phase: str, timeout: float = 200) -> None:
        """Until that phase has begun; fails when the process ends first."""
        deadline = time.monotonic() + timeout
        while phase.encode() not in _PHASE.findall(self.seen):
            assert time.monotonic() < deadline, f"{phase} did not come: {self.seen!r}"
            if not self._read():
                raise AssertionError(f"ended before {phase}: {self.seen!r}")

    def end(self, timeout: float = 120) -> int:
        """Its exit status, negative for a signal."""
        deadline = time.monotonic() + timeout
        while self.process.poll() is None:
            assert time.monotonic() < deadline, f"does not end: {self.seen!r}"
            self._read()
        while self._read():
            pass
        os.close(self._terminal)
        assert self.process.stdout is not None
        self.process.stdout.close()
        return self.process.returncode

    def send(self, number: signal.Signals) -> None:
        """Send a signal to it."""
        self.process.send_signal(number)

    def _read(self) -> bool:
        ready, _, _ = select.select([self._terminal], [], [], 0.05)
        if not ready:
            return self.process.poll() is None
        try:
            data = os.read(self._terminal, 65536)
        except OSError:
            return False
        self.seen += data
        return bool(data)
