"""Unix sockets that QEMU listens on."""

from __future__ import annotations

import socket
import time
from pathlib import Path

from vmrun.model.errors import ChannelError


def connect_unix(path: Path, deadline: float) -> socket.socket:
    """Connect to QEMU's listening socket; ``deadline`` is a :func:`time.monotonic` value."""
    while True:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            # A QEMU that hangs must not hang us: connect(2) waits for its accept(2).
            sock.settimeout(max(deadline - time.monotonic(), 0.001))
            sock.connect(str(path))
            sock.settimeout(None)
        except OSError as error:
            sock.close()
            if time.monotonic() > deadline:
                raise ChannelError(f"cannot connect to {path}: {error}") from error
            time.sleep(0.005)
        else:
            return sock
