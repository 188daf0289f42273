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
    """What the guest tool writes to its streams. All of it is the guest's, and may be lies.
    ``what`` is the copy, in errors: ``copy RUN:PATH``."""

    def __init__(self, line: Line, what: str) -> None:
        self._line = line
        self._what = what
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
                raise _failure(data, self.notes(), self._what)


def send_archive(line: Line, chunks: Iterable[bytes], what: str) -> list[str]:
    """Send a tar and wait until it has been unpacked; returns what the guest said of it.

    Raises what ``chunks`` raises and what kept the guest from it, :class:`DeadlineExceeded` when
    it takes nothing for :data:`STALLED` seconds.
    """
    incoming = Incoming(line, what)
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


def _failure(data: bytes, notes: list[str], what: str) -> VmrunError:
    """What it means that the guest tool has exited with that status."""
    text = data.decode("ascii", "replace")
    status = int(text) if text.isdigit() and len(text) <= 3 else -1
    reason = (notes or [f"exit status {text[:10]!r}"])[-1][:_LONGEST_REASON]
    kind, hint = _MEANINGS.get(status, (EngineError, "see 'vmrun ps'"))
    return kind(f"cannot {what}: {reason}", hint=hint)


_MEANINGS = {
    _SHORT: (StateError, "the archive was not whole; copy it again"),
    _DISK: (StateError, "a tmpfs counts as the container's memory; --scratch and volumes do not"),
    _REFUSED: (StateError, "see 'vmrun exec RUN ls -la DIRECTORY'"),
    _GONE: (StateError, "it has ended, or starts again; see 'vmrun ps -a'"),
    _READ_ONLY: (
        StateError,
        "the container's root is read-only; copy to a tmpfs, --scratch or a volume of the run",
    ),
    _DENIED: (StateError, "the container's user may not do that; -a copies as root"),
}
