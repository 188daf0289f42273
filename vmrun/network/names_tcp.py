"""DNS over TCP (RFC 7766): each message after its length in two bytes."""

from __future__ import annotations

from collections.abc import Callable

from vmrun.network.guest_stream import GuestStream
from vmrun.network.names import MAX_QUERY
from vmrun.network.watch import Watch

IDLE = 10.0
"""Seconds between queries."""
LIFETIME = 60.0
MAX_QUERIES = 256
"""On one connection."""


def serve(stream: GuestStream, answer: Callable[[bytes], bytes | None], watch: Watch) -> None:
    """Answer one client's queries, until it ends, sends what is none, or has had enough."""
    watched = watch.add(stream.close, idle=IDLE, limit=LIFETIME)
    held = bytearray()
    left = MAX_QUERIES
    try:
        while left and (data := stream.read(MAX_QUERY)):
            watched.touch()
            held += data
            while left and len(held) >= 2:
                size = int.from_bytes(held[:2], "big")
                if not 12 <= size <= MAX_QUERY:
                    return
                if len(held) < 2 + size:
                    break
                message = answer(bytes(held[2 : 2 + size]))
                del held[: 2 + size]
                left -= 1
                if message is None:
                    return
                stream.write(len(message).to_bytes(2, "big") + message)
        stream.close_write()
    finally:
        watch.remove(watched)
