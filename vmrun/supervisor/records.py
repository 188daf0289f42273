"""Records of runs on disk: they outlive their guests, so that ``ps -a``, ``logs``, ``inspect`` and
``wait`` can say how a run has ended."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from vmrun.model.errors import NameInUse, StateError
from vmrun.model.run_record import RunRecord
from vmrun.model.wire import dumps, loads

RUN_ID = re.compile(r"[0-9a-f]{12}")
_RECORD = "record.json"
_LARGEST = 4 << 20


class Runs:
    """The records below ``directory``, one folder a run that only its owner may enter."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def folder(self, run_id: str) -> Path:
        """Where a run's record, logs and verdict lie."""
        return self._directory / run_id

    def write(self, record: RunRecord) -> None:
        """Write a record, whole or not at all. Raises :class:`StateError`."""
        folder = self.folder(record.run_id)
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            with self._alone():
                folder.mkdir(mode=0o700, exist_ok=True)
                self._write(folder, record)
        except OSError as error:
            raise _unwritable(folder, error) from error

    def update(self, record: RunRecord) -> bool:
        """Write a record anew if it is still there: one that was removed meanwhile stays removed.
        Raises :class:`StateError`."""
        folder = self.folder(record.run_id)
        try:
            with self._alone():
                if not (folder / _RECORD).exists():
                    return False
                self._write(folder, record)
        except FileNotFoundError:
            return False
        except OSError as error:
            raise _unwritable(folder, error) from error
        return True

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Nobody else makes or removes folders: one without a record is what a crash has left."""
        descriptor = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _write(self, folder: Path, record: RunRecord) -> None:
        partial = folder / f"{_RECORD}.partial"
        with partial.open("w") as file:
            os.fchmod(file.fileno(), 0o600)
            file.write(dumps(record))
        partial.replace(folder / _RECORD)

    def hold(self, run_id: str) -> None:
        """Say that this process has still to write a run's last word, until it ends: the run's
        guest may be gone by then, and with it the lock that says who owns the run."""
        with contextlib.suppress(OSError):
            descriptor = os.open(self.folder(run_id), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)

    def held(self, run_id: str) -> bool:
        """Whether a process has still to write a run's last word."""
        try:
            descriptor = os.open(self.folder(run_id), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
        return False

    def read(self, run_id: str) -> RunRecord | None:
        """The record of a run; None when there is none. Raises :class:`StateError` when it is
        damaged."""
        path = self.folder(run_id) / _RECORD
        try:
            with path.open("rb") as file:
                data = file.read(_LARGEST)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise StateError(f"cannot read {path}: {error.strerror}") from error
        try:
            return loads(RunRecord, data)
        except StateError as error:
            raise StateError(
                f"{path} is damaged: {error.message}", hint=f"remove it: vmrun rm {run_id}"
            ) from None

    def all(self, *, on_damage: Callable[[StateError], None]) -> tuple[RunRecord, ...]:
        """Every record, the newest first; a damaged one is told and left out."""
        found = []
        for run_id in self._ids():
            try:
                record = self.read(run_id)
            except StateError as error:
                on_damage(error)
                continue
            if record is not None:
                found.append(record)
        return tuple(sorted(found, key=lambda record: (-record.created, record.run_id)))

    def find(self, selector: str) -> RunRecord:
        """The run with that name, id, or unambiguous beginning of an id (docker's rule: a name
        comes first). Raises :class:`StateError`."""
        records = self.all(on_damage=lambda _: None)
        for record in records:
            if selector in (record.name, record.run_id):
                return record
        matching = [r for r in records if selector and r.run_id.startswith(selector)]
        if len(matching) == 1:
            return matching[0]
        if matching:
            raise StateError(
                f"{selector!r} is ambiguous: {', '.join(r.run_id for r in matching[:5])}",
                hint="write more of the id, or the name",
            )
        raise StateError(f"no such run: {selector[:80]!r}", hint="see 'vmrun ps -a'")

    def must_be_free(self, name: str | None) -> None:
        """Raise :class:`NameInUse` when a run that has ended still holds ``name``."""
        if name is None:
            return
        for record in self.all(on_damage=lambda _: None):
            if record.name == name:
                raise NameInUse(
                    f"the name {name!r} is in use by run {record.run_id} ({record.state})",
                    hint=f"vmrun rm {name}, or choose another --name",
                )

    def change(self, run_id: str, **fields: object) -> RunRecord | None:
        """Write a record anew with some fields changed; only its owner may."""
        record = self.read(run_id)
        if record is None:
            return None
        changed = replace(record, **fields)  # type: ignore[arg-type]
        self.write(changed)
        return changed

    def remove(self, run_id: str) -> bool:
        """Remove a run's record and its logs; whether nothing of it remains."""
        if RUN_ID.fullmatch(run_id) is None:
            raise StateError(f"not a run id: {run_id[:80]!r}")
        folder = self.folder(run_id)
        if not os.path.lexists(folder):
            return True
        with contextlib.suppress(OSError), self._alone():
            shutil.rmtree(folder, ignore_errors=True)
        return not os.path.lexists(folder)

    def sweep(self) -> tuple[str, ...]:
        """Remove the folders that have no record: what a crash has left of one that was just being
        made or removed. Returns their ids. Raises :class:`StateError`."""
        swept = []
        for run_id in self._ids():
            folder = self.folder(run_id)
            if (folder / _RECORD).exists() or folder.is_symlink() or not folder.is_dir():
                continue
            try:
                with self._alone():
                    if not (folder / _RECORD).exists():
                        shutil.rmtree(folder, ignore_errors=True)
                        swept.append(run_id)
            except OSError as error:
                raise _unwritable(folder, error) from error
        return tuple(swept)

    def _ids(self) -> list[str]:
        try:
            return sorted(n for n in os.listdir(self._directory) if RUN_ID.fullmatch(n))
        except FileNotFoundError:
            return []
        except OSError as error:
            raise StateError(f"cannot read {self._directory}: {error.strerror}") from error


def _unwritable(folder: Path, error: OSError) -> StateError:
    return StateError(f"cannot write {folder}: {error.strerror}", hint="free disk space")
