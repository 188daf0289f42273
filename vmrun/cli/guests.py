"""``vmrun dial``, for SSH's ProxyCommand."""

from __future__ import annotations

import os
import selectors
import socket
import sys
from pathlib import Path
from typing import Annotated

import typer

from vmrun.model.errors import StateError


def dial_command(path: Annotated[Path, typer.Argument(help="A guest's SSH socket.")]) -> None:
    """Join stdin and stdout with a Unix socket."""
    with socket.socket(socket.AF_UNIX) as sock:
        try:
            sock.connect(str(path))
        except OSError as error:
            raise StateError(
                f"cannot connect to {path}: {error.strerror}", hint="the guest may have ended"
            ) from error
        _join(sock)


def _join(sock: socket.socket) -> None:
    with selectors.DefaultSelector() as selector:
        selector.register(sys.stdin.fileno(), selectors.EVENT_READ)
        selector.register(sock, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fileobj is sock:
                    data = sock.recv(65536)
                    if not data:
                        return
                    os.write(sys.stdout.fileno(), data)
                    continue
                data = os.read(sys.stdin.fileno(), 65536)
                if not data:
                    return
                sock.sendall(data)
