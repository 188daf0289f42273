"""The control socket of a live guest: who may connect, what is answered, and that it goes away."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.runs import short_directory
from vmrun.model.errors import Refused, StateError
from vmrun.supervisor.client import ask, dial, request
from vmrun.supervisor.protocol import Ended, Kind, Line
from vmrun.supervisor.server import Server


@pytest.fixture
def guest() -> Iterator[Path]:
    with short_directory() as path:
        yield path


Serve = Callable[[], Server]


@pytest.fixture
def server(guest: Path) -> Iterator[Server]:
    release = threading.Event()

    def echo(line: Line, asked: dict[str, Any]) -> None:
        line.send({"got": asked})

    def refuse(_line: Line, _request: dict[str, Any]) -> None:
        raise Refused("no", hint="ask")

    def block(line: Line, _request: dict[str, Any]) -> None:
        release.wait(20)
        line.send({})

    def frames(line: Line, _request: dict[str, Any]) -> None:
        line.send({})
        kind, data = line.receive_frame()
        line.send_frame(kind, data[::-1])

    served = Server(guest / "api", {"echo": echo, "no": refuse, "block": block, "frames": frames})
    yield served
    release.set()
    served.close()


def test_questions_are_answered(guest: Path, server: Server) -> None:
    assert request(guest, "echo", x=[1])["got"] == {"op": "echo", "x": [1]}


def test_errors_are_raised_at_the_other_end(guest: Path, server: Server) -> None:
    with pytest.raises(Refused, match="no") as caught:
        request(guest, "no")
    assert caught.value.hint == "ask"
    with pytest.raises(StateError, match="no operation 'sing'"):
        request(guest, "sing")
    assert request(guest, "echo")["got"], "it goes on"


def test_frames_follow_an_answer(guest: Path, server: Server) -> None:
    line = dial(guest)
    ask(line, "frames")
    line.send_frame(Kind.STDIN, b"abc")
    assert line.receive_frame() == (Kind.STDIN, b"cba")
    line.close()


def test_nonsense_ends_one_connection_only(guest: Path, server: Server) -> None:
    for raw in (b"\x00" * 100 + b"\n", b"[]\n", b'{"op": {"a": 1}}\n', b"{}\n", b""):
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(5)
        sock.connect(str(guest / "api"))
        sock.sendall(raw)
        sock.shutdown(socket.SHUT_WR)
        while sock.recv(4096):
            pass
        sock.close()
    assert request(guest, "echo")["got"]


def test_one_that_waits_keeps_nobody_waiting(guest: Path, server: Server) -> None:
    waiting = dial(guest)
    waiting.send({"op": "block"})
    start = time.monotonic()
    request(guest, "echo")
    assert time.monotonic() - start < 2
    waiting.close()


def test_an_answer_has_a_deadline(guest: Path, server: Server) -> None:
    start = time.monotonic()
    with pytest.raises(Ended):
        request(guest, "block", timeout=0.2)
    assert time.monotonic() - start < 3


def test_connections_are_limited(guest: Path, server: Server) -> None:
    lines = []
    try:
        for _ in range(140):
            line = dial(guest)
            line.send({"op": "block"})
            lines.append(line)
    except StateError:
        pass
    time.sleep(0.3)
    assert sum(thread.name.endswith("(_serve)") for thread in threading.enumerate()) <= 128
    for line in lines:
        line.close()


def test_nobody_else_may_connect(guest: Path, server: Server) -> None:
    assert (guest / "api").stat().st_mode & 0o777 == 0o600
    if os.geteuid() != 0:
        pytest.skip("only root can be somebody else")
    # A mode that lets everybody in: the peer's user is asked for all the same.
    guest.chmod(0o711)
    (guest / "api").chmod(0o666)
    program = (
        "import os, socket, sys\nos.setuid(65534)\ns = socket.socket(socket.AF_UNIX)\n"
        "s.settimeout(5)\ns.connect(sys.argv[1])\n"
        'try:\n    s.sendall(b\'{"op": "echo"}\\n\'); print(s.recv(100))\n'
        "except OSError as error:\n    print(b'')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, guest / "api"],
        capture_output=True, text=True, timeout=20, check=True,
    )  # fmt: skip
    assert done.stdout == "b''\n"


def test_closing_ends_everything(guest: Path, server: Server) -> None:
    line = dial(guest)
    line.send({"op": "block"})
    server.close()
    with pytest.raises(Ended):
        line.receive()
    assert not (guest / "api").exists()
    with pytest.raises(StateError, match="nobody answers"):
        dial(guest)
