"""This process's own standard streams and terminal, for a workload."""

from __future__ import annotations

import os
import signal
import sys
import termios
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from vmrun.model.errors import UsageError
from vmrun.run.ports import Streams, TerminalSize


@contextmanager
def workload_streams(
    *, interactive: bool, terminal: bool, stdout_is_stderr: bool = False
) -> Iterator[Streams]:
    """The streams; with a terminal it is raw for the length of the block."""
    stdin = sys.stdin.fileno() if interactive else None
    errors = sys.stderr.buffer
    output = errors if stdout_is_stderr else sys.stdout.buffer
    if not terminal:
        yield Streams(stdin=stdin, stdout=output, stderr=errors)
        return
    if not os.isatty(sys.stdout.fileno()) or (interactive and not os.isatty(sys.stdin.fileno())):
        raise UsageError("-t needs a terminal, and there is none", hint="leave -t out")
    callbacks: list[Callable[[TerminalSize], None]] = []
    before = signal.signal(signal.SIGWINCH, lambda *_: [f(_size()) for f in callbacks])
    try:
        with _raw(stdin):
            yield Streams(
                stdin=stdin,
                stdout=output,
                stderr=errors,
                terminal=_size(),
                on_resize=callbacks.append,
            )
    finally:
        signal.signal(signal.SIGWINCH, before)


def _size() -> TerminalSize:
    columns, rows = os.get_terminal_size(sys.stdout.fileno())
    return TerminalSize(columns, rows)


@contextmanager
def _raw(descriptor: int | None) -> Iterator[None]:
    if descriptor is None:
        yield
        return
    before = termios.tcgetattr(descriptor)
    tty.setraw(descriptor, termios.TCSANOW)
    try:
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)
