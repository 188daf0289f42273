"""All connections of one network, over one process in the guest: the relay.

The relay decides nothing and is not trusted. What it sends is parsed strictly; streams, bytes and
threads are bounded; a violation ends the wire with :class:`GuestError`, and nothing else of it.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable

from vmrun.model.errors import ChannelError, DeadlineExceeded, GuestError, VmrunError
from vmrun.network.crew import Crew
from vmrun.network.frames import (
    DATAGRAM_MAX,
    STREAMS,
    TO_GUEST_WINDOW,
    Close,
    Connect,
    Data,
    Datagram,
    Decoder,
    End,
    Endpoint,
    Frame,
    Hello,
    Open,
    Opened,
    Refused,
    Window,
    encode,
)
from vmrun.network.outbox import Outbox
from vmrun.network.rate import Rate
from vmrun.network.stream import Stream
from vmrun.run.ports import RemoteProcess

__all__ = ["Endpoint", "Mux", "Stream"]

_CHUNK = 64 << 10
_ERROR_TAIL = 4 << 10
_OUTBOX = STREAMS * TO_GUEST_WINDOW + (4 << 20)
_DATAGRAMS_AT_ONCE = 64
_DATAGRAMS_A_SECOND = 500
_OPENS_A_SECOND = 1000


def printable(text: bytes) -> str:
    """What a guest said, fit for a terminal."""
    lines = text.decode("utf-8", "replace").splitlines()
    return "\n".join("".join(c if c.isprintable() else "?" for c in line) for line in lines)


class Mux:
    """Serves the relay that ``process`` is.

    ``on_stream`` is called in a thread of its own for each connection that a container makes;
    when it returns, the stream is closed. ``on_datagram`` gets the source and the bytes of a DNS
    query and returns the answer, or None for none; it is called in threads too. ``on_end`` is
    called once, with why, when the wire has ended otherwise than by :meth:`close`.

    What exceeds the limits is reset or dropped: 256 connections of containers at a time and 1000
    new ones a second, 64 queries at a time and 500 a second. Whatever the guest does, no more
    than 64 MiB of what it sent are held, and 36 MiB of what it has not read.
    """

    def __init__(
        self,
        process: RemoteProcess,
        *,
        on_stream: Callable[[Stream], None],
        on_datagram: Callable[[Endpoint, bytes], bytes | None],
        on_end: Callable[[VmrunError], None] | None = None,
    ) -> None:
        self._process = process
        self._on_stream = on_stream
        self._on_datagram = on_datagram
        self._on_end = on_end
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._streams: dict[int, Stream] = {}
        self._pid = 0
        self._closed = False
        self._failure: VmrunError | None = None
        self._complaint = b""
        self._handlers = Crew("wire-stream", STREAMS // 2)
        self._answers = Crew("wire-datagram", _DATAGRAMS_AT_ONCE)
        self._opens = Rate(_OPENS_A_SECOND)
        self._datagrams = Rate(_DATAGRAMS_A_SECOND)
        self._outbox = Outbox(process.write, self._fail, limit=_OUTBOX)
        self._errors = threading.Thread(target=self._read_errors, name="wire-err", daemon=True)
        self._errors.start()
        threading.Thread(target=self._read, name="wire-in", daemon=True).start()

    def wait_ready(self, timeout: float) -> int:
        """The relay's process id in the guest, once it is ready. Raises what ended the wire,
        :class:`DeadlineExceeded` after ``timeout`` seconds."""
        with self._changed:
            self._changed.wait_for(lambda: self._pid or self._ended(), timeout)
            self._raise_if_ended()
            if not self._pid:
                raise DeadlineExceeded("the relay in the guest was not ready in time")
            return self._pid

    @property
    def failure(self) -> VmrunError | None:
        """What ended the wire, if anything but :meth:`close` did."""
        return self._failure

    def connect(self, address: str, port: int, timeout: float) -> Stream:
        """A connection to a container. :class:`ChannelError` when it refuses or the wire has
        ended, :class:`DeadlineExceeded` after ``timeout`` seconds."""
        there = Endpoint(address, port)
        with self._lock:
            self._raise_if_ended()
            number = next((n for n in range(2, STREAMS, 2) if n not in self._streams), 0)
            if number == 0:
                raise ChannelError(f"cannot connect to {there}: too many connections are open")
            stream = self._add(number, there, there, opened=False)
            self._send(Connect(number, there))
        stream.wait_opened(timeout)
        return stream

    def close(self) -> None:
        """End the wire and every stream of it; the relay ends too. Never raises."""
        self._finish(ChannelError("the wire has been closed"), None)

    # The wire's end.

    def _ended(self) -> bool:
        return self._closed

    def _raise_if_ended(self) -> None:
        if self._closed:
            raise self._failure or ChannelError("the wire has been closed")

    def _fail(self, error: VmrunError) -> None:
        if not isinstance(error, GuestError):
            self._errors.join(1.0)  # the last words of one that has ended tell why
        error.details = error.details or printable(self._complaint)
        if self._finish(ChannelError(error.message), error) and self._on_end is not None:
            self._on_end(error)

    def _finish(self, of_streams: ChannelError, failure: VmrunError | None) -> bool:
        with self._changed:
            if self._closed:
                return False
            self._closed = True
            self._failure = failure
            for stream in self._streams.values():
                stream.on_close(of_streams)
            self._streams.clear()
            self._changed.notify_all()
        self._outbox.close()
        self._process.close()
        return True

    # What comes from the relay.

    def _read_errors(self) -> None:
        with contextlib.suppress(VmrunError):
            while data := self._process.read_error(_ERROR_TAIL):
                self._complaint = (self._complaint + data)[-_ERROR_TAIL:]

    def _read(self) -> None:
        decoder = Decoder()
        try:
            while data := self._process.read(_CHUNK):
                for frame in decoder.feed(data):
                    self._receive(frame)
            raise ChannelError("the relay in the guest has ended")
        except VmrunError as error:
            self._fail(error)

    def _receive(self, frame: Frame) -> None:
        match frame:
            case Hello(pid):
                self._on_hello(pid)
            case _ if not self._pid:
                raise GuestError("the relay did not say hello first")
            case Open(number, source, destination):
                self._on_open(number, source, destination)
            case Datagram():
                self._on_query(frame)
            case Connect():
                raise GuestError("the relay asked the host for a connection")
            case _:
                with self._lock:
                    self._on_frame(frame)

    def _on_hello(self, pid: int) -> None:
        with self._changed:
            if self._pid:
                raise GuestError("the relay said hello twice")
            self._pid = pid
            self._changed.notify_all()

    def _on_frame(self, frame: Opened | Refused | Data | Window | End | Close) -> None:
        stream = self._streams.get(frame.stream)
        if stream is None:
            if self._closed:
                return
            raise GuestError(f"the relay sent a frame of stream {frame.stream}, which is not open")
        match frame:
            case Data(_, data):
                stream.on_data(data)
            case Window(_, credit):
                stream.on_window(credit)
            case End():
                stream.on_end()
            case Opened():
                stream.on_opened()
            case Refused(_, errno):
                stream.on_refused(errno)
                del self._streams[frame.stream]
            case Close():
                stream.on_close(ChannelError(f"{stream.destination}: the connection was reset"))
                del self._streams[frame.stream]

    def _on_open(self, number: int, source: Endpoint, destination: Endpoint) -> None:
        with self._lock:
            if self._closed:
                return
            if number % 2 == 0 or number in self._streams:
                raise GuestError(f"the relay opened stream {number}, which is not its to open")
            stream = self._add(number, source, destination, opened=True)
        if not self._opens.allow() or not self._handlers.start(
            functools.partial(self._handle, stream)
        ):
            stream.close()

    def _handle(self, stream: Stream) -> None:
        try:
            with contextlib.suppress(VmrunError, OSError):
                self._on_stream(stream)
        finally:
            stream.close()

    def _on_query(self, query: Datagram) -> None:
        if self._datagrams.allow():
            self._answers.start(functools.partial(self._answer, query))

    def _answer(self, query: Datagram) -> None:
        with contextlib.suppress(VmrunError, OSError):
            answer = self._on_datagram(query.source, query.data)
            if answer is not None and len(answer) <= DATAGRAM_MAX:
                self._send(Datagram(query.source, query.destination, answer))

    # What goes to it.

    def _add(self, number: int, peer: Endpoint, destination: Endpoint, *, opened: bool) -> Stream:
        stream = Stream(number, peer, destination, opened=opened, send=self._send, lock=self._lock)
        self._streams[number] = stream
        return stream

    def _send(self, frame: Frame) -> None:
        try:
            self._outbox.put(encode(frame))
        except GuestError as error:
            # Called with the lock held, which ending the wire takes; the outbox has shut itself.
            threading.Thread(target=self._fail, args=(error,), name="wire-end").start()
