"""Which accelerator works here: KVM only when a guest has been seen to boot with it.

That /dev/kvm exists proves nothing: on nested or paravirtual hosts a stock kernel hangs on it.
A verdict holds for one boot of the host, one QEMU and one base.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from vmrun.host.facts import KVM
from vmrun.model.base import Base
from vmrun.model.plan import Accelerator

_QEMU = Path("/usr/bin/qemu-system-x86_64")


@dataclass(frozen=True, slots=True)
class Verdict:
    """``proved`` means that a guest was booted to find out."""

    accelerator: Accelerator
    reason: str
    proved: bool


def obstacle() -> str:
    """Why KVM cannot work, as far as that shows without a trial; empty if nothing speaks
    against it."""
    if not KVM.exists():
        return "there is no /dev/kvm"
    if not os.access(KVM, os.R_OK | os.W_OK):
        return "this user may not open /dev/kvm (join the group kvm)"
    return ""


def has_virtualisation_flag() -> bool:
    """Whether the CPU says it can (vmx or svm in /proc/cpuinfo): a hint, neither needed nor
    enough."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("flags"):
            return not {"vmx", "svm"}.isdisjoint(line.split())
    return False


def recall(cache: Path, base: Base) -> Verdict | None:
    """What was found before under the same conditions, or what needs no trial."""
    if reason := obstacle():
        return Verdict(Accelerator.TCG, reason, proved=False)
    try:
        stored = json.loads(_path(cache, base).read_text())
        return Verdict(Accelerator(stored["accelerator"]), str(stored["reason"]), proved=True)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def remember(cache: Path, base: Base, verdict: Verdict) -> None:
    """Keep a verdict that was reached by trial."""
    path = _path(cache, base)
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    partial = path.with_suffix(f".{os.getpid()}")
    partial.write_text(json.dumps(asdict(verdict)))
    partial.replace(path)


def _path(cache: Path, base: Base) -> Path:
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    qemu = _QEMU.stat().st_ctime_ns if _QEMU.exists() else 0
    key = hashlib.sha256(f"{boot} {qemu} {base.digest} {os.geteuid()}".encode()).hexdigest()[:32]
    return cache / "accelerator" / f"{key}.json"
