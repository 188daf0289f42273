"""What tests of the wire share: a relay on this host, and network namespaces that stand in for
containers."""

from __future__ import annotations

import ctypes
import os
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from vmrun.model.errors import ChannelError, DeadlineExceeded
from vmrun.run.ports import TerminalSize

_CLONE_NEWNET = 0x40000000
_LIBC = ctypes.CDLL(None, use_errno=True)
T = TypeVar("T")


class LocalProcess:
    """A program of this host behind the interface of one in a guest."""

    def __init__(self, *command: str | Path) -> None:
        self.popen = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        assert self.popen.stdin
        assert self.popen.stdout
        assert self.popen.stderr
        self._in, self._out = self.popen.stdin.fileno(), self.popen.stdout.fileno()
        self._err = self.popen.stderr.fileno()

    def write(self, data: bytes) -> None:
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(self._in, view) :]
        except OSError as error:
            raise ChannelError(str(error)) from error

    def close_stdin(self) -> None:
        assert self.popen.stdin
        self.popen.stdin.close()

    def read(self, size: int) -> bytes:
        return os.read(self._out, size)

    def read_error(self, size: int) -> bytes:
        return os.read(self._err, size)

    def resize(self, size: TerminalSize) -> None:
        raise NotImplementedError

    def wait(self, timeout: float | None = None) -> int:
        try:
            return self.popen.wait(timeout)
        except subprocess.TimeoutExpired:
            raise DeadlineExceeded("late") from None

    def close(self) -> None:
        # One that is ending by itself keeps its exit status.
        with suppress(subprocess.TimeoutExpired):
            self.popen.wait(0.1)
        self.popen.kill()
        self.popen.wait(10)


def inside(pid: int, work: Callable[[], T]) -> T:
    """Do ``work`` in a thread in the network namespace of a process. Sockets stay in the
    namespace that they were made in."""
    result: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            namespace = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY)
            if _LIBC.setns(namespace, _CLONE_NEWNET) != 0:
                raise OSError(ctypes.get_errno(), "setns")
            os.close(namespace)
            result.append(work())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return result[0]


@dataclass
class Member:
    """A process in a network namespace of its own."""

    popen: subprocess.Popen[bytes]
    _sockets: list[socket.socket] = field(default_factory=list)

    @property
    def pid(self) -> int:
        return self.popen.pid

    def socket(self, kind: int = socket.SOCK_STREAM) -> socket.socket:
        """A socket in its namespace."""
        made = inside(self.pid, lambda: socket.socket(socket.AF_INET, kind))
        made.settimeout(10)
        self._sockets.append(made)
        return made

    def connect(self, address: str, port: int) -> socket.socket:
        made = self.socket()
        made.connect((address, port))
        return made

    def listen(self, port: int, backlog: int = 16) -> socket.socket:
        made = self.socket()
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(("0.0.0.0", port))
        made.listen(backlog)
        return made

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """A program in its namespace."""
        words = ["nsenter", f"--net=/proc/{self.pid}/ns/net", *command]
        return subprocess.run(words, capture_output=True, text=True, timeout=20)

    def end(self) -> None:
        for made in self._sockets:
            with suppress(OSError):
                made.close()
        self.popen.kill()
        self.popen.wait(10)


@contextmanager
def member() -> Iterator[Member]:
    """A namespace with nothing but ``lo``, down."""
    popen = subprocess.Popen(["unshare", "--net", "sleep", "1000"])
    own = os.readlink("/proc/self/ns/net")
    while os.readlink(f"/proc/{popen.pid}/ns/net") == own:
        assert popen.poll() is None
    made = Member(popen)
    try:
        yield made
    finally:
        made.end()
