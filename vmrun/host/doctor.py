"""What this host can do, and why: everything read side by side, then judged.

What belongs to runs (their directories, and booting a guest to try KVM) is handed in by the
caller: this package knows the host and nothing of runs.
"""

from __future__ import annotations

import os
import pwd
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from vmrun.base.store import find_base, verify_base
from vmrun.host.accelerator import Verdict, obstacle, recall
from vmrun.host.checks.facts import Asked, BaseFound, Host, Libvirt, State, Trial
from vmrun.host.checks.hypervisor import open_libvirt
from vmrun.host.checks.isolation import (
    NO_BOUNDARY,
    judge_accelerator,
    judge_confinement,
    judge_leaks,
)
from vmrun.host.checks.read_kernel import read_device, read_kernel, read_processor
from vmrun.host.checks.read_software import ask_qemu, read_software
from vmrun.host.checks.room import judge_room
from vmrun.host.checks.software import judge_software
from vmrun.host.facts import KVM
from vmrun.model.base import Base, Flavour
from vmrun.model.diagnosis import CheckState, Diagnosis, Examination, HostVerdict
from vmrun.model.errors import BaseError
from vmrun.model.plan import Accelerator

VSOCK = Path("/dev/vhost-vsock")

Try = Callable[[Base], Verdict]


@dataclass(frozen=True, slots=True)
class Places:
    """Where to look: the state directory's parts (see :mod:`vmrun.run.directories`)."""

    guests: Path
    cache: Path
    bases: tuple[Path, ...]


def examine(
    places: Places,
    state: State,
    *,
    connect: str,
    memory: int,
    flavour: Flavour,
    try_kvm: Try | None,
) -> Examination:
    """Read this host and judge it.

    ``memory`` (bytes) and ``flavour`` are those of a run by default; ``try_kvm`` boots a base
    with KVM, and without it what an earlier trial said is recalled.
    """
    asked = Asked(_user_name(), os.geteuid() == 0, connect, memory, flavour)
    with ThreadPoolExecutor(max_workers=4) as pool:
        opening = pool.submit(
            open_libvirt,
            connect,
            embedded=asked.embedded,
            cache=None if state.error else places.cache / "capabilities",
        )
        qemu = pool.submit(ask_qemu)
        hashing = [pool.submit(_check_base, places.bases, each) for each in Flavour]
        processor, kernel = read_processor(), read_kernel(asked.user)
        kvm, vsock = read_device(KVM), read_device(VSOCK)
        checked = [future.result() for future in hashing]
        libvirt = opening.result()
        software = read_software(libvirt, qemu.result())
    sound = next((base for _, base in checked if base is not None), None)
    trial = _accelerator(places.cache, sound, libvirt, state, try_kvm)
    return diagnose(
        Host(
            asked=asked,
            software=software,
            processor=processor,
            kvm=kvm,
            vsock=vsock,
            kernel=kernel,
            state=state,
            bases=tuple(found for found, _ in checked),
            trial=trial,
        )
    )


def diagnose(host: Host) -> Examination:
    """Judge what was read. Pure."""
    checks = tuple(
        chain(
            judge_software(host.asked, host.software),
            judge_accelerator(host),
            judge_confinement(host.asked, host.kernel, host.software.qemu),
            judge_room(host),
            judge_leaks(host.processor, host.kernel),
        )
    )
    return Examination(checks, _verdict(checks, host.trial))


def free_space(directory: Path) -> int:
    """Bytes free where ``directory`` is, or would be made."""
    while not directory.exists():
        directory = directory.parent
    return shutil.disk_usage(directory).free


def _verdict(checks: Sequence[Diagnosis], trial: Trial) -> HostVerdict:
    accelerator = trial.verdict.accelerator if trial.verdict else None
    if faults := [check.id for check in checks if check.state is CheckState.FAULT]:
        text = f"vmrun cannot run containers here, because of: {', '.join(faults)}"
        return HostVerdict(False, accelerator, isolated=False, text=text)
    can = "vmrun can run containers here"
    if accelerator is None:
        text = f"{can}; whether KVM isolates them has not been tried"
    elif accelerator.isolates:
        text = f"{can}, each isolated by KVM"
    else:
        text = f"{can}, but only emulated, which is {NO_BOUNDARY}"
    return HostVerdict(True, accelerator, accelerator is Accelerator.KVM, text)


def _accelerator(
    cache: Path, base: Base | None, libvirt: Libvirt, state: State, try_kvm: Try | None
) -> Trial:
    if reason := obstacle():
        return Trial(Verdict(Accelerator.TCG, reason, proved=False))
    if base is None:
        return Trial(None, "there is no base to boot")
    if libvirt.error:
        return Trial(None, "libvirt does not open")
    if state.error:
        return Trial(None, "no guest's directory can be made")
    if try_kvm is None:
        return Trial(recall(cache, base), "no guest has been booted with KVM yet")
    return Trial(try_kvm(base))


def _check_base(bases: Sequence[Path], flavour: Flavour) -> tuple[BaseFound, Base | None]:
    if not any((directory / flavour).is_symlink() for directory in bases):
        return BaseFound(flavour, None), None
    try:
        base = find_base(bases, flavour)
        verify_base(base)
    except BaseError as error:
        return BaseFound(flavour, None, error.message, error.hint), None
    return BaseFound(flavour, base.digest), base


def _user_name() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())
