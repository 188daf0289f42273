"""SSH to a guest: its key is pinned, its streams are binary, and whatever a hostile or dying
guest does becomes a ChannelError. The server is paramiko's own, over a socket pair."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import paramiko
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmrun.channel import ssh
from vmrun.channel.keys import ClientKey, public_line
from vmrun.channel.ssh import SshConnection, WrongHostKey, open_connection
from vmrun.model.errors import ChannelError, DeadlineExceeded
from vmrun.run.ports import TerminalSize

CLIENT = ClientKey.generate()
HOST = ClientKey.generate()


class Guest(paramiko.ServerInterface):
    """Accepts one client key; commands do what their first word says."""

    def __init__(self, sock: socket.socket, *, host: ClientKey = HOST) -> None:
        self.transport = paramiko.Transport(sock)
        self.transport.add_server_key(host.as_paramiko())
        self.tried: list[str] = []
        self.sizes: list[tuple[int, int]] = []
        self._accepted: list[threading.Thread] = []
        self._send = self.transport._send_user_message
        self.transport._send_user_message = self._sent
        self.transport.start_server(event=threading.Event(), server=self)

    def get_allowed_auths(self, username: str) -> str:
        return "publickey"

    def check_auth_publickey(self, username: str, key: paramiko.PKey) -> int:
        self.tried.append(username)
        if username == "root" and public_line(key) == CLIENT.public_line:
            return paramiko.AUTH_SUCCESSFUL
        return paramiko.AUTH_FAILED

    def check_channel_request(self, kind: str, chanid: int) -> int:
        return paramiko.OPEN_SUCCEEDED

    def check_channel_pty_request(self, channel, term, width, height, *_rest) -> bool:
        self.sizes.append((width, height))
        return True

    def check_channel_window_change_request(self, channel, width, height, *_rest) -> bool:
        self.sizes.append((width, height))
        return True

    def check_channel_exec_request(self, channel: paramiko.Channel, command: bytes) -> bool:
        word, _, argument = command.decode().partition(" ")
        if word == "refuse":
            return False
        work = getattr(self, f"_{word}")
        self._accepted.append(threading.Thread(target=work, args=(channel, argument), daemon=True))
        return True

    def _sent(self, message: paramiko.Message) -> None:
        """Commands start when the answer to their request is on its way, as with sshd."""
        self._send(message)
        while threading.current_thread() is self.transport and self._accepted:
            self._accepted.pop().start()

    @staticmethod
    def _end(channel: paramiko.Channel, status: int = 0) -> None:
        with contextlib.suppress(OSError, EOFError):
            channel.send_exit_status(status)
            channel.close()

    def _exit(self, channel: paramiko.Channel, argument: str) -> None:
        self._end(channel, int(argument))

    def _cat(self, channel: paramiko.Channel, _argument: str) -> None:
        while data := channel.recv(32768):
            channel.sendall(data)
        self._end(channel)

    def _both(self, channel: paramiko.Channel, _argument: str) -> None:
        channel.sendall(b"out\0\xff")
        channel.sendall_stderr(b"err\0\xfe")
        self._end(channel, 3)

    def _sleep(self, channel: paramiko.Channel, _argument: str) -> None:
        channel.recv(1)

    def _vanish(self, channel: paramiko.Channel, _argument: str) -> None:
        channel.sendall(b"half of")
        time.sleep(0.05)
        self.transport.sock.close()
        self.transport.close()

    def _silent(self, channel: paramiko.Channel, _argument: str) -> None:
        """Ends without an exit status, as for a command killed by a signal."""
        channel.close()


@pytest.fixture
def connect() -> Iterator[Callable[..., tuple[Guest, SshConnection]]]:
    opened: list[tuple[Guest, SshConnection]] = []

    def make(
        *, client_key: ClientKey = CLIENT, host_key: str = HOST.public_line
    ) -> tuple[Guest, SshConnection]:
        here, there = socket.socketpair()
        guest = Guest(there)
        connection = SshConnection.open(here, client_key=client_key, host_key=host_key, timeout=20)
        opened.append((guest, connection))
        return guest, connection

    yield make
    for guest, connection in opened:
        connection.close()
        guest.transport.close()


# Who is there.


def test_a_connection_with_the_right_keys(connect) -> None:
    guest, connection = connect()
    assert connection.execute("exit 0").wait(10) == 0
    assert set(guest.tried) == {"root"}
    assert guest.transport.remote_cipher == "aes128-gcm@openssh.com"


def test_another_host_key_is_refused_before_the_client_key_is_shown() -> None:
    here, there = socket.socketpair()
    guest = Guest(there, host=ClientKey.generate())
    with pytest.raises(WrongHostKey):
        SshConnection.open(here, client_key=CLIENT, host_key=HOST.public_line, timeout=20)
    assert guest.tried == []
    guest.transport.close()


@pytest.mark.parametrize(
    "pinned", ["", "ssh-ed25519", HOST.public_line + "A"], ids=["none", "its type", "more"]
)
def test_only_the_whole_pinned_key_will_do(connect, pinned: str) -> None:
    with pytest.raises(WrongHostKey):
        connect(host_key=pinned)


def test_another_client_key_is_not_let_in(connect) -> None:
    with pytest.raises(ChannelError, match="cannot connect to the guest"):
        connect(client_key=ClientKey.generate())


def test_a_key_is_not_shown_when_printed() -> None:
    assert "PRIVATE" not in repr(CLIENT)
    assert CLIENT.pem not in repr(CLIENT)


class Ports:
    """Listening sockets, as QEMU's; each connection is handed to ``serve``."""

    def __init__(self, directory: Path, *serve: Callable[[socket.socket], object]) -> None:
        self.paths = [directory / f"ssh.{index}" for index in range(len(serve))]
        self.count = [0] * len(serve)
        self._kept: list[object] = []
        for index, handler in enumerate(serve):
            listener = socket.socket(socket.AF_UNIX)
            listener.bind(os.path.relpath(self.paths[index]))
            listener.listen()
            threading.Thread(
                target=self._accept, args=(index, listener, handler), daemon=True
            ).start()

    def _accept(
        self, index: int, listener: socket.socket, handler: Callable[[socket.socket], object]
    ) -> None:
        while True:
            sock, _ = listener.accept()
            self.count[index] += 1
            self._kept.append(handler(sock))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    # Names of Unix sockets are short.
    monkeypatch.chdir(tmp_path)
    return Path()


