"""Starting a supervisor: a process of its own that is handed the guest's directory and lock.

The command that starts it waits until the workload runs, or why it does not. Should the command
die before, the supervisor gives up: nobody would know of what it runs.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

from vmrun.model.errors import Interrupted, StateError, VmrunError
from vmrun.model.image import FileTree
from vmrun.model.plan import Plan
from vmrun.model.run_record import RunRecord
from vmrun.model.wire import dumps
from vmrun.run.directories import StateDirectories
from vmrun.run.state import GuestDirectory
from vmrun.supervisor.live import GuestOrder
from vmrun.supervisor.protocol import failure, raised

_LONGEST_LINE = 1 << 20
_TEARDOWN = 60.0
"""Seconds that a supervisor gets to remove what it has made."""


@dataclass(frozen=True, slots=True)
class OwnRun:
    """The run that a guest lives for."""

    plan: Plan
    record: RunRecord


@dataclass(frozen=True, slots=True)
class Launch:
    """What a supervisor is told on its stdin. ``own`` is the run that the guest lives for; a
    tenant's guest has none. ``lock`` and ``report`` are descriptors, ``attempt`` counts the guests
    that the run has had in short order."""

    order: GuestOrder
    own: OwnRun | None
    directories: StateDirectories
    guest: str
    lock: int
    report: int
    attempt: int = 0


def launch(
    order: GuestOrder,
    directory: GuestDirectory,
    directories: StateDirectories,
    *,
    log: Path,
    own: OwnRun | None = None,
    announce: Callable[[str], None],
) -> int:
    """Start a supervisor for the guest of ``directory``, which is its own from here on; returns its
    pid when the workload runs, or a tenant's guest is ready.

    Raises what kept it from that; everything is torn down then, by the supervisor.
    """
    reading, writing = os.pipe2(os.O_CLOEXEC)
    if own is not None:
        own = replace(own, plan=without_tree(own.plan))
    told = Launch(order, own, directories, directory.intent.run_id, directory.lock, writing)
    try:
        with log.open("ab") as errors:
            process = subprocess.Popen(
                supervisor_command(),
                stdin=subprocess.PIPE,
                stdout=errors,
                stderr=errors,
                pass_fds=(directory.lock, writing),
                start_new_session=True,
                cwd="/",
                # Many small allocations in some twenty threads: one arena is enough for them.
                env={**os.environ, "MALLOC_ARENA_MAX": "1"},
            )
    except OSError as error:
        os.close(reading)
        raise StateError(f"cannot start a supervisor: {error.strerror}") from error
    finally:
        os.close(writing)
    directory.release()
    with os.fdopen(reading, "rb") as report:
        try:
            with process.stdin as words:  # type: ignore[union-attr]
                words.write(dumps(told).encode())
            _follow(report, announce)
        except Interrupted:
            # It meets the closed pipe, or this: either way it tears everything down.
            process.terminate()
            _see_it_end(process)
            raise
        except BrokenPipeError:
            raise StateError(
                "the supervisor ended at once", hint=f"see {log}", details=_tail(log)
            ) from None
    return process.pid


def _see_it_end(process: subprocess.Popen[bytes]) -> None:
    """Wait until it has torn everything down. One that does not is killed, and what it owned is
    reclaimed by the next command."""
    try:
        process.wait(_TEARDOWN)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def supervisor_command() -> list[str]:
    """How a supervisor is executed."""
    return [sys.executable, "-m", "vmrun.supervisor"]


def without_tree(plan: Plan) -> Plan:
    """The plan without the image's tree of files, which only served planning and may be large."""
    return replace(plan, image=replace(plan.image, tree=FileTree({})))


def _follow(report: BinaryIO, announce: Callable[[str], None]) -> None:
    """Read what the supervisor reports until it has started; raise its error."""
    while True:
        line = report.readline(_LONGEST_LINE)
        if not line:
            raise StateError(
                "the supervisor ended before the guest was up", hint="'vmrun gc' removes the rest"
            )
        try:
            message = json.loads(line)
        except ValueError:
            message = None
        if not isinstance(message, dict):
            raise StateError("the supervisor did not say what it does", hint="see its log")
        if (error := raised(message)) is not None:
            raise error
        if message.get("started"):
            return
        announce(str(message.get("phase", "")))


def _tail(log: Path) -> str:
    try:
        return log.read_text(errors="replace")[-2000:]
    except OSError:
        return ""


class StartReport:
    """The supervisor's end of it."""

    def __init__(self, descriptor: int) -> None:
        """A negative ``descriptor``: nobody listens."""
        self._descriptor = descriptor if descriptor >= 0 else None

    def phase(self, name: str) -> None:
        """Say what goes on; :class:`Interrupted` when the command that started us has died."""
        self._send({"phase": name})

    def started(self) -> None:
        """Say that it runs; from here on nobody listens."""
        self._send({"started": True})
        self.close()

    def failed(self, error: VmrunError) -> None:
        """Say why it does not; silently when nobody listens."""
        with contextlib.suppress(Interrupted):
            self._send(failure(error))
        self.close()

    def close(self) -> None:
        """Say no more."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)

    def _send(self, message: dict[str, object]) -> None:
        if self._descriptor is None:
            return
        try:
            os.write(self._descriptor, json.dumps(message).encode() + b"\n")
        except OSError as error:
            # Once is enough: what follows is the teardown, which must go on.
            self.close()
            raise Interrupted("the command that started this guest has died") from error
