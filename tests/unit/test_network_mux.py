"""The host's end of the wire, against relays that do what no honest one does."""

from __future__ import annotations

import os
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmrun.model.errors import ChannelError, DeadlineExceeded, GuestError, VmrunError
from vmrun.network import mux as mux_module
from vmrun.network.frames import (
    PAYLOAD_MAX,
    STREAMS,
    TO_GUEST_WINDOW,
    TO_HOST_WINDOW,
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
from vmrun.network.mux import Mux, Stream
from vmrun.network.rate import Rate
from vmrun.run.ports import TerminalSize

A = Endpoint("10.90.0.2", 40000)
B = Endpoint("192.0.2.7", 443)


class Relay:
    """The guest's end, in the test's hands; the mux sees a process in a guest."""

    def __init__(self) -> None:
        self._to_host = os.pipe()
        self._to_guest = os.pipe()
        self._decoder = Decoder()
        self._frames: list[Frame] = []
        self.complaint = b""
        self.closed = threading.Event()
        self._lock = threading.Lock()

    def write(self, data: bytes) -> None:
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(self._to_guest[1], view) :]
        except OSError as error:
            raise ChannelError(str(error)) from error

    def close_stdin(self) -> None: ...

    def read(self, size: int) -> bytes:
        return os.read(self._to_host[0], size)

    def read_error(self, size: int) -> bytes:
        said, self.complaint = self.complaint, b""
        return said

    def resize(self, size: TerminalSize) -> None: ...

    def wait(self, timeout: float | None = None) -> int:
        return 0

    def close(self) -> None:
        if not self.closed.is_set():
            self.closed.set()
            self.end()
            os.close(self._to_guest[0])

    def say(self, *frames: Frame) -> None:
        self.say_bytes(b"".join(map(encode, frames)))

    def say_bytes(self, data: bytes) -> None:
        with self._lock, suppress(OSError):
            os.write(self._to_host[1], data)

    def end(self) -> None:
        with self._lock:
            if self._to_host[1] >= 0:
                os.close(self._to_host[1])
                self._to_host = (self._to_host[0], -1)

    def hear(self) -> Frame:
        """The next frame of the host."""
        while not self._frames:
            data = os.read(self._to_guest[0], 65536)
            assert data
            self._frames += self._decoder.feed(data)
        return self._frames.pop(0)


class Wire:
    """A mux and its relay, and what the mux has called."""

    def __init__(self, handle: Callable[[Stream], None], answer: bytes | None = None) -> None:
        self.relay = Relay()
        self.ended: list[VmrunError] = []
        self.end = threading.Event()
        self.queries: list[tuple[Endpoint, bytes]] = []
        self._answer = answer
        self.mux = Mux(self.relay, on_stream=handle, on_datagram=self._query, on_end=self._on_end)

    def _query(self, source: Endpoint, data: bytes) -> bytes | None:
        self.queries.append((source, data))
        return self._answer

    def _on_end(self, error: VmrunError) -> None:
        self.ended.append(error)
        self.end.set()

    def failure(self) -> VmrunError:
        assert self.end.wait(5)
        assert self.relay.closed.wait(5)
        (error,) = self.ended
        assert self.mux.failure is error
        return error


def echo(stream: Stream) -> None:
    while data := stream.read(1000):
        stream.write(data)
    stream.close_write()


@pytest.fixture
def wire() -> Iterator[Wire]:
    made = Wire(echo, b"answer")
    made.relay.say(Hello(77))
    yield made
    made.mux.close()


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_serves_a_connection_from_open_to_close(wire: Wire) -> None:
    assert wire.mux.wait_ready(5) == 77
    wire.relay.say(Open(1, A, B), Data(1, b"hello"), End(1))
    assert [wire.relay.hear() for _ in range(3)] == [Data(1, b"hello"), End(1), Close(1)]
    wire.relay.say(Close(1), Open(1, A, B), End(1))
    assert [wire.relay.hear() for _ in range(2)] == [End(1), Close(1)]


