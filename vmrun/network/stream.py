"""One TCP connection of a container, as the host sees it: blocking reads and writes with a
window each way, so that neither side holds more than that of bytes nobody has read."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

from vmrun.model.errors import ChannelError, DeadlineExceeded, GuestError
from vmrun.network.frames import (
    PAYLOAD_MAX,
    TO_GUEST_WINDOW,
    TO_HOST_WINDOW,
    Close,
    Data,
    End,
    Endpoint,
    Frame,
    Window,
)

_GRANT = TO_HOST_WINDOW // 2
"""Windows are granted anew in pieces of at least this: fewer frames."""

_ERRNO_MAX = 4096


class Stream:
    """Made by a :class:`vmrun.network.mux.Mux`. Methods may be called from any thread."""

    def __init__(
        self,
        number: int,
        peer: Endpoint,
        destination: Endpoint,
        *,
        opened: bool,
        send: Callable[[Frame], None],
        lock: threading.Lock,
    ) -> None:
        self.peer = peer
        """Who connected: a container; for a connection of the host, whom it connected to."""
        self.destination = destination
        """Where the connection was to go."""
        self._number = number
        self._opened = opened
        self._send = send
        self._changed = threading.Condition(lock)
        # One buffer: a guest that sends its bytes one by one takes no more memory than others.
        self._received = bytearray()
        self._granted = TO_HOST_WINDOW
        self._consumed = 0
        self._credit = TO_GUEST_WINDOW
        self._read_ended = False
        self._end_sent = False
        self._close_sent = False
        self._failure: ChannelError | None = None

    def read(self, size: int) -> bytes:
        """Up to ``size`` bytes, empty at the end; blocks until there are some.
        :class:`ChannelError` when the connection was reset or the wire has ended."""
        with self._changed:
            while not self._received:
                if self._read_ended:
                    return b""
                if self._failure is not None:
                    raise self._failure
                self._changed.wait()
            data = bytes(self._received[:size])
            del self._received[:size]
            self._consumed += len(data)
            if self._consumed >= _GRANT and not self._read_ended and not self._close_sent:
                self._send(Window(self._number, self._consumed))
                self._granted += self._consumed
                self._consumed = 0
            return data

    def write(self, data: bytes) -> None:
        """Send all of ``data``; blocks while the other side does not read.
        :class:`ChannelError` when the connection was reset or the wire has ended."""
        view = memoryview(data)
        while view:
            with self._changed:
                while self._credit == 0 and self._failure is None and not self._end_sent:
                    self._changed.wait()
                if self._failure is not None:
                    raise self._failure
                if self._end_sent:
                    raise ChannelError(f"{self.destination}: the connection is closed for writing")
                size = min(len(view), self._credit, PAYLOAD_MAX)
                self._credit -= size
                self._send(Data(self._number, bytes(view[:size])))
            view = view[size:]

    def close_write(self) -> None:
        """No more will be written; reading goes on."""
        with self._changed:
            if not self._end_sent and self._failure is None:
                self._end_sent = True
                self._send(End(self._number))
                self._close_if_finished()
                self._changed.notify_all()

    def close(self) -> None:
        """Done with it: a reset, unless both sides have ended. Never raises."""
        with self._changed:
            self._abort(ChannelError(f"{self.destination}: the connection is closed"))

    def wait_opened(self, timeout: float) -> None:
        """Block until the connection stands. :class:`ChannelError` when it was refused,
        :class:`DeadlineExceeded` after ``timeout`` seconds; the stream is closed then."""
        with self._changed:
            self._changed.wait_for(lambda: self._opened or self._failure is not None, timeout)
            if self._failure is not None:
                raise self._failure
            if not self._opened:
                late = ChannelError(f"{self.destination}: the connection is closed")
                self._abort(late)
                raise DeadlineExceeded(f"{self.destination} did not answer in {timeout:g} s")

    # What follows is the mux's: called with the lock held, from its reading thread.

    def on_opened(self) -> None:
        """The relay's Opened."""
        if self._close_sent:
            return
        if self._opened:
            raise GuestError(f"the relay opened {self.destination} twice")
        self._opened = True
        self._changed.notify_all()

    def on_refused(self, errno: int) -> None:
        """The relay's Refused, with an errno(3)."""
        if self._opened and not self._close_sent:
            raise GuestError(f"the relay refused {self.destination}, which it had opened")
        why = os.strerror(errno) if errno < _ERRNO_MAX else f"error {errno}"
        self.on_close(ChannelError(f"cannot connect to {self.destination}: {why}"))

    def _expect_opened(self) -> None:
        if not self._opened:
            raise GuestError(f"the relay sent more of {self.destination} than it may")

    def _abort(self, failure: ChannelError) -> None:
        if not self._close_sent:
            self._close_sent = True
            self._received.clear()
            self._send(Close(self._number))
        self._failure = self._failure or failure
        self._changed.notify_all()

    def _close_if_finished(self) -> None:
        if self._read_ended and self._end_sent and not self._close_sent:
            self._close_sent = True
            self._send(Close(self._number))

    def on_data(self, data: bytes) -> None:
        """The relay's Data."""
        if self._close_sent:
            return
        self._expect_opened()
        self._granted -= len(data)
        if self._read_ended or self._granted < 0:
            raise GuestError(f"the relay sent more of {self.destination} than it may")
        self._received += data
        self._changed.notify_all()

    def on_window(self, credit: int) -> None:
        """The relay's Window."""
        if self._close_sent:
            return
        self._expect_opened()
        self._credit += credit
        if credit == 0 or self._credit > TO_GUEST_WINDOW:
            raise GuestError(f"the relay grants a window of {self._credit} bytes")
        self._changed.notify_all()

    def on_end(self) -> None:
        """The relay's End."""
        if self._close_sent:
            return
        self._expect_opened()
        if self._read_ended:
            raise GuestError(f"the relay ended {self.destination} twice")
        self._read_ended = True
        self._close_if_finished()
        self._changed.notify_all()

    def on_close(self, failure: ChannelError) -> None:
        """The relay's Close, or the end of the wire. What was received can still be read."""
        if not self._close_sent:
            self._close_sent = True
            self._send(Close(self._number))
        self._failure = self._failure or failure
        self._changed.notify_all()
