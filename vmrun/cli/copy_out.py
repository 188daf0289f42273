"""Out of a container: what it sends is a hostile guest's, and is unpacked as such."""

from __future__ import annotations

import os
import posixpath
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from vmrun.cli.copy_place import STREAM, Copied, Place, tell
from vmrun.model.errors import GuestError, StateError, UsageError
from vmrun.supervisor.client import ask, dial
from vmrun.supervisor.copying import STALLED, Incoming
from vmrun.volume.archive import ArchiveReader, Entry, Kind
from vmrun.volume.unpack import Unpacker, stays_inside

_MOST_ENTRIES = 500_000
_UNBOUNDED = 1 << 62
_CHUNK = 256 << 10
_ROOT = "root"
"""What the container's root is called on its way here."""


@dataclass(frozen=True, slots=True)
class Target:
    """Where an archive goes: below ``root``, its first entry as ``top``, empty for ``root``
    itself."""

    root: Path
    top: tuple[str, ...]


def copy_out(
    guest: Path, run_id: str, source: Place, destination: Place, *, keep: bool, follow: bool
) -> Copied:
    """Copy from the container of a run in ``guest``, a directory, to this host.

    Raises :class:`StateError` for what is not there or cannot be written, :class:`GuestError` for
    what must not be.
    """
    streamed = destination.path == STREAM
    if streamed and os.isatty(sys.stdout.fileno()):
        raise UsageError("a tar is not for a terminal", hint="vmrun cp RUN:PATH - | tar -t")
    room = 0 if streamed else _room(destination.path)
    name = posixpath.basename(source.inside.rstrip("/")) or _ROOT
    if streamed and source.contents:
        name = "."
    with _archive(guest, run_id, source, name, follow=follow) as incoming:
        if streamed:
            copied = _pass_on(incoming)
        else:
            contents = source.contents
            copied = _Unpacking(name, destination.path, contents=contents, room=room).run(
                incoming, keep=keep
            )
        tell(incoming.notes())
    return copied


@contextmanager
def _archive(
    guest: Path, run_id: str, source: Place, name: str, *, follow: bool
) -> Iterator[Incoming]:
    line = dial(guest)
    try:
        ask(line, "copy-out", run=run_id, path=source.inside, name=name, follow=follow)
        line.sock.settimeout(STALLED)
        yield Incoming(line, f"copy {source.run}:{source.path}")
    finally:
        line.close()


def _pass_on(incoming: Incoming) -> Copied:
    size = 0
    while data := incoming.read(_CHUNK):
        size += len(data)
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(sys.stdout.fileno(), view) :]
        except OSError as error:
            raise StateError(
                f"cannot write the tar to stdout: {error.strerror}", hint="it is not whole"
            ) from error
    return Copied(entries=0, size=size)


class _Unpacking:
    """An archive whose first entry is called ``name``, on its way to ``destination``."""

    def __init__(self, name: str, destination: str, *, contents: bool, room: int) -> None:
        self._name = name
        self._destination = destination
        self._contents = contents
        self._room = room
        self._entries = 0
        self._size = 0
        self._left_out: list[str] = []

    def run(self, incoming: Incoming, *, keep: bool) -> Copied:
        """Unpack all of it; with ``keep`` its owners count."""
        reader = ArchiveReader(incoming.read, max_bytes=_UNBOUNDED, max_entries=_MOST_ENTRIES)
        entries = reader.entries()
        first = next(entries, None)
        if first is None:
            raise GuestError("the guest sent nothing", hint="see 'vmrun ps'")
        target = find_target(self._destination, self._name, first.kind, contents=self._contents)
        unpacker = Unpacker(target.root, owners=keep)
        try:
            for entry in chain([first], entries):
                self._put(entry, target, unpacker, reader)
            unpacker.finish()
        finally:
            unpacker.close()
        tell(_printable(text) for text in self._left_out)
        return Copied(self._entries, self._size, len(self._left_out))

    def _put(self, entry: Entry, target: Target, unpacker: Unpacker, reader: ArchiveReader) -> None:
        parts = (*target.top, *_below(entry, self._name))
        if (why := _reason_against(entry, parts)) is not None:
            where = str(target.root.joinpath(*parts))
            self._left_out.append(f"{where[:300]} is left out: {why}")
            return
        self._size += entry.size
        if self._size > self._room:
            raise StateError(
                f"there is no room for {_printable('/'.join(parts)[:300])}: it has {entry.size} "
                "bytes",
                hint="what came before it was copied",
            )
        unpacker.put(parts, entry, reader)
        self._entries += 1