def test_tells_who_connected_and_where_to() -> None:
    seen: list[tuple[Endpoint, Endpoint]] = []
    wire = Wire(lambda stream: seen.append((stream.peer, stream.destination)))
    wire.relay.say(Hello(1), Open(3, A, B))
    assert wire.relay.hear() == Close(3), "a handler that returns has closed its stream"
    assert seen == [(A, B)]
    wire.mux.close()


def test_a_handler_that_fails_resets_its_stream_alone() -> None:
    def handle(stream: Stream) -> None:
        raise ChannelError("the other side has gone")

    wire = Wire(handle)
    wire.relay.say(Hello(1), Open(1, A, B))
    assert wire.relay.hear() == Close(1)
    assert wire.mux.failure is None
    wire.mux.close()


def test_the_window_stops_a_writer_until_it_is_granted_more() -> None:
    written = threading.Event()

    def handle(stream: Stream) -> None:
        stream.write(b"x" * (TO_GUEST_WINDOW + 10))
        written.set()
        stream.read(1)

    wire = Wire(handle)
    wire.relay.say(Hello(1), Open(1, A, B))
    got = 0
    while got < TO_GUEST_WINDOW:
        frame = wire.relay.hear()
        assert isinstance(frame, Data)
        assert len(frame.data) <= PAYLOAD_MAX
        got += len(frame.data)
    assert got == TO_GUEST_WINDOW
    assert not written.wait(0.1)
    wire.relay.say(Window(1, 10))
    assert wire.relay.hear() == Data(1, b"x" * 10)
    assert written.wait(5)
    wire.mux.close()


