"""What the guest tool's ``gate`` verb says, parsed strictly (guest contract, "Guest tool").

The text comes out of the guest, so it is hostile until proved otherwise: everything is capped,
nothing is guessed, and whatever does not fit is a :class:`GuestError`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence

from vmrun.model.errors import GuestError
from vmrun.model.live import ContainerReading
from vmrun.model.report import Usage

MAX_LINE = 16 << 10
"""An overlay's options name every lower directory and may fill a page."""

MAX_LINES = 2048
MAX_BLOCK = 256 << 10

MAX_BLOCKS = 8
"""A gate has three to say: that the root is made, how the container is confined, what it used."""

READY = ["ready"]
"""The block that says the container's root is made."""

_NUMBER = re.compile(r"[0-9]{1,19}")
_STATUS_KEY = re.compile(r"[A-Za-z_]{1,32}")
_CGROUP_FILE = re.compile(r"[a-z_]{1,32}(\.[a-z_]{1,32}){1,3}")
_OCTAL = re.compile(r"\\(011|012|040|043|134)")

_IDS = ("Uid", "Gid", "Groups")
_CAPABILITIES = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")
_STATUS = frozenset((*_IDS, *_CAPABILITIES, "NoNewPrivs", "Seccomp", "Seccomp_filters"))
_NAMESPACES = frozenset(["cgroup", "ipc", "mnt", "net", "pid", "uts", "user"])


class Blocks:
    """Splits a byte stream into blocks of lines, each block ended by an empty line."""

    def __init__(self) -> None:
        self._rest = b""
        self._lines: list[str] = []
        self._size = 0
        self._done = 0

    def feed(self, data: bytes) -> list[list[str]]:
        """The blocks that ``data`` completes."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > MAX_LINE:
            raise GuestError("the guest tool sent an endless line")
        done: list[list[str]] = []
        for line in lines:
            if not line:
                self._done += 1
                if self._done > MAX_BLOCKS:
                    raise GuestError("the guest tool sent more blocks than it has to")
                done.append(self._lines)
                self._lines, self._size = [], 0
            else:
                self._add(line)
        return done

    def _add(self, line: bytes) -> None:
        self._size += len(line)
        if len(line) > MAX_LINE or self._size > MAX_BLOCK or len(self._lines) >= MAX_LINES:
            raise GuestError("the guest tool sent more than it may")
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError:
            raise GuestError("the guest tool sent bytes that are not text") from None
        if not text.isprintable():
            raise GuestError(f"the guest tool sent control characters: {text[:80]!r}")
        self._lines.append(text)


def _malformed(line: str) -> GuestError:
    return GuestError(
        f"the guest tool sent a line that does not fit the contract: {line[:80]!r}",
        hint="the base and this vmrun may differ in version: vmrun base build",
    )


def _number(text: str, line: str) -> int:
    if _NUMBER.fullmatch(text) is None:
        raise _malformed(line)
    return int(text)


def unescape(text: str) -> str:
    r"""A path as mountinfo writes it: space, tab, newline, ``#`` and backslash as ``\040`` and
    so on (proc_pid_mountinfo(5); fs/proc_namespace.c)."""
    return _OCTAL.sub(lambda match: chr(int(match[1], 8)), text)


class _Reading:
    """Collects the lines of one reading; every line but ``mount`` may come once."""

    def __init__(self) -> None:
        self.single: dict[str, str] = {}
        self.status: dict[str, str] = {}
        self.mounts: dict[str, tuple[str, frozenset[str]]] = {}
        self.namespaces: dict[str, bool] = {}
        self.limits: dict[str, str] = {}
        self.open_files: tuple[str, str] | None = None

    def add(self, line: str) -> None:
        key, _, value = line.partition(" ")
        handlers: dict[str, Callable[[str, str], None]] = {
            "mount": self._mount,
            "ns": self._namespace,
            "rlimit": self._rlimit,
        }
        if key in handlers:
            handlers[key](value, line)
        elif key in ("pid", "root", "cgroup"):
            self._once(self.single, key, value, line)
        elif key.startswith("status.") and _STATUS_KEY.fullmatch(key[7:]):
            self._once(self.status, key[7:], value, line)
        elif key.startswith("cgroup.") and _CGROUP_FILE.fullmatch(key[7:]):
            self._once(self.limits, key[7:], value, line)
        else:
            raise _malformed(line)

    @staticmethod
    def _once(into: dict[str, str], key: str, value: str, line: str) -> None:
        if key in into:
            raise _malformed(line)
        into[key] = value

    def _mount(self, value: str, line: str) -> None:
        fields = value.split(" ")
        if len(fields) != 3 or not fields[0].startswith("/"):
            raise _malformed(line)
        # mountinfo lists what is on top last.
        self.mounts[unescape(fields[0])] = (fields[1], frozenset(fields[2].split(",")))

    def _namespace(self, value: str, line: str) -> None:
        kind, _, verdict = value.partition(" ")
        known = kind in _NAMESPACES and verdict in ("private", "shared")
        if not known or kind in self.namespaces:
            raise _malformed(line)
        self.namespaces[kind] = verdict == "private"

    def _rlimit(self, value: str, line: str) -> None:
        fields = value.split(" ")
        if len(fields) != 3 or fields[0] != "nofile" or self.open_files is not None:
            raise _malformed(line)
        self.open_files = (fields[1], fields[2])


def parse_reading(lines: Sequence[str]) -> ContainerReading:
    """The first block: how the process at the gate is confined."""
    found = _Reading()
    for line in lines:
        found.add(line)
    missing = sorted(
        [name for name in ("pid", "root", "cgroup") if name not in found.single]
        + [f"status.{name}" for name in _STATUS - found.status.keys()]
        + [f"ns {name}" for name in _NAMESPACES - found.namespaces.keys()]
        + ([] if found.open_files else ["rlimit nofile"])
    )
    if missing:
        raise GuestError(f"the guest tool left out {', '.join(missing)}")
    root = found.single["root"]
    if root not in ("ro", "rw"):
        raise _malformed(f"root {root}")
    return ContainerReading(
        pid=_number(found.single["pid"], f"pid {found.single['pid']}"),
        status=found.status,
        root_read_only=root == "ro",
        mounts=found.mounts,
        namespaces=found.namespaces,
        cgroup=found.limits,
        open_files=found.open_files,
    )


_USAGE = {
    "cgroup.memory.peak",
    "cgroup.memory.oom_kill",
    "cgroup.pids.peak",
    "cgroup.pids.refused",
    "cgroup.cpu.usage_usec",
}


def parse_usage(lines: Iterable[str]) -> Usage:
    """The last block: what the cgroup counted. A counter that the kernel does not have is left
    out by the guest and None here."""
    first, *rest = [*lines] or [""]
    if first != "exited":
        raise _malformed(first)
    counted: dict[str, int] = {}
    for line in rest:
        key, _, value = line.partition(" ")
        if key not in _USAGE or key in counted:
            raise _malformed(line)
        counted[key] = _number(value, line)
    microseconds = counted.get("cgroup.cpu.usage_usec")
    return Usage(
        memory_peak=counted.get("cgroup.memory.peak"),
        oom_kills=counted.get("cgroup.memory.oom_kill"),
        pids_peak=counted.get("cgroup.pids.peak"),
        pids_refused=counted.get("cgroup.pids.refused"),
        cpu_seconds=None if microseconds is None else microseconds / 1e6,
    )
