"""What is the same of a running container whichever engine started it."""

from __future__ import annotations

import contextlib
import errno
import threading
from collections.abc import Callable

from vmrun.engine.gatekeeper import Gatekeeper
from vmrun.engine.guest import kill_command
from vmrun.engine.pump import CHUNK, ErrorTail, InputPump, OutputThread, Sink
from vmrun.engine.watchdog import Watchdog
from vmrun.model.errors import ChannelError, EngineError, VmrunError
from vmrun.run.ports import Connection, RemoteProcess, Streams, TerminalSize

USAGE_TIMEOUT = 30.0
KILL_TIMEOUT = 30.0
COMMAND_TIMEOUT = 30.0
_LONGEST_ANSWER = 1 << 20
_END_OF_TRANSMISSION = b"\x04"  # the terminal driver's VEOF
_POLL = 0.5
_KILLED_GRACE = 3.0

EXIT_SIGPIPE = 128 + 13
"""What a shell reports for a writer whose reader has gone."""


class Killer:
    """Kills a run's cgroup, whichever thread asks, once."""

    def __init__(self, connection: Connection, run_id: str) -> None:
        self._connection = connection
        self._command = kill_command(run_id)
        self._lock = threading.Lock()
        self._done = False
        self._asked = threading.Event()

    def asked(self) -> bool:
        """Whether anyone has asked for it."""
        return self._asked.is_set()

    def kill(self) -> None:
        """Never raises: a guest that no longer answers is destroyed by its owner."""
        self._asked.set()
        with self._lock:
            if self._done:
                return
            try:
                process = self._connection.execute(self._command)
                self._done = process.wait(KILL_TIMEOUT) == 0
                process.close()
            except VmrunError:
                return


def run_command(connection: Connection, command: str, what: str) -> bytes:
    """Run a short command in the guest; returns what it printed, 1 MiB at most.

    Raises :class:`EngineError` when it fails, :class:`DeadlineExceeded`, :class:`ChannelError`.
    """
    process = connection.execute(command)
    errors = ErrorTail(process.read_error)
    output = bytearray()
    try:
        with Watchdog(COMMAND_TIMEOUT, process.close, f"the guest did not {what}"):
            while len(output) < _LONGEST_ANSWER and (data := process.read(CHUNK)):
                output += data
            status = process.wait(COMMAND_TIMEOUT)
    finally:
        process.close()
    if status != 0:
        raise EngineError(f"the guest cannot {what}: {errors.text() or f'exit status {status}'}")
    return bytes(output)


def not_started(gatekeeper: Gatekeeper, log: str) -> EngineError:
    """The error for a container that was gone before it came to the gate."""
    reason = log.splitlines()[0] if log else gatekeeper.failure()
    return EngineError(
        f"the container did not start: {reason[:300]}",
        hint="see the engine's log below" if log else "",
        details=log,
    )


class Outputs:
    """Where the workload's output goes, and the threads that bring it there."""

    def __init__(self, streams: Streams, kill: Callable[[], None]) -> None:
        self.stdout = Sink(streams.stdout, kill)
        self.stderr = Sink(streams.stderr, kill)
        self._threads: list[OutputThread] = []

    def run(self, name: str, copy: Callable[[], None]) -> None:
        """Start a thread that writes to one of the sinks, or to both."""
        self._threads.append(OutputThread(name, copy))

    def join(self, killed: Callable[[], bool]) -> None:
        """Wait until all has been written: for ever if the host's reader is slow, but only a
        little once the run was killed, because the one who killed it wants it to end."""
        for thread in self._threads:
            while not thread.join(_POLL):
                if killed() and not thread.join(_KILLED_GRACE):
                    return

    def exit_status(self, status: int) -> int:
        """The status of a run whose output has all been written, or what went wrong with that.

        A reader that has gone ends the run as it ends any writer; any other failure, a full
        disk first of all, means that the result is incomplete.
        """
        for sink in (self.stdout, self.stderr):
            if sink.error is None:
                continue
            if sink.error.errno in (errno.EPIPE, errno.ECONNRESET):
                return EXIT_SIGPIPE
            raise EngineError(
                f"cannot write the workload's output: {sink.error}",
                hint="the workload was killed; its output is incomplete",
            )
        for thread in self._threads:
            if thread.error is not None:
                raise thread.error
        return status


def connect_stdin(streams: Streams, process: RemoteProcess) -> InputPump | None:
    """Bring the host's stdin to ``process``, or its end at once when there is none.

    A terminal is not closed but told: half-closing makes dockerd drop the output (moby,
    container/stream/attach.go), and a program at a terminal knows its end as a character.
    """

    def end() -> None:
        if streams.terminal is None:
            process.close_stdin()
        else:
            process.write(_END_OF_TRANSMISSION)

    if streams.stdin is not None:
        return InputPump(streams.stdin, process.write, end)
    if streams.terminal is None:
        with contextlib.suppress(ChannelError):  # it has just ended
            process.close_stdin()
    return None


def watch_resizes(streams: Streams, resize: Callable[[TerminalSize], None]) -> None:
    """Call ``resize`` in a thread of its own whenever the host's terminal changes: the news
    comes in a signal handler, which must not wait for a guest."""
    if streams.terminal is None or streams.on_resize is None:
        return

    def apply(size: TerminalSize) -> None:
        with contextlib.suppress(VmrunError):  # it has just ended
            resize(size)

    def changed(size: TerminalSize) -> None:
        threading.Thread(target=apply, args=(size,), name="resize", daemon=True).start()

    streams.on_resize(changed)
