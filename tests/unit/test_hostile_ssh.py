"""SSH to a guest that wants vmrun to hang, to grow or to crash: every call ends within its
deadline, raises a VmrunError and nothing else, stays small, and leaves no thread behind."""

from __future__ import annotations

import contextlib
import itertools
import os
import resource
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator

import paramiko
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.test_ssh_channel import (
    BANNER,
    CLIENT,
    HOST,
    Guest,
    packet,
    proposal,
    text,
)
from tests.unit.test_state import in_child
from vmrun.channel import ssh
from vmrun.channel.ssh import SshConnection
from vmrun.channel.transport import BoundedPacketizer, BoundedTransport
from vmrun.engine.pump import Sink
from vmrun.engine.watchdog import Watchdog
from vmrun.model.errors import ChannelError, VmrunError

MIB = 1 << 20


def threads_of_vmrun() -> list[threading.Thread]:
    """Those that a connection has made and that are still there."""

    def ours(thread: threading.Thread) -> bool:
        if isinstance(thread, threading.Timer):
            close = thread.function
            owner = getattr(close, "__self__", None)
            return isinstance(owner, BoundedTransport) or close.__module__ == ssh.__name__
        return isinstance(thread, BoundedTransport) or thread.name == "ssh-close"

    return [thread for thread in threading.enumerate() if ours(thread)]


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    end = time.monotonic() + 4
    while (left := threads_of_vmrun()) and time.monotonic() < end:
        time.sleep(0.02)
    assert left == []


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


# Before anyone knows anyone.


def connect_to(serve: Callable[[socket.socket], object], timeout: float = 0.4) -> ChannelError:
    ours, theirs = socket.socketpair()

    def run() -> None:
        with contextlib.suppress(OSError):
            serve(theirs)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    with takes_at_most(timeout + 3), pytest.raises(ChannelError) as caught:
        SshConnection.open(ours, client_key=CLIENT, host_key=HOST.public_line, timeout=timeout)
    theirs.shutdown(socket.SHUT_RDWR)
    thread.join(5)
    theirs.close()
    assert ours.fileno() == -1, "the socket was not closed"
    return caught.value


def flood(data: bytes) -> Callable[[socket.socket], None]:
    def serve(sock: socket.socket) -> None:
        while True:
            sock.sendall(data)

    return serve


def after(start: bytes, then: Callable[[socket.socket], None]) -> Callable[[socket.socket], None]:
    def serve(sock: socket.socket) -> None:
        sock.sendall(start)
        then(sock)

    return serve


def loris(data: bytes, pause: float = 0.02) -> Callable[[socket.socket], None]:
    def serve(sock: socket.socket) -> None:
        for byte in itertools.cycle(data):
            sock.sendall(bytes([byte]))
            time.sleep(pause)

    return serve


def silent(sock: socket.socket) -> None:
    while sock.recv(1 << 20):
        pass


NO_END = struct.pack(">I", 0xFFFFFFF4) + bytes(12)
LONG = struct.pack(">I", (1 << 20) - 4) + bytes(12)

