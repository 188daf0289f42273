"""The control port against guests that are honest, broken or hostile."""

from __future__ import annotations

import contextlib
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmrun.channel.control import ControlPort, Hello, Identity
from vmrun.model.errors import GuestError

HELLO = b"hello vmrun/1 flavour=minimal kernel=6.12.9 boot_id=b0 identified=0\n"
KEY = "ssh-ed25519 " + "A" * 68
IDENTITY = Identity("web", bytes(range(64)), KEY, 60)


class Port:
    """Both ends: ``guest`` is a bare socket."""

    def __init__(self) -> None:
        self.guest, host = socket.socketpair()
        self.guest.settimeout(10)
        self.control = ControlPort(host)

    def hello(self, seconds: float = 5, alive: Callable[[], bool] = lambda: True) -> Hello:
        return self.control.hello(time.monotonic() + seconds, alive=alive)

    def identify(self, seconds: float = 5) -> str:
        return self.control.identify(IDENTITY, time.monotonic() + seconds)

    def lines(self, count: int) -> list[str]:
        data = b""
        while data.count(b"\n") < count:
            more = self.guest.recv(4096)
            assert more
            data += more
        return data.decode("ascii").splitlines()

    def close(self) -> None:
        self.control.close()
        self.guest.close()


@pytest.fixture
def port() -> Iterator[Port]:
    made = Port()
    yield made
    made.close()


# Hello.


def test_hello(port: Port) -> None:
    port.guest.sendall(HELLO)
    assert port.hello() == Hello("minimal", "6.12.9", "b0", identified=False)


def test_hello_in_pieces(port: Port) -> None:
    def trickle() -> None:
        for byte in HELLO:
            port.guest.sendall(bytes([byte]))

    thread = threading.Thread(target=trickle)
    thread.start()
    assert port.hello().flavour == "minimal"
    thread.join()


def test_fields_that_are_unknown_or_missing(port: Port) -> None:
    port.guest.sendall(b"hello vmrun/1 new=1 identified=1 bare\n")
    assert port.hello() == Hello("", "", "", identified=True)


@pytest.mark.parametrize(
    "line",
    [
        b"hello vmrun/2 flavour=minimal",
        b"hello vmrun/10",
        b"hello",
        b"",
        b" hello vmrun/1",
        b"HELLO vmrun/1",
        b"GET / HTTP/1.1\r",
        b"\x1b[2J",
    ],
)
def test_another_contract(port: Port, line: bytes) -> None:
    port.guest.sendall(line + b"\n")
    with pytest.raises(GuestError, match="does not speak vmrun/1") as caught:
        port.hello()
    assert "vmrun base build" in caught.value.hint
    assert caught.value.message.isprintable()
    assert len(caught.value.message) < 300


@pytest.mark.parametrize("line", [b"hello vmrun/1 \xff", "hello vmrun/1 ä".encode()])
def test_what_is_not_ascii(port: Port, line: bytes) -> None:
    port.guest.sendall(line + b"\n")
    with pytest.raises(GuestError, match="garbage"):
        port.hello()


@pytest.mark.parametrize("end", [b"", b"\n"])
def test_an_endless_line(port: Port, end: bytes) -> None:
    port.guest.sendall(b"x" * 5000 + end)
    with pytest.raises(GuestError, match=r"endless|garbage"):
        port.hello()


def test_a_guest_that_writes_without_end_is_not_read_without_end(port: Port) -> None:
    def flood() -> None:
        try:
            while True:
                port.guest.sendall(b"x" * 65536)
        except OSError:
            return

    threading.Thread(target=flood, daemon=True).start()
    with pytest.raises(GuestError, match="endless"):
        port.hello()
    assert len(port.control._buffer) < 16384


@pytest.mark.parametrize("before", [b"", b"hello vmrun/1"])
def test_a_guest_that_stops(port: Port, before: bytes) -> None:
    port.guest.sendall(before)
    port.guest.close()
    with pytest.raises(GuestError, match="the guest stopped"):
        port.hello()


def test_a_guest_that_says_nothing(port: Port) -> None:
    start = time.monotonic()
    with pytest.raises(GuestError, match="in time"):
        port.hello(0.1)
    assert time.monotonic() - start < 5


def test_a_guest_that_only_trickles_meets_the_deadline(port: Port) -> None:
    stop = threading.Event()

    def trickle() -> None:
        while not stop.wait(0.02):
            port.guest.sendall(b"h")

    thread = threading.Thread(target=trickle)
    thread.start()
    with pytest.raises(GuestError, match="in time"):
        port.hello(0.3)
    stop.set()
    thread.join()


def test_a_qemu_that_is_gone_without_a_word(port: Port) -> None:
    with pytest.raises(GuestError, match="the guest stopped"):
        port.hello(30, alive=lambda: False)


