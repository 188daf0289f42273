"""What a process sees of the world it runs in: one script for everywhere, its answers parsed
strictly, and two views compared.

The script is POSIX shell for busybox. It prints ``key=value`` lines; each key comes once, and
anything else is refused: in a container the answers are not ours.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields

INSPECT = r"""
say() { printf '%s=%s\n' "$1" "$2"; }
status() { awk -v key="$1:" '$1 == key { print $2; exit }' /proc/self/status; }
root() { awk -v n="$1" '$5 == "/" { value = $n } END { print value }' /proc/self/mountinfo; }
first() { awk -F': *' -v key="$1" '$1 ~ "^" key { print $2; exit }' "$2"; }
say kernel "$(uname -r)"
say boot_id "$(cat /proc/sys/kernel/random/boot_id)"
say uid "$(id -u)"
say capabilities "$(status CapEff)"
say seccomp "$(status Seccomp)"
say no_new_privs "$(status NoNewPrivs)"
say root_options "$(root 6)"
say root_source "$(root 4)"
say mounts "$(wc -l </proc/self/mountinfo)"
say devices "$(find /dev \( -type c -o -type b \) | sed s,/dev/,, | sort | tr '\n' ' ')"
set -- /proc/[0-9]*
say processes "$#"
say tasks "$(sed 's,.*/\([0-9]*\) [0-9]*$,\1,' /proc/loadavg)"
say hostname "$(hostname)"
say memory_kib "$(awk '$1 == "MemTotal:" { print $2 }' /proc/meminfo)"
say cpu "$(first 'model name' /proc/cpuinfo)"
say disks "$(awk 'NR > 2 { print $4 }' /proc/partitions | tr '\n' ' ')"
say interfaces "$(ls /sys/class/net | tr '\n' ' ')"
say uptime "$(cut -d. -f1 /proc/uptime)"
"""

ATTACK = r"""
attack() {
    name=$1; shift
    said=$("$@" 2>&1 >/dev/null | head -n 1)
    printf '%s=%s\n' "$name" "$said"
}
write_root() { echo owned >/owned; ls /owned && echo 'it worked' >&2; }
mount_it() { mount -t tmpfs none /tmp && echo 'it worked' >&2; }
raw_socket() {
    said=$(arping -c 1 -w 1 -I lo 127.0.0.1 2>&1)
    case $said in *'not ARPable'*) said='it worked';; esac
    echo "$said" >&2
}
user_namespace() { unshare -U true && echo 'it worked' >&2; }
kernel_memory() { echo "$(head -c 4096 /proc/kcore 2>/dev/null | wc -c) bytes" >&2; }
attack write_root write_root
attack mount mount_it
attack raw_socket raw_socket
attack user_namespace user_namespace
attack kernel_memory kernel_memory
"""

_LONGEST = 4096
_WORDS = r"[!-~]+(?: [!-~]+)*"


class BadAnswer(Exception):
    """The script's output is not what the script prints."""


@dataclass(frozen=True)
class View:
    """What one process saw. ``tasks`` counts what its kernel runs in all, ``processes`` those
    that it can see; ``root_source`` is the mount's root on its file system."""

    kernel: str
    boot_id: str
    uid: int
    capabilities: int
    seccomp: int
    no_new_privs: bool
    root_options: tuple[str, ...]
    root_source: str
    mounts: int
    devices: tuple[str, ...]
    processes: int
    tasks: int
    hostname: str
    memory_kib: int
    cpu: str
    disks: tuple[str, ...]
    interfaces: tuple[str, ...]
    uptime: int

    @property
    def root_read_only(self) -> bool:
        """Whether nothing can be written to ``/``."""
        return "ro" in self.root_options


def _number(text: str) -> int:
    return int(text)


def _hex(text: str) -> int:
    return int(text, 16)


def _list(text: str) -> tuple[str, ...]:
    return tuple(text.split())


