"""The named volumes of a tenant's guest: all that the tenant has when it starts, mounted once, and
bound by each container that asks for them (:class:`vmrun.run.storage.RunStorage`)."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from vmrun.model.errors import StateError, VmrunError
from vmrun.model.plan import GuestPlan
from vmrun.model.report import Removed
from vmrun.planning import data
from vmrun.run.disks import GuestDisks
from vmrun.run.ports import Connection
from vmrun.run.state import GuestDirectory
from vmrun.run.teardown import Teardown
from vmrun.run.transfer import let_go, send
from vmrun.volume.guest_mounts import DiskMount, mount_command, release_command
from vmrun.volume.store import VolumeStore
from vmrun.volume.undumped import leave_no_core_dump


class GuestVolumes:
    """In the order of a guest: :meth:`prepare` and :meth:`unlocked` around its creation,
    :meth:`mount` when it is up. Its teardown writes them out and gives them back."""

    def __init__(
        self, plan: GuestPlan, tenant: str, volumes: Path, *, note: Callable[[str], None]
    ) -> None:
        self._plan = plan
        self._store = VolumeStore(volumes, tenant)
        self._note = note
        self._disks: GuestDisks | None = None
        self._names: dict[str, str] = {}

    def prepare(self, directory: GuestDirectory, teardown: Teardown) -> None:
        """Take the volumes for this guest and open each with its own passphrase. Raises
        :class:`StateError` and :class:`DeadlineExceeded`, which name the volume."""
        if not self._plan.disks:
            return
        leave_no_core_dump()
        found = {data.volume_serial(volume.name): volume for volume in self._store.list()}
        volumes = []
        for disk in self._plan.disks:
            if disk.serial not in found:
                raise StateError(
                    f"a volume of tenant {self._store.tenant!r} was removed just now",
                    hint="start its guest again",
                )
            volumes.append((found[disk.serial], disk))
        self._names = {disk.serial: volume.name for volume, disk in volumes}
        self._disks = GuestDisks(self._plan, directory, teardown, note=self._note)
        self._disks.take(volumes)

    def unlocked(self) -> AbstractContextManager[None]:
        """Let the hypervisor, which is open, know the keys while it creates the guest."""
        return self._disks.unlocked() if self._disks is not None else nullcontext()

    def mount(self, connection: Connection, teardown: Teardown) -> None:
        """Mount them in the guest. Raises :class:`GuestError`, which names the volume."""
        if self._disks is None:
            return
        self._disks.forget()
        teardown.add("volumes in the guest", lambda: self._release(connection))
        command = mount_command(
            data.data_directory(data.TENANT_VOLUMES),
            {self._names[mount.serial]: mount for mount in self._mounts()},
        )
        send(connection, command, ())

    def _release(self, connection: Connection) -> tuple[Removed, ...]:
        """As well as can be: the mounts go with the guest in any case."""
        command = release_command((), self._mounts(), ())
        try:
            removed = let_go(connection, command, "volumes in the guest")
        except VmrunError as error:
            self._note(f"volumes were not written out: {error.message}")
            return ()
        if not removed.gone:
            self._note(f"volumes were not written out: {removed.name}")
            return ()
        return (removed,)

    def _mounts(self) -> list[DiskMount]:
        at, content = data.mount_point, data.disk_content
        where = data.TENANT_VOLUMES
        return [
            DiskMount(
                disk.serial,
                at(where, disk.serial),
                content(where, disk.serial),
                read_only=False,
                executable=False,
            )
            for disk in self._plan.disks
        ]
