"""SSH to a guest over a virtio-serial port's Unix socket, with its host key pinned (paramiko)."""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import paramiko
from tenacity import retry, retry_if_exception, stop_after_attempt

from vmrun.channel.keys import ClientKey, public_line
from vmrun.channel.transport import BoundedTransport
from vmrun.channel.unix import connect_unix
from vmrun.model.errors import ChannelError, DeadlineExceeded, VmrunError
from vmrun.run.ports import TerminalSize

# What goes wrong in paramiko's threads is raised in ours; unhandled it would also be printed.
logging.getLogger("paramiko").addHandler(logging.NullHandler())

_KEX = ("curve25519-sha256@libssh.org",)
_CIPHERS = ("aes128-gcm@openssh.com", "aes256-gcm@openssh.com")
_KEY_TYPES = ("ssh-ed25519",)
_WINDOW = 4 << 20
_LARGEST_STATUS = 255
_OPEN_TIMEOUT = 60.0
_AUTH_TIMEOUT = 30.0
_REQUEST_TIMEOUT = 60.0

_KEEPALIVE = 1
"""Seconds of silence until a packet without meaning is sent. Once in some hundred commands a
guest's sshd sleeps on bytes that its virtio port has; whatever comes next wakes it."""
_HANDSHAKE_TIMEOUT = 20.0

_CLOSE_TIMEOUT = 5.0
"""Seconds for the words that end a channel. A guest that does not read blocks them, and with them
whoever else writes: then the connection is closed."""

# What paramiko raises of a connection that broke, stalled, or was closed meanwhile.
_BROKEN = (OSError, EOFError, paramiko.SSHException)


class SshProcess:
    """A command of the guest's shell; see :class:`vmrun.run.ports.RemoteProcess`."""

    def __init__(self, channel: paramiko.Channel, *, merged: bool) -> None:
        self._channel = channel
        self._merged = merged

    def write(self, data: bytes) -> None:
        """Send all of ``data``; blocks while the window is full."""
        try:
            self._channel.sendall(data)
        except _BROKEN as error:
            raise ChannelError(f"cannot send to the guest: {error}") from error

    def close_stdin(self) -> None:
        """End of file on its stdin."""
        try:
            self._channel.shutdown_write()
        except _BROKEN as error:
            raise ChannelError(f"cannot send to the guest: {error}") from error

    def read(self, size: int) -> bytes:
        """Up to ``size`` bytes of stdout; empty at its end."""
        try:
            return self._channel.recv(size)
        except _BROKEN as error:
            raise ChannelError(f"cannot read from the guest: {error}") from error

    def read_error(self, size: int) -> bytes:
        """Up to ``size`` bytes of stderr; empty at its end, at once with a terminal."""
        if self._merged:
            return b""
        try:
            return self._channel.recv_stderr(size)
        except _BROKEN as error:
            raise ChannelError(f"cannot read from the guest: {error}") from error

    def resize(self, size: TerminalSize) -> None:
        """Change its terminal's size."""
        try:
            self._channel.resize_pty(size.columns, size.rows)
        except _BROKEN as error:
            raise ChannelError(f"cannot resize the terminal: {error}") from error

    def wait(self, timeout: float | None = None) -> int:
        """Its exit status; the connection's end without one is a :class:`ChannelError`."""
        if not self._channel.status_event.wait(timeout):
            raise DeadlineExceeded("the command in the guest did not end in time")
        status = self._channel.exit_status
        if status < 0:
            raise ChannelError("the connection to the guest ended before the command did")
        if status > _LARGEST_STATUS:
            # This process could not exit with it: 256 would read as success.
            raise ChannelError(f"the guest reported an exit status of {status}")
        return status

    def close(self) -> None:
        """Close the channel; a guest that takes no word of it loses the connection. Never raises
        and takes a few seconds at most."""
        _end(self._channel)


class WrongHostKey(ChannelError):
    """The guest is not the one that reported its key over the control port; never retried."""


