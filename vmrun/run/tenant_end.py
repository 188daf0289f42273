"""Tenants' guests stopped, and tenants removed with all that they have."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

from vmrun.hypervisor.remains import remains
from vmrun.journal.journal import Journal
from vmrun.model.errors import StateError, VmrunError
from vmrun.model.report import Receipt, Removed
from vmrun.model.tenant import DEFAULT_TENANT
from vmrun.run.directories import StateDirectories
from vmrun.run.intent import Intent
from vmrun.run.owner import ask_owner
from vmrun.run.shares import taken
from vmrun.run.state import alive, take
from vmrun.run.teardown import remove_guest
from vmrun.run.tenant import TenantOptions, shared_guest
from vmrun.supervisor.client import request
from vmrun.supervisor.records import Runs
from vmrun.tenant.store import TenantStore
from vmrun.volume.store import VolumeStore

STOP_TIMEOUT = 240.0
"""Seconds for all containers to end, each with its own patience, and the guest after them."""

_POLL = 0.1


def stop(name: str, options: TenantOptions, *, timeout: float = STOP_TIMEOUT) -> Receipt:
    """End the guest of a tenant with all that runs in it; what is gone is looked at afterwards.

    Raises :class:`StateError` when it does not run, or does not end in ``timeout`` seconds.
    """
    directories = options.directories
    TenantStore(directories.tenants).get(name)
    intent = shared_guest(directories, name)
    if intent is None:
        raise StateError(
            f"the guest of tenant {name!r} does not run", hint=f"vmrun tenant start {name}"
        )
    return _stop(name, intent, directories, timeout)


def _stop(name: str, intent: Intent, directories: StateDirectories, timeout: float) -> Receipt:
    Journal(directories.journal).append(
        "tenant.stop", {"tenant": name, "guest": intent.run_id, "name": intent.name}
    )
    runs = Runs(directories.runs)
    inside = [
        record
        for record in runs.all(on_damage=lambda _: None)
        if record.guest == intent.run_id and not record.ended
    ]
    volumes = VolumeStore(directories.volumes, name)
    lent = _lent(volumes, intent)
    removed = list(_end(intent, directories, timeout))
    still = _lent(volumes, intent)
    removed += [Removed("volume lock", volume, gone=volume not in still) for volume in lent]
    for record in inside:
        last = runs.read(record.run_id)
        removed.insert(0, Removed("container", record.name, gone=last is None or last.ended))
    return Receipt(tuple(removed))


def _lent(volumes: VolumeStore, intent: Intent) -> tuple[str, ...]:
    """The volumes that a guest has. One that cannot be read does not keep a guest from ending."""
    try:
        return tuple(v.name for v in volumes.list() if v.in_use_by == intent.run_id)
    except StateError:
        return ()


def _end(intent: Intent, directories: StateDirectories, timeout: float) -> tuple[Removed, ...]:
    """End a guest, whoever owns it, and look whether it has gone."""
    path = directories.guests / intent.run_id
    if intent.kept_until > time.time():
        return remove_guest(take(path, intent))
    try:
        request(path, "end")
    except StateError:
        # It is only being made, or its owner does not answer: the signal means the same.
        ask_owner(path, intent.owner)
    deadline = time.monotonic() + timeout
    while any(other.run_id == intent.run_id for other in alive(directories)):
        if time.monotonic() > deadline:
            raise StateError(
                f"guest {intent.run_id} does not end: process {intent.owner} still owns it",
                hint=f"kill that process; its guest ends with its lease: kill -9 {intent.owner}",
            )
        time.sleep(_POLL)
    left = remains(domain=intent.domain, uuid=intent.uuid)
    return (
        Removed("domain", intent.domain, gone=not left),
        *(Removed("leftover", item, gone=False) for item in left),
        Removed("directory", str(path), gone=not path.exists()),
    )


def remove(name: str, options: TenantOptions, *, force: bool, volumes: bool) -> Receipt:
    """Remove a tenant and all that it has; ``force`` ends guests that run, ``volumes`` deletes
    its named volumes and what is in them.

    Raises :class:`StateError` for a tenant that has one of these without leave to remove it.
    """
    directories = options.directories
    store = TenantStore(directories.tenants)
    _must_be_removable(name, store, force=force)
    found = VolumeStore(directories.volumes, name)
    if found.list() and not volumes:
        names = ", ".join(volume.name for volume in found.list()[:5])
        raise StateError(
            f"tenant {name!r} has volumes: {names}",
            hint=f"delete them, too: vmrun tenant rm --volumes {name}",
        )
    living = [i for i in alive(directories) if i.tenant == name and not i.guest]
    if living and not force:
        raise StateError(
            f"tenant {name!r} has guests that run: {', '.join(i.name for i in living[:5])}",
            hint=f"vmrun tenant stop {name}, or vmrun tenant rm --force {name}",
        )
    removed: list[Removed] = []
    for intent in living:
        if intent.shared:
            removed += _stop(name, intent, directories, STOP_TIMEOUT).removed
        else:
            removed += _end(intent, directories, STOP_TIMEOUT)
    with store.locked():
        if taken(directories, name):
            raise StateError(f"tenant {name!r} has just started a guest", hint="try again")
        Journal(directories.journal).append(
            "tenant.rm", {"tenant": name, "volumes": str(volumes).lower()}
        )
        removed += _records(name, directories)
        removed += _volumes(found, directories.volumes / name)
        removed.append(Removed("tenant", name, gone=store.remove(name)))
    return Receipt(tuple(removed))


def _must_be_removable(name: str, store: TenantStore, *, force: bool) -> None:
    if name == DEFAULT_TENANT:
        raise StateError(f"tenant {name!r} cannot be removed", hint="see 'vmrun rm'")
    try:
        store.get(name)
    except StateError:
        # One whose file is damaged can be removed, if that is what is wanted.
        if not (force and store.exists(name)):
            raise


def _records(name: str, directories: StateDirectories) -> list[Removed]:
    runs = Runs(directories.runs)
    return [
        Removed("record", record.name, gone=runs.remove(record.run_id))
        for record in runs.all(on_damage=lambda _: None)
        if record.tenant == name
    ]


def _volumes(store: VolumeStore, directory: Path) -> list[Removed]:
    removed = []
    for volume in store.list():
        try:
            store.remove(volume.name)
        except VmrunError as error:
            removed.append(Removed("volume", f"{volume.name}: {error.message}", gone=False))
        else:
            removed.append(Removed("volume", volume.name, gone=True))
    if all(item.gone for item in removed):
        shutil.rmtree(directory, ignore_errors=True)
    return removed
