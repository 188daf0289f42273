"""Offline OSV databases as osv-scanner keeps them: ``FOLDER[/osv-scalibr]/ECOSYSTEM/all.zip``.

Each is read once into an index of its own (SQLite), which is named after the digest of the zip: a
database that was changed has another index, so one can never be stale.
"""

from __future__ import annotations

import os
import re
import sqlite3
import tempfile
from contextlib import closing, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import BinaryIO
from urllib.parse import quote

from vmrun.image.streams import open_regular
from vmrun.model.digest import Digest
from vmrun.model.errors import ImageError, ImageNotFound, ScanError, StateError
from vmrun.model.scan import Database
from vmrun.scan.archive import HINT, digest_of, members
from vmrun.scan.osv import Advisory, parse_advisory
from vmrun.scan.private import make_private
from vmrun.scan.stored import stored_about, stored_advisory, unstored

_FORMAT = 3
_SUBFOLDERS = ("", "osv-scanner", "osv-scalibr")
_ECOSYSTEM = re.compile(r"[A-Za-z][A-Za-z0-9 .-]*(?::[A-Za-z0-9.-]+)*")
"""Part of a path, and of what an image says of itself."""


@dataclass(frozen=True, slots=True)
class OsvDatabase:
    """One ecosystem's advisories, indexed."""

    description: Database
    ecosystem: str
    _index: Path

    def advisories(self, name: str) -> list[Advisory]:
        """Those about a package, as far as they are about it in this ecosystem. Raises
        :class:`ScanError` when they cannot be read any more."""
        try:
            with closing(_open(self._index)) as index:
                rows = index.execute(_ABOUT_PACKAGE, (name,)).fetchall()
            return [unstored(*row, ecosystem=self.ecosystem, name=name) for row in rows]
        except (sqlite3.Error, ValueError, TypeError) as error:
            with suppress(OSError):
                self._index.unlink()
            raise ScanError(
                f"the index {self._index} is damaged: {error}", hint="try again: it is gone"
            ) from None


_ABOUT_PACKAGE = (
    "SELECT data, about FROM about_package JOIN advisory USING (number) WHERE package = ?"
)


def open_database(folder: Path, ecosystem: str, cache: Path) -> OsvDatabase | None:
    """The database of an ecosystem (``PyPI``, ``Debian:12``); None if the folder has none. That
    of all releases (``Debian``) will do where the release has none of its own.

    Raises :class:`ScanError` for one that cannot be read to its end: half a database is none.
    """
    if not _ECOSYSTEM.fullmatch(ecosystem):
        return None
    for name in dict.fromkeys((ecosystem, ecosystem.partition(":")[0])):
        for below in _SUBFOLDERS:
            path = folder / below / name / "all.zip"
            try:
                with open_regular(path, "database") as file:
                    return _indexed(file, path, ecosystem, digest_of(file, path), cache)
            except ImageNotFound:
                continue
            except ImageError as error:
                raise ScanError(error.message, hint=HINT) from None
    return None


def _indexed(
    file: BinaryIO, path: Path, ecosystem: str, digest: Digest, cache: Path
) -> OsvDatabase:
    index = cache / f"{ecosystem}-{digest.hex}-{_FORMAT}.sqlite"
    try:
        make_private(cache)
        about = _about(index)
        if about is None:
            _build(file, path, ecosystem, index)
            about = _about(index)
            for other in cache.glob(f"{ecosystem}-*.sqlite"):
                if other != index:
                    other.unlink(missing_ok=True)
    except (OSError, sqlite3.Error) as error:
        raise StateError(
            f"cannot write {cache}: {getattr(error, 'strerror', None) or error}",
            hint="free disk space, or set VMRUN_STATE_DIR to a directory that you own",
        ) from error
    if about is None:
        raise StateError(f"cannot read {index} again", hint="check the disk's health")
    described = Database(f"OSV {ecosystem}", digest, about[1], about[0])
    return OsvDatabase(described, ecosystem, index)


def _about(index: Path) -> tuple[int, float | None] | None:
    """How many advisories the index has, and how recent they are; None if it is not whole."""
    try:
        with closing(_open(index)) as opened:
            count, newest = opened.execute("SELECT advisories, newest FROM about").fetchone()
    except (sqlite3.Error, TypeError, ValueError):
        return None
    if type(count) is not int or not isinstance(newest, float | None):
        return None
    return count, newest


def _build(file: BinaryIO, path: Path, ecosystem: str, index: Path) -> None:
    """Write the index beside its place and rename it there once it is whole."""
    descriptor, partial = tempfile.mkstemp(prefix=".partial-", dir=index.parent)
    os.close(descriptor)
    try:
        with closing(sqlite3.connect(partial)) as database:
            database.executescript(
                "PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF;"
                "CREATE TABLE advisory (number INTEGER PRIMARY KEY, data TEXT);"
                "CREATE TABLE about_package (package TEXT, number INTEGER, about TEXT);"
                "CREATE TABLE about (advisories INTEGER, newest REAL);"
            )
            count, newest = 0, None
            for name, data in members(file, path):
                try:
                    advisory = parse_advisory(data, f"{path}: {name}")
                except ImageError as error:
                    raise ScanError(error.message, hint=HINT) from None
                if advisory is None:
                    continue
                count += 1
                newest = max(newest or 0.0, _time(advisory.modified))
                about = stored_about(a for a in advisory.affected if covers(a.ecosystem, ecosystem))
                if not about:
                    continue
                database.execute(
                    "INSERT INTO advisory VALUES (?, ?)", (count, stored_advisory(advisory))
                )
                database.executemany(
                    "INSERT INTO about_package VALUES (?, ?, ?)",
                    [(package, count, text) for package, text in about],
                )
            database.execute("CREATE INDEX by_package ON about_package (package)")
            database.execute("INSERT INTO about VALUES (?, ?)", (count, newest))
            database.commit()
        os.replace(partial, index)
    except BaseException:
        with suppress(OSError):
            os.unlink(partial)
        raise


def covers(stated: str, wanted: str) -> bool:
    """Whether an advisory for the ecosystem ``stated`` is one for ``wanted``: a bare ``Debian``
    means every release."""
    return stated == wanted or stated == wanted.partition(":")[0]


def _open(index: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"file:{quote(str(index))}?mode=ro", uri=True, timeout=10)


def _time(text: str) -> float:
    """Seconds since 1970. Real databases hold advisories with impossible times; those say nothing
    about how recent the whole is."""
    try:
        return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()
    except (ValueError, OverflowError):
        return 0.0
