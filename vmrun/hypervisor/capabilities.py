"""QEMU's capabilities, probed once per host state and seeded into every embedded root.

libvirt probes QEMU by starting it, and waits for each probe to vanish; where PID 1 reaps orphans
slowly that takes minutes. So the probe runs in a process of its own below a parent that reaps
everything. The cache's key holds all that makes libvirt probe again.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from vmrun.host.lock import exclusive
from vmrun.hypervisor.process import kill_processes_naming
from vmrun.model.errors import HypervisorError

_QEMU = Path("/usr/bin/qemu-system-x86_64")
_DEPENDS_ON = (
    _QEMU,
    Path("/usr/lib/x86_64-linux-gnu/qemu"),
    Path("/usr/lib/x86_64-linux-gnu/libvirt.so.0"),
    Path("/dev/kvm"),
)
_TIMEOUT = 120
_LOCK = "lock"
_SCRATCH = "partial."
_PR_SET_CHILD_SUBREAPER = 36
_PR_SET_THP_DISABLE = 41

_PROBE = """
import sys
from pathlib import Path
from vmrun.hypervisor.connection import open_root
open_root(Path(sys.argv[1])).getDomainCapabilities(None, "x86_64", "q35", "qemu")
"""


def become_subreaper() -> None:
    """Make orphaned descendants ours (PR_SET_CHILD_SUBREAPER, prctl(2))."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def without_huge_pages() -> None:
    """Start QEMU without transparent huge pages (PR_SET_THP_DISABLE, prctl(2); inherited).

    For emulated guests: they gain nothing from huge pages, and each page that a small guest
    touches would cost 2 MiB.
    """
    _prctl(_PR_SET_THP_DISABLE, 1)


def _prctl(option: int, value: int) -> None:
    arguments = [ctypes.c_ulong(number) for number in (value, 0, 0, 0)]
    ctypes.CDLL(None, use_errno=True).prctl(option, *arguments)


def seed(root: Path, *, cache: Path) -> None:
    """Give the embedded ``root`` QEMU's capabilities from ``cache``, probing if it has none.

    Raises :class:`HypervisorError` when QEMU is missing or cannot be probed.
    """
    if not _QEMU.exists():
        raise HypervisorError(
            f"QEMU is not installed: {_QEMU}", hint="prepare this host: make setup"
        )
    known = cache / _host_state()
    cache.mkdir(parents=True, exist_ok=True, mode=0o700)
    with exclusive(cache / _LOCK):
        if not known.exists():
            _clear(cache)
            _probe(known, cache=cache)
    shutil.copytree(known, root / "cache" / "qemu" / "capabilities", dirs_exist_ok=True)


def sweep_probes(cache: Path) -> None:
    """Remove what a probe that was killed has left: its processes and its scratch directory. One
    that goes on is left alone. Raises :class:`HypervisorError`."""
    try:
        if not any(_scratches(cache)):
            return
        with exclusive(cache / _LOCK):
            for scratch in _scratches(cache):
                _remove_scratch(scratch)
    except OSError as error:
        raise HypervisorError(f"cannot clear {cache}: {error.strerror}") from error


def _scratches(cache: Path) -> list[Path]:
    return sorted(cache.glob(f"{_SCRATCH}*")) if cache.is_dir() else []


def _clear(cache: Path) -> None:
    """Remove capabilities of other states of the host, and scratch directories."""
    for scratch in _scratches(cache):
        _remove_scratch(scratch)
    for outdated in cache.iterdir():
        if outdated.is_dir():
            shutil.rmtree(outdated)


def _remove_scratch(scratch: Path) -> None:
    """The name is one that nobody else uses: a process with it in its arguments belongs to it."""
    kill_processes_naming(scratch)
    shutil.rmtree(scratch, ignore_errors=True)


def _probe(known: Path, *, cache: Path) -> None:
    # Below the cache, not in /tmp: what a kill leaves of it is found there.
    scratch = Path(tempfile.mkdtemp(prefix=_SCRATCH, dir=cache))
    try:
        parent = subprocess.run(
            [sys.executable, "-m", "vmrun.hypervisor.capabilities", str(scratch)],
            capture_output=True,
            text=True,
            timeout=_TIMEOUT,
            check=False,
        )
        probed = scratch / "cache" / "qemu" / "capabilities"
        if parent.returncode != 0 or not probed.is_dir():
            raise HypervisorError(
                "libvirt cannot probe QEMU",
                hint="see 'vmrun doctor' for what this host lacks",
                details=parent.stderr[-2000:],
            )
        probed.rename(known)
    except subprocess.TimeoutExpired as error:
        raise HypervisorError(
            f"libvirt has not probed QEMU within {_TIMEOUT} s", hint="see 'vmrun doctor'"
        ) from error
    finally:
        _remove_scratch(scratch)


def _host_state() -> str:
    facts = [os.uname().release, os.uname().version, str(os.geteuid())]
    for path in _DEPENDS_ON:
        try:
            stat = path.stat()
            facts.append(f"{path} {stat.st_ctime_ns} {stat.st_mode} {stat.st_uid} {stat.st_gid}")
        except OSError:
            facts.append(f"{path} absent")
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:32]


def _reap_until_done(root: str) -> int:
    become_subreaper()
    child = subprocess.Popen([sys.executable, "-c", _PROBE, root]).pid
    while True:
        pid, status = os.wait()
        if pid == child:
            return os.waitstatus_to_exitcode(status)


if __name__ == "__main__":
    sys.exit(_reap_until_done(sys.argv[1]))
