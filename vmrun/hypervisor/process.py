"""The QEMU process as the kernel sees it (proc(5)), and its end."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

from vmrun.model.errors import HypervisorError


def status_fields(pid: int) -> dict[str, str]:
    """The fields of /proc/PID/status; :class:`HypervisorError` when it is gone."""
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError as error:
        raise HypervisorError(f"QEMU's process {pid} is gone") from error
    pairs = (line.partition(":") for line in text.splitlines())
    return {name: value.strip() for name, _, value in pairs}


def proportional_memory(pid: int) -> int | None:
    """PSS in bytes (/proc/PID/smaps_rollup), None where the kernel does not let us read it."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return None
    for line in text.splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) << 10
    return None


def cpu_seconds(pid: int) -> float:
    """Processor time that the process has used, user and system; 0.0 when it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory_limit(pid: int) -> int | None:
    """The memory limit of the process's own cgroup in bytes, v2 or v1; None without one."""
    try:
        lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            file = Path(f"/sys/fs/cgroup{path}/memory.max")
        elif "memory" in controllers.split(","):
            file = Path(f"/sys/fs/cgroup/memory{path}/memory.limit_in_bytes")
        else:
            continue
        try:
            text = file.read_text().strip()
        except OSError:
            continue
        if text.isdigit() and int(text) < 1 << 60:
            return int(text)
    return None


def same_namespace(pid: int, kind: str) -> bool:
    """Whether ``pid`` shares our namespace of that kind (namespaces(7))."""
    try:
        return os.readlink(f"/proc/{pid}/ns/{kind}") == os.readlink(f"/proc/self/ns/{kind}")
    except OSError:
        return True


def runs_guest(pid: int, uuid: str) -> bool:
    """Whether ``pid`` is a QEMU that was started for the guest with that uuid."""
    return _is_guest(pid, uuid=uuid, domain="")


def _is_guest(pid: int, *, uuid: str, domain: str) -> bool:
    """By its uuid, or by the name of its domain (``-uuid UUID``, ``-name guest=NAME,…``)."""
    try:
        arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    if b"qemu" not in arguments[0] or not _is_qemu(pid):
        return False
    given = list(pairwise(arguments))
    if uuid and (b"-uuid", uuid.encode()) in given:
        return True
    beginning = f"guest={domain},".encode()
    return bool(domain) and any(
        option == b"-name" and value.startswith(beginning) for option, value in given
    )


def _is_qemu(pid: int) -> bool:
    """Whether a QEMU is executed there: anybody may give a process any arguments. The kernel shows
    the executable to root and to the process's own user; others take its arguments' word."""
    try:
        return "qemu" in os.path.basename(os.readlink(f"/proc/{pid}/exe"))
    except PermissionError:
        return True
    except OSError:
        return False


def find_guest_process(uuid: str) -> int | None:
    """The pid of the QEMU of that guest, whoever started it."""
    return next(iter(find_guest_processes(uuid)), None)


def find_guest_processes(uuid: str, domain: str = "") -> tuple[int, ...]:
    """The pids of all QEMUs that carry that uuid or, if given, that domain's name."""
    pids = (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit())
    return tuple(pid for pid in pids if _is_guest(pid, uuid=uuid, domain=domain))


def kill_guest_process(pid: int, uuid: str, *, domain: str = "", timeout: float = 5.0) -> bool:
    """SIGKILL the QEMU of that guest; whether it is gone. A recycled pid is left alone, and what we
    may not kill stays."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        if not _is_guest(pid, uuid=uuid, domain=domain):
            return True
        signal.pidfd_send_signal(descriptor, signal.SIGKILL)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    finally:
        os.close(descriptor)
    return wait_gone(pid, timeout)


def kill_processes_naming(path: Path) -> None:
    """SIGKILL this user's processes with something at or below ``path`` among their arguments; for
    paths whose name nobody can guess. What may not be killed stays."""
    name = os.fsencode(path)
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        with contextlib.suppress(OSError):
            if entry.stat().st_uid != os.geteuid():
                continue
            descriptor = os.pidfd_open(int(entry.name))
            try:
                if name in (entry / "cmdline").read_bytes():
                    signal.pidfd_send_signal(descriptor, signal.SIGKILL)
            finally:
                os.close(descriptor)


def wait_gone(pid: int, timeout: float) -> bool:
    """Wait until ``pid`` has ended; a zombie has, whoever is to reap it."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        try:
            stat = Path(f"/proc/{pid}/stat").read_text()
        except OSError:
            return True
        if stat.rpartition(")")[2].split()[0] in "ZX":
            return True
        time.sleep(0.005)
    return False


class Reaper:
    """Reaps a guest's QEMU the moment it ends, also when it fails while it is being started.

    libvirt daemonises QEMU and then waits for it to vanish; an orphan's zombie may wait long for
    PID 1. We adopt it (see :func:`vmrun.hypervisor.capabilities.become_subreaper`) and wait for
    its pid only: a blind wait would steal libvirt's own children.
    """

    def __init__(self, uuid: str) -> None:
        self._uuid = uuid
        self._started = threading.Event()
        threading.Thread(target=self._run, name="reaper", daemon=True).start()

    def started(self) -> None:
        """QEMU has been started, or never will be: look for it no longer than that."""
        self._started.set()

    def _run(self) -> None:
        pid = None
        while pid is None:
            last = self._started.is_set()
            pid = next((p for p in _children() if runs_guest(p, self._uuid)), None)
            if last and pid is None:
                return
            time.sleep(0.005)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, 0)


def _children() -> Iterator[int]:
    for path in Path("/proc/self/task").glob("*/children"):
        with contextlib.suppress(OSError):
            yield from map(int, path.read_text().split())
