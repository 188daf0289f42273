"""The streams of a container as dockerd's ``attach`` carries them (Engine API, "Attach to a
container"): an HTTP connection that stops being HTTP.

It goes straight over ``guest dial``, not through docker-py: what it needs is a half-closed
connection and back-pressure, and no library in between that buffers.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from vmrun.model.errors import EngineError
from vmrun.run.ports import RemoteProcess

_MAX_HEAD = 16 << 10
_MAX_FRAME = 1 << 24
_FRAME_HEAD = 8
_STDOUT, _STDERR = 1, 2
_CONTAINER_ID = re.compile(r"[0-9a-f]{64}")


def request(container_id: str, *, version: str, stdin: bool) -> bytes:
    """The request that turns a connection into the container's streams."""
    if _CONTAINER_ID.fullmatch(container_id) is None:
        raise EngineError(f"dockerd named a container {container_id[:80]!r}")
    query = f"stream=1&stdin={int(stdin)}&stdout=1&stderr=1"
    return (
        f"POST /v{version}/containers/{container_id}/attach?{query} HTTP/1.1\r\n"
        "Host: docker\r\nConnection: Upgrade\r\nUpgrade: tcp\r\nContent-Length: 0\r\n\r\n"
    ).encode()


class AttachedOutput:
    """Reads the answer's head, then hands on stdout and stderr. Not thread-safe."""

    def __init__(self, process: RemoteProcess) -> None:
        self._process = process
        self._rest = b""
        # What of it has been handed on. It is not cut off each time: of a piece full of tiny
        # frames all that follows would be copied for every one of them.
        self._at = 0

    def accept(self) -> None:
        """Wait until dockerd has attached; :class:`EngineError` if it refuses."""
        while (end := self._rest.find(b"\r\n\r\n")) < 0:
            if len(self._rest) > _MAX_HEAD or not self._fill():
                raise EngineError("dockerd did not answer the request to attach")
        head = self._take(end)
        self._take(4)
        status = head.split(b"\r\n", 1)[0].decode("latin-1")
        if re.fullmatch(r"HTTP/1\.1 101 .*", status) is None:
            raise EngineError(f"dockerd refused to attach: {status[:80]!r}")

    def raw(self, size: int) -> bytes:
        """Bytes of a container with a terminal; empty at the end."""
        if self._at == len(self._rest) and not self._fill():
            return b""
        return self._take(size)

    def frames(self, stdout: Callable[[bytes], None], stderr: Callable[[bytes], None]) -> None:
        """Hand on each piece of a container without one until the end; a frame's payload is
        never gathered before it is handed on."""
        while head := self._exactly(_FRAME_HEAD):
            stream, length = head[0], int.from_bytes(head[4:], "big")
            if stream not in (_STDOUT, _STDERR) or length > _MAX_FRAME:
                raise EngineError("dockerd sent a frame that is not one")
            sink = stdout if stream == _STDOUT else stderr
            while length:
                data = self.raw(length)
                if not data:
                    raise EngineError("the connection to dockerd ended in the middle of a frame")
                length -= len(data)
                sink(data)

    def _exactly(self, size: int) -> bytes:
        while len(self._rest) - self._at < size:
            if not self._fill():
                if self._at < len(self._rest):
                    raise EngineError("the connection to dockerd ended in the middle of a frame")
                return b""
        return self._take(size)

    def _take(self, size: int) -> bytes:
        data = self._rest[self._at : self._at + size]
        self._at += len(data)
        return data

    def _fill(self) -> bool:
        data = self._process.read(64 << 10)
        self._rest, self._at = self._rest[self._at :] + data, 0
        return bool(data)
