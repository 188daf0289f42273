"""The host's readers of what a guest says, against guests that want it to hang, to grow or to
crash: the control port, the gate's blocks, the frames of an attached container, and the pumps."""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import resource
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.engine_fakes import READING
from tests.unit.test_control_port import HELLO, IDENTITY, KEY, Port
from tests.unit.test_state import in_child
from vmrun.channel.control import ControlPort
from vmrun.channel.unix import connect_unix
from vmrun.engine.attach import AttachedOutput
from vmrun.engine.gate import MAX_BLOCK, MAX_BLOCKS, Blocks, parse_reading, parse_usage
from vmrun.engine.gatekeeper import Gatekeeper
from vmrun.engine.pump import ErrorTail, InputPump
from vmrun.model.errors import ChannelError, EngineError, GuestError, VmrunError

Serve = Callable[[socket.socket], object]


@contextlib.contextmanager
def takes_at_most(seconds: float) -> Iterator[None]:
    start = time.monotonic()
    yield
    assert time.monotonic() - start < seconds


def growth(work: Callable[[], object]) -> int:
    """MiB by which a process grows that does this."""

    def measured() -> int:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        work()
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before

    return in_child(measured) >> 10


@contextlib.contextmanager
def guest(serve: Serve) -> Iterator[Port]:
    """A port whose guest does ``serve`` until the port is closed."""
    port = Port()

    def run() -> None:
        with contextlib.suppress(OSError):
            serve(port.guest)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    yield port
    port.control.close()
    with contextlib.suppress(OSError):
        port.guest.shutdown(socket.SHUT_RDWR)
    thread.join(5)
    port.guest.close()
    assert not thread.is_alive()
    assert gone()


def gone() -> bool:
    """The thread that renews a lease ends within a second of the port."""
    end = time.monotonic() + 3
    while time.monotonic() < end:
        if not [t for t in threading.enumerate() if t.name == "lease"]:
            return True
        time.sleep(0.02)
    return False


# --- the control port ----------------------------------------------------------------------------


def flood(data: bytes) -> Serve:
    def serve(sock: socket.socket) -> None:
        while True:
            sock.sendall(data)

    return serve


def loris(data: bytes) -> Serve:
    def serve(sock: socket.socket) -> None:
        for byte in itertools.cycle(data):
            sock.sendall(bytes([byte]))
            time.sleep(0.01)

    return serve


def quiet(sock: socket.socket) -> None:
    """Reads, and never says a word."""
    while sock.recv(65536):
        pass


def deaf(_sock: socket.socket) -> None:
    """Neither reads nor speaks."""


GUESTS: dict[str, Serve] = {
    "endless line": flood(b"x" * 65536),
    "NUL bytes": flood(bytes(65536)),
    "no text": flood(b"\xff\xfe\n" * 20000),
    "empty lines": flood(b"\n" * 65536),
    "pongs": flood(b"ok ping\n" * 8000),
    "leases": flood(b"ok lease\n" * 8000),
    "hellos": flood(HELLO * 1000),
    "errors": flood(b"error no\n" * 8000),
    "identities": flood(f"identified {KEY}\n".encode() * 1000),
    "control characters": flood(b"\x1b]0;owned\x07\x1b[2J\r\n" * 3000),
    "slow line": loris(b"x"),
    "slow pongs": loris(b"ok ping\n"),
    "quiet": quiet,
    "deaf": deaf,
}
_SECONDS = 0.2


def every_call(port: Port) -> None:
    """Each ends at its deadline, with what was asked for or a guest's error."""
    calls: tuple[Callable[[float], object], ...] = (
        lambda end: port.control.hello(end, alive=lambda: True),
        lambda end: port.control.identify(IDENTITY, end),
        lambda end: port.control.power_off(end),
    )
    for call in calls:
        with takes_at_most(_SECONDS + 1.5), contextlib.suppress(GuestError):
            call(time.monotonic() + _SECONDS)


@pytest.mark.parametrize("name", GUESTS)
def test_every_call_ends_at_its_deadline(name: str) -> None:
    with guest(GUESTS[name]) as port:
        every_call(port)


