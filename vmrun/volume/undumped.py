"""No core dumps of processes that hold secrets or keys, nor of what they start."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource

_PR_SET_DUMPABLE = 4


def leave_no_core_dump() -> None:
    """From here on this process leaves no core dump (prctl(2), core(5)), and nor does what it
    starts: QEMU has the keys of its disks, too.

    A plain user's process stays one that its own user may look at in /proc, which finding out who
    owns a guest takes; its limit is zero, which a handler that core_pattern names hears of.
    """
    with contextlib.suppress(OSError, ValueError):
        _, hard = resource.getrlimit(resource.RLIMIT_CORE)
        resource.setrlimit(resource.RLIMIT_CORE, (0, hard))
    if os.geteuid() == 0:
        ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
