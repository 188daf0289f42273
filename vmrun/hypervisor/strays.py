"""QEMU processes, cgroups and directories in memory of guests that nobody knows of any more.

They are found by the names that vmrun gives (domains are called ``vmrun-`` and a run's id), never
by a stored list. What another state directory's guests may be using is left alone: a QEMU counts
only if its files are below ours, the rest only when no QEMU of that name runs and it is old.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from vmrun.hypervisor import process
from vmrun.hypervisor.remains import memory_of, remains, remove_remains
from vmrun.model.report import Removed

_CGROUPS = Path("/sys/fs/cgroup")
_PATTERNS = ("machine/qemu-*-vmrun-*.libvirt-qemu", "*/machine/qemu-*-vmrun-*.libvirt-qemu")
_CGROUP_NAME = re.compile(r"qemu-[a-z0-9-]+-vmrun-([0-9a-f]{12})\.libvirt-qemu")
_GUEST_NAME = re.compile(r"guest=vmrun-([0-9a-f]{12})(?:,.*)?")
_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
OLD = 600.0
"""Seconds after which what has no QEMU is not just being made."""


@dataclass(frozen=True, slots=True)
class QemuProcess:
    """A QEMU that vmrun has started: ``below`` says whether its files are in our guests' place."""

    pid: int
    run_id: str
    uuid: str
    below: bool


@dataclass(frozen=True, slots=True)
class Stray:
    """Something of a guest that has no directory: ``kind`` is process, cgroup or keys."""

    kind: str
    run_id: str
    name: str
    uuid: str = ""
    """That of a guest whose QEMU still runs; what else it has goes with that."""


def qemu_processes(guests: Path) -> Iterator[QemuProcess]:
    """Every QEMU of vmrun's on this host whose command line we may read."""
    place = os.fsencode(guests) + b"/"
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            arguments = (entry / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        words = [word.decode("utf-8", "replace") for word in arguments]
        name = next((m[1] for w in words if (m := _GUEST_NAME.fullmatch(w))), None)
        uuid = next((word for word in words if _UUID.fullmatch(word)), "")
        if name is not None and process.runs_guest(int(entry.name), uuid):
            below = any(place + name.encode() + b"/" in word for word in arguments)
            yield QemuProcess(int(entry.name), name, uuid, below)


def strays(guests: Path, known: frozenset[str]) -> tuple[Stray, ...]:
    """What there is of guests that are none of ``known``, the run ids that have a directory."""
    running = tuple(qemu_processes(guests))
    busy = known | {one.run_id for one in running}
    # Looked for once more: one that was claimed since ``known`` has its directory by now.
    lost = {
        one.run_id: one.uuid
        for one in running
        if one.below and one.run_id not in known and not (guests / one.run_id).exists()
    }
    found = []
    for run_id, uuid in lost.items():
        parts = (item.partition(" ") for item in remains(domain=f"vmrun-{run_id}", uuid=uuid))
        found += [Stray(kind, run_id, name, uuid) for kind, _, name in parts]
    for path in _cgroups():
        match = _CGROUP_NAME.fullmatch(path.name)
        if match and match[1] not in busy and _is_old(path) and not _populated(path):
            found.append(Stray("cgroup", match[1], str(path)))
    for path in memory_of("vmrun-").parent.glob("vmrun-*"):
        run_id = path.name.removeprefix("vmrun-")
        if re.fullmatch("[0-9a-f]{12}", run_id) and run_id not in busy and _is_old_and_ours(path):
            found.append(Stray("keys", run_id, str(path)))
    return tuple(found)


def remove_strays(found: Sequence[Stray]) -> tuple[tuple[str, Removed], ...]:
    """Remove them; says of each, by run id, whether it is gone."""
    removed = []
    for run_id, uuid in {stray.run_id: stray.uuid for stray in found if stray.uuid}.items():
        domain = f"vmrun-{run_id}"
        removed += [(run_id, item) for item in remove_remains(domain=domain, uuid=uuid)]
        left = remains(domain=domain, uuid=uuid)
        removed += [(run_id, Removed("leftover", item, gone=False)) for item in left]
    removed += [(stray.run_id, _remove(stray)) for stray in found if not stray.uuid]
    return tuple(removed)


def _remove(stray: Stray) -> Removed:
    path = Path(stray.name)
    if stray.kind == "keys":
        shutil.rmtree(path, ignore_errors=True)
    else:
        for below in (*sorted(path.rglob("*/"), reverse=True), path):
            with contextlib.suppress(OSError):
                below.rmdir()
    return Removed(stray.kind, stray.name, not path.exists())


def _cgroups() -> Iterator[Path]:
    for pattern in _PATTERNS:
        yield from _CGROUPS.glob(pattern)


def _populated(cgroup: Path) -> bool:
    """Whether a process is in it, or it cannot be found out."""
    try:
        return any(path.read_text().strip() for path in cgroup.rglob("cgroup.procs"))
    except OSError:
        return True


def _is_old(path: Path) -> bool:
    try:
        return time.time() - path.lstat().st_mtime > OLD
    except OSError:
        return False


def _is_old_and_ours(path: Path) -> bool:
    try:
        ours = path.lstat().st_uid == os.geteuid()
    except OSError:
        return False
    return ours and path.is_dir() and not path.is_symlink() and _is_old(path)
