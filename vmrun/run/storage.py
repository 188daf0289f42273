"""The data of one run, from the host into its guest and back.

In the order of a run: :meth:`RunStorage.look` before it is planned, :meth:`RunStorage.prepare` and
:meth:`RunStorage.unlocked` around the guest's creation, :meth:`RunStorage.populate` before the
container starts, :meth:`RunStorage.collect` when it has ended. What is made registers its undo in
the run's teardown first, so that a volume is written out and given back however the run ends.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

from vmrun.engine.pump import ErrorTail
from vmrun.engine.watchdog import Watchdog
from vmrun.hypervisor.secrets import keep_root_in_memory, unlocked
from vmrun.model.errors import ChannelError, GuestError, StateError, VmrunError
from vmrun.model.plan import EMBEDDED, Plan
from vmrun.model.quantity import MIB
from vmrun.model.report import Removed
from vmrun.model.storage import Disk, HostDirectory
from vmrun.model.workload import Workload
from vmrun.planning import data
from vmrun.run.ports import Connection, RemoteProcess
from vmrun.run.state import GuestDirectory
from vmrun.run.teardown import Teardown
from vmrun.volume.archive import ArchiveReader
from vmrun.volume.guest_mounts import (
    DiskMount,
    Room,
    collect_command,
    populate_command,
    release_command,
)
from vmrun.volume.luks import check_disk, create_disk
from vmrun.volume.pack import END, MAX_ENTRIES, Owner, measure, pack, pack_secrets
from vmrun.volume.passphrase import read_passphrase
from vmrun.volume.secrets import SecretBytes, read_secrets
from vmrun.volume.store import HeldVolume, VolumeStore
from vmrun.volume.unpack import Unpacker

TRANSFER_TIMEOUT = 900.0
RELEASE_TIMEOUT = 60.0
_SCRATCH_KEY_BYTES = 32


class RunStorage:
    """The data of one run. Everything that it needs to know of the host is read by :meth:`look`;
    secrets and keys are in its memory and nowhere else of the host's."""

    def __init__(self, workload: Workload, volumes: Path, *, note: Callable[[str], None]) -> None:
        self._storage = workload.storage
        self._store = VolumeStore(volumes, workload.tenant) if self._storage.volumes else None
        self._note = note
        self._secrets: tuple[SecretBytes, ...] = ()
        self._copied: list[int] = []
        self._keys: dict[str, bytes] = {}
        self._mounted = False

    def look(self, directory: Path) -> data.StorageFacts:
        """What planning must know for a guest whose own directory is ``directory``; nothing is
        made. Raises :class:`StateError` or :class:`UsageError` for what is not there."""
        for volume in self._storage.volumes:
            if self._store is not None:
                self._store.get(volume.name)
        self._secrets = read_secrets(self._storage.secrets, os.environb, note=self._note)
        self._copied = [
            measure(_source(item), data.in_pages, note=self._note)
            for item in self._storage.directories
        ]
        return data.StorageFacts(
            directory=directory,
            copied=sum(self._copied),
            secret=sum(data.in_pages(len(secret.data)) for secret in self._secrets),
        )

    def prepare(self, plan: Plan, directory: GuestDirectory, teardown: Teardown) -> None:
        """Take the volumes for this run, open them with their passphrases, and make the scratch
        disk. Raises :class:`StateError`, :class:`DeadlineExceeded`."""
        disks = plan.guest.disks
        if disks and plan.host.connect == EMBEDDED:
            # Whatever is left of a guest is removed with its directory, and this with it.
            keep_root_in_memory(directory.hypervisor_root, plan.guest.name)
        scratch = data.scratch_disk(disks)
        for volume, disk in zip(self._storage.volumes, disks, strict=False):
            self._take(volume.name, disk, plan, teardown)
        if scratch is not None and self._storage.scratch is not None:
            key = secrets.token_hex(_SCRATCH_KEY_BYTES).encode()
            teardown.add("scratch disk", lambda: _delete("scratch disk", scratch.path))
            create_disk(scratch.path, self._storage.scratch, key, guessable=False)
            _give(scratch.path, _qemu_user(plan))
            self._keys[scratch.secret] = key

    def _take(self, name: str, disk: Disk, plan: Plan, teardown: Teardown) -> None:
        if self._store is None:
            raise StateError(f"there is no volume {name!r}")
        volume = self._store.get(name)
        held = HeldVolume.take(volume, plan.run_id)
        teardown.add("volume", lambda: _give_back(held, disk.path))
        key = read_passphrase(volume.passphrase_file, volume.passphrase_command, note=self._note)
        check_disk(held.disk, key)
        held.lend(disk.path, _qemu_user(plan))
        self._keys[disk.secret] = key

    def unlocked(self, plan: Plan, directory: GuestDirectory) -> AbstractContextManager[None]:
        """Let the hypervisor, which is open, know the keys while it creates the guest."""
        return unlocked(plan.host.connect, directory.hypervisor_root, self._keys)

    def populate(self, plan: Plan, connection: Connection, teardown: Teardown) -> int:
        """Mount the disks in the guest, send the secrets and copy the host directories; returns
        the bytes sent. Raises :class:`StateError`, :class:`GuestError`, :class:`ChannelError`."""
        self._keys.clear()
        if not plan.container.binds:
            return 0
        container = plan.container
        rooms, disks = self._rooms(plan), _disk_mounts(plan)
        self._mounted = True
        teardown.add("data in the guest", lambda: self._save(plan, connection))
        command = populate_command(
            data.data_directory(plan.run_id),
            rooms,
            disks,
            container.binds,
            uid=container.uid,
            gid=container.gid,
        )
        return _send(connection, command, self._archive(plan, Owner(container.uid, container.gid)))

    def _archive(self, plan: Plan, owner: Owner) -> Iterator[bytes]:
        below = data.data_directory(plan.run_id) + "/"
        if self._secrets:
            name = data.secrets_directory(plan.run_id).removeprefix(below)
            yield from pack_secrets(self._secrets, name, owner)
        copies = data.copies_directory(plan.run_id).removeprefix(below)
        for index, item in enumerate(self._storage.directories):
            limit = self._copied[index]
            yield from pack(_source(item), f"{copies}/{data.copy_name(index)}", owner, limit)
        yield END

    def _rooms(self, plan: Plan) -> list[Room]:
        rooms = []
        if self._storage.directories:
            # What the workload adds is counted against its own memory.
            written = any(not item.read_only for item in self._storage.directories)
            room = sum(self._copied) + (plan.container.limits.memory if written else 0) + MIB
            rooms.append(Room(data.copies_directory(plan.run_id), room))
        if self._secrets:
            room = sum(data.in_pages(len(secret.data)) for secret in self._secrets) + MIB // 4
            rooms.append(Room(data.secrets_directory(plan.run_id), room, secret=True))
        return rooms

    def collect(self, plan: Plan, connection: Connection) -> tuple[Removed, ...]:
        """Copy what may be written back to the host, write the disks out and unmount them; once,
        when the workload has ended. Raises :class:`GuestError` for what the guest must not send,
        :class:`StateError` for what the host cannot take."""
        changed = [
            (index, item)
            for index, item in enumerate(self._storage.directories)
            if not item.read_only
        ]
        if changed:
            self._copy_back(plan, connection, changed)
        removed = self._release(plan, connection)
        for item in removed:
            if not item.gone:
                raise GuestError(
                    f"the data in the guest was not written out: {item.name}",
                    hint="what the workload wrote last may be missing",
                )
        return removed

    def _copy_back(
        self, plan: Plan, connection: Connection, changed: list[tuple[int, HostDirectory]]
    ) -> None:
        names = [data.copy_name(index) for index, _ in changed]
        command = collect_command(data.copies_directory(plan.run_id), names)
        most = sum(self._copied) + plan.container.limits.memory + MIB
        process = connection.execute(command)
        errors = ErrorTail(process.read_error)
        with (
            Watchdog(TRANSFER_TIMEOUT, process.close, "the guest did not send its data back"),
            ExitStack() as stack,
        ):
            stack.callback(process.close)
            process.close_stdin()
            archive = ArchiveReader(process.read, max_bytes=most, max_entries=MAX_ENTRIES)
            places = {str(index): _Place(item, stack) for index, item in changed}
            left_out = 0
            for entry in archive.entries():
                place = places.get(entry.parts[0])
                if place is None or entry.parts[1:2] != ("content",):
                    raise GuestError(f"the guest sent back {'/'.join(entry.parts)[:80]!r}")
                if not place.unpacker.put(place.path(entry.parts[2:]), entry, archive):
                    left_out += 1
            for place in places.values():
                place.unpacker.finish()
            status = process.wait(RELEASE_TIMEOUT)
        if left_out:
            self._note(f"{left_out} FIFOs were not copied back")
        if status != 0:
            raise GuestError(
                f"the guest did not send all of its data back: {_last(errors, status)}",
                hint="what came was copied; nothing was deleted",
            )

    def _save(self, plan: Plan, connection: Connection) -> tuple[Removed, ...]:
        """Before a guest is destroyed, as well as can be: its mounts go with it in any case."""
        try:
            removed = self._release(plan, connection)
        except VmrunError as error:
            self._note(f"the data in the guest was not written out: {error.message}")
            return ()
        for item in removed:
            if not item.gone:
                self._note(f"the data in the guest was not written out: {item.name}")
        return tuple(item for item in removed if item.gone)

    def _release(self, plan: Plan, connection: Connection) -> tuple[Removed, ...]:
        if not self._mounted:
            return ()
        self._mounted = False
        disks = _disk_mounts(plan)
        command = release_command(self._rooms(plan), disks, plan.container.binds)
        process = connection.execute(command)
        errors = ErrorTail(process.read_error)
        try:
            process.close_stdin()
            status = process.wait(RELEASE_TIMEOUT)
        finally:
            process.close()
        what = "data in the guest" if status == 0 else _last(errors, status)
        return (Removed("mounts", what, gone=status == 0),)