class SshConnection:
    """One authenticated connection; see :class:`vmrun.run.ports.Connection`."""

    def __init__(self, transport: paramiko.Transport) -> None:
        self._transport = transport

    @classmethod
    def open(
        cls, sock: socket.socket, *, client_key: ClientKey, host_key: str, timeout: float
    ) -> SshConnection:
        """Connect over ``sock`` to a guest whose host key line must equal ``host_key``.

        Ends within ``timeout`` and half a minute for the authentication. Raises
        :class:`ChannelError`; a wrong host key is never retried.
        """
        transport = BoundedTransport(sock, window=_WINDOW, packet=1 << 15)
        transport.banner_timeout = timeout
        transport.handshake_timeout = timeout
        transport.auth_timeout = _AUTH_TIMEOUT
        options = transport.get_security_options()
        options.kex = _KEX
        options.ciphers = _CIPHERS
        options.key_types = _KEY_TYPES
        try:
            # It also waits for a lock that is held while a guest that does not read is written to.
            with _deadline(timeout + _AUTH_TIMEOUT, transport.close):
                transport.start_client(timeout=timeout)
                if not transport.initial_kex_done:  # it does not say so itself
                    raise ChannelError(
                        f"cannot connect to the guest: no handshake within {timeout:g} s"
                    )
                actual = public_line(transport.get_remote_server_key())
                if actual != host_key:
                    raise WrongHostKey(
                        "the guest's SSH host key is not the one it reported over the control port"
                    )
                transport.auth_publickey("root", client_key.as_paramiko())
                transport.set_keepalive(_KEEPALIVE)
        except VmrunError:
            transport.close()
            raise
        except Exception as error:
            # Whatever paramiko's parser stumbled over in a hostile guest's bytes is raised here.
            transport.close()
            why = str(error) or "it closed the connection"
            raise ChannelError(f"cannot connect to the guest: {why}") from error
        return cls(transport)

    def execute(self, command: str, *, terminal: TerminalSize | None = None) -> SshProcess:
        """Start a command of the guest's shell. An sshd that does not even open a channel in a
        minute is dead or hostile: then the connection is closed, and whoever waits for one of its
        processes hears of it."""
        try:
            with _deadline(_OPEN_TIMEOUT, self._transport.close):
                channel = self._transport.open_session(timeout=_OPEN_TIMEOUT + _CLOSE_TIMEOUT)
            with _deadline(_REQUEST_TIMEOUT, lambda: _end(channel)):
                if terminal is not None:
                    channel.get_pty("xterm-256color", terminal.columns, terminal.rows)
                channel.exec_command(command)
        except VmrunError:  # a signal has interrupted the run
            raise
        except Exception as error:
            # As in open(): any error of paramiko's parser.
            raise ChannelError(f"cannot run a command in the guest: {error}") from error
        return SshProcess(channel, merged=terminal is not None)

    def close(self) -> None:
        """End the connection; waits no longer than a second for paramiko's thread."""
        closer = threading.Thread(target=self._transport.close, daemon=True)
        closer.start()
        closer.join(1.0)


@contextmanager
def _deadline(seconds: float, close: Callable[[], None]) -> Iterator[None]:
    """Close something if the block takes longer: paramiko waits for answers without end."""
    timer = threading.Timer(seconds, close)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _end(channel: paramiko.Channel) -> None:
    """Close a channel, or the connection when the guest does not take that in time."""
    if channel.closed:
        return

    def close() -> None:
        with contextlib.suppress(*_BROKEN):  # then it is closed, too
            channel.close()

    closer = threading.Thread(target=close, name="ssh-close", daemon=True)
    closer.start()
    closer.join(_CLOSE_TIMEOUT)
    if closer.is_alive():
        channel.get_transport().close()


def open_connection(
    sockets: Sequence[Path], *, client_key: ClientKey, host_key: str
) -> SshConnection:
    """Connect over the first of a guest's SSH ports that works, trying each once.

    The first bytes on a port that the guest has just opened can be lost; then no banner comes
    and the next port is tried. A wrong host key ends it at once.
    """

    @retry(
        retry=retry_if_exception(lambda e: type(e) is ChannelError),
        stop=stop_after_attempt(len(sockets)),
        reraise=True,
    )
    def attempt() -> SshConnection:
        return SshConnection.open(
            connect_unix(next(remaining), time.monotonic() + 5),
            client_key=client_key,
            host_key=host_key,
            timeout=_HANDSHAKE_TIMEOUT,
        )

    remaining = iter(sockets)
    return attempt()
