"""The standard streams of a workload whose user sits at the other end of a control socket."""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Callable
from typing import BinaryIO, cast

from vmrun.model.errors import VmrunError
from vmrun.run.ports import Streams, TerminalSize
from vmrun.supervisor.conversation import parse_size
from vmrun.supervisor.protocol import Kind, Line


class Attachment:
    """Streams over ``line``: what the workload writes becomes frames, and what comes in frames is
    its stdin. ``hung_up`` is called when the user has gone."""

    def __init__(self, line: Line, *, interactive: bool, terminal: TerminalSize | None) -> None:
        self._line = line
        self._resize: list[Callable[[TerminalSize], None]] = []
        self._stdin: int | None = None
        self._feed: int | None = None
        if interactive:
            self._stdin, self._feed = os.pipe2(os.O_CLOEXEC)
        self.streams = Streams(
            stdin=self._stdin,
            stdout=cast(BinaryIO, _Frames(line, Kind.STDOUT)),
            stderr=cast(BinaryIO, _Frames(line, Kind.STDERR)),
            terminal=terminal,
            on_resize=self._resize.append,
        )

    def listen(self, hung_up: Callable[[], None]) -> None:
        """Take the user's frames from a thread until there are no more."""
        threading.Thread(target=self._listen, args=(hung_up,), daemon=True).start()

    def _listen(self, hung_up: Callable[[], None]) -> None:
        try:
            while True:
                kind, data = self._line.receive_frame()
                if kind is Kind.STDIN and self._feed is not None:
                    _write_all(self._feed, data)
                elif kind is Kind.END:
                    self._end_stdin()
                elif kind is Kind.RESIZE:
                    size = parse_size(data)
                    for resize in self._resize:
                        resize(size)
        except (VmrunError, OSError):
            self._end_stdin()
            hung_up()

    def _end_stdin(self) -> None:
        feed, self._feed = self._feed, None
        if feed is not None:
            os.close(feed)

    def close(self) -> None:
        """The workload has ended."""
        self._end_stdin()
        if self._stdin is not None:
            os.close(self._stdin)
            self._stdin = None


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


class _Frames(io.RawIOBase):
    """Writes frames of one kind; the user's going away reads as a closed pipe."""

    def __init__(self, line: Line, kind: Kind) -> None:
        self._line = line
        self._kind = kind

    def writable(self) -> bool:
        return True

    def write(self, data: bytes) -> int:  # type: ignore[override]
        try:
            self._line.send_frame(self._kind, bytes(data))
        except VmrunError as error:
            raise BrokenPipeError(32, str(error)) from error
        return len(data)
