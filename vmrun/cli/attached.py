"""This terminal, joined to a process in a guest through a supervisor: the client's side of
:mod:`vmrun.supervisor.conversation`."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
from typing import Any

from vmrun.cli.streams import workload_streams
from vmrun.model.errors import Interrupted, StateError, UsageError, VmrunError
from vmrun.model.wire import encode
from vmrun.run.ports import Streams, TerminalSize
from vmrun.supervisor.protocol import Ended, Kind, Line, raised

EXIT_PIPE = 141
_CHUNK = 64 << 10


def wanted_terminal(*, interactive: bool, terminal: bool) -> dict[str, Any] | None:
    """What a request says of the terminal: its size, None without -t. Raises :class:`UsageError`
    when there is none here."""
    if not terminal:
        return None
    if not os.isatty(sys.stdout.fileno()) or (interactive and not os.isatty(sys.stdin.fileno())):
        raise UsageError("-t needs a terminal, and there is none", hint="leave -t out")
    columns, rows = os.get_terminal_size(sys.stdout.fileno())
    found: dict[str, Any] = encode(TerminalSize(columns, rows))
    return found


def attach(line: Line, *, interactive: bool, terminal: bool, stdout_is_stderr: bool = False) -> int:
    """Take over a connection after the answer to ``exec`` or ``run``: stdin there if
    ``interactive``, its output here; returns the exit status. The line is closed then.

    Raises what the supervisor says has failed, and :class:`Interrupted` on Ctrl-C, which without a
    terminal ends this command and the process's channel.
    """
    try:
        with workload_streams(
            interactive=interactive, terminal=terminal, stdout_is_stderr=stdout_is_stderr
        ) as streams:
            if streams.terminal is not None:
                _pass_resizes(line, streams)
            if streams.stdin is not None:
                threading.Thread(
                    target=_pass_stdin, args=(line, streams.stdin), daemon=True
                ).start()
            return _pass_output(line, streams)
    except KeyboardInterrupt:
        raise Interrupted("interrupted by SIGINT") from None
    finally:
        line.close()


def _pass_output(line: Line, streams: Streams) -> int:
    failed: VmrunError | None = None
    while True:
        try:
            kind, data = line.receive_frame()
        except Ended as error:
            raise failed or StateError(
                "the guest ended before the process did", hint="see 'vmrun ps -a'"
            ) from error
        if kind is Kind.EXIT:
            if failed is not None:
                raise failed
            return _status(data)
        if kind is Kind.FAILURE:
            failed = _failure(data)
        elif kind in (Kind.STDOUT, Kind.STDERR):
            out = streams.stdout if kind is Kind.STDOUT else streams.stderr
            try:
                out.write(data)
                out.flush()
            except BrokenPipeError:
                _forget_stdout()
                return EXIT_PIPE


def _pass_stdin(line: Line, descriptor: int) -> None:
    """Until its end, or until the other side has gone."""
    with contextlib.suppress(VmrunError, OSError):
        while data := os.read(descriptor, _CHUNK):
            line.send_frame(Kind.STDIN, data)
        line.send_frame(Kind.END)


def _pass_resizes(line: Line, streams: Streams) -> None:
    """From a thread: the signal's handler runs in the thread that takes the output, and must not
    wait for a line that does not move until that output is taken."""
    changed = threading.Event()
    sizes: list[TerminalSize] = []

    def resized(size: TerminalSize) -> None:
        sizes[:] = [size]
        changed.set()

    def send() -> None:
        with contextlib.suppress(VmrunError):
            while True:
                changed.wait()
                changed.clear()
                line.send_frame(Kind.RESIZE, f"{sizes[0].columns}x{sizes[0].rows}".encode())

    if streams.on_resize is not None:
        streams.on_resize(resized)
        threading.Thread(target=send, daemon=True).start()


def _failure(data: bytes) -> VmrunError:
    try:
        message = json.loads(data)
    except (ValueError, RecursionError):
        message = None
    found = raised(message) if isinstance(message, dict) else None
    return found or StateError("the process failed, and it was not said why")


def _status(data: bytes) -> int:
    text = data.decode("ascii", "replace")
    if not (text.isdigit() and len(text) <= 3):
        raise StateError(f"not an exit status: {text[:20]!r}")
    return int(text)


def _forget_stdout() -> None:
    """So that Python's flush at its end does not fail once more."""
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, sys.stdout.fileno())
    os.close(nothing)
