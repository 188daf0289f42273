"""The encrypted disks of one guest on the host: taken and opened before it is created, given back
when it has ended. Their keys are in this process's memory until it has been created."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

from vmrun.hypervisor.secrets import keep_root_in_memory, unlocked
from vmrun.model.errors import StateError, VmrunError
from vmrun.model.plan import EMBEDDED, GuestPlan
from vmrun.model.report import Removed
from vmrun.model.storage import Disk, Volume
from vmrun.run.state import GuestDirectory
from vmrun.run.teardown import Teardown
from vmrun.volume.luks import check_disk, create_disk
from vmrun.volume.passphrase import read_passphrase
from vmrun.volume.store import HeldVolume

_SCRATCH_KEY_BYTES = 32


class GuestDisks:
    """The disks of the guest ``plan``. What is taken registers its undo in ``teardown`` first, so
    that it is given back however the guest ends."""

    def __init__(
        self,
        plan: GuestPlan,
        directory: GuestDirectory,
        teardown: Teardown,
        *,
        note: Callable[[str], None],
    ) -> None:
        self._plan = plan
        self._directory = directory
        self._teardown = teardown
        self._note = note
        self._keys: dict[str, bytes] = {}
        if plan.disks and directory.intent.connect == EMBEDDED:
            # Whatever is left of a guest is removed with its directory, and this with it.
            keep_root_in_memory(directory.hypervisor_root, plan.name)

    def take(self, volumes: Sequence[tuple[Volume, Disk]]) -> None:
        """Hold the volumes for this guest alone, and see that their passphrases open them.

        Raises :class:`StateError` and :class:`DeadlineExceeded`, which name the volume.
        """
        taken = []
        for volume, disk in volumes:
            held = HeldVolume.take(volume, self._directory.intent.run_id)
            self._teardown.add("volume", partial(_give_back, held, disk.path))
            taken.append((held, disk, self._passphrase(volume)))
        _open_all([(held, key) for held, _, key in taken])
        for held, disk, key in taken:
            held.lend(disk.path, self._owner())
            self._keys[disk.secret] = key

    def make_scratch(self, disk: Disk, size: int) -> None:
        """Make a disk of ``size`` bytes with a key of its own. Raises :class:`StateError`,
        :class:`DeadlineExceeded`."""
        key = secrets.token_hex(_SCRATCH_KEY_BYTES).encode()
        self._teardown.add("scratch disk", lambda: _delete("scratch disk", disk.path))
        create_disk(disk.path, size, key, guessable=False, journal=False)
        _give(disk.path, self._owner())
        self._keys[disk.secret] = key

    def unlocked(self) -> AbstractContextManager[None]:
        """Let the hypervisor, which is open, know the keys while it creates the guest."""
        return unlocked(self._directory.intent.connect, self._directory.hypervisor_root, self._keys)

    def forget(self) -> None:
        """Let go of the keys: the guest has been created."""
        self._keys.clear()

    def _passphrase(self, volume: Volume) -> bytes:
        try:
            return read_passphrase(
                volume.passphrase_file, volume.passphrase_command, note=self._note
            )
        except VmrunError as error:
            raise _of_volume(volume, error) from error

    def _owner(self) -> tuple[int, int] | None:
        uid, gid = self._plan.qemu_uid, self._plan.qemu_gid
        return None if uid is None or gid is None else (uid, gid)


def _open_all(disks: Sequence[tuple[HeldVolume, bytes]]) -> None:
    """Some at a time: to derive a key takes one processor two seconds."""
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        opening = [pool.submit(_open, held, key) for held, key in disks]
        try:
            for future in opening:
                future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _open(held: HeldVolume, key: bytes) -> None:
    try:
        check_disk(held.disk, key)
    except VmrunError as error:
        raise _of_volume(held.volume, error) from error


def _of_volume(volume: Volume, error: VmrunError) -> VmrunError:
    return type(error)(
        f"volume {volume.name!r}: {error.message}", hint=error.hint, details=error.details
    )


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