SERVERS: dict[str, Callable[[socket.socket], None]] = {
    "endless banner": flood(b"x" * 4096),
    "endless lines": flood(b"hello\r\n" * 500),
    "empty lines": flood(b"\n" * 4096),
    "endless version": after(b"SSH-2.0-", flood(b"x" * 4096)),
    "slow banner": loris(b"x"),
    "slow lines": loris(b"x\n"),
    "silent": silent,
    "silent after the banner": after(BANNER, silent),
    "packet of 4 GiB": after(BANNER + NO_END, flood(bytes(65536))),
    "packet of 1 MiB": after(BANNER + LONG, flood(bytes(65536))),
    "half a packet": after(BANNER + packet(proposal())[:-9], silent),
    "slow packet": after(BANNER, loris(packet(proposal()))),
    "silent after its proposal": after(BANNER + packet(proposal()), silent),
    "proposals without end": after(BANNER, flood(packet(proposal()))),
    "ignorable messages": after(BANNER, flood(packet(b"\x02" + text(b"x")) * 50)),
    "debug messages": after(BANNER, flood(packet(b"\x04\x01" + text(b"x" * 900) + text(b"")) * 50)),
    "unknown messages": after(BANNER, flood(packet(b"\xf0") * 50)),
    "requests before a key": after(BANNER, flood(packet(b"\x50" + text(b"x") + b"\x01") * 50)),
    "new keys at once": after(BANNER + packet(b"\x15"), silent),
    "empty packet": after(BANNER + struct.pack(">IB", 12, 11) + bytes(11), silent),
    "padding beyond the packet": after(BANNER + struct.pack(">IB", 12, 255) + bytes(11), silent),
    "bytes that are no text": after(b"\xff\xfe\n" * 50 + b"SSH-2.0-\xff\n", silent),
}


@pytest.mark.parametrize("name", SERVERS)
def test_a_server_that_wastes_time(name: str) -> None:
    error = connect_to(SERVERS[name])
    assert error.message.startswith("cannot connect to the guest")
    assert len(error.message) < 600


@pytest.mark.parametrize(
    "name", ["endless banner", "endless version", "packet of 4 GiB", "packet of 1 MiB"]
)
def test_a_server_that_wastes_memory(name: str) -> None:
    """It is told off at once: not read until the deadline."""
    grown = growth(lambda: connect_to(SERVERS[name], timeout=1.5))
    assert grown < 8
    with takes_at_most(1):
        connect_to(SERVERS[name], timeout=5)


@settings(deadline=None, max_examples=25)
@given(st.lists(st.binary(max_size=40).map(packet), max_size=6), st.booleans())
def test_any_messages_before_a_key(packets: list[bytes], proposed: bool) -> None:
    start = BANNER + (packet(proposal()) if proposed else b"")
    connect_to(after(start + b"".join(packets), lambda sock: sock.shutdown(socket.SHUT_WR)), 0.5)


# A real server behind a relay that stops at some byte.


class Relay:
    """Between the client and a guest; after ``limit`` bytes to the client it stops or hangs up,
    and it changes a bit of the byte at :attr:`corrupt`. :attr:`deaf` stops what the client
    sends."""

    def __init__(
        self,
        guest: type[Guest],
        *,
        limit: int = -1,
        hang_up: bool = False,
        corrupt: int = -1,
    ) -> None:
        self.client, self._outer = socket.socketpair()
        self._inner, theirs = socket.socketpair()
        self.deaf = threading.Event()
        self._limit, self._hang_up, self.corrupt = limit, hang_up, corrupt
        self.carried = 0
        self._wake, self._stop = os.pipe()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        self.guest = guest(theirs)

    def _run(self) -> None:
        with contextlib.suppress(OSError, ValueError):  # closed meanwhile
            while True:
                heard = [] if self.deaf.is_set() else [self._outer]
                ready = select.select([*heard, self._inner, self._wake], [], [], 0.05)[0]
                if self._wake in ready:
                    return
                if self._outer in ready and not self.deaf.is_set():
                    self._inner.sendall(self._outer.recv(65536))
                if self._inner in ready:
                    data = self._inner.recv(65536)
                    if not data:
                        self._outer.shutdown(socket.SHUT_WR)
                        return
                    if self._limit >= 0:
                        data = data[: self._limit - self.carried]
                    at = self.corrupt - self.carried
                    if 0 <= at < len(data):
                        data = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
                    self._outer.sendall(data)
                    self.carried += len(data)
                    if self.carried == self._limit:
                        if self._hang_up:
                            self._outer.close()
                        return

    def close(self) -> None:
        os.close(self._stop)
        self.guest.transport.close()
        for sock in (self._outer, self._inner):
            sock.close()
        self._thread.join(5)
        os.close(self._wake)


