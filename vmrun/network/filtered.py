"""Joins a container's stream with a connection of this host, through a filter.

One read at a time is held in each direction: who does not read stops who writes. The end of one
direction is passed on and leaves the other open. A connection in which nothing moves is ended.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Callable
from typing import Protocol

from vmrun.model.errors import Refused, VmrunError
from vmrun.network.guest_stream import GuestStream
from vmrun.network.watch import Watch, Watched

CHUNK = 64 << 10
IDLE = 900.0
"""Seconds without a byte in either direction."""
UNDECIDED = 10.0
"""Seconds that an unfinished hello or head may take."""
LAST_WORDS = 5.0
"""Seconds for the container to read why it is refused."""
AFTER_END = 60.0
"""Seconds for the container to read the rest of an answer that nothing can follow."""


class Filter(Protocol):
    """What passes of a connection. Raises :class:`Refused` with the reason to end it."""

    @property
    def undecided(self) -> bool:
        """Whether bytes are held back."""

    @property
    def farewell(self) -> bytes:
        """What to tell the container when it is refused before the server has spoken."""

    @property
    def single(self) -> bool:
        """Whether the connection is over when the server has ended its side."""

    def feed(self, data: bytes) -> bytes:
        """What goes to the server now."""

    def reply(self, data: bytes) -> bytes:
        """What goes to the container now."""


class FilteredJoint:
    """One container's stream and one connection."""

    def __init__(
        self,
        stream: GuestStream,
        connection: socket.socket,
        passing: Filter,
        watch: Watch,
        *,
        idle: float = IDLE,
        undecided: float = UNDECIDED,
    ) -> None:
        self._stream = stream
        self._connection = connection
        self._filter = passing
        self._watch = watch
        self._idle = idle
        self._undecided = undecided
        self._spoken = False
        self._refused: str | None = None
        self._lock = threading.Lock()

    def run(self, first: bytes, on_refused: Callable[[str], None]) -> None:
        """Move bytes until both ends are done, then close both; ``first`` has been read from the
        container. ``on_refused`` gets the reason when what flows is not allowed."""
        watched = self._watch.add(self._abort, idle=self._idle)
        down = threading.Thread(
            target=self._down, args=(watched,), name="network-down", daemon=True
        )
        try:
            down.start()
        except RuntimeError:  # the process has as many threads as it may have
            self._watch.remove(watched)
            self._connection.close()
            self._stream.close()
            return
        try:
            self._up(first, watched)
            down.join()
        finally:
            self._watch.remove(watched)
            self._connection.close()
        if self._refused is not None:
            on_refused(self._refused)
            if not self._spoken:
                say(self._stream, self._filter.farewell, self._watch)
        self._stream.close()

    def _up(self, first: bytes, watched: Watched) -> None:
        """Container to server."""
        data = first
        try:
            while True:
                passed = self._filter.feed(data)
                watched.limit(self._undecided if self._filter.undecided else None)
                if passed:
                    self._connection.sendall(passed)
                watched.touch()
                data = self._stream.read(CHUNK)
                if not data:
                    break
            if self._filter.undecided:
                late = "did not go on" if watched.expired else "ended"
                raise Refused(f"it {late} before it could be judged")
            self._connection.shutdown(socket.SHUT_WR)
        except Refused as refusal:
            self._refuse(refusal)
        except (OSError, VmrunError):
            if watched.expired and self._filter.undecided:
                self._refused = "it did not go on before it could be judged"
            self._reset(socket.SHUT_RD)
            self._stream.close()

    def _down(self, watched: Watched) -> None:
        """Server to container."""
        try:
            while data := self._connection.recv(CHUNK):
                watched.touch()
                passed = self._filter.reply(data)
                with self._lock:
                    if self._refused is not None:
                        return
                    self._spoken = self._spoken or bool(passed)
                if passed:
                    self._stream.write(passed)
            if self._refused is not None:
                return
            self._stream.close_write()
            if self._filter.single:
                watched.limit(AFTER_END)
        except Refused as refusal:
            with self._lock:
                self._refused = self._refused or str(refusal)
            self._abort()
        except (OSError, VmrunError):
            if self._refused is None:
                self._abort()

    def _refuse(self, refusal: Refused) -> None:
        with self._lock:
            self._refused = str(refusal)
            spoken = self._spoken
        if spoken:
            # The other thread may be writing to a container that does not read.
            self._abort()
        else:
            self._reset(socket.SHUT_RD)

    def _abort(self) -> None:
        """End both sides; wakes whoever reads or writes them."""
        self._reset()
        self._stream.close()

    def _reset(self, how: int = socket.SHUT_RDWR) -> None:
        """End the server's side as a reset: it must not take what came so far for all of it.

        Where nobody is in send(2), SHUT_RD is enough to wake the other thread, and no FIN is sent
        before the reset.
        """
        with contextlib.suppress(OSError):
            self._connection.setsockopt(
                socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
            )
            self._connection.shutdown(how)


def say(stream: GuestStream, data: bytes, watch: Watch) -> None:
    """Send the last that a container gets, and wait a moment until it has it: to close a stream
    that it still writes to would be a reset, and could take the words with it."""
    watched = watch.add(stream.close, idle=LAST_WORDS, limit=LAST_WORDS)
    try:
        if data:
            stream.write(data)
        stream.close_write()
        while stream.read(CHUNK):
            pass
    except (OSError, VmrunError):
        return
    finally:
        watch.remove(watched)
