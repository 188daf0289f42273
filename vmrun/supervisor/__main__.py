"""``python -m vmrun.supervisor``: owns one guest, as told on stdin. Started by vmrun's commands."""

from __future__ import annotations

import os
import sys

from vmrun.model.wire import loads
from vmrun.supervisor.launch import Launch
from vmrun.supervisor.supervisor import supervise


def main() -> None:
    """Read what to do, let go of the terminal, and do it."""
    os.umask(0o022)
    told = loads(Launch, sys.stdin.buffer.read())
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    os.close(nothing)
    sys.exit(supervise(told))


if __name__ == "__main__":
    main()