@pytest.fixture
def relay() -> Iterator[Callable[..., tuple[Relay, SshConnection]]]:
    made: list[Relay] = []
    opened: list[SshConnection] = []

    def make(guest: type[Guest] = Guest) -> tuple[Relay, SshConnection]:
        made.append(Relay(guest))
        connection = SshConnection.open(
            made[-1].client, client_key=CLIENT, host_key=HOST.public_line, timeout=20
        )
        opened.append(connection)
        return made[-1], connection

    yield make
    for connection in opened:
        connection.close()
    for each in made:
        each.close()


@pytest.fixture(scope="module")
def whole() -> int:
    """Bytes that a server says until a client is let in."""
    through = Relay(Guest)
    SshConnection.open(
        through.client, client_key=CLIENT, host_key=HOST.public_line, timeout=20
    ).close()
    through.close()
    return through.carried


@pytest.mark.parametrize("hang_up", [True, False], ids=["hangs up", "stalls"])
@pytest.mark.parametrize("part", [0.005, 0.05, 0.4, 0.6, 0.75, 0.9, 0.99])
def test_a_server_that_stops_at_any_message(
    whole: int, part: float, hang_up: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ssh, "_AUTH_TIMEOUT", 0.4)
    through = Relay(Guest, limit=int(whole * part), hang_up=hang_up)
    with takes_at_most(4), pytest.raises(ChannelError):
        SshConnection.open(
            through.client, client_key=CLIENT, host_key=HOST.public_line, timeout=0.4
        )
    through.close()


@pytest.mark.parametrize("part", [0.02, 0.2, 0.4, 0.6, 0.8, 0.95])
def test_a_changed_bit_before_the_keys_are_agreed(whole: int, part: float, monkeypatch) -> None:
    """It is harmless, as in padding, or the connection's end within its time."""
    monkeypatch.setattr(ssh, "_AUTH_TIMEOUT", 0.4)
    through = Relay(Guest, corrupt=int(whole * part))
    with takes_at_most(4), contextlib.suppress(ChannelError):
        connection = SshConnection.open(
            through.client, client_key=CLIENT, host_key=HOST.public_line, timeout=0.4
        )
        connection.close()
    through.close()


# Behind the right keys.


def message(kind: int, *parts: bytes) -> paramiko.Message:
    made = paramiko.Message()
    made.add_bytes(bytes([kind]) + b"".join(parts))
    return made


def number(value: int) -> bytes:
    return struct.pack(">I", value)


class Hostile(Guest):
    """Commands that a decent server does not know."""

    def _flood(self, channel: paramiko.Channel, kind: str) -> None:
        """Data without end, whatever the window."""
        extended = {"stdout": None, "stderr": 1, "other": 7}[kind]
        piece = text(b"x" * 32000)
        head = number(channel.remote_chanid)
        with contextlib.suppress(Exception):
            while self.transport.is_active():
                if extended is None:
                    self.transport._send_user_message(message(94, head, piece))
                else:
                    self.transport._send_user_message(message(95, head, number(extended), piece))

    def _statuses(self, channel: paramiko.Channel, argument: str) -> None:
        head = number(channel.remote_chanid) + text(b"exit-status") + b"\0"
        for status in argument.split(","):
            self.transport._send_user_message(message(98, head, number(int(status))))
        channel.close()

    def _bomb(self, channel: paramiko.Channel, _argument: str) -> None:
        """EXT_INFO that says it has four thousand million entries (RFC 8308, section 2.3)."""
        self.transport._send_user_message(message(7, number(0xFFFFFFFF)))
        self._end(channel, 5)

    def _ask(self, channel: paramiko.Channel, _argument: str) -> None:
        """Requests without end, each of which wants an answer."""
        asked = message(80, text(b"keepalive@openssh.com"), b"\x01")
        with contextlib.suppress(Exception):
            while self.transport.is_active():
                self.transport._send_user_message(asked)

    def _open(self, channel: paramiko.Channel, _argument: str) -> None:
        """Channels that nobody asked for."""
        kinds = (b"session", b"forwarded-tcpip", b"x11", b"auth-agent@openssh.com", b"?")
        for kind in itertools.islice(itertools.cycle(kinds), 1000):
            rest = (number(9), number(1 << 20), number(1 << 15), text(b"h"), number(1))
            self.transport._send_user_message(message(90, text(kind), *rest))
        self._end(channel, 6)

    def _deaf(self, channel: paramiko.Channel, _argument: str) -> None:
        """A window that never ends, of one who does not read."""
        self.transport._send_user_message(
            message(93, number(channel.remote_chanid), number(0xFFFFFFFF))
        )

    def _refuse_slowly(self, channel: paramiko.Channel, _argument: str) -> None:
        """Never answers: see :meth:`check_channel_exec_request`."""

    def check_channel_exec_request(self, channel: paramiko.Channel, command: bytes) -> bool:
        if command == b"never":
            time.sleep(2)
            return False
        return super().check_channel_exec_request(channel, command)


