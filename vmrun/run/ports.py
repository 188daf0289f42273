"""What the pipeline needs of the outside world. Adapters implement these; tests fake these."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, BinaryIO, Protocol

from vmrun.model.live import ContainerReading
from vmrun.model.plan import Plan
from vmrun.model.report import Usage


@dataclass(frozen=True, slots=True)
class TerminalSize:
    """A terminal's size in character cells."""

    columns: int
    rows: int


@dataclass(frozen=True, slots=True)
class Streams:
    """The workload's standard streams on the host. ``stdin`` is a file descriptor or None
    (closed at once); ``terminal`` asks for a terminal of that size, then stderr is unused and
    ``on_resize`` registers a callback for changes of the host terminal's size."""

    stdin: int | None
    stdout: BinaryIO
    stderr: BinaryIO
    terminal: TerminalSize | None = None
    on_resize: Callable[[Callable[[TerminalSize], None]], None] | None = None


class RemoteProcess(Protocol):
    """A command running in the guest over an SSH session channel."""

    def write(self, data: bytes) -> None:
        """Send all of ``data`` to its stdin; blocks while the window is full."""

    def close_stdin(self) -> None:
        """End of file on its stdin."""

    def read(self, size: int) -> bytes:
        """Up to ``size`` bytes of stdout; empty at its end."""

    def read_error(self, size: int) -> bytes:
        """Up to ``size`` bytes of stderr; empty at its end."""

    def resize(self, size: TerminalSize) -> None:
        """Change its terminal's size."""

    def wait(self, timeout: float | None = None) -> int:
        """Its exit status; :class:`DeadlineExceeded` after ``timeout`` seconds,
        :class:`ChannelError` when the connection ended without one."""

    def close(self) -> None:
        """Close the channel; the remote command gets SIGHUP."""


class Connection(Protocol):
    """An authenticated SSH connection to one guest."""

    def execute(self, command: str, *, terminal: TerminalSize | None = None) -> RemoteProcess:
        """Start a command of the guest's shell (quote with :func:`shlex.join`)."""

    def close(self) -> None:
        """End the connection."""


class Runtime(Protocol):
    """A started container as its OCI runtime knows it: commands of the guest's shell."""

    def execute(self, process: dict[str, Any]) -> str:
        """Executes one more process in the container (OCI runtime specification, "Process")."""

    def signal(self, number: int) -> str:
        """Sends a signal to its first process."""


class RunningContainer(Protocol):
    """A container that has been started and waits at the gate."""

    @property
    def runtime(self) -> Runtime:
        """How its OCI runtime knows it."""

    def reading(self, timeout: float) -> ContainerReading:
        """How the kernel says it is confined, read before its first own instruction."""

    def release(self) -> None:
        """Let the workload's first instruction run."""

    def wait(self) -> int:
        """Its exit status, once all of its output has been written to the streams."""

    def usage(self) -> Usage:
        """What it used; after :meth:`wait`."""

    def kill(self) -> None:
        """Kill it at once; never raises."""


class Engine(Protocol):
    """Runs one container in a guest. The contract tests hold for every implementation."""

    def deliver(self, plan: Plan, connection: Connection) -> int:
        """Move the image's blobs into the guest, where each is hashed again against the digest
        sent on the command channel, and make the container's root of them.
        Returns the number of bytes moved. Raises :class:`DigestMismatch`, :class:`EngineError`."""

    def start(self, plan: Plan, connection: Connection, streams: Streams) -> RunningContainer:
        """Start the container up to the gate; again, when it has ended."""

    def discard(self, plan: Plan, connection: Connection, *, image: bool = True) -> None:
        """Remove what a container that has ended leaves in a guest that goes on, its ``image``
        among it unless others use that."""