@pytest.mark.parametrize(
    "name", [name for name in GUESTS if not name.startswith(("slow", "d", "q"))]
)
def test_no_guest_makes_the_port_grow(name: str) -> None:
    def work() -> None:
        with guest(GUESTS[name]) as port:
            every_call(port)
            assert len(port.control._buffer) <= 3 * 4096

    assert growth(work) < 8


def test_pongs_without_end_answer_nothing() -> None:
    with guest(flood(b"ok ping\n" * 8000)) as port:
        for call in (
            lambda: port.hello(1),
            lambda: port.identify(1),
            lambda: port.control.power_off(time.monotonic() + 1),
        ):
            with takes_at_most(3), pytest.raises(GuestError):
                call()


def test_a_guest_that_pongs_only_when_pinged_meets_the_deadline() -> None:
    """It answers every ping and never the request."""

    def serve(sock: socket.socket) -> None:
        while data := sock.recv(4096):
            sock.sendall(b"ok ping\n" * data.count(b"ping\n"))

    with guest(serve) as port, takes_at_most(5), pytest.raises(GuestError, match="in time"):
        port.identify(1.5)


def test_a_renewal_that_is_never_answered_does_not_keep_the_port() -> None:
    """The lease's thread waits for its answer as long as a lease lasts; power-off does not."""
    with guest(quiet) as port:
        port.control.keep_lease(3)
        time.sleep(1.2)  # it asks after a second, and then waits for three
        with takes_at_most(2), pytest.raises(GuestError, match="in time"):
            port.control.power_off(time.monotonic() + 0.5)


def test_a_guest_that_does_not_read_blocks_nobody() -> None:
    """Its side's buffers are full; a request still ends at its deadline."""
    with guest(deaf) as port:
        port.control._sock.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                port.control._sock.send(b"\n" * 65536)
        port.control._sock.settimeout(None)
        for call in (
            lambda: port.identify(0.5),
            lambda: port.control.power_off(time.monotonic() + 0.5),
        ):
            with takes_at_most(2), pytest.raises(GuestError):
                call()


