"""Does libvirt open? Asked in a process of its own, which can be given a deadline.

One process opens one embedded root in its life, and what libvirt does with a QEMU that does not
answer is to wait.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path

from vmrun.host.checks.facts import Libvirt
from vmrun.model.errors import VmrunError

_DEADLINE = 130.0
"""Seconds: a first time includes the probe of QEMU's capabilities, with a deadline below this."""

_REPAIR_EMBEDDED = "make setup, or: apt install libvirt-daemon-driver-qemu"
_REPAIR_DAEMON = "start that libvirt daemon, or leave VMRUN_CONNECT and the setting connect out"


def open_libvirt(connect: str, *, embedded: bool, cache: Path | None) -> Libvirt:
    """Open libvirt as a run would; ``cache`` keeps QEMU's capabilities, if it can be written."""
    try:
        binding = metadata.version("libvirt-python")
    except metadata.PackageNotFoundError:
        return Libvirt("", "", "libvirt-python is not installed", "pip install libvirt-python")
    repair = _REPAIR_EMBEDDED if embedded else _REPAIR_DAEMON
    with tempfile.TemporaryDirectory(prefix="vmrun-doctor.") as scratch:
        root = Path(scratch, "r")
        root.mkdir(mode=0o711)
        uri = "embedded" if embedded else connect
        command = [sys.executable, "-m", __name__, uri, str(root), str(cache or Path(scratch, "c"))]
        try:
            asked = subprocess.run(
                command, capture_output=True, text=True, timeout=_DEADLINE, check=False
            )
        except subprocess.TimeoutExpired:
            return Libvirt(binding, "", f"{uri} does not open within {_DEADLINE:.0f} s", repair)
    try:
        answer = json.loads(asked.stdout)
        return Libvirt(binding, answer["library"], answer["error"], answer["hint"] or repair)
    except (ValueError, KeyError, TypeError):
        last = (asked.stderr.strip().splitlines() or [f"status {asked.returncode}"])[-1]
        return Libvirt(binding, "", f"{uri} does not open: {last[-200:]}", repair)


def _answer(connect: str, root: Path, cache: Path) -> dict[str, str]:
    library = error = hint = ""
    try:
        # Not asked for QEMU's version: libvirt would probe every other QEMU of the host first.
        from vmrun.hypervisor.connection import open_daemon, open_embedded

        embedded = connect == "embedded"
        connection = open_embedded(root, cache=cache) if embedded else open_daemon(connect)
        number = connection.getLibVersion()
        library = f"{number // 1_000_000}.{number // 1000 % 1000}.{number % 1000}"
    except VmrunError as failure:
        error = failure.message
        # That hint of a run's leads here.
        hint = "" if "vmrun doctor" in failure.hint else failure.hint
    except (ImportError, OSError) as failure:
        error = str(failure)
    return {"library": library, "error": error, "hint": hint}


if __name__ == "__main__":
    json.dump(_answer(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])), sys.stdout)
