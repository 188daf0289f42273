"""Directories of containers that have no guest of their own: inside that of a tenant's guest."""

from __future__ import annotations

import fcntl
import os
import shutil
from pathlib import Path

from vmrun.model.errors import StateError
from vmrun.run.intent import Intent, read_intent, write_intent
from vmrun.run.state import OWNER, RUN_ID, GuestDirectory, containers_of, is_owned, unusable


class ContainerDirectory(GuestDirectory):
    """The directory of a container that has no guest of its own, inside that of its tenant's guest,
    which takes it along when it is removed. It is there as long as anybody holds its lock: the
    command that decides about the run, then the owner of the guest."""


def claim_container(guest: Path, intent: Intent) -> ContainerDirectory:
    """Make the directory of one more container in the tenant's guest at ``guest``.

    Raises :class:`StateError` when it cannot be made, as when that guest has ended.
    """
    place = containers_of(guest)
    partial = place / f".{intent.run_id}"
    try:
        place.mkdir(mode=0o700, exist_ok=True)
        partial.mkdir(mode=0o700)
        lock = _hold(partial)
        write_intent(partial, intent)
        path = partial.rename(place / intent.run_id)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise unusable(place, error) from error
    return ContainerDirectory(path, intent, lock)


def hold_container(guest: Path, run_id: str) -> ContainerDirectory:
    """Hold the directory that :func:`claim_container` has made, so that it stays. Raises
    :class:`StateError` when there is none."""
    path = containers_of(guest) / run_id
    intent = read_intent(path) if RUN_ID.fullmatch(run_id) else None
    if intent is None:
        raise StateError(f"run {run_id[:40]!r} has no directory in guest {guest.name}")
    try:
        return ContainerDirectory(path, intent, _hold(path))
    except OSError as error:
        raise unusable(path, error) from error


def sweep_containers(guest: Path) -> None:
    """Delete the directories of containers that nobody holds (any more)."""
    place = containers_of(guest)
    if not place.is_dir():
        return
    for path in place.iterdir():
        if RUN_ID.fullmatch(path.name) and not is_owned(path):
            shutil.rmtree(path, ignore_errors=True)


def _hold(path: Path) -> int:
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    descriptor = os.open(path / OWNER, flags, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    return descriptor