class _Place:
    """Where on the host one host directory's content goes."""

    def __init__(self, item: HostDirectory, stack: ExitStack) -> None:
        source = _source(item)
        self._file = source.name if not source.is_dir() else ""
        self.unpacker = Unpacker(source.parent if self._file else source)
        stack.callback(self.unpacker.close)

    def path(self, parts: tuple[str, ...]) -> tuple[str, ...]:
        """Below the unpacker's directory."""
        if not self._file:
            return parts
        if parts:
            raise GuestError(f"the guest sent back a directory in place of {self._file!r}")
        return (self._file,)


def _source(item: HostDirectory) -> Path:
    """What the user named, links resolved: what is in it is not followed any more."""
    try:
        return item.source.resolve(strict=True)
    except (OSError, RuntimeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "too many links"
        raise StateError(
            f"--volume {item.source}: {reason}", hint="name a directory or file that exists"
        ) from None


def _disk_mounts(plan: Plan) -> list[DiskMount]:
    executable = {bind.source for bind in plan.container.binds if bind.executable}
    mounts = []
    for disk in plan.guest.disks:
        content = data.disk_content(plan.run_id, disk.serial)
        at = data.mount_point(plan.run_id, disk.serial)
        mounts.append(DiskMount(disk.serial, at, content, disk.read_only, content in executable))
    return mounts


def _send(connection: Connection, command: str, chunks: Iterable[bytes]) -> int:
    process = connection.execute(command)
    errors = ErrorTail(process.read_error)
    moved = 0
    try:
        with Watchdog(TRANSFER_TIMEOUT, process.close, "the data did not get into the guest"):
            try:
                for chunk in chunks:
                    process.write(chunk)
                    moved += len(chunk)
                process.close_stdin()
            except ChannelError as error:
                raise _refused(process, errors) from error
            status = process.wait(TRANSFER_TIMEOUT)
    finally:
        process.close()
    if status != 0:
        raise _failure(errors, status)
    return moved


def _refused(process: RemoteProcess, errors: ErrorTail) -> VmrunError:
    """It ended before all was sent; why it says itself."""
    try:
        return _failure(errors, process.wait(RELEASE_TIMEOUT))
    except VmrunError as error:
        return error


def _failure(errors: ErrorTail, status: int) -> GuestError:
    said = _last(errors, status)
    hint = "see 'vmrun volume inspect' for the volume, 'vmrun plan' for the guest's memory"
    if "mounting" in said and "Read-only file system" in said:
        # ext4 on a disk that cannot be written to, with a journal that has to be.
        hint = "use the volume once read-write: its last guest was killed, and its journal waits"
    return GuestError(f"the guest cannot take its data: {said}", hint=hint, details=errors.text())


def _last(errors: ErrorTail, status: int) -> str:
    lines = errors.text().splitlines() or [f"exit status {status}"]
    return lines[-1].removeprefix("vmrun-guest: ")[:300]


def _qemu_user(plan: Plan) -> tuple[int, int] | None:
    uid, gid = plan.guest.qemu_uid, plan.guest.qemu_gid
    return None if uid is None or gid is None else (uid, gid)


def _give(path: Path, owner: tuple[int, int] | None) -> None:
    if owner is None:
        return
    try:
        os.chown(path, *owner)
    except OSError as error:
        raise StateError(
            f"QEMU's user cannot be given {path}: {error.strerror}",
            hint="with a daemon run vmrun as root, or leave --connect out",
        ) from error


def _give_back(held: HeldVolume, path: Path) -> tuple[Removed, ...]:
    gone = _delete("disk", path)
    return (*gone, Removed("volume lock", held.volume.name, gone=held.release()))


def _delete(kind: str, path: Path) -> tuple[Removed, ...]:
    path.unlink(missing_ok=True)
    return (Removed(kind, path.name, gone=not path.exists()),)