def _options(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


def _flag(text: str) -> bool:
    return text == "1"


_DECIMAL = r"[0-9]{1,15}"
_FIELDS: Mapping[str, tuple[str, Callable[[str], object]]] = {
    "kernel": (r"[!-~]{1,120}", str),
    "boot_id": (r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", str),
    "uid": (_DECIMAL, _number),
    "capabilities": (r"[0-9a-f]{16}", _hex),
    "seccomp": (r"[012]", _number),
    "no_new_privs": (r"[01]", _flag),
    "root_options": (r"[a-z0-9_=,.-]{2,200}", _options),
    "root_source": (r"/[!-~]{0,500}", str),
    "mounts": (_DECIMAL, _number),
    "devices": (rf"(?:{_WORDS} )?", _list),
    "processes": (_DECIMAL, _number),
    "tasks": (_DECIMAL, _number),
    "hostname": (r"[A-Za-z0-9.-]{1,64}", str),
    "memory_kib": (_DECIMAL, _number),
    "cpu": (rf"(?:{_WORDS})?", str),
    "disks": (rf"(?:{_WORDS} )?", _list),
    "interfaces": (rf"(?:{_WORDS} )?", _list),
    "uptime": (_DECIMAL, _number),
}


def parse_view(text: str) -> View:
    """The answers of :data:`INSPECT`; raises :class:`BadAnswer` for anything else."""
    answers = _answers(text, {field.name for field in fields(View)})
    values = {}
    for key, (form, convert) in _FIELDS.items():
        answer = re.sub(" +", " ", answers[key]) if key == "cpu" else answers[key].lstrip()
        if re.fullmatch(form, answer) is None:
            raise BadAnswer(f"{key} is not as expected: {answer[:80]!r}")
        values[key] = convert(answer)
    return View(**values)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Attack:
    """An attempt, what it got for an answer, and whether that is what was promised."""

    name: str
    tried: str
    answer: str
    contained: bool

    @property
    def outcome(self) -> str:
        """The answer without the name of the program that gave it."""
        return self.answer.rpartition(": ")[2] or "no answer"


_REFUSED = r"[!-~ ]*(?:[Pp]ermission denied|not permitted)[!-~ ]*"
_ATTACKS = {
    "write_root": ("write a file to /", r"[!-~ ]*Read-only file system"),
    "mount": ("mount a file system", _REFUSED),
    "raw_socket": ("open a packet socket", _REFUSED),
    "user_namespace": ("make a user namespace", _REFUSED),
    "kernel_memory": ("read kernel memory (/proc/kcore)", "0 bytes"),
}


def parse_attacks(text: str) -> tuple[Attack, ...]:
    """The answers of :data:`ATTACK`. An attack is contained only if its answer is the refusal
    that is expected; silence is not."""
    answers = _answers(text, set(_ATTACKS))
    return tuple(
        Attack(name, tried, answers[name], re.fullmatch(refusal, answers[name]) is not None)
        for name, (tried, refusal) in _ATTACKS.items()
    )


def _answers(text: str, expected: set[str]) -> dict[str, str]:
    answers: dict[str, str] = {}
    for line in text.splitlines():
        key, equals, value = line.partition("=")
        if not equals or key not in expected or key in answers:
            raise BadAnswer(f"unexpected line: {line[:80]!r}")
        if len(value) > _LONGEST or not value.isascii() or not (value + "x").isprintable():
            raise BadAnswer(f"{key} is too long or not plain text")
        answers[key] = value
    if missing := expected - answers.keys():
        raise BadAnswer(f"no answer for {', '.join(sorted(missing))}")
    return answers


@dataclass(frozen=True)
class Row:
    """One line of the comparison."""

    what: str
    bare: str
    guest: str

    @property
    def differs(self) -> bool:
        return self.bare != self.guest


def compare(bare: View | None, guest: View, *, host_boot_id: str) -> tuple[Row, ...]:
    """Side by side; without a bare view its column is empty."""

    def row(what: str, show: Callable[[View], str]) -> Row:
        return Row(what, show(bare) if bare else "", show(guest))

    def shared(view: View) -> str:
        return "yes" if view.boot_id == host_boot_id else "no"

    return (
        row("kernel", lambda v: v.kernel),
        row("the host's kernel is shared", shared),
        row("tasks of that kernel", lambda v: str(v.tasks)),
        row("uptime of that kernel", lambda v: f"{v.uptime} s"),
        row("processes it can see", lambda v: str(v.processes)),
        row("uid", lambda v: str(v.uid)),
        row("effective capabilities", lambda v: f"{v.capabilities:#x}"),
        row("seccomp", lambda v: ("none", "strict", "filter")[v.seccomp]),
        row("no_new_privs", lambda v: "yes" if v.no_new_privs else "no"),
        row("root mount", lambda v: "read-only" if v.root_read_only else "writable"),
        row("root's path outside", lambda v: v.root_source),
        row("mounts", lambda v: str(v.mounts)),
        row("disks in /proc/partitions", lambda v: " ".join(v.disks) or "none"),
        row("device nodes", lambda v: f"{len(v.devices)}: {' '.join(v.devices)}"),
        row("network interfaces", lambda v: " ".join(v.interfaces) or "none"),
        row("host name", lambda v: v.hostname),
        row("total memory", lambda v: f"{v.memory_kib // 1024} MiB"),
        row("CPU", lambda v: v.cpu or "not named"),
    )
