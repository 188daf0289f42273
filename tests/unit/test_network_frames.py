"""The codec of the wire: what it makes it reads, and nothing else."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmrun.model.errors import GuestError
from vmrun.network.frames import (
    DATAGRAM_MAX,
    PAYLOAD_MAX,
    STREAMS,
    Close,
    Connect,
    Data,
    Datagram,
    Decoder,
    End,
    Endpoint,
    Frame,
    Hello,
    Open,
    Opened,
    Refused,
    Window,
    encode,
)

endpoints = st.builds(
    Endpoint, st.ip_addresses(v=4).map(str), st.integers(min_value=0, max_value=65535)
)
streams = st.integers(min_value=1, max_value=STREAMS - 1)
numbers = st.integers(min_value=0, max_value=2**32 - 1)
frames: st.SearchStrategy[Frame] = st.one_of(
    st.builds(Hello, st.integers(min_value=1, max_value=(1 << 22) - 1)),
    st.builds(Open, streams, endpoints, endpoints),
    st.builds(Connect, streams, endpoints),
    st.builds(Opened, streams),
    st.builds(Refused, streams, numbers),
    st.builds(Data, streams, st.binary(min_size=1, max_size=300)),
    st.builds(Window, streams, numbers),
    st.builds(End, streams),
    st.builds(Close, streams),
    st.builds(Datagram, endpoints, endpoints, st.binary(max_size=300)),
)


@given(st.lists(frames, max_size=8), st.integers(min_value=1, max_value=40))
def test_reads_what_it_makes_however_it_arrives(sent: list[Frame], piece: int) -> None:
    data = b"".join(map(encode, sent))
    decoder = Decoder()
    got = [
        frame
        for start in range(0, len(data), piece)
        for frame in decoder.feed(data[start : start + piece])
    ]
    assert got == sent


@given(st.binary(max_size=200))
def test_bytes_of_any_kind_are_frames_or_a_guest_error(data: bytes) -> None:
    try:
        frames = list(Decoder().feed(data))
    except GuestError:
        return
    assert data.startswith(b"".join(map(encode, frames)))


def header(kind: int, stream: int, length: int, zero: int = 0) -> bytes:
    return struct.pack(">BBHI", kind, zero, stream, length)


@pytest.mark.parametrize(
    "data",
    [
        header(0, 1, 0),
        header(11, 1, 0),
        header(8, 1, 0, zero=1),
        header(8, 0, 0),
        header(8, STREAMS, 0),
        header(8, 1, 1),
        header(6, 1, 0),
        header(6, 1, PAYLOAD_MAX + 1),
        header(6, 1, 2**32 - 1),
        header(10, 1, 12),
        header(10, 0, 11),
        header(10, 0, 12 + DATAGRAM_MAX + 1),
        header(1, 0, 8) + struct.pack(">II", 2, 1),
        header(1, 0, 8) + struct.pack(">II", 1, 0),
        header(1, 0, 8) + struct.pack(">II", 1, 1 << 22),
    ],
)
def test_refuses_from_the_header_on(data: bytes) -> None:
    with pytest.raises(GuestError, match=r"the relay"):
        list(Decoder().feed(data))


def test_buffers_no_more_than_one_frame() -> None:
    decoder = Decoder()
    whole = encode(Data(1, b"x" * PAYLOAD_MAX))
    for _ in range(50):
        assert len(list(decoder.feed(whole))) == 1
    assert len(decoder._buffer) == 0
