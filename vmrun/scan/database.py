"""Offline OSV databases in osv-scanner's layout: ``FOLDER/ECOSYSTEM/all.zip``.

Each is read once into an index of its own (SQLite), which is named after the digest of the zip: a
database that was changed has another index, so one can never be stale.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from vmrun.image.limits import GIB, MIB
from vmrun.image.streams import CHUNK, open_regular, reading
from vmrun.model.digest import Digest
from vmrun.model.errors import ImageError, ImageNotFound, ScanError, StateError
from vmrun.model.scan import Database
from vmrun.scan.osv import Advisory, parse_advisory

_FORMAT = 1
_LARGEST_ZIP = 2 * GIB
_LARGEST_ADVISORY = 8 * MIB
_MOST_ADVISORIES = 1_000_000
_UNPACKED = 16 * GIB
_RATIO = 200
_SUBFOLDERS = ("", "osv-scanner")
_HINT = "get the database again, see docs/how-to/get-advisories.md"


@dataclass(frozen=True, slots=True)
class OsvDatabase:
    """One ecosystem's advisories, indexed."""

    description: Database
    _index: Path

    def advisories(self, name: str) -> Iterator[Advisory]:
        """Those about a package."""
        with closing(_open(self._index)) as index:
            rows = index.execute("SELECT id, data FROM advisory WHERE package = ?", (name,))
            for identifier, data in rows:
                try:
                    advisory = parse_advisory(data, f"advisory {identifier}")
                except ImageError as error:
                    raise ScanError(error.message, hint=_HINT) from None
                if advisory is not None:
                    yield advisory


def open_database(folder: Path, ecosystem: str, cache: Path) -> OsvDatabase | None:
    """The database of an ecosystem (``PyPI``, ``Debian:12``); None if the folder has none.

    Raises :class:`ScanError` for one that cannot be read to its end: half a database is none.
    """
    for below in _SUBFOLDERS:
        path = folder / below / ecosystem / "all.zip"
        try:
            digest = _digest(path)
        except ImageNotFound:
            continue
        except ImageError as error:
            raise ScanError(error.message, hint=_HINT) from None
        return _indexed(path, ecosystem, digest, cache)
    return None


def _indexed(path: Path, ecosystem: str, digest: Digest, cache: Path) -> OsvDatabase:
    index = cache / f"{digest.hex}-{_FORMAT}.sqlite"
    try:
        cache.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not index.exists():
            _build(path, ecosystem, index)
        with closing(_open(index)) as opened:
            count, newest = opened.execute("SELECT advisories, newest FROM about").fetchone()
    except OSError as error:
        raise StateError(
            f"cannot write {cache}: {error.strerror or error}",
            hint="free disk space, or set VMRUN_STATE_DIR to a directory that you own",
        ) from error
    except (sqlite3.Error, TypeError, ValueError):
        with suppress(OSError):
            index.unlink()
        raise StateError(f"the index {index} was damaged", hint="try again: it is gone") from None
    return OsvDatabase(Database(f"OSV {ecosystem}", digest, newest or None, count), index)


def _digest(path: Path) -> Digest:
    hasher = hashlib.sha256()
    with open_regular(path, "database") as file, reading(f"database {path}"):
        if os.fstat(file.fileno()).st_size > _LARGEST_ZIP:
            raise ImageError(f"database {path} has more than {_LARGEST_ZIP} bytes")
        while chunk := file.read(CHUNK):
            hasher.update(chunk)
    return Digest("sha256", hasher.hexdigest())


def _build(path: Path, ecosystem: str, index: Path) -> None:
    """Write the index beside its place and rename it there once it is whole."""
    descriptor, partial = tempfile.mkstemp(prefix=".partial-", dir=index.parent)
    os.close(descriptor)
    try:
        with closing(sqlite3.connect(partial)) as database:
            database.executescript(
                "PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF;"
                "CREATE TABLE advisory (package TEXT, id TEXT, data BLOB);"
                "CREATE TABLE about (advisories INTEGER, newest REAL);"
            )
            count, newest = 0, None
            for name, data in _members(path):
                try:
                    advisory = parse_advisory(data, f"{path}: {name}")
                except ImageError as error:
                    raise ScanError(error.message, hint=_HINT) from None
                if advisory is None:
                    continue
                count += 1
                newest = max(newest or 0.0, _time(advisory.modified))
                packages = {a.name for a in advisory.affected if covers(a.ecosystem, ecosystem)}
                database.executemany(
                    "INSERT INTO advisory VALUES (?, ?, ?)",
                    [(package, advisory.id, data) for package in sorted(packages)],
                )
            database.execute("CREATE INDEX by_package ON advisory (package)")
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


def _members(path: Path) -> Iterator[tuple[str, bytes]]:
    """The advisories of a zip, each bounded; a damaged zip is a :class:`ScanError`."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            if len(members) > _MOST_ADVISORIES:
                raise ScanError(f"{path}: more than {_MOST_ADVISORIES} files", hint=_HINT)
            names: set[str] = set()
            left = _UNPACKED
            for member in members:
                if member.is_dir() or not member.filename.endswith(".json"):
                    continue
                if member.filename in names:
                    raise ScanError(f"{path}: {member.filename[:200]!r} twice", hint=_HINT)
                names.add(member.filename)
                left -= member.file_size
                bomb = member.file_size > _RATIO * max(member.compress_size, 1024)
                if member.file_size > _LARGEST_ADVISORY or left < 0 or bomb:
                    raise ScanError(f"{path}: {member.filename[:200]!r} is too large", hint=_HINT)
                with archive.open(member) as file:
                    data = file.read(member.file_size + 1)
                yield member.filename, data
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise ScanError(f"{path}: not a zip that can be read ({error})", hint=_HINT) from None


def _open(index: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"file:{index}?mode=ro", uri=True, timeout=10)


def _time(text: str) -> float:
    """Seconds since 1970. Real databases hold advisories with impossible times; those say nothing
    about how recent the whole is."""
    try:
        return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()
    except (ValueError, OverflowError):
        return 0.0
