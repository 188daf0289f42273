"""Threads that move bytes between the host's streams and a process in the guest.

Nothing is buffered beyond one read: a slow reader on the host stops the reads here, SSH's
window closes, and the workload blocks in its own write(2).
"""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Callable
from typing import BinaryIO

from vmrun.model.errors import ChannelError, VmrunError

CHUNK = 64 << 10


class InputPump:
    """Copies a file descriptor of the host to ``write`` until it ends or :meth:`stop`.

    It reads only what it can hand on, and nothing once stopped: what the workload did not
    take stays for whoever reads the descriptor next (a shell's ``while read`` loop).
    """

    def __init__(
        self, source: int, write: Callable[[bytes], None], end: Callable[[], None]
    ) -> None:
        self._source = source
        self._write = write
        self._end = end
        self._wake_read, self._wake_write = os.pipe2(os.O_CLOEXEC)
        self._thread = threading.Thread(target=self._run, name="stdin", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._copy()
        finally:
            # Not stop()'s to close: a write that is under way may keep this thread for a while.
            os.close(self._wake_read)

    def _copy(self) -> None:
        poller = select.poll()
        poller.register(self._source, select.POLLIN)
        poller.register(self._wake_read, select.POLLIN)
        try:
            while True:
                ready = {descriptor for descriptor, _ in poller.poll()}
                if self._wake_read in ready:
                    return
                data = os.read(self._source, CHUNK)
                if not data:
                    self._end()
                    return
                self._write(data)
        except OSError:
            # The host's stdin broke (a hung-up terminal): to the workload it has ended.
            self._end_quietly()
        except ChannelError:
            # The workload is gone or has closed its stdin; its exit is reported elsewhere.
            return

    def _end_quietly(self) -> None:
        try:
            self._end()
        except ChannelError:
            return

    def stop(self) -> None:
        """Read no more. A write that is under way ends when its channel is closed."""
        if self._wake_write >= 0:
            os.close(self._wake_write)
            self._wake_write = -1
            self._thread.join(1.0)


class Sink:
    """A stream of the host. When it cannot be written to, ``on_failure`` is called once and all
    that follows is dropped, so that the workload's end is still seen."""

    def __init__(self, stream: BinaryIO, on_failure: Callable[[], None]) -> None:
        self.error: OSError | None = None
        self._stream = stream
        self._on_failure = on_failure

    def put(self, data: bytes) -> None:
        """Write all of ``data`` at once."""
        if self.error is not None:
            return
        try:
            self._stream.write(data)
            self._stream.flush()
        except OSError as error:
            self.error = error
            self._on_failure()

    def copy(self, read: Callable[[int], bytes]) -> None:
        """Write what ``read`` returns until it ends."""
        while data := read(CHUNK):
            self.put(data)


class OutputThread:
    """Runs ``copy`` in a thread of its own and keeps the error that ended it."""

    def __init__(self, name: str, copy: Callable[[], None]) -> None:
        self.error: VmrunError | None = None
        self._copy = copy
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._copy()
        except VmrunError as error:
            self.error = error

    def join(self, timeout: float) -> bool:
        """Wait until all has been written; whether it has."""
        self._thread.join(timeout)
        return not self._thread.is_alive()


class ErrorTail:
    """Keeps the last few KiB of a process's stderr, so that it never blocks on it."""

    LIMIT = 8 << 10

    def __init__(self, read: Callable[[int], bytes]) -> None:
        self._read = read
        self._tail = b""
        self._thread = threading.Thread(target=self._run, name="stderr-tail", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            while data := self._read(CHUNK):
                self._tail = (self._tail + data)[-self.LIMIT :]
        except VmrunError:
            return

    def text(self, timeout: float = 1.0) -> str:
        """What it said, made printable, once it has ended or ``timeout`` seconds are over."""
        self._thread.join(timeout)
        lines = self._tail.decode("utf-8", "replace").splitlines()
        return "\n".join("".join(c if c.isprintable() else "?" for c in line) for line in lines)
