"""What commands and supervisors say to each other, whoever is at the other end."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmrun.model import errors
from vmrun.model.errors import NameInUse, Refused, StateError, VmrunError
from vmrun.run.ports import TerminalSize
from vmrun.supervisor.conversation import parse_size
from vmrun.supervisor.protocol import LONGEST_FRAME, Ended, Kind, Line, failure, raised


@pytest.fixture
def pair() -> Iterator[tuple[Line, socket.socket]]:
    ours, theirs = socket.socketpair()
    ours.settimeout(5)
    theirs.settimeout(5)
    line = Line(ours)
    yield line, theirs
    line.close()
    theirs.close()


def fed(data: bytes) -> Line:
    """A line whose other side has said ``data`` and hung up."""
    ours, theirs = socket.socketpair()
    theirs.sendall(data)
    theirs.close()
    return Line(ours)


def test_messages_arrive_as_they_were_sent(pair: tuple[Line, socket.socket]) -> None:
    line, theirs = pair
    other = Line(theirs)
    message = {"op": "exec", "argv": ["sh", "a\nb", "ü\udc80"], "n": [1, None, True]}
    line.send(message)
    assert other.receive() == message
    other.send_frame(Kind.STDOUT, b"one\ntwo")
    other.send_frame(Kind.END)
    assert line.receive_frame() == (Kind.STDOUT, b"one\ntwo")
    assert line.receive_frame() == (Kind.END, b"")


def test_much_data_takes_several_frames(pair: tuple[Line, socket.socket]) -> None:
    line, theirs = pair
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
    line.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8 << 20)
    other = Line(theirs)
    data = bytes(range(256)) * 600
    line.send_frame(Kind.STDIN, data)
    assert other.receive_frame() == (Kind.STDIN, data)


@pytest.mark.parametrize(
    "raw",
    [b"[]\n", b"1\n", b"nonsense\n", b"\xff\n", b"\n", b"[" * 100_000 + b"\n", b'"x"\n'],
    ids=lambda raw: repr(raw[:10]),
)
def test_what_is_no_message_is_an_error(raw: bytes) -> None:
    with pytest.raises(StateError, match="not a message"):
        fed(raw).receive()


@pytest.mark.parametrize("raw", [b"", b'{"op": "x"}'])
def test_a_connection_that_ends_is_told_apart(raw: bytes) -> None:
    with pytest.raises(Ended):
        fed(raw).receive()
    with pytest.raises(Ended):
        fed(b"\x01\x00").receive_frame()


def test_frames_that_are_none() -> None:
    for header in (struct.pack(">BI", 99, 0), struct.pack(">BI", 1, LONGEST_FRAME + 1)):
        with pytest.raises(StateError, match="not a frame"):
            fed(header).receive_frame()
    with pytest.raises(Ended):
        fed(struct.pack(">BI", 1, 10) + b"short").receive_frame()


@given(st.binary(max_size=64))
def test_whatever_comes_is_read_or_refused(raw: bytes) -> None:
    for read in (Line.receive, Line.receive_frame):
        line = fed(raw)
        try:
            read(line)
        except StateError:
            pass
        finally:
            line.close()


def test_errors_keep_their_kind_hint_and_details() -> None:
    sent = Refused("not allowed", hint="ask", details="a\nb")
    got = raised(json.loads(json.dumps(failure(sent))))
    assert type(got) is Refused
    assert (got.message, got.hint, got.details) == ("not allowed", "ask", "a\nb")
    assert got.exit_status == 123
    assert raised({"done": True}) is None
    assert raised({"error": "text"}) is None
    assert isinstance(raised(failure(NameInUse("x"))), StateError)


@pytest.mark.parametrize("kind", ["annotations", "EXIT_FAILED", "__name__", "nope", None, 3, []])
def test_an_error_of_no_kind_is_an_error(kind: object) -> None:
    assert type(raised({"error": {"kind": kind, "message": 3}})) is VmrunError


def test_every_kind_of_error_travels() -> None:
    for name, kind in vars(errors).items():
        if isinstance(kind, type) and issubclass(kind, VmrunError):
            assert type(raised(failure(kind("x")))) is kind, name


def test_sizes_of_terminals() -> None:
    assert parse_size(b"80x24") == TerminalSize(80, 24)


@pytest.mark.parametrize("raw", [b"", b"80", b"80x", b"-1x2", b"ax b", b"9" * 40 + b"x1", b"\xff"])
def test_what_is_no_size_is_refused(raw: bytes) -> None:
    with pytest.raises(StateError):
        parse_size(raw)


@given(st.binary(max_size=20))
def test_any_size_is_read_or_refused(raw: bytes) -> None:
    with contextlib.suppress(StateError):
        parse_size(raw)