def impostor(sock: socket.socket) -> Guest:
    return Guest(sock, host=ClientKey.generate())


def test_a_wrong_host_key_is_not_tried_again(here: Path) -> None:
    ports = Ports(here, impostor, Guest)
    with pytest.raises(WrongHostKey):
        open_connection(ports.paths, client_key=CLIENT, host_key=HOST.public_line)
    assert ports.count == [1, 0]


@pytest.mark.parametrize("lost", ["silent", "closed"])
def test_a_port_whose_first_bytes_were_lost(
    here: Path, lost: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ports = Ports(here, (lambda sock: sock) if lost == "silent" else socket.socket.close, Guest)
    monkeypatch.setattr(ssh, "_HANDSHAKE_TIMEOUT", 3.0)
    connection = open_connection(ports.paths, client_key=CLIENT, host_key=HOST.public_line)
    assert connection.execute("exit 7").wait(10) == 7
    assert ports.count == [1, 1]
    connection.close()


def test_each_port_is_tried_once(here: Path) -> None:
    ports = Ports(here, socket.socket.close, socket.socket.close)
    with pytest.raises(ChannelError):
        open_connection(ports.paths, client_key=CLIENT, host_key=HOST.public_line)
    assert ports.count == [1, 1]


# What it carries.


@pytest.mark.parametrize("status", [0, 1, 125, 255])
def test_exit_status(connect, status: int) -> None:
    assert connect()[1].execute(f"exit {status}").wait(10) == status


def test_stdout_and_stderr_are_apart_and_binary(connect) -> None:
    process = connect()[1].execute("both")
    assert process.read(100) == b"out\0\xff"
    assert process.read_error(100) == b"err\0\xfe"
    assert process.read(100) == b""
    assert process.read_error(100) == b""
    assert process.wait(10) == 3


def test_binary_streams_there_and_back(connect) -> None:
    process = connect()[1].execute("cat")
    data = bytes(range(256)) * 16384  # 4 MiB: windows fill and open again

    def send() -> None:
        process.write(data)
        process.close_stdin()

    thread = threading.Thread(target=send)
    thread.start()
    back = bytearray()
    while piece := process.read(65536):
        back += piece
    thread.join(10)
    assert bytes(back) == data
    assert process.wait(10) == 0


def test_two_commands_at_once(connect) -> None:
    _, connection = connect()
    first, second = connection.execute("cat"), connection.execute("cat")
    second.write(b"2")
    first.write(b"1")
    assert (first.read(1), second.read(1)) == (b"1", b"2")


def test_a_terminal_and_its_size(connect) -> None:
    guest, connection = connect()
    process = connection.execute("cat", terminal=TerminalSize(columns=81, rows=25))
    process.resize(TerminalSize(columns=100, rows=40))
    process.write(b"x")
    assert process.read(1) == b"x"
    assert process.read_error(1) == b""
    assert guest.sizes == [(81, 25), (100, 40)]


# What breaks.


def test_a_command_that_takes_too_long(connect) -> None:
    process = connect()[1].execute("sleep")
    with pytest.raises(DeadlineExceeded):
        process.wait(0.05)


def test_a_guest_that_refuses_the_command(connect) -> None:
    with pytest.raises(ChannelError, match="cannot run a command"):
        connect()[1].execute("refuse")


@pytest.mark.parametrize("how", ["vanish", "silent"])
def test_no_exit_status_is_no_success(connect, how: str) -> None:
    process = connect()[1].execute(how)
    while process.read(100):
        pass
    with pytest.raises(ChannelError, match="ended before the command did"):
        process.wait(10)


def test_everything_fails_once_the_guest_is_gone(connect) -> None:
    _, connection = connect()
    process = connection.execute("vanish")
    with pytest.raises(ChannelError):
        process.wait(10)
    for call in (
        lambda: process.write(b"x" * 100),
        lambda: process.resize(TerminalSize(80, 24)),
        lambda: connection.execute("exit 0"),
    ):
        with pytest.raises(ChannelError):
            call()
    assert process.read(100) == b"half of"
    assert process.read(100) == b""


def answered(data: bytes, *, close: bool = True) -> None:
    """Connect to a guest that says ``data`` to anything."""
    ours, theirs = socket.socketpair()
    theirs.sendall(data)
    if close:
        theirs.shutdown(socket.SHUT_WR)
    try:
        SshConnection.open(ours, client_key=CLIENT, host_key=HOST.public_line, timeout=2)
    finally:
        theirs.close()


def packet(payload: bytes) -> bytes:
    """A packet before encryption (RFC 4253, section 6)."""
    padding = 8 - (len(payload) + 5) % 8 + 8
    return struct.pack(">IB", len(payload) + padding + 1, padding) + payload + bytes(padding)


def text(data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + data


def proposal(kex: bytes = b"curve25519-sha256@libssh.org") -> bytes:
    lists = (
        kex,
        b"ssh-ed25519",
        *[b"aes128-gcm@openssh.com"] * 2,
        *[b"hmac-sha2-256"] * 2,
        *[b"none"] * 2,
        b"",
        b"",
    )
    return b"\x14" + bytes(16) + b"".join(map(text, lists)) + bytes(5)


BANNER = b"SSH-2.0-x\r\n"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\n" * 1000,
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"\xff" * 1000,
        b"SSH-1.5-old\r\n",
        BANNER,
        BANNER + b"\xff" * 64,
        BANNER + bytes(64),
        BANNER + packet(b"\x14"),
        BANNER + packet(b"\x14" + bytes(16) + text(b"\xff\xfe") * 10),
        BANNER + packet(b"\x14" + bytes(16) + struct.pack(">I", 0xFFFFFFFF)),
        BANNER + packet(proposal(b"none")),
        BANNER + packet(proposal()) + packet(b"\x1f"),
        # A public key of the wrong length, a point of low order, a key of no known kind.
        BANNER + packet(proposal()) + packet(b"\x1f" + text(b"k") + text(b"x") + text(b"s")),
        BANNER + packet(proposal()) + packet(b"\x1f" + text(b"k") + text(bytes(32)) + text(b"s")),
        BANNER
        + packet(proposal())
        + packet(b"\x1f" + text(text(b"ssh-ed25519") + text(b"x")) + text(b"\x09" + bytes(31)) * 2),
        BANNER + packet(b"\x01" + bytes(4) + text(b"bye") + text(b"")),
        BANNER + packet(b"\xc8"),
    ],
)
def test_a_hostile_guest_is_a_channel_error(data: bytes) -> None:
    with pytest.raises(ChannelError) as caught:
        answered(data)
    assert type(caught.value) is ChannelError
    assert not caught.value.message.endswith(": ")


def test_a_guest_that_says_nothing_meets_the_timeout() -> None:
    start = time.monotonic()
    with pytest.raises(ChannelError):
        answered(b"", close=False)
    assert time.monotonic() - start < 15


@settings(deadline=None, max_examples=30)
@given(st.binary(max_size=200), st.sampled_from([b"", BANNER, BANNER + packet(proposal())]))
def test_random_bytes_are_a_channel_error(data: bytes, before: bytes) -> None:
    with pytest.raises(ChannelError):
        answered(before + data)
