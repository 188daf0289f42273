"""Joins a stream of the wire with a socket of the host, each direction with its own end."""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import threading

from vmrun.model.errors import VmrunError
from vmrun.network.stream import Stream

_CHUNK = 64 << 10
_RESET = struct.pack("ii", 1, 0)
_LOOK_MS = 500
"""How soon a write that the peer does not take notices that it is over."""


class Splice:
    """A stream and a socket. A reset of one is one of the other: neither side takes what was cut
    off for the whole.

    Nothing is read that cannot be written: a side that does not read stops the other.
    """

    def __init__(self, stream: Stream, sock: socket.socket) -> None:
        self._stream = stream
        self._socket = sock
        self._over = False

    def run(self) -> None:
        """Move bytes both ways until both have ended or one was reset, then close both."""
        sender = threading.Thread(target=self._send, name="wire-splice", daemon=True)
        try:
            self._socket.settimeout(None)
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            sender.start()
            self._receive()
            sender.join()
        except (OSError, RuntimeError):  # closed meanwhile; or no more threads can be made
            self.close()
        finally:
            self._stream.close()
            self._socket.close()

    def close(self) -> None:
        """Reset both; wakes whoever reads or writes them."""
        self._over = True
        self._stream.close()
        with contextlib.suppress(OSError):
            prepare_reset(self._socket)
            # Both directions would send a FIN, before the reset that the last close(2) sends.
            self._socket.shutdown(socket.SHUT_RD)

    def _send(self) -> None:
        try:
            while data := self._socket.recv(_CHUNK):
                self._stream.write(data)
            if not self._over:
                self._stream.close_write()
        except (OSError, VmrunError):
            self.close()

    def _receive(self) -> None:
        try:
            while data := self._stream.read(_CHUNK):
                self._put(data)
            self._socket.shutdown(socket.SHUT_WR)
        except (OSError, VmrunError):
            self.close()

    def _put(self, data: bytes) -> None:
        """sendall(), but one that can be ended without ending the connection first."""
        poller = select.poll()
        poller.register(self._socket, select.POLLOUT)
        view = memoryview(data)
        while view:
            if self._over:
                raise ConnectionResetError
            try:
                view = view[self._socket.send(view, socket.MSG_DONTWAIT) :]
            except BlockingIOError:
                poller.poll(_LOOK_MS)


def prepare_reset(sock: socket.socket) -> None:
    """Make the peer see a reset when the socket is closed."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