def test_a_qemu_that_accepts_nobody_meets_the_deadline(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind("port")
    listener.listen(0)
    waiting = []
    with contextlib.suppress(BlockingIOError):
        for _ in range(5):
            client = socket.socket(socket.AF_UNIX)
            client.setblocking(False)
            waiting.append(client)
            client.connect("port")
    with takes_at_most(2), pytest.raises(VmrunError, match="cannot connect"):
        connect_unix(tmp_path / "port", time.monotonic() + 0.3)
    for sock in (listener, *waiting):
        sock.close()


WORDS = st.lists(
    st.one_of(
        st.sampled_from(
            [HELLO, b"hello vmrun/1 ", b"identified ", KEY.encode(), b"ok lease\n", b"ok ping\n",
             b"ok poweroff\n", b"error x\n", b"\n", b"\r\n", b"\xff", b"x" * 4097, b" =", b"\0"]
        ),
        st.binary(max_size=20),
    ),
    max_size=12,
)  # fmt: skip


@settings(deadline=None, max_examples=40)
@given(WORDS, st.lists(st.integers(1, 50), max_size=5), st.sampled_from("hilp"), st.booleans())
def test_any_bytes_in_any_pieces(
    words: list[bytes], cuts: list[int], which: str, closes: bool
) -> None:
    data = b"".join(words)

    def serve(sock: socket.socket) -> None:
        rest = data
        for cut in cuts:
            sock.sendall(rest[:cut])
            rest = rest[cut:]
            time.sleep(0.001)
        sock.sendall(rest)
        if closes:
            sock.shutdown(socket.SHUT_WR)

    with guest(serve) as port, takes_at_most(3), contextlib.suppress(GuestError):
        end = time.monotonic() + 0.05
        if which == "h":
            found = port.control.hello(end, alive=lambda: True)
            assert len(found.kernel) <= 4096
            assert found.kernel.isascii()
        elif which == "i":
            assert port.control.identify(IDENTITY, end).startswith("ssh-ed25519 ")
        elif which == "l":
            port.control._ask("lease 60", "ok lease", end)
        else:
            port.control.power_off(end)


def test_a_lease_kept_with_a_hostile_guest_leaves_no_thread() -> None:
    for name in ("endless line", "quiet", "deaf", "slow line"):
        with guest(GUESTS[name]) as port:
            port.control.keep_lease(1)
            time.sleep(0.36)  # it has just asked
    assert gone()


def test_a_closed_port_ends_a_wait_in_another_thread() -> None:
    port = Port()
    failed: list[GuestError] = []

    def wait() -> None:
        try:
            port.hello(30)
        except GuestError as error:
            failed.append(error)

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    time.sleep(0.1)
    port.control.close()
    thread.join(3)
    assert failed
    port.guest.close()
    assert isinstance(port.control, ControlPort)


# --- the gate's blocks ---------------------------------------------------------------------------


class Endless:
    """A process that says ``pieces`` over and over, and counts what was taken of it."""

    def __init__(self, piece: bytes, limit: int = 1 << 30) -> None:
        self._piece = piece
        self.left = limit
        self.closed = threading.Event()

    def read(self, size: int) -> bytes:
        if self.left <= 0 or self.closed.is_set():
            return b""
        data = self._piece[: min(size, self.left)]
        self.left -= len(data)
        return data

    def read_error(self, size: int) -> bytes:
        return self.read(size)

    def write(self, data: bytes) -> None: ...

    def close_stdin(self) -> None: ...

    def resize(self, size: object) -> None: ...

    def wait(self, timeout: float | None = None) -> int:
        return 0

    def close(self) -> None:
        self.closed.set()


FLOODS = {
    "empty blocks": b"\n" * 65536,
    "small blocks": b"x\n\n" * 20000,
    "readings": (READING * 200)[:65536],
    "lines without end of block": b"mount / tmpfs rw\n" * 4000,
    "one line": b"x" * 65536,
    "no text": b"\xff\n" * 30000,
    "control characters": b"\x1b[2J\n\n" * 10000,
}


@pytest.mark.parametrize("name", FLOODS)
def test_a_gate_that_never_stops_talking(name: str) -> None:
    """A reader that nobody asks for blocks yet does not gather them."""

    def work() -> None:
        process = Endless(FLOODS[name])
        process.read_error = lambda size: b""  # type: ignore[method-assign]
        keeper = Gatekeeper(process)
        time.sleep(0.3)
        taken = (1 << 30) - process.left
        assert taken < (1 << 20), taken

        def all_of_it() -> None:
            while keeper.block(2, "a block") is not None:
                pass

        with takes_at_most(5), pytest.raises(VmrunError):
            all_of_it()

    assert growth(work) < 16


def test_what_a_gate_has_to_say_is_allowed() -> None:
    blocks = Blocks()
    assert len(blocks.feed(b"ready\n\n" * MAX_BLOCKS)) == MAX_BLOCKS
    with pytest.raises(GuestError, match="more blocks"):
        blocks.feed(b"\n")


@settings(deadline=None)
@given(
    st.lists(
        st.one_of(
            st.sampled_from(
                [*READING.splitlines(), b"", b"exited", b"cgroup.memory.peak 9" * 3, b"pid -1",
                 b"mount \\040 a b", b"ns user private", b"\xc2\x9b", "٣".encode()]
            ),
            st.binary(max_size=60),
        ),
        max_size=60,
    )
)  # fmt: skip
def test_any_lines_are_a_value_or_a_guests_error(lines: list[bytes]) -> None:
    with contextlib.suppress(GuestError):
        for block in Blocks().feed(b"\n".join([*lines, b"", b""])):
            assert sum(map(len, block)) <= MAX_BLOCK
            for parse in (parse_reading, parse_usage):
                with contextlib.suppress(GuestError):
                    parse(block)


def test_a_stderr_without_end_leaves_its_tail_only() -> None:
    def work() -> None:
        tail = ErrorTail(Endless(b"e" * 65536, limit=256 << 20).read)
        assert len(tail.text(20)) == ErrorTail.LIMIT

    assert growth(work) < 8


def test_input_that_a_guest_does_not_take_leaves_no_descriptor() -> None:
    """The pump is stopped while its write is stuck; the write fails when the channel is closed."""
    read, write = os.pipe()
    before = len(os.listdir("/proc/self/fd"))
    stuck, closed = threading.Event(), threading.Event()

    def blocked(_data: bytes) -> None:
        stuck.set()
        closed.wait(20)
        raise ChannelError("closed")

    pump = InputPump(read, blocked, lambda: None)
    os.write(write, b"x")
    stuck.wait(5)
    with takes_at_most(3):
        pump.stop()
    closed.set()
    pump._thread.join(5)
    assert len(os.listdir("/proc/self/fd")) == before
    os.close(read)
    os.close(write)


# --- the frames of an attached container ---------------------------------------------------------


class Says:
    """A process whose stdout is ``data``, in pieces."""

    def __init__(self, data: bytes, piece: int = 65536) -> None:
        self._stream, self._piece = io.BytesIO(data), piece

    def read(self, size: int) -> bytes:
        return self._stream.read(min(size, self._piece))


UPGRADED = b"HTTP/1.1 101 UPGRADED\r\nConnection: Upgrade\r\n\r\n"


def frame(stream: int, data: bytes) -> bytes:
    return bytes([stream, 0, 0, 0]) + len(data).to_bytes(4, "big") + data


def frames_of(data: bytes, piece: int = 65536) -> tuple[bytes, bytes]:
    output = AttachedOutput(Says(data, piece))  # type: ignore[arg-type]
    output.accept()
    out, err = bytearray(), bytearray()
    output.frames(out.extend, err.extend)
    return bytes(out), bytes(err)


@given(
    st.lists(st.tuples(st.sampled_from([1, 2]), st.binary(max_size=50)), max_size=20),
    st.integers(1, 40),
)
def test_frames_do_not_depend_on_how_they_arrive(
    frames: list[tuple[int, bytes]], piece: int
) -> None:
    data = UPGRADED + b"".join(frame(stream, text) for stream, text in frames)
    out, err = frames_of(data, piece)
    assert out == b"".join(text for stream, text in frames if stream == 1)
    assert err == b"".join(text for stream, text in frames if stream == 2)


@given(st.binary(max_size=300), st.sampled_from([b"", UPGRADED, b"HTTP/1.1 101 "]))
def test_any_bytes_of_dockerd_are_output_or_an_engine_error(data: bytes, before: bytes) -> None:
    with contextlib.suppress(EngineError):
        frames_of(before + data)


@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/1.1 101 " + b"x" * 100_000,
        b"HTTP/1.1 200 OK\r\n\r\n",
        UPGRADED + frame(3, b"x"),
        UPGRADED + b"\1\0\0\0\xff\xff\xff\xff" + b"x" * 100,
        UPGRADED + b"\1\0\0",
        UPGRADED + frame(1, b"xyz")[:-1],
    ],
)
def test_what_is_no_attached_container(data: bytes) -> None:
    with pytest.raises(EngineError):
        frames_of(data)


def test_a_head_without_end_is_not_read_without_end() -> None:
    process = Endless(b"HTTP/1.1 101 x" * 4000)
    with pytest.raises(EngineError):
        AttachedOutput(process).accept()
    assert (1 << 30) - process.left < 1 << 18


def test_tiny_frames_cost_no_more_than_their_number() -> None:
    data = UPGRADED + (frame(1, b"x") + frame(2, b"")) * 100_000
    with takes_at_most(5):
        out, err = frames_of(data)
    assert (len(out), err) == (100_000, b"")


def test_a_frame_is_handed_on_before_it_is_whole() -> None:
    def work() -> None:
        process = Endless(b"x" * 65536, limit=(16 << 20) - 1)
        head = UPGRADED + b"\1\0\0\0" + ((16 << 20) - 1).to_bytes(4, "big")
        first = iter([head])
        read = process.read
        process.read = lambda size: next(first, b"") or read(size)  # type: ignore[method-assign]
        output = AttachedOutput(process)
        output.accept()
        counted = 0

        def count(data: bytes) -> None:
            nonlocal counted
            counted += len(data)

        output.frames(count, count)
        assert counted == (16 << 20) - 1

    assert growth(work) < 4
