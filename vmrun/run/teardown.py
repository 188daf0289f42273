"""Teardown: every undo is registered before what it undoes is made, and absence is checked."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

from vmrun.hypervisor.remains import remains, remove_remains
from vmrun.model.errors import HypervisorError, VmrunError
from vmrun.model.plan import EMBEDDED
from vmrun.model.report import Receipt, Removed
from vmrun.run.directories import StateDirectories
from vmrun.run.intent import Intent
from vmrun.run.state import GuestDirectory, orphans

_KEYS = ("key", "known_hosts")

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


def remove_guest(
    directory: GuestDirectory, *, before_the_last: Callable[[], None] = lambda: None
) -> tuple[Removed, ...]:
    """Remove whatever is left of a guest, its directory last, and give up its ownership.

    The directory stays when something else could not be removed, so that the next command
    finds it and tries again. ``before_the_last`` is called when only the directory remains to be
    removed, with all but its intent gone: what it raises keeps it, too, and is raised.
    """
    intent = directory.intent
    try:
        if intent.connect != EMBEDDED:
            _ask_daemon(intent)
        removed = list(remove_remains(domain=intent.domain, uuid=intent.uuid))
        left = remains(domain=intent.domain, uuid=intent.uuid)
        removed.extend(Removed("leftover", item, gone=False) for item in left)
        if not left:
            made = _contents(directory)
            directory.clear()
            before_the_last()
            gone = directory.remove()
            removed.extend(_proved(kind, paths) for kind, paths in made)
            removed.append(Removed("directory", str(directory.path), gone=gone))
    finally:
        directory.release()
    return tuple(removed)


def _contents(directory: GuestDirectory) -> list[tuple[str, list[Path]]]:
    """What a receipt names of a guest's directory, by kind."""
    try:
        paths = sorted(directory.path.iterdir())
        sockets = [path for path in paths if path.is_socket()]
    except OSError:
        return []
    keys = [path for path in paths if path.name in _KEYS]
    root = [path for path in paths if path == directory.hypervisor_root]
    kinds = (("domain root", root), ("sockets", sockets), ("keys", keys))
    return [(kind, found) for kind, found in kinds if found]


def _proved(kind: str, paths: list[Path]) -> Removed:
    """Whether none of them is there, and nobody listens on one that is not there any more."""
    gone = not any(os.path.lexists(path) for path in paths)
    if kind == "sockets":
        gone = gone and not _bound(paths)
    return Removed(kind, " ".join(path.name for path in paths), gone)


def _bound(paths: list[Path]) -> bool:
    """Whether a process holds a socket of one of these names (/proc/net/unix, proc(5)); not if the
    kernel does not say: the processes are proved to be gone one by one."""
    try:
        lines = Path("/proc/net/unix").read_text(errors="replace").splitlines()
    except OSError:
        return False
    names = {str(path) for path in paths}
    return any(line.split(" ")[-1] in names for line in lines)


def _ask_daemon(intent: Intent) -> None:
    """Let the daemon end its own guest: a plain user cannot kill that QEMU. Whether it is gone
    is read from the kernel afterwards, so a daemon that does not answer is no error here."""
    from vmrun.hypervisor.guest import GuestIdentifiers, Hypervisor

    with contextlib.suppress(HypervisorError):
        hypervisor = Hypervisor.open(intent.connect, root=Path(), cache=Path())
        hypervisor.destroy_leftover(GuestIdentifiers(intent.domain, intent.uuid))


def reclaim(
    directories: StateDirectories,
    *,
    tell: Callable[[str], None] = lambda _: None,
) -> tuple[tuple[str, Receipt], ...]:
    """Remove what dead runs left; one receipt for each, by run id.

    ``tell`` is given the id of each guest when nothing of it remains but its intent: a crash after
    that tells once more, never less. Raises what it raises, when all others are done.
    """
    receipts = []
    failure: VmrunError | None = None
    for directory in orphans(directories):
        run_id = directory.intent.run_id
        try:
            removed = remove_guest(directory, before_the_last=partial(tell, run_id))
        except VmrunError as error:
            failure = error
            continue
        receipts.append((run_id, Receipt(removed)))
    if failure is not None:
        raise failure
    return tuple(receipts)
