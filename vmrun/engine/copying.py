"""Copying between the host and a container that runs: the guest tool's verbs for it (guest
contract, "Guest tool"). Pure, as :mod:`vmrun.engine.guest`."""

from __future__ import annotations

import shlex

from vmrun.engine.guest import TOOL, cgroup_of


def archive_command(run_id: str, pid: int, path: str, name: str, *, follow: bool) -> str:
    """Writes a tar of ``path`` in the container whose first process is ``pid``, as ``name``."""
    options = ["--follow"] if follow else []
    return shlex.join(["exec", TOOL, "archive", *options, _root(run_id, pid), path, name])


def extract_command(
    run_id: str, pid: int, path: str, *, owner: tuple[int, int] | None, directory: bool
) -> str:
    """Unpacks the tar on stdin at ``path`` in the container, as the user and group ``owner``, or
    with the owners and modes of the archive; ``directory``: it must be one."""
    options = [] if owner is None else ["--as", f"{owner[0]:d}:{owner[1]:d}"]
    options += ["--directory"] if directory else []
    return shlex.join(["exec", TOOL, "extract", *options, _root(run_id, pid), path])


def _root(run_id: str, pid: int) -> str:
    return f"{pid:d}:{cgroup_of(run_id)}"
