"""A guest below the engines: processes whose streams are pipes, scripted in Python threads."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

from vmrun.model.errors import ChannelError, DeadlineExceeded
from vmrun.run.ports import TerminalSize


class FakeProcess:
    """The host's end of a remote command; ``body`` is the guest's, in a thread, and returns the
    exit status (None: the connection breaks)."""

    def __init__(self, body: Callable[[Remote], int | None]) -> None:
        self._stdin_read, self._stdin_write = os.pipe()
        self._out_read, out_write = os.pipe()
        self._err_read, err_write = os.pipe()
        self._status: int | None = None
        self._ended = threading.Event()
        self._lock = threading.Lock()
        self._stdin_open = True
        self.sizes: list[TerminalSize] = []
        self.closed = False
        remote = Remote(self._stdin_read, out_write, err_write)

        def run() -> None:
            try:
                self._status = body(remote)
            except BrokenPipeError:
                self._status = None
            for descriptor in (self._stdin_read, out_write, err_write):
                os.close(descriptor)
            self._ended.set()

        threading.Thread(target=run, daemon=True).start()

    def write(self, data: bytes) -> None:
        try:
            while data:
                data = data[os.write(self._stdin_write, data) :]
        except OSError as error:
            raise ChannelError(str(error)) from error

    def close_stdin(self) -> None:
        with self._lock:
            if self._stdin_open:
                self._stdin_open = False
                os.close(self._stdin_write)

    def read(self, size: int) -> bytes:
        return os.read(self._out_read, size)

    def read_error(self, size: int) -> bytes:
        return os.read(self._err_read, size)

    def resize(self, size: TerminalSize) -> None:
        self.sizes.append(size)

    def wait(self, timeout: float | None = None) -> int:
        if not self._ended.wait(timeout):
            raise DeadlineExceeded("no end")
        if self._status is None:
            raise ChannelError("the connection ended")
        return self._status

    def close(self) -> None:
        self.closed = True
        self.close_stdin()


class Remote:
    """The guest's end."""

    def __init__(self, stdin: int, stdout: int, stderr: int) -> None:
        self._stdin = stdin
        self._stdout = stdout
        self._stderr = stderr

    def read(self, size: int) -> bytes:
        return os.read(self._stdin, size)

    def exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size and (more := self.read(size - len(data))):
            data += more
        return data

    def line(self) -> bytes:
        data = b""
        while not data.endswith(b"\n") and (more := self.read(1)):
            data += more
        return data

    def write(self, data: bytes) -> None:
        while data:
            data = data[os.write(self._stdout, data) :]

    def write_error(self, data: bytes) -> None:
        os.write(self._stderr, data)


class FakeConnection:
    """Answers each command with the first script whose key occurs in it."""

    def __init__(self, scripts: dict[str, Callable[[Remote], int | None]]) -> None:
        self._scripts = scripts
        self.commands: list[str] = []
        self.processes: list[FakeProcess] = []

    def execute(self, command: str, *, terminal: TerminalSize | None = None) -> FakeProcess:
        self.commands.append(command)
        for key, body in self._scripts.items():
            if key in command:
                process = FakeProcess(body)
                self.processes.append(process)
                return process
        raise AssertionError(f"no script for {command!r}")

    def close(self) -> None:
        pass


READING = b"""pid 123
status.Uid 65532 65532 65532 65532
status.Gid 65532 65532 65532 65532
status.Groups\x20
status.CapInh 0000000000000000
status.CapPrm 0000000000000000
status.CapEff 0000000000000000
status.CapBnd 0000000000000000
status.CapAmb 0000000000000000
status.NoNewPrivs 1
status.Seccomp 2
status.Seccomp_filters 1
root ro
mount / tmpfs ro,nodev,relatime
mount /a\\040b tmpfs rw,nosuid
ns cgroup private
ns ipc private
ns mnt private
ns net private
ns pid private
ns user shared
ns uts private
rlimit nofile 256 256
cgroup /vmrun/0123456789ab/container
cgroup.memory.max 67108864
cgroup.memory.swap.max 0
cgroup.pids.max 32
cgroup.cpu.max 50000 100000

"""

USAGE = b"""exited
cgroup.memory.peak 1048576
cgroup.memory.oom_kill 0
cgroup.pids.peak 2
cgroup.pids.refused 0
cgroup.cpu.usage_usec 2500000

"""
