"""Joins a stream of the wire with a socket of the host, each direction with its own end."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading

from vmrun.model.errors import VmrunError
from vmrun.network.stream import Stream

_CHUNK = 64 << 10
_RESET = struct.pack("ii", 1, 0)


class Splice:
    """A stream and a socket. A reset of one is one of the other.

    Nothing is read that cannot be written: a side that does not read stops the other.
    """

    def __init__(self, stream: Stream, sock: socket.socket) -> None:
        self._stream = stream
        self._socket = sock

    def run(self) -> None:
        """Move bytes both ways until both have ended or one was reset, then close both."""
        # Connecting had a deadline; a write that the other side does not take has none.
        self._socket.settimeout(None)
        with contextlib.suppress(OSError):
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sender = threading.Thread(target=self._send, name="wire-splice", daemon=True)
        try:
            sender.start()
            self._receive()
            sender.join()
        except RuntimeError:  # the process has as many threads as it may have
            reset(self._socket)
        finally:
            self._stream.close()
            self._socket.close()

    def close(self) -> None:
        """Reset both; wakes whoever reads or writes them."""
        self._stream.close()
        reset(self._socket)

    def _send(self) -> None:
        try:
            while data := self._socket.recv(_CHUNK):
                self._stream.write(data)
            self._stream.close_write()
        except (OSError, VmrunError):
            self.close()

    def _receive(self) -> None:
        try:
            while data := self._stream.read(_CHUNK):
                self._socket.sendall(data)
            self._socket.shutdown(socket.SHUT_WR)
        except (OSError, VmrunError):
            self.close()


def reset(sock: socket.socket) -> None:
    """Make reads and writes fail now, and the peer see a reset when the socket is closed."""
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)
