"""What vmrun's commands and supervisors say to each other over a Unix socket that only their own
user can reach. A request is a line of JSON, its answer too; after some requests frames follow, in
both directions: one byte of kind, four of length (big endian), then that many bytes."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import threading
from enum import IntEnum
from typing import Any

from vmrun.model import errors
from vmrun.model.errors import StateError, VmrunError

SOCKET = "api"
"""The socket's name in a guest's directory."""

LONGEST_LINE = 8 << 20
LONGEST_FRAME = 1 << 20
_HEADER = struct.Struct(">BI")


class Kind(IntEnum):
    """What a frame holds."""

    STDIN = 0
    STDOUT = 1
    STDERR = 2
    RESIZE = 3
    EXIT = 4
    FAILURE = 5
    END = 6


class Ended(StateError):
    """The other side has closed the connection."""


class Line:
    """One connection, on either side. Reads belong to one thread; writes may come from several."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._file = sock.makefile("rb")
        self._lock = threading.Lock()

    def send(self, message: dict[str, Any]) -> None:
        """Send one line."""
        self._send(json.dumps(message, separators=(",", ":")).encode() + b"\n")

    def receive(self) -> dict[str, Any]:
        """The next line. Raises :class:`Ended`, or :class:`StateError` for anything else than an
        object on one line."""
        try:
            raw = self._file.readline(LONGEST_LINE)
        except OSError as error:
            raise Ended(f"the connection broke: {error}") from error
        if not raw.endswith(b"\n"):
            raise Ended("the connection ended")
        try:
            message = json.loads(raw)
        except (ValueError, RecursionError) as error:
            raise StateError(f"not a message: {error}") from None
        if not isinstance(message, dict):
            raise StateError("not a message")
        return message

    def send_frame(self, kind: Kind, data: bytes = b"") -> None:
        """Send ``data`` in as many frames as it takes; blocks while the other side does not
        read."""
        for start in range(0, max(len(data), 1), LONGEST_FRAME):
            part = data[start : start + LONGEST_FRAME]
            self._send(_HEADER.pack(kind, len(part)) + part)

    def receive_frame(self) -> tuple[Kind, bytes]:
        """The next frame. Raises :class:`Ended` or :class:`StateError`."""
        kind, size = _HEADER.unpack(self._exactly(_HEADER.size))
        if size > LONGEST_FRAME or kind not in list(Kind):
            raise StateError("not a frame")
        return Kind(kind), self._exactly(size)

    def close(self) -> None:
        """End the connection; wakes whoever reads from it."""
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)
        self.sock.close()

    def _exactly(self, size: int) -> bytes:
        try:
            data = self._file.read(size)
        except (OSError, ValueError) as error:
            raise Ended(f"the connection broke: {error}") from error
        if len(data) < size:
            raise Ended("the connection ended")
        return data

    def _send(self, data: bytes) -> None:
        try:
            with self._lock:
                self.sock.sendall(data)
        except OSError as error:
            raise Ended(f"the connection broke: {error}") from error


def failure(error: VmrunError) -> dict[str, Any]:
    """An error as it travels."""
    return {
        "error": {
            "kind": type(error).__name__,
            "message": error.message,
            "hint": error.hint,
            "details": error.details,
        }
    }


def raised(message: dict[str, Any]) -> VmrunError | None:
    """The error that a message carries, of the class that it had; None without one."""
    error = message.get("error")
    if not isinstance(error, dict):
        return None
    kind = getattr(errors, str(error.get("kind")), VmrunError)
    if not (isinstance(kind, type) and issubclass(kind, VmrunError)):
        kind = VmrunError
    return kind(
        str(error.get("message", "")),
        hint=str(error.get("hint", "")),
        details=str(error.get("details", "")),
    )
