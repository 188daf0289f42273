"""A running ``guest gate``: the one process that reads, opens and counts a container."""

from __future__ import annotations

import math
import queue
import threading
import time
from collections.abc import Callable

from vmrun.engine.gate import Blocks, parse_reading, parse_usage
from vmrun.engine.pump import CHUNK, ErrorTail
from vmrun.model.errors import ChannelError, DeadlineExceeded, VmrunError
from vmrun.model.live import ContainerReading
from vmrun.model.report import Usage
from vmrun.run.ports import RemoteProcess

_POLL = 0.1
_GRACE = 2.0
"""Seconds that the gate may still be speaking when the engine's own process has ended: they
come over two channels."""


class Gatekeeper:
    """Owns the process whose stdout carries the gate's blocks."""

    def __init__(self, process: RemoteProcess) -> None:
        self.process = process
        self.errors = ErrorTail(process.read_error)
        self._blocks: queue.Queue[list[str] | VmrunError | None] = queue.Queue()
        self._usage: Usage | None = None
        threading.Thread(target=self._read, name="gate", daemon=True).start()

    def _read(self) -> None:
        blocks = Blocks()
        try:
            while data := self.process.read(CHUNK):
                for block in blocks.feed(data):
                    self._blocks.put(block)
        except VmrunError as error:
            self._blocks.put(error)
        else:
            self._blocks.put(None)

    def block(
        self, timeout: float | None, what: str, *, ended: Callable[[], bool] = lambda: False
    ) -> list[str] | None:
        """The next block, None when there will be none: the process ended, or ``ended`` has
        said for a while that the container is gone."""
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        gone_since: float | None = None
        while True:
            try:
                block = self._blocks.get(timeout=_POLL)
            except queue.Empty:
                now = time.monotonic()
                if gone_since is None and ended():
                    gone_since = now
                if gone_since is not None and now > gone_since + _GRACE:
                    return None
                if now > deadline:
                    raise DeadlineExceeded(f"{what} did not come within {timeout} s") from None
                continue
            if isinstance(block, VmrunError):
                raise block
            return block

    def reading(
        self, timeout: float, *, ended: Callable[[], bool] = lambda: False
    ) -> ContainerReading | None:
        """How the container is confined; None when it is gone before it came to the gate."""
        block = self.block(timeout, "the container's confinement", ended=ended)
        return None if block is None else parse_reading(block)

    def open(self) -> None:
        """Let the workload's first instruction run."""
        self.process.write(b"open\n")

    def usage(self, timeout: float | None) -> Usage:
        """What the cgroup counted; nothing if the gate ended without a word."""
        if self._usage is None:
            block = self.block(timeout, "the container's counters")
            self._usage = Usage() if block is None else parse_usage(block)
        return self._usage

    def failure(self) -> str:
        """What the guest tool said on stderr, and its exit status."""
        try:
            status = f"exit status {self.process.wait(_GRACE)}"
        except (ChannelError, DeadlineExceeded) as error:
            status = str(error)
        return f"{self.errors.text() or 'the guest tool said nothing'} ({status})"

    def close(self) -> None:
        """End it; a container that still waits at the gate is killed by it."""
        self.process.close()
