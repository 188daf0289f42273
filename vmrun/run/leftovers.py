"""What dead runs have left on this host: found without touching it, and removed."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from vmrun.hypervisor.remains import remains
from vmrun.hypervisor.strays import Stray, remove_strays, strays
from vmrun.journal.journal import Journal
from vmrun.model.errors import StateError
from vmrun.model.report import Receipt, Removed
from vmrun.model.run_record import RunRecord
from vmrun.run.directories import StateDirectories
from vmrun.run.reclaim import is_settled, reclaim_all
from vmrun.run.state import alive, find
from vmrun.supervisor.records import RUN_ID, Runs

_OLD = 60.0
"""Seconds after which a file that is being written is taken to be abandoned."""


@dataclass(frozen=True, slots=True)
class Leftover:
    """One thing that is to be removed: ``kind`` is guest, process, cgroup, keys, record (of a run
    that ended without a word), folder (of a run without a record) or partial."""

    kind: str
    run_id: str
    name: str


@dataclass(frozen=True, slots=True)
class Collected:
    """What was done: ``receipts`` by guest, ``settled`` the runs whose records were put right,
    ``others`` what no guest's receipt lists."""

    receipts: tuple[tuple[str, Receipt], ...]
    settled: tuple[RunRecord, ...]
    others: tuple[Removed, ...]

    @property
    def clean(self) -> bool:
        """Whether nothing remains."""
        return all(r.clean for _, r in self.receipts) and all(o.gone for o in self.others)


def find_leftovers(directories: StateDirectories) -> tuple[Leftover, ...]:
    """All there is, as it is now. Raises :class:`StateError` when it cannot be found out which
    guests live."""
    runs = Runs(directories.runs)
    # Records first: a guest that is made meanwhile must be seen as living.
    records = runs.all(on_damage=lambda _: None)
    living = frozenset(intent.run_id for intent in alive(directories))
    found = []
    for run_id in sorted(_folders(directories.guests)):
        if run_id not in living:
            found.append(Leftover("guest", run_id, str(directories.guests / run_id)))
            found += _remains_of(directories, run_id)
    for stray in _strays(directories):
        found.append(Leftover(stray.kind, stray.run_id, stray.name))
    for record in records:
        if record.guest in living or runs.held(record.run_id) or is_settled(record):
            continue
        now = runs.read(record.run_id)
        if now is not None and not is_settled(now):
            found.append(Leftover("record", record.run_id, record.name))
    for run_id in sorted(_folders(directories.runs)):
        folder = directories.runs / run_id
        if not (folder / "record.json").exists():
            found.append(Leftover("folder", run_id, str(folder)))
    for path in _halves(directories.runs):
        found.append(Leftover("partial", path.parent.name, str(path)))
    return tuple(found)


def collect(directories: StateDirectories) -> Collected:
    """Remove it, and write down in the journal what was removed."""
    reclaimed = reclaim_all(directories, lambda _: None)
    journal = Journal(directories.journal)
    others = [Removed("folder", run_id, gone=True) for run_id in reclaimed.swept]
    gone: dict[str, bool] = {}
    for run_id, removed in remove_strays(_strays(directories)):
        others.append(removed)
        gone[run_id] = gone.get(run_id, True) and removed.gone
    for run_id, clean in gone.items():
        journal.append("guest.reclaim", {"guest": run_id, "clean": str(clean).lower()})
    for path in _halves(directories.runs):
        path.unlink(missing_ok=True)
        others.append(Removed("partial", str(path), not path.exists()))
    return Collected(reclaimed.receipts, reclaimed.settled, tuple(others))


def _strays(directories: StateDirectories) -> tuple[Stray, ...]:
    # What has a directory is reclaimed with it, by its own uuid.
    return strays(directories.guests, _folders(directories.guests))


def _remains_of(directories: StateDirectories, run_id: str) -> list[Leftover]:
    try:
        _, intent = find(directories, run_id)
    except StateError:
        return []  # without an intent nothing else was made
    left = remains(domain=intent.domain, uuid=intent.uuid)
    parts = (item.partition(" ") for item in left)
    return [Leftover(kind, intent.run_id, name) for kind, _, name in parts]


def _folders(directory: Path) -> frozenset[str]:
    try:
        return frozenset(path.name for path in directory.iterdir() if RUN_ID.fullmatch(path.name))
    except FileNotFoundError:
        return frozenset()
    except OSError as error:
        raise StateError(f"cannot read {directory}: {error.strerror}") from error


def _halves(runs: Path) -> list[Path]:
    """What was being written when its writer was killed."""
    found = []
    for run_id in sorted(_folders(runs)):
        found += [path for path in sorted((runs / run_id).glob("*.partial")) if _is_old(path)]
    return found


def _is_old(path: Path) -> bool:
    try:
        return time.time() - path.lstat().st_mtime > _OLD
    except OSError:
        return False