# Identify.


def test_identify(port: Port) -> None:
    port.guest.sendall(f"identified {KEY}\n".encode())
    before = time.time()
    assert port.identify() == KEY
    lines = port.lines(7)
    assert lines[0] == "identify"
    assert lines[1] == "name web"
    assert before <= float(lines[2].removeprefix("time ")) <= time.time()
    assert lines[3] == "entropy " + bytes(range(64)).hex()
    assert lines[4:] == [f"client-key {KEY}", "lease 60", "end"]


@pytest.mark.parametrize(
    "answer",
    [
        "error already identified",
        "error",
        "",
        "ok",
        "identified",
        "identified ssh-rsa " + "A" * 68,
        "identified ssh-ed25519 " + "A" * 67,
        "identified ssh-ed25519 " + "A" * 72,
        "identified ssh-ed25519 " + "A" * 67 + "!",
        f"identified {KEY} comment",
        f" identified {KEY}",
        f'identified command="x" {KEY}',
        f"identified {KEY}\r",
    ],
)
def test_an_identity_that_is_not_taken(port: Port, answer: str) -> None:
    port.guest.sendall(answer.encode() + b"\n")
    with pytest.raises(GuestError, match=re.escape("did not take its identity")) as caught:
        port.identify()
    assert caught.value.message.isprintable()


def test_a_guest_that_stops_while_it_is_identified(port: Port) -> None:
    port.guest.close()
    with pytest.raises(GuestError, match=r"broke|stopped"):
        port.identify()


# Lease and power-off.


def test_the_lease_is_renewed_until_closing(port: Port) -> None:
    port.control.keep_lease(1)
    start = time.monotonic()
    for _ in range(3):
        assert port.lines(1) == ["lease 1"]
        port.guest.sendall(b"ok lease\n")
    assert 0.8 < time.monotonic() - start < 5
    port.control.close()
    with contextlib.suppress(ConnectionResetError):
        assert port.guest.recv(100) == b""


@pytest.mark.parametrize("answer", [b"no\n", b"\xff\n", b"x" * 5000])
def test_renewal_ends_quietly_with_a_guest_that_answers_nonsense(
    port: Port, answer: bytes, recwarn: pytest.WarningsRecorder
) -> None:
    port.control.keep_lease(1)
    port.lines(1)
    port.guest.sendall(answer)
    thread = next((t for t in threading.enumerate() if t.name == "lease"), None)
    if thread is not None:
        thread.join(5)
        assert not thread.is_alive()
    assert not [w for w in recwarn if "thread" in str(w.message)]


def test_a_lease_extended_for_a_look_is_renewed_no_more(port: Port) -> None:
    port.control.keep_lease(1)
    port.guest.sendall(b"ok lease\n")
    port.control.extend_lease(3600)
    assert port.lines(1)[-1] == "lease 3600"
    port.guest.settimeout(0.5)
    with pytest.raises(TimeoutError):
        port.guest.recv(100)


def test_power_off(port: Port) -> None:
    port.guest.sendall(b"ok poweroff\n")
    port.control.power_off(time.monotonic() + 5)
    assert port.lines(1) == ["poweroff"]


@pytest.mark.parametrize("answer", [b"ok lease\n", b"error\n", b"\n"])
def test_another_answer(port: Port, answer: bytes) -> None:
    port.guest.sendall(answer)
    with pytest.raises(GuestError, match="to 'poweroff'"):
        port.control.power_off(time.monotonic() + 5)


def test_a_closed_port_fails_as_a_guest_does(port: Port) -> None:
    port.control.close()
    for call in (
        lambda: port.hello(),
        lambda: port.identify(),
        lambda: port.control.extend_lease(1),
        lambda: port.control.power_off(time.monotonic() + 1),
    ):
        with pytest.raises(GuestError):
            call()


# Anything.

NOISE = st.one_of(
    st.binary(max_size=300),
    st.lists(
        st.sampled_from(
            [HELLO, b"identified ", KEY.encode(), b"ok lease\n", b"\n", b"\xff", b"x" * 4097, b"="]
        ),
        max_size=8,
    ).map(b"".join),
)


@settings(deadline=None, max_examples=60)
@given(NOISE, st.booleans())
def test_random_bytes_are_an_answer_or_a_guests_error(data: bytes, closes: bool) -> None:
    port = Port()
    start = time.monotonic()
    port.guest.sendall(data)
    if closes:
        port.guest.close()
    for call in (
        lambda: port.hello(0.02),
        lambda: port.identify(0.02),
        lambda: port.control.power_off(time.monotonic() + 0.02),
    ):
        with contextlib.suppress(GuestError):
            call()
    port.close()
    assert time.monotonic() - start < 5
