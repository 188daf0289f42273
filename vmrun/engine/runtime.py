"""A started container as its OCI runtime knows it: more processes in it, and signals to it.

Both runtimes, crun and the runc below dockerd, take the same commands, so that what a container
can be told does not depend on who started it. Commands are text for the guest's POSIX shell.
"""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from typing import Any

from vmrun.engine.guest import run_directory

_RUNC_ROOT = "/run/docker/runtime-runc/moby"
_END = "vmrun-process-ends"

EXIT_RUNTIME = 255
"""What both runtimes exit with when they could not execute the process."""


@dataclass(frozen=True, slots=True)
class Runtime:
    """``command`` is the runtime with its options, ``container`` its own name for the container."""

    command: tuple[str, ...]
    container: str

    @classmethod
    def crun(cls, run_id: str) -> Runtime:
        """A container that crun runs by itself."""
        root = f"--root={run_directory(run_id)}/crun"
        return cls(("crun", "--cgroup-manager=cgroupfs", root), run_id)

    @classmethod
    def docker(cls, container_id: str) -> Runtime:
        """A container of dockerd's."""
        return cls(("runc", f"--root={_RUNC_ROOT}"), container_id)

    def execute(self, process: dict[str, Any]) -> str:
        """Executes one more process in the container, as ``process`` says (OCI runtime
        specification, config.md, "Process"). The shell is replaced by the runtime."""
        text = json.dumps(process, separators=(",", ":"))
        words = [*self.command, "exec", "--process", "/dev/fd/9", self.container]
        # JSON on one line can neither hold the mark that ends it nor leave the quotes: nothing in
        # a quoted here-document is expanded. It is on a descriptor, because stdin is the process's.
        return f"exec {shlex.join(words)} 9<<'{_END}'\n{text}\n{_END}\n"

    def signal(self, number: int) -> str:
        """Sends a signal to the container's first process."""
        return shlex.join([*self.command, "kill", self.container, str(number)])


def failure_status(status: int, errors: str) -> int:
    """docker's exit status for a process that could not be executed (127: no such command, 126:
    it cannot be executed); ``status`` itself for any other. The runtime says so on stderr."""
    if status != EXIT_RUNTIME or not errors:
        return status
    last = errors.strip().splitlines()[-1].lower()
    if "not found in $path" in last or "no such file or directory" in last:
        return 127
    if "permission denied" in last or "not executable" in last or "operation not permitted" in last:
        return 126
    return status