@pytest.mark.parametrize("kind", ["stdout", "stderr"])
def test_more_data_than_the_window_allows(kind: str) -> None:
    """Nobody reads, as when the host's own reader is slow: the connection ends, and does not
    gather what comes."""

    def work() -> None:
        through = Relay(Hostile)
        connection = SshConnection.open(
            through.client, client_key=CLIENT, host_key=HOST.public_line, timeout=20
        )
        process = connection.execute(f"flood {kind}")
        with takes_at_most(20), pytest.raises(ChannelError):
            process.wait(20)
        connection.close()
        through.close()

    assert growth(work) < 64  # both sides and the relay, of a window of 4 MiB


def test_what_comes_for_a_closed_channel_is_not_gathered() -> None:
    def work() -> None:
        through = Relay(Hostile)
        connection = SshConnection.open(
            through.client, client_key=CLIENT, host_key=HOST.public_line, timeout=20
        )
        process = connection.execute("flood stdout")
        with takes_at_most(10):
            process.close()
        time.sleep(1.5)
        with takes_at_most(3):
            connection.close()
        through.close()

    assert growth(work) < 64


def test_data_of_no_known_kind_is_dropped(relay) -> None:
    _, connection = relay(Hostile)
    process = connection.execute("flood other")
    time.sleep(0.5)
    channel = process._channel
    assert len(channel.in_buffer) + len(channel.in_stderr_buffer) == 0


@pytest.mark.parametrize("status", [256, 257, 0x7FFFFFFF, 0xFFFFFFFF])
def test_an_exit_status_that_no_process_has(relay, status: int) -> None:
    with pytest.raises(ChannelError, match=f"exit status of {status}"):
        relay(Hostile)[1].execute(f"statuses {status}").wait(10)


def test_a_second_exit_status_does_not_replace_the_first(relay) -> None:
    _, connection = relay(Hostile)
    process = connection.execute("statuses 7,0")
    while process.read(100):
        pass
    assert process.wait(10) == 7
    with takes_at_most(5):
        while connection._transport.is_active():
            time.sleep(0.05)


def test_a_list_without_end_does_not_keep_anyone_busy(relay) -> None:
    _, connection = relay(Hostile)
    with takes_at_most(5):
        assert connection.execute("bomb").wait(10) == 5
        assert connection.execute("exit 3").wait(10) == 3


def test_channels_that_nobody_asked_for_are_refused(relay) -> None:
    _, connection = relay(Hostile)
    with takes_at_most(15):
        assert connection.execute("open").wait(15) == 6
    assert len(connection._transport._channels.values()) <= 1


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ssh, "_OPEN_TIMEOUT", 0.5)
    monkeypatch.setattr(ssh, "_REQUEST_TIMEOUT", 0.5)
    monkeypatch.setattr(ssh, "_CLOSE_TIMEOUT", 0.5)


