"""The commands' side of a copy: a tar that comes from a container or goes into one, as frames."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import threading
from collections.abc import Iterable, Iterator

from vmrun.model.errors import DeadlineExceeded, EngineError, StateError, VmrunError
from vmrun.supervisor.protocol import Ended, Kind, Line, raised

STALLED = 120.0
"""Seconds without a byte, after which a copy is given up."""

_FRAME = 256 << 10
_MOST_SAID = 64 << 10
_LONGEST_REASON = 500

# Exit statuses of the guest tool (guest contract, "Guest tool").
_SHORT, _DISK, _REFUSED, _GONE, _READ_ONLY, _DENIED = 4, 5, 6, 9, 10, 11


class Incoming:
    """What the guest tool writes to its streams. All of it is the guest's, and may be lies."""

    def __init__(self, line: Line) -> None:
        self._line = line
        self._data = b""
        self._said = bytearray()
        self._ended = False

    def read(self, size: int) -> bytes:
        """Up to ``size`` bytes of the archive; none at its end. Raises what kept the guest from
        it, and :class:`DeadlineExceeded` when nothing comes for :data:`STALLED` seconds (if the
        line's timeout is that)."""
        while not self._data and not self._ended:
            self._take()
        data, self._data = self._data[:size], self._data[size:]
        return data

    def notes(self) -> list[str]:
        """What it said, without what a terminal would act on."""
        return _lines(bytes(self._said))

    def _take(self) -> None:
        try:
            kind, data = self._line.receive_frame()
        except Ended as error:
            if isinstance(error.__cause__, TimeoutError):
                raise _stalled() from error
            raise StateError(
                "the guest ended before all was copied", hint="see 'vmrun ps -a'"
            ) from error
        if kind is Kind.STDOUT:
            self._data = data
        elif kind is Kind.STDERR:
            self._said += data[: _MOST_SAID - len(self._said)]
        elif kind is Kind.FAILURE:
            raise _told(data)
        elif kind is Kind.EXIT:
            self._ended = True
            if data != b"0":
                raise _failure(data, self.notes())


def send_archive(line: Line, chunks: Iterable[bytes]) -> list[str]:
    """Send a tar and wait until it has been unpacked; returns what the guest said of it.

    Raises what ``chunks`` raises and what kept the guest from it, :class:`DeadlineExceeded` when
    it takes nothing for :data:`STALLED` seconds.
    """
    incoming = Incoming(line)
    failed: list[VmrunError] = []

    def listen() -> None:
        try:
            while incoming.read(_FRAME):
                pass
        except VmrunError as error:
            failed.append(error)

    listener = threading.Thread(target=listen, daemon=True)
    listener.start()
    line.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("@ll", int(STALLED), 0))
    stalled = False
    try:
        for part in _gathered(chunks):
            line.send_frame(Kind.STDIN, part)
        line.send_frame(Kind.END)
    except Ended as error:
        # Why it takes no more is said in its answer, if it says anything.
        stalled = isinstance(error.__cause__, BlockingIOError)
    if not stalled:
        listener.join(STALLED)
    if listener.is_alive():
        raise _stalled()
    if failed:
        raise failed[0]
    return incoming.notes()


def _gathered(chunks: Iterable[bytes]) -> Iterator[bytes]:
    waiting = bytearray()
    for chunk in chunks:
        waiting += chunk
        if len(waiting) >= _FRAME:
            yield bytes(waiting)
            waiting.clear()
    yield bytes(waiting)


def _stalled() -> DeadlineExceeded:
    return DeadlineExceeded(
        f"the guest has moved nothing for {STALLED:g} s", hint="see 'vmrun ps'; copy it again"
    )


def _told(data: bytes) -> VmrunError:
    with contextlib.suppress(ValueError, RecursionError):
        message = json.loads(data)
        if isinstance(message, dict) and (found := raised(message)) is not None:
            return found
    return StateError("the copy failed, and it was not said why")


def _lines(said: bytes) -> list[str]:
    texts = said.decode("utf-8", "replace").splitlines()
    return [
        "".join(c if c.isprintable() else "?" for c in text.removeprefix("vmrun-guest: "))
        for text in texts
        if text.strip()
    ]


def _failure(data: bytes, notes: list[str]) -> VmrunError:
    """What it means that the guest tool has exited with that status."""
    text = data.decode("ascii", "replace")
    status = int(text) if text.isdigit() and len(text) <= 3 else -1
    reason = (notes or [f"exit status {text[:10]!r}"])[-1][:_LONGEST_REASON]
    if status == _READ_ONLY:
        return StateError(
            f"the container cannot be written to there: {reason}",
            hint="its root is read-only; copy to a tmpfs, --scratch or a volume of the run",
        )
    if status == _DENIED:
        return StateError(
            f"the container's user may not do that: {reason}", hint="-a does it as root"
        )
    if status == _GONE:
        return StateError(
            f"the container does not run (any more): {reason}", hint="see 'vmrun ps -a'"
        )
    if status == _DISK:
        return StateError(
            f"the container cannot take it: {reason}",
            hint="a tmpfs counts as the container's memory; --scratch and volumes do not",
        )
    if status == _REFUSED:
        return StateError(f"it is not copied: {reason}", hint="see 'vmrun cp --help'")
    if status == _SHORT:
        return StateError(f"the archive is not whole: {reason}", hint="copy it again")
    return EngineError(f"the guest could not copy: {reason}")