def _below(entry: Entry, name: str) -> tuple[str, ...]:
    """An entry's path below the first one's."""
    if entry.parts[:1] != (name,):
        raise GuestError(
            f"the guest sent {'/'.join(entry.parts)[:80]!r}, which was not asked for",
            hint="what came before it was copied",
        )
    return entry.parts[1:]


def _reason_against(entry: Entry, parts: tuple[str, ...]) -> str | None:
    if entry.kind is Kind.SYMLINK:
        if not stays_inside(entry.target, depth=len(parts) - 1):
            return f"it links to {entry.target[:80]!r}, which is elsewhere"
    elif entry.kind not in (Kind.FILE, Kind.DIRECTORY):
        raise GuestError(
            f"the guest sent {'/'.join(parts)[:80]!r}, which is no file, directory or link",
            hint="what came before it was copied",
        )
    return None


def find_target(destination: str, name: str, kind: Kind, *, contents: bool) -> Target:
    """Where a directory, file or link called ``name`` goes, or the ``contents`` of a directory, as
    docker's ``cp`` has it. Raises :class:`StateError` when it cannot go there."""
    path = Path(os.path.realpath(destination))
    status = _status(path)
    if status is not None and stat.S_ISDIR(status.st_mode):
        return Target(path, ()) if contents else _in_directory(path, name, kind)
    if status is not None and (kind is Kind.DIRECTORY or _says_directory(destination)):
        raise StateError(f"{destination} is no directory", hint="name another place")
    if status is not None and not stat.S_ISREG(status.st_mode):
        raise StateError(f"{destination} is no file or directory", hint="'-' is a tar on stdout")
    if kind is not Kind.DIRECTORY and _says_directory(destination):
        raise StateError(f"there is no directory {destination}", hint=f"mkdir {destination}")
    if not path.parent.is_dir():
        raise StateError(f"there is no directory {path.parent}", hint=f"mkdir -p {path.parent}")
    return Target(path.parent, (path.name,))


def _in_directory(path: Path, name: str, kind: Kind) -> Target:
    with _explained(path):
        there = os.lstat(path / name) if os.path.lexists(path / name) else None
    if there is not None and stat.S_ISDIR(there.st_mode) != (kind is Kind.DIRECTORY):
        have, want = ("a", "no") if stat.S_ISDIR(there.st_mode) else ("no", "a")
        raise StateError(
            f"{path / name} is {have} directory, and {want} directory is to be copied there",
            hint="remove it, or name another place",
        )
    return Target(path, (name,))


def _says_directory(path: str) -> bool:
    return path.endswith("/") or os.path.basename(path) in (".", "..")


def _room(destination: str) -> int:
    """The bytes that are free where it goes."""
    path = Path(os.path.realpath(destination))
    with _explained(path):
        known = os.statvfs(path if path.exists() else path.parent)
    return known.f_bavail * known.f_frsize


def _status(path: Path) -> os.stat_result | None:
    with _explained(path):
        try:
            return os.stat(path)
        except FileNotFoundError:
            return None


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StateError(
            f"cannot copy to {path}: {error.strerror or error}", hint="name another place"
        ) from error


def _printable(text: str) -> str:
    return "".join(character if character.isprintable() else "?" for character in text)