@pytest.mark.usefixtures("short")
def test_a_guest_that_never_answers_a_request(relay) -> None:
    _, connection = relay(Hostile)
    with takes_at_most(3), pytest.raises(ChannelError):
        connection.execute("never")


@pytest.mark.usefixtures("short")
def test_a_guest_that_opens_no_channel(relay) -> None:
    through, connection = relay(Hostile)
    through.deaf.set()
    with takes_at_most(3), pytest.raises(ChannelError):
        connection.execute("exit 0")


@pytest.mark.usefixtures("short")
def test_a_guest_that_has_stopped_is_noticed_by_all_who_wait(relay) -> None:
    """One asks for a new command, another waits for the end of an older one: with nothing but the
    first one's deadline both would not come back."""
    through, connection = relay(Guest)
    process = connection.execute("sleep")
    ended: list[VmrunError] = []

    def wait() -> None:
        try:
            process.wait()
        except VmrunError as error:
            ended.append(error)

    waiter = threading.Thread(target=wait, daemon=True)
    waiter.start()
    through.deaf.set()
    with takes_at_most(3):
        with pytest.raises(ChannelError):
            connection.execute("exit 0")
        waiter.join(2)
    assert [type(error) for error in ended] == [ChannelError]


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("how", ["close", "kill"])
def test_a_guest_that_grants_everything_and_reads_nothing(relay, how: str) -> None:
    """A writer is stuck in the kernel, with paramiko's lock in its hand. Closing its process,
    and starting another command, the one that kills, end all the same, and free it."""
    through, connection = relay(Hostile)
    process = connection.execute("deaf")
    time.sleep(0.2)
    through.deaf.set()
    ended: list[VmrunError] = []

    def write() -> None:
        try:
            while True:
                process.write(b"x" * 65536)
        except VmrunError as error:
            ended.append(error)

    writer = threading.Thread(target=write, daemon=True)
    writer.start()
    time.sleep(0.5)
    assert writer.is_alive()
    with takes_at_most(4):
        if how == "close":
            process.close()
        else:
            with pytest.raises(ChannelError):
                connection.execute("exit 0")
        writer.join(3)
    assert [type(error) for error in ended] == [ChannelError]
    with pytest.raises(VmrunError):
        process.wait(3)


@pytest.mark.usefixtures("short")
def test_a_guest_that_asks_without_end_and_does_not_listen(relay) -> None:
    """Its questions' answers block the reading thread."""
    through, connection = relay(Hostile)
    process = connection.execute("ask")
    through.deaf.set()
    time.sleep(0.5)
    with takes_at_most(5):
        with pytest.raises(ChannelError):
            connection.execute("exit 0")
        process.close()
        connection.close()


def test_a_changed_bit_behind_the_keys_ends_the_connection(relay) -> None:
    through, connection = relay(Guest)
    process = connection.execute("cat")
    through.corrupt = through.carried + 20
    process.write(b"x" * 100)
    assert process.read(100) == b""
    with takes_at_most(5), pytest.raises(ChannelError):
        process.wait(5)


