"""Answers for a live guest on its control socket. One thread a connection, and not many of them."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from vmrun.model.errors import StateError, VmrunError
from vmrun.supervisor.protocol import Ended, Line, failure

_MAX_CONNECTIONS = 128
_BACKLOG = 64

Answer = Callable[[Line, dict[str, Any]], None]
"""Answers one request: sends a line, and frames if its kind has them. What it raises is sent."""


class Server:
    """Listens on ``path`` until :meth:`close`; ``answers`` has a function for each operation."""

    def __init__(self, path: Path, answers: Mapping[str, Answer]) -> None:
        self._path = path
        self._answers = answers
        self._lines: set[Line] = set()
        self._closed = False
        self._lock = threading.Lock()
        self._free = threading.BoundedSemaphore(_MAX_CONNECTIONS)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        path.unlink(missing_ok=True)
        # Nobody else may connect, from the first moment on: the mode counts at connect(2).
        os.fchmod(self._listener.fileno(), 0o600)
        self._listener.bind(str(path))
        path.chmod(0o600)
        self._listener.listen(_BACKLOG)
        threading.Thread(target=self._accept, name="api", daemon=True).start()

    def close(self) -> None:
        """Answer no more, and end every connection."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._path.unlink(missing_ok=True)
        with self._lock:
            self._closed = True
            lines = list(self._lines)
        for line in lines:
            line.close()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            if not _ours(sock) or not self._free.acquire(blocking=False):
                sock.close()
                continue
            threading.Thread(target=self._serve, args=(Line(sock),), daemon=True).start()

    def _serve(self, line: Line) -> None:
        with self._lock:
            self._lines.add(line)
            late = self._closed
        try:
            if not late:
                self._answer(line)
        except Ended:
            pass  # the client has gone; what it asked for goes on or not, as it asked
        except VmrunError as error:
            with contextlib.suppress(VmrunError):
                line.send(failure(error))
        finally:
            with self._lock:
                self._lines.discard(line)
            line.close()
            self._free.release()

    def _answer(self, line: Line) -> None:
        request = line.receive()
        answer = self._answers.get(str(request.get("op")))
        if answer is None:
            raise StateError(
                f"no operation {str(request.get('op'))[:40]!r}",
                hint="this guest was started by another version of vmrun",
            )
        answer(line, request)


def _ours(sock: socket.socket) -> bool:
    """Whether the peer is this very user (SO_PEERCRED, unix(7))."""
    data = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    _, uid, _ = struct.unpack("3i", data)
    return bool(uid == os.geteuid())
