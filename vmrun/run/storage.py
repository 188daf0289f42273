"""The data of one run, from the host into its guest and back.

In the order of a run: :meth:`RunStorage.look` before it is planned, :meth:`RunStorage.prepare` and
:meth:`RunStorage.unlocked` around the guest's creation, :meth:`RunStorage.populate` before the
container starts, :meth:`RunStorage.collect` when it has ended. What is made registers its undo in
the run's teardown first, so that a volume is written out and given back however the run ends.

A run in its tenant's guest is not prepared: its volumes are in the guest already
(:mod:`vmrun.run.guest_volumes`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path

from vmrun.engine.pump import ErrorTail
from vmrun.engine.watchdog import Watchdog
from vmrun.model.errors import GuestError, StateError, VmrunError
from vmrun.model.plan import Plan
from vmrun.model.quantity import MIB
from vmrun.model.report import Removed
from vmrun.model.storage import Disk, HostDirectory
from vmrun.model.workload import Workload
from vmrun.planning import data
from vmrun.run.disks import GuestDisks
from vmrun.run.ports import Connection
from vmrun.run.state import GuestDirectory
from vmrun.run.teardown import Teardown
from vmrun.run.transfer import RELEASE_TIMEOUT, TRANSFER_TIMEOUT, last, let_go, send
from vmrun.volume.archive import ArchiveReader
from vmrun.volume.guest_mounts import (
    DiskMount,
    Room,
    collect_command,
    populate_command,
    release_command,
)
from vmrun.volume.pack import END, MAX_ENTRIES, Owner, measure, pack, pack_secrets
from vmrun.volume.secrets import SecretBytes, check_given, read_secrets
from vmrun.volume.store import VolumeStore
from vmrun.volume.undumped import leave_no_core_dump
from vmrun.volume.unpack import Unpacker


class RunStorage:
    """The data of one run. Everything that it needs to know of the host is read by :meth:`look`;
    secrets and keys are in its memory and nowhere else of the host's."""

    def __init__(self, workload: Workload, volumes: Path, *, note: Callable[[str], None]) -> None:
        self._storage = workload.storage
        self._store = VolumeStore(volumes, workload.tenant) if self._storage.volumes else None
        self._note = note
        self._secrets: tuple[SecretBytes, ...] = ()
        self._secret_pages = 0
        self._copied: list[int] = []
        self._disks: GuestDisks | None = None
        self._own: tuple[Disk, ...] = ()
        """The disks of the run's own guest."""
        self._mounted = False

    def look(
        self, directory: Path, *, given: Mapping[str, bytes] | None = None
    ) -> data.StorageFacts:
        """What planning must know for a guest whose own directory is ``directory``; nothing is
        made. ``given`` are the bytes of the secrets where another process has read them. Raises
        :class:`StateError` or :class:`UsageError` for what is not there."""
        leave_no_core_dump()
        for volume in self._storage.volumes:
            if self._store is not None:
                self._store.get(volume.name)
        if given is None:
            self._secrets = read_secrets(self._storage.secrets, os.environb, note=self._note)
        else:
            self._secrets = check_given(self._storage.secrets, given)
        self._copied = [
            measure(_source(item), data.in_pages, note=self._note)
            for item in self._storage.directories
        ]
        self._secret_pages = sum(data.in_pages(len(secret.data)) for secret in self._secrets)
        return data.StorageFacts(
            directory=directory, copied=sum(self._copied), secret=self._secret_pages
        )

    def secrets(self) -> dict[str, bytes]:
        """The bytes of each secret by name, as :meth:`look` has read them: for the process that
        brings them into the guest. None are left when :meth:`populate` has."""
        return {secret.name: secret.data for secret in self._secrets}

    def prepare(self, plan: Plan, directory: GuestDirectory, teardown: Teardown) -> None:
        """Take the volumes for this run, open them with their passphrases, and make the scratch
        disk. Raises :class:`StateError`, :class:`DeadlineExceeded`."""
        self._own = plan.guest.disks
        self._disks = GuestDisks(plan.guest, directory, teardown, note=self._note)
        if self._store is not None:
            found = [self._store.get(item.name) for item in self._storage.volumes]
            self._disks.take(list(zip(found, self._own, strict=False)))
        scratch = data.scratch_disk(self._own)
        if scratch is not None and self._storage.scratch is not None:
            self._disks.make_scratch(scratch, self._storage.scratch)

    def unlocked(self) -> AbstractContextManager[None]:
        """Let the hypervisor, which is open, know the keys while it creates the guest."""
        return self._disks.unlocked() if self._disks is not None else nullcontext()

    def populate(self, plan: Plan, connection: Connection, teardown: Teardown) -> int:
        """Mount the disks in the guest, send the secrets and copy the host directories; returns
        the bytes sent. Raises :class:`StateError`, :class:`GuestError`, :class:`ChannelError`."""
        if self._disks is not None:
            self._disks.forget()
        if not plan.container.binds:
            return 0
        container = plan.container
        shared = () if self._own else data.shared_volumes(self._storage, plan.run_id)
        self._mounted = True
        teardown.add("data in the guest", lambda: self._save(plan, connection))
        command = populate_command(
            data.data_directory(plan.run_id),
            self._rooms(plan),
            self._disk_mounts(plan),
            container.binds,
            uid=container.uid,
            gid=container.gid,
            shared=shared,
        )
        try:
            return send(
                connection, command, self._archive(plan, Owner(container.uid, container.gid))
            )
        finally:
            self._secrets = ()

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
        if self._secret_pages:
            room = self._secret_pages + MIB // 4
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
                f"the guest did not send all of its data back: {last(errors, status)}",
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
        command = release_command(self._rooms(plan), self._disk_mounts(plan), plan.container.binds)
        return (let_go(connection, command, "data in the guest"),)

    def _disk_mounts(self, plan: Plan) -> list[DiskMount]:
        executable = {bind.source for bind in plan.container.binds if bind.executable}
        mounts = []
        for disk in self._own:
            content = data.disk_content(plan.run_id, disk.serial)
            at = data.mount_point(plan.run_id, disk.serial)
            mounts.append(
                DiskMount(disk.serial, at, content, disk.read_only, content in executable)
            )
        return mounts


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
