"""paramiko's transport, with the bounds that a hostile server must meet.

paramiko trusts a server in what costs the client memory or time: it takes a banner line and a
packet of any length, buffers data beyond the window it granted, loops as often as a message says,
and waits for the handshake in a thread that outlives it. Here each of these ends the connection.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from typing import Any

import paramiko
from paramiko.common import (
    MSG_CHANNEL_DATA,
    MSG_CHANNEL_EXTENDED_DATA,
    MSG_CHANNEL_REQUEST,
    MSG_EXT_INFO,
)
from paramiko.packet import Packetizer

LARGEST_PACKET = 256 << 10
"""Bytes; what OpenSSH takes, and eight times what the channels here allow."""

LONGEST_GREETING = 16 << 10
"""Bytes of the banner and of the lines before it (RFC 4253, section 4.2: 255 each)."""


class BoundedPacketizer(Packetizer):
    """Reads no banner and no packet that is longer than either has to be."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(sock)
        self._greeting = 0
        self._handshake_until: float | None = None

    def read_all(self, n: int, check_rekey: bool = False) -> bytes:
        """As paramiko's; the length is what a packet says of itself."""
        if n > LARGEST_PACKET:
            raise paramiko.SSHException(f"a packet of {n} bytes")
        return super().read_all(n, check_rekey)

    def _read_timeout(self, timeout: float) -> bytes:
        data: bytes = super()._read_timeout(timeout)  # type: ignore[misc]
        self._greeting += len(data)
        if self._greeting > LONGEST_GREETING:
            raise paramiko.SSHException("an endless banner")
        return data

    # The handshake's deadline is paramiko's own, but without a timer's thread: that one is no
    # daemon, and would keep a process alive whose handshake has failed.

    def start_handshake(self, timeout: float) -> None:
        """The handshake has begun and may take ``timeout`` seconds."""
        self._handshake_until = time.monotonic() + timeout

    def handshake_timed_out(self) -> bool:
        """Whether it took longer."""
        return self._handshake_until is not None and time.monotonic() > self._handshake_until

    def complete_handshake(self) -> None:
        """The handshake is over."""
        self._handshake_until = None


def _within_window(
    feed: Callable[[paramiko.Channel, paramiko.Message], None],
) -> Callable[[paramiko.Channel, paramiko.Message], None]:
    """What was received and not yet read fits the window that was granted, unless the server
    ignores it: whoever reads slowly must not be made to buffer."""

    def fed(channel: paramiko.Channel, message: paramiko.Message) -> None:
        feed(channel, message)
        unread = len(channel.in_buffer) + len(channel.in_stderr_buffer)
        if unread > channel.in_window_size:
            raise paramiko.SSHException("more data than the window allows")

    return fed


def _request(channel: paramiko.Channel, message: paramiko.Message) -> None:
    """A process ends once: its first status is not replaced by a second."""
    start = message.packet.tell()
    kind = message.get_text()
    message.packet.seek(start)
    if kind == "exit-status" and channel.status_event.is_set() and channel.exit_status >= 0:
        raise paramiko.SSHException("a second exit status")
    paramiko.Channel._handle_request(channel, message)  # type: ignore[attr-defined]


class BoundedTransport(paramiko.Transport):
    """A client's side of one connection. A server that breaks a bound ends it."""

    _channel_handler_table = {  # noqa: RUF012  (as paramiko declares it)
        **paramiko.Transport._channel_handler_table,  # type: ignore[attr-defined]
        MSG_CHANNEL_DATA: _within_window(paramiko.Channel._feed),  # type: ignore[attr-defined]
        MSG_CHANNEL_EXTENDED_DATA: _within_window(
            paramiko.Channel._feed_extended  # type: ignore[attr-defined]
        ),
        MSG_CHANNEL_REQUEST: _request,
    }

    def __init__(self, sock: socket.socket, *, window: int, packet: int) -> None:
        super().__init__(
            sock,
            default_window_size=window,
            default_max_packet_size=packet,
            packetizer_class=BoundedPacketizer,
        )
        self.daemon = True
        # Nothing of it is used here, and it says itself how often to loop.
        handlers: dict[int, Any] = self._handler_table  # type: ignore[attr-defined]
        handlers[MSG_EXT_INFO] = lambda _message: None
