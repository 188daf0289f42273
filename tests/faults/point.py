"""Where a process of vmrun kills itself: ``phase NAME``, or ``at MODULE:FUNCTION:before|after``
with a text that must be among the call's arguments behind one more colon, if it matters.

Exact where a signal from outside would only be near. The product is not changed: the function is
wrapped before anybody has imported it.
"""

from __future__ import annotations

import functools
import importlib
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

VARIABLE = "VMRUN_TEST_FAULT"
LEASE = "VMRUN_TEST_LEASE"


def prepare(role: str) -> None:
    """Arrange what the environment asks of a process of this role: ``ROLE WHAT``."""
    asked, _, what = os.environ.get(VARIABLE, "").partition(" ")
    if asked == role:
        kind, _, where = what.partition(" ")
        if kind == "phase":
            _in_phase(where)
        else:
            _at(where)
    if role == "command":
        _own_supervisors()
        if seconds := os.environ.get(LEASE):
            _shorten_lease(int(seconds))


def die() -> None:
    """As a kill -9 from outside: nothing of this process runs any more."""
    os.kill(os.getpid(), signal.SIGKILL)


def _in_phase(name: str) -> None:
    clock: Any = importlib.import_module("vmrun.run.clock").PhaseClock
    real = clock.phase

    @contextmanager
    def phase(self: Any, begun: str) -> Iterator[None]:
        with real(self, begun):
            if begun == name:
                die()
            yield

    clock.phase = phase


def _at(where: str) -> None:
    module, function, when, *text = where.split(":")
    owner: Any = importlib.import_module(module)
    *path, name = function.split(".")
    for part in path:
        owner = getattr(owner, part)
    setattr(owner, name, _deadly(getattr(owner, name), when, *text))


def _deadly(real: Callable[..., Any], when: str, text: str = "") -> Callable[..., Any]:
    @functools.wraps(real)
    def wrapped(*arguments: Any, **named: Any) -> Any:
        meant = text in repr((arguments, named))
        if meant and when == "before":
            die()
        result = real(*arguments, **named)
        if meant:
            die()
        return result

    return wrapped


def _own_supervisors() -> None:
    """Let supervisors be started through :mod:`tests.faults.supervisor`."""
    launch: Any = importlib.import_module("vmrun.supervisor.launch")
    command = launch.supervisor_command()
    launch.supervisor_command = lambda: [*command[:-1], "tests.faults.supervisor"]


def _shorten_lease(seconds: int) -> None:
    """The lease that a guest is given with its identity. Until then it has the usual one."""
    planner: Any = importlib.import_module("vmrun.planning.planner")
    usual, real = planner.LEASE, planner.kernel_arguments
    planner.LEASE = seconds
    planner.kernel_arguments = lambda verity, **_: real(verity, lease=usual)