def test_the_relay_is_granted_what_was_read(wire: Wire) -> None:
    wire.relay.say(Open(1, A, B))
    for _ in range(4):
        wire.relay.say(Data(1, b"y" * (TO_HOST_WINDOW // 4)))
    heard: list[Frame] = []
    while not any(isinstance(frame, Window) for frame in heard):
        heard.append(wire.relay.hear())
    grant = next(frame for frame in heard if isinstance(frame, Window))
    assert TO_HOST_WINDOW // 2 <= grant.credit <= TO_HOST_WINDOW


def test_a_reset_is_an_error_for_reader_and_writer() -> None:
    errors: list[str] = []

    def handle(stream: Stream) -> None:
        assert stream.read(10) == b"first"
        try:
            stream.read(10)
        except ChannelError as error:
            errors.append(error.message)
        try:
            stream.write(b"late")
        except ChannelError as error:
            errors.append(error.message)

    wire = Wire(handle)
    wire.relay.say(Hello(1), Open(1, A, B), Data(1, b"first"), Close(1))
    assert wire.relay.hear() == Close(1)
    wait_for(lambda: len(errors) == 2)
    assert errors == ["192.0.2.7:443: the connection was reset"] * 2
    wire.mux.close()


def test_connects_to_a_container(wire: Wire) -> None:
    result: list[Stream] = []
    thread = threading.Thread(target=lambda: result.append(wire.mux.connect("10.90.0.2", 80, 5)))
    thread.start()
    assert wire.relay.hear() == Connect(2, Endpoint("10.90.0.2", 80))
    wire.relay.say(Opened(2), Data(2, b"hi"), End(2))
    thread.join()
    (stream,) = result
    assert (stream.read(10), stream.read(10)) == (b"hi", b"")
    stream.write(b"there")
    stream.close_write()
    assert [wire.relay.hear() for _ in range(3)] == [Data(2, b"there"), End(2), Close(2)]
    with pytest.raises(ChannelError, match="closed for writing"):
        stream.write(b"x")


@pytest.mark.parametrize(
    ("errno", "why"),
    [(111, "Connection refused"), (113, "No route to host"), (2**32 - 1, "error 4294967295")],
)
def test_a_refused_connection_says_why(wire: Wire, errno: int, why: str) -> None:
    wire.mux.wait_ready(5)

    def refuse() -> None:
        assert wire.relay.hear() == Connect(2, Endpoint("10.90.0.2", 80))
        wire.relay.say(Refused(2, errno))
        assert wire.relay.hear() == Close(2)

    thread = threading.Thread(target=refuse)
    thread.start()
    with pytest.raises(ChannelError, match=f"cannot connect to 10.90.0.2:80: {why}"):
        wire.mux.connect("10.90.0.2", 80, 5)
    thread.join()
    assert wire.mux._streams == {}


def test_a_connection_that_is_not_answered_is_given_up(wire: Wire) -> None:
    wire.mux.wait_ready(5)
    with pytest.raises(DeadlineExceeded, match=r"10\.90\.0\.2:80 did not answer in 0\.05 s"):
        wire.mux.connect("10.90.0.2", 80, 0.05)
    assert [wire.relay.hear() for _ in range(2)] == [
        Connect(2, Endpoint("10.90.0.2", 80)),
        Close(2),
    ]
    # The answer that crossed the give-up is no violation, and the number is free after Close.
    wire.relay.say(Opened(2), Data(2, b"late"), Close(2))
    wait_for(lambda: not wire.mux._streams)
    assert wire.mux.failure is None


def test_answers_datagrams_to_where_they_came_from(wire: Wire) -> None:
    dns = Endpoint("10.90.0.1", 53)
    wire.relay.say(Datagram(A, dns, b"query"))
    assert wire.relay.hear() == Datagram(A, dns, b"answer")
    assert wire.queries == [(A, b"query")]


def test_drops_datagrams_beyond_the_rate(wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    wire.mux._datagrams = Rate(5)
    wire.mux.wait_ready(5)
    wire.relay.say(*[Datagram(A, B, b"q%d" % number) for number in range(500)])
    wire.relay.say(Open(1, A, B), End(1))
    wait_for(lambda: isinstance(wire.relay.hear(), Close))
    assert 1 <= len(wire.queries) < 50
    assert wire.mux.failure is None


def test_a_rate_allows_so_many_a_second() -> None:
    now = 0.0
    rate = Rate(10, clock=lambda: now)
    assert [rate.allow() for _ in range(12)].count(True) == 10
    now = 0.5
    assert [rate.allow() for _ in range(12)].count(True) == 5
    now = 1000.0
    assert [rate.allow() for _ in range(12)].count(True) == 10


@pytest.mark.parametrize(
    "frames",
    [
        [Open(1, A, B)],
        [Hello(1), Hello(1)],
        [Hello(1), Open(2, A, B)],
        [Hello(1), Open(1, A, B), Open(1, A, B)],
        [Hello(1), Data(1, b"x")],
        [Hello(1), Close(1)],
        [Hello(1), Opened(2)],
        [Hello(1), Refused(2, 1)],
        [Hello(1), Connect(2, B)],
        [Hello(1), Open(1, A, B), Opened(1)],
        [Hello(1), Open(1, A, B), Refused(1, 1)],
        [Hello(1), Open(1, A, B), Window(1, 1)],
        [Hello(1), Open(1, A, B), Window(1, 2**32 - 1)],
        [Hello(1), Open(1, A, B), Window(1, 0)],
        [Hello(1), Open(1, A, B), End(1), End(1)],
        [Hello(1), Open(1, A, B), End(1), Data(1, b"x")],
        [Hello(1), Open(1, A, B), *[Data(1, b"x" * PAYLOAD_MAX)] * 5],
        [Hello(1), Open(1, A, B), Close(1), Data(1, b"x")],
    ],
)
def test_a_violation_ends_the_wire(frames: list[Frame]) -> None:
    wait = threading.Event()
    wire = Wire(lambda stream: (wait.wait(5), None)[1])
    wire.relay.say(*frames)
    error = wire.failure()
    wait.set()
    assert isinstance(error, GuestError)
    with pytest.raises(GuestError):
        wire.mux.connect("10.90.0.2", 80, 1)


@given(st.binary(min_size=8, max_size=200))
@settings(max_examples=50, deadline=None)
def test_garbage_ends_the_wire_and_nothing_else(data: bytes) -> None:
    wire = Wire(echo)
    wire.relay.say(Hello(1))
    wire.relay.say_bytes(data)
    wire.relay.end()
    assert isinstance(wire.failure(), GuestError | ChannelError)


def test_the_end_of_the_relay_reaches_everyone() -> None:
    errors: list[str] = []
    reading = threading.Event()

    def handle(stream: Stream) -> None:
        reading.set()
        try:
            stream.read(10)
        except ChannelError as error:
            errors.append(error.message)
            raise

    wire = Wire(handle)
    wire.relay.complaint = b"vmrun-guest: port 80: in\x1b[2J use\n"
    wire.relay.say(Hello(1), Open(1, A, B))
    assert reading.wait(5)
    wire.relay.end()
    error = wire.failure()
    assert isinstance(error, ChannelError)
    wait_for(lambda: errors == ["the relay in the guest has ended"])


def test_what_a_failing_relay_said_is_shown_and_harmless() -> None:
    relay = Relay()
    relay.complaint = b"vmrun-guest: port 80: in\x1b[2J use\n"
    mux = Mux(relay, on_stream=echo, on_datagram=lambda _source, _data: None)
    relay.end()
    with pytest.raises(ChannelError) as caught:
        mux.wait_ready(5)
    assert caught.value.details == "vmrun-guest: port 80: in?[2J use"


def test_closing_ends_streams_and_threads_without_an_error() -> None:
    before = threading.active_count()
    wire = Wire(echo)
    wire.relay.say(Hello(1), *[Open(2 * n + 1, A, B) for n in range(50)])
    wait_for(lambda: len(wire.mux._streams) == 50)
    wire.mux.close()
    wire.mux.close()
    wait_for(lambda: threading.active_count() <= before)
    assert wire.ended == []
    with pytest.raises(ChannelError, match="closed"):
        wire.mux.connect("10.90.0.2", 80, 1)


def test_a_relay_that_opens_without_end_gets_no_more_threads() -> None:
    release = threading.Event()
    running: list[Stream] = []

    def handle(stream: Stream) -> None:
        running.append(stream)
        release.wait(10)

    wire = Wire(handle)
    reader = threading.Thread(target=lambda: [wire.relay.hear() for _ in range(456)])
    reader.start()
    wire.relay.say(Hello(1))
    # Each is closed at once and opened again, while its handler still runs.
    for number in range(456):
        stream = 2 * (number % (STREAMS // 2)) + 1
        wire.relay.say(Open(stream, A, B), Close(stream))
    reader.join(10)
    assert not reader.is_alive()
    wait_for(lambda: len(running) == STREAMS // 2)
    time.sleep(0.1)
    assert len(running) == STREAMS // 2, "no more handlers than streams"
    release.set()
    wire.mux.close()


def test_bytes_that_come_one_by_one_take_no_more_memory() -> None:
    wait = threading.Event()
    wire = Wire(lambda stream: (wait.wait(10), None)[1])
    wire.relay.say(Hello(1), Open(1, A, B))
    wire.mux.wait_ready(5)
    tracemalloc.start()
    for _ in range(0, TO_HOST_WINDOW, 2048):
        wire.relay.say(*[Data(1, b"xy")] * 1024)
    stream = wire.mux._streams[1]
    wait_for(lambda: len(stream._received) == TO_HOST_WINDOW)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 4 * TO_HOST_WINDOW
    wait.set()
    wire.mux.close()


def test_a_relay_that_asks_and_does_not_read_meets_a_limit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(mux_module, "_OUTBOX", 4096)
    wire = Wire(lambda stream: stream.write(b"x" * TO_GUEST_WINDOW))
    wire.relay.say(Hello(1))
    for number in range(20):
        wire.relay.say(Open(2 * number + 1, A, B))
    error = wire.failure()
    assert error.message == "the relay does not read what it asked for"
