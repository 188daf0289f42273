"""Teardown: every undo is registered before what it undoes is made, and absence is checked."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from pathlib import Path

from vmrun.hypervisor.remains import remains, remove_remains
from vmrun.model.errors import HypervisorError, VmrunError
from vmrun.model.plan import EMBEDDED
from vmrun.model.report import Receipt, Removed
from vmrun.run.state import GuestDirectory, Intent, StateDirectories, orphans

Undo = Callable[[], Iterable[Removed]]


class Teardown:
    """Undoes in reverse order; one that fails does not keep the others from running."""

    def __init__(self) -> None:
        self._undos: list[tuple[str, Undo]] = []

    def add(self, what: str, undo: Undo) -> None:
        """Register ``undo`` for ``what``, which is about to be made."""
        self._undos.append((what, undo))

    def run(self) -> tuple[Removed, ...]:
        """Undo everything; an undo that failed is reported as not gone."""
        removed: list[Removed] = []
        while self._undos:
            what, undo = self._undos.pop()
            try:
                removed.extend(undo())
            except (VmrunError, OSError) as error:
                removed.append(Removed(what, str(error), gone=False))
        return tuple(removed)


def remove_guest(directory: GuestDirectory) -> tuple[Removed, ...]:
    """Remove whatever is left of a guest, its directory last, and give up its ownership.

    The directory stays when something else could not be removed, so that the next command
    finds it and tries again.
    """
    intent = directory.intent
    if intent.connect != EMBEDDED:
        _ask_daemon(intent)
    removed = list(remove_remains(domain=intent.domain, uuid=intent.uuid))
    left = remains(domain=intent.domain, uuid=intent.uuid)
    removed.extend(Removed("leftover", item, gone=False) for item in left)
    if not left:
        removed.append(Removed("directory", str(directory.path), gone=directory.remove()))
    directory.release()
    return tuple(removed)


def _ask_daemon(intent: Intent) -> None:
    """Let the daemon end its own guest: a plain user cannot kill that QEMU. Whether it is gone
    is read from the kernel afterwards, so a daemon that does not answer is no error here."""
    from vmrun.hypervisor.guest import GuestIdentifiers, Hypervisor

    with contextlib.suppress(HypervisorError):
        hypervisor = Hypervisor.open(intent.connect, root=Path(), cache=Path())
        hypervisor.destroy_leftover(GuestIdentifiers(intent.domain, intent.uuid))


def reclaim(directories: StateDirectories) -> tuple[tuple[str, Receipt], ...]:
    """Remove what dead runs left; one receipt for each, by run id."""
    return tuple(
        (directory.intent.run_id, Receipt(remove_guest(directory)))
        for directory in orphans(directories)
    )
