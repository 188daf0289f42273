"""The guest's console, drained into a bounded buffer: a guest can fill neither disk nor memory."""

from __future__ import annotations

import socket
import threading

_KEEP = 64 << 10


class Console:
    """Reads a console's socket from a thread and keeps its last 64 KiB."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._buffer = bytearray()
        self._lock = threading.Lock()
        self._ended = threading.Event()
        threading.Thread(target=self._drain, name="console", daemon=True).start()

    def _drain(self) -> None:
        while True:
            try:
                self._sock.settimeout(None)
                data = self._sock.recv(16384)
            except OSError:
                data = b""
            if not data:
                self._ended.set()
                return
            with self._lock:
                self._buffer += data
                del self._buffer[:-_KEEP]

    def tail(self, lines: int) -> str:
        """The last lines, with everything unprintable replaced: a console is untrusted text."""
        self._ended.wait(0.2)
        with self._lock:
            text = self._buffer.decode("utf-8", "replace").replace("\r", "")
        printable = (
            "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in line)
            for line in text.split("\n")
        )
        return "\n".join(line for line in list(printable)[-lines:] if line.strip())

    def close(self) -> None:
        """Stop reading."""
        self._sock.close()
