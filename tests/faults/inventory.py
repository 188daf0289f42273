"""What vmrun has on this host: looked for everywhere where it could have left something."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from pathlib import Path

from vmrun.model.errors import StateError
from vmrun.run.directories import StateDirectories
from vmrun.supervisor.records import RUN_ID, Runs

_PROC = Path("/proc")
_CGROUPS = Path("/sys/fs/cgroup")
_PROGRAMS = (b"vmrun.supervisor", b"tests.faults.", b"vmrun.hypervisor.capabilities")


def leftovers(
    directories: StateDirectories,
    *,
    living: Collection[str] = (),
    others: Collection[str] = (),
    ids: Collection[str] = (),
) -> list[str]:
    """What is there besides the guests that are ``living`` and the ``others`` below ``guests``.
    ``ids`` are all runs there ever were."""
    root = directories.guests.parent
    return [
        *of_guests(directories, living=living, others=others),
        *_partial_files(root, living),
        *_mounts(root),
        *_block_devices(root),
        *(f"keys {path}" for i in ids if i not in living for path in _memory(i)),
        *(f"cgroup {path}" for i in ids if i not in living for path in _cgroups(i)),
    ]


def of_guests(
    directories: StateDirectories, *, living: Collection[str] = (), others: Collection[str] = ()
) -> list[str]:
    """Directories, records that claim to run, processes and sockets."""
    root = directories.guests.parent
    return [
        *_directories(directories.guests, {*living, *others}),
        *_records(directories.runs, living),
        *_processes(root, living),
        *_sockets(root, living),
    ]


def _directories(guests: Path, known: Collection[str]) -> Iterator[str]:
    if guests.is_dir():
        yield from (
            f"directory {path}"
            for path in guests.iterdir()
            if path.name not in known and not path.name.startswith(".lock")
        )


def _records(directory: Path, living: Collection[str]) -> Iterator[str]:
    if not directory.is_dir():
        return
    runs = Runs(directory)
    for path in directory.iterdir():
        if RUN_ID.fullmatch(path.name) is None:
            yield f"not a run: {path}"
            continue
        try:
            record = runs.read(path.name)
        except StateError as error:
            yield f"record: {error.message}"
            continue
        if record is None:
            yield f"folder without a record: {path}"
        elif record.guest in living:
            continue
        elif not record.ended:
            yield f"record of {path.name} says {record.state}"
        elif record.receipt is None and record.guest == record.run_id:
            yield f"record of {path.name} has no receipt"
        elif not record.detached or record.remove:
            yield f"record of {path.name} was to be removed"


def _partial_files(root: Path, living: Collection[str]) -> Iterator[str]:
    mine = {"bases", *living}
    for folder, names, files in os.walk(root):
        names[:] = [name for name in names if name not in mine]
        yield from (
            f"temporary {os.path.join(folder, name)}"
            for name in (*names, *files)
            if "partial" in name or name.startswith((".tmp", "tmp", ".unfinished"))
        )


def _processes(root: Path, living: Collection[str]) -> Iterator[str]:
    domains = tuple(f"guest=vmrun-{run_id},".encode() for run_id in living)
    for entry in _PROC.iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            command = (entry / "cmdline").read_bytes()
            words = command.replace(b"\0", b" ").decode(errors="replace")[:80]
            if b"qemu" in command and os.fsencode(root) + b"/" in command:
                if not any(domain in command for domain in domains):
                    yield f"qemu {entry.name}"
            elif _is_program(entry, command, root) and not _owns(entry, living):
                yield f"process {entry.name}: {words}"
        except OSError:
            continue


def _is_program(entry: Path, command: bytes, root: Path) -> bool:
    """Whether it is one of vmrun's that were started for this state directory."""
    if not any(program in command for program in _PROGRAMS):
        return False
    return b"VMRUN_STATE_DIR=" + os.fsencode(root) in (entry / "environ").read_bytes().split(b"\0")


def _owns(entry: Path, living: Collection[str]) -> bool:
    """Whether the process has the lock of a living guest's directory open."""
    for descriptor in (entry / "fd").iterdir():
        try:
            path = Path(os.readlink(descriptor))
        except OSError:
            continue
        if path.name == "owner" and path.parent.name in living:
            return True
    return False


def _sockets(root: Path, living: Collection[str]) -> Iterator[str]:
    for line in (_PROC / "net/unix").read_text(errors="replace").splitlines():
        path = line.split(" ")[-1]
        if path.startswith(f"{root}/") and not any(f"/{run_id}/" in path for run_id in living):
            yield f"socket {path}"


def _mounts(root: Path) -> Iterator[str]:
    for line in (_PROC / "self/mountinfo").read_text().splitlines():
        where = line.split(" ")[4]
        if where.startswith(f"{root}/"):
            yield f"mount {where}"


def _block_devices(root: Path) -> Iterator[str]:
    for path in Path("/sys/block").glob("loop*/loop/backing_file"):
        try:
            backing = path.read_text().strip()
        except OSError:
            continue
        if backing.startswith(f"{root}/"):
            yield f"loop device of {backing}"
    for path in Path("/sys/block").glob("dm-*/dm/name"):
        if "vmrun" in path.read_text():
            yield f"mapping {path.read_text().strip()}"


def _memory(run_id: str) -> Iterator[Path]:
    return Path("/dev/shm").glob(f"vmrun-{run_id}*")


def _cgroups(run_id: str) -> Iterator[Path]:
    for pattern in ("machine/qemu-*-vmrun-{}*", "*/machine/qemu-*-vmrun-{}*"):
        yield from _CGROUPS.glob(pattern.format(run_id))