def test_new_keys_in_the_middle(relay, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both sides ask for new keys after so many bytes (RFC 4253, section 9); nothing is lost."""
    monkeypatch.setattr(BoundedPacketizer, "REKEY_BYTES", MIB)
    _, connection = relay(Guest)
    session = connection._transport.session_id
    process = connection.execute("cat")
    # Piece by piece: where both ends are paramiko, each can wait for the other to read.
    for _ in range(6 * MIB // 65536):
        data, back = os.urandom(65536), b""
        process.write(data)
        while len(back) < len(data):
            piece = process.read(len(data) - len(back))
            assert piece
            back += piece
        assert back == data
    process.close_stdin()
    assert process.read(1) == b""
    assert process.wait(10) == 0
    assert connection._transport.session_id == session
    assert session != connection._transport.H, "there were no new keys"


@pytest.mark.usefixtures("short")
def test_a_guest_that_begins_new_keys_and_stops(relay) -> None:
    """Whoever wants to say something then waits for keys that never come."""
    through, connection = relay(Hostile)
    process = connection.execute("cat")
    through.deaf.set()
    through.guest.transport._send_kex_init()
    time.sleep(0.2)
    with takes_at_most(4), pytest.raises(ChannelError):
        connection.execute("exit 0")
    with takes_at_most(3):
        process.close()
    with takes_at_most(3), pytest.raises(ChannelError):
        process.write(b"x")


def test_a_slow_reader_stops_the_writer_in_the_guest(relay) -> None:
    """With a decent server: no more than a window is under way, however slow the host's reader
    is, and everything arrives in the end."""
    sent = []
    size = 24 * MIB

    class Writer(Guest):
        def _write(self, channel: paramiko.Channel, _argument: str) -> None:
            for _ in range(size // 65536):
                channel.sendall(b"y" * 65536)
                sent.append(65536)
            self._end(channel)

    _, connection = relay(Writer)
    process = connection.execute("write")
    arrived = 0
    go_on = threading.Event()

    class Slow:
        def write(self, data: bytes) -> int:
            nonlocal arrived
            if arrived > MIB:
                go_on.wait(20)
            arrived += len(data)
            return len(data)

        def flush(self) -> None:
            pass

    sink = Sink(Slow(), lambda: None)  # type: ignore[arg-type]
    copier = threading.Thread(target=lambda: sink.copy(process.read), daemon=True)
    copier.start()
    time.sleep(1.5)
    under_way = sum(sent) - arrived
    assert under_way <= ssh._WINDOW + 4 * 65536, under_way
    assert sum(sent) < size
    go_on.set()
    copier.join(60)
    assert arrived == size
    assert process.wait(10) == 0


KINDS = st.sampled_from([*range(1, 8), 20, 21, 30, 31, *range(50, 54), 60, *range(80, 101), 200])
PARTS = st.lists(
    st.one_of(
        st.integers(0, 0xFFFFFFFF).map(number),
        st.integers(0, 3).map(number),
        st.binary(max_size=30).map(text),
        st.sampled_from([b"session", b"exit-status", b"exit-signal", b"pty-req", b"env"]).map(text),
        st.binary(max_size=10),
        st.sampled_from([b"\0", b"\1"]),
    ),
    max_size=6,
)


@settings(deadline=None, max_examples=25)
@given(st.lists(st.tuples(KINDS, PARTS), max_size=5))
def test_any_messages_behind_the_keys(messages: list[tuple[int, list[bytes]]]) -> None:
    class Random(Guest):
        def _speak(self, channel: paramiko.Channel, _argument: str) -> None:
            with contextlib.suppress(Exception):
                for kind, parts in messages:
                    self.transport._send_user_message(message(kind, *parts))
            self._end(channel, 1)

    through = Relay(Random)
    connection = SshConnection.open(
        through.client, client_key=CLIENT, host_key=HOST.public_line, timeout=20
    )
    with (
        pytest.MonkeyPatch.context() as patch,
        takes_at_most(10),
        contextlib.suppress(VmrunError),
    ):
        for name in ("_OPEN_TIMEOUT", "_REQUEST_TIMEOUT", "_CLOSE_TIMEOUT"):
            patch.setattr(ssh, name, 0.5)
        process = connection.execute("speak")
        # As those do who read something that has to end.
        with Watchdog(1, process.close, "the command did not end"):
            while process.read(65536):
                pass
        process.wait(1)
        process.close()
        connection.execute("exit 0").wait(1)
    with takes_at_most(3):
        connection.close()
    through.close()
