"""The console is untrusted text without end: it is bounded, and printed without harm."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmrun.hypervisor.console import Console

KEPT = 64 << 10


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, Console]]:
    guest, host = socket.socketpair()
    console = Console(host)
    yield guest, console
    guest.close()
    console.close()


def said(data: bytes, lines: int = 20) -> str:
    guest, host = socket.socketpair()
    console = Console(host)
    guest.sendall(data)
    guest.close()
    text = console.tail(lines)
    console.close()
    return text


def test_the_last_lines() -> None:
    text = said(b"".join(b"line %d\r\n" % number for number in range(100)), lines=5)
    # The last one is what follows the last line's end: nothing.
    assert text.split("\n") == ["line 96", "line 97", "line 98", "line 99"]


def test_a_guest_that_writes_without_end_is_read_and_forgotten(
    ends: tuple[socket.socket, Console],
) -> None:
    guest, console = ends
    guest.settimeout(10)
    for number in range(2000):
        guest.sendall(b"%06d " % number * 512)
    guest.sendall(b"\nthe end")
    guest.close()
    text = console.tail(1_000_000)
    assert len(text) <= KEPT
    assert text.endswith("\nthe end")
    assert "000000" not in text


def test_one_line_is_bounded_too() -> None:
    assert len(said(b"x" * (10 * KEPT))) == KEPT


@pytest.mark.parametrize(
    "harm",
    [
        b"\x1b[2J\x1b[H",  # wipes the screen
        b"\x1b]0;title\x07",  # sets a terminal's title
        b"\x1b]52;c;aGVsbG8=\x07",  # writes a clipboard
        b"\x9b31m",  # an escape sequence of one byte
        "\x9b31m".encode(),  # the same in UTF-8
        b"\x08\x08\x08",
        b"\x00",
        b"\x7f",
        "\u202edesrever".encode(),  # right to left
        "\u2028".encode(),
        "\u200b".encode(),
    ],
)
def test_what_a_terminal_would_obey_is_replaced(harm: bytes) -> None:
    text = said(b"before" + harm + b"after\n")
    assert text.startswith("before\N{REPLACEMENT CHARACTER}")
    assert text.endswith("after")
    assert text.isprintable()


def test_a_carriage_return_hides_nothing() -> None:
    assert said(b"panic: real\rharmless") == "panic: realharmless"


@settings(deadline=None, max_examples=50)
@given(st.binary(max_size=2000))
def test_any_bytes_become_printable_lines(data: bytes) -> None:
    text = said(data, lines=10)
    assert len(text.split("\n")) <= 10
    assert all(line.isprintable() for line in text.split("\n"))


def test_the_tail_of_a_running_guest_does_not_wait_for_its_end(
    ends: tuple[socket.socket, Console],
) -> None:
    guest, console = ends
    guest.sendall(b"booting\n")
    start = time.monotonic()
    assert console.tail(20) == "booting"
    assert time.monotonic() - start < 5
