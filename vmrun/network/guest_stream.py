"""What the host's decisions need of one TCP connection of a container."""

from __future__ import annotations

from typing import Protocol


class End(Protocol):
    """An IPv4 address and a TCP or UDP port."""

    @property
    def address(self) -> str: ...

    @property
    def port(self) -> int: ...


class GuestStream(Protocol):
    """One connection of a container, as the wire hands it over."""

    @property
    def peer(self) -> End:
        """The container's end."""

    @property
    def destination(self) -> End:
        """Where the container connected to."""

    def read(self, size: int) -> bytes:
        """Up to ``size`` bytes; empty at the end. :class:`ChannelError` when it was reset."""

    def write(self, data: bytes) -> None:
        """Send all of ``data``; blocks while the container does not read."""

    def close_write(self) -> None:
        """Nothing more follows to the container."""

    def close(self) -> None:
        """End both directions; wakes whoever reads or writes. Any number of times."""
