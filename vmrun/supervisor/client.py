"""The commands' side of a guest's control socket."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

from vmrun.model.errors import StateError
from vmrun.supervisor.protocol import SOCKET, Ended, Line, raised

_CONNECT_TIMEOUT = 10.0
ANSWER_TIMEOUT = 120.0


def dial(guest: Path) -> Line:
    """Connect to whoever owns the guest whose directory is ``guest``.

    Raises :class:`StateError` when nobody does (any more, or yet).
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.settimeout(_CONNECT_TIMEOUT)
    try:
        sock.connect(str(guest / SOCKET))
    except OSError as error:
        sock.close()
        raise StateError(
            f"nobody answers for guest {guest.name}: {error.strerror or error}",
            hint="it has ended, or has just been started; see 'vmrun ps -a'",
        ) from error
    return Line(sock)


def ask(
    line: Line, op: str, *, timeout: float | None = ANSWER_TIMEOUT, **fields: Any
) -> dict[str, Any]:
    """Send a request and wait for its answer. An error that comes back is raised here."""
    line.sock.settimeout(timeout)
    line.send({"op": op, **fields})
    try:
        answer = line.receive()
    except Ended as error:
        raise Ended("the guest ended before it answered", hint="see 'vmrun ps -a'") from error
    if (error_ := raised(answer)) is not None:
        raise error_
    line.sock.settimeout(None)
    return answer


def request(
    guest: Path, op: str, *, timeout: float | None = ANSWER_TIMEOUT, **fields: Any
) -> dict[str, Any]:
    """One request over a connection of its own."""
    line = dial(guest)
    try:
        return ask(line, op, timeout=timeout, **fields)
    finally:
        line.close()
