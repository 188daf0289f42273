"""Out of a container: what it sends is a hostile guest's, and is unpacked as such."""

from __future__ import annotations

import os
import posixpath
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
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
    with _archive(guest, run_id, source, follow=follow) as incoming:
        if streamed:
            copied = _pass_on(incoming)
        else:
            copied = _unpack(incoming, source, destination.path, keep=keep, room=room)
        tell(incoming.notes())
    return copied


@contextmanager
def _archive(guest: Path, run_id: str, source: Place, *, follow: bool) -> Iterator[Incoming]:
    line = dial(guest)
    try:
        path, name = source.inside, _name(source)
        ask(line, "copy-out", run=run_id, path=path, name=name, follow=follow)
        line.sock.settimeout(STALLED)
        yield Incoming(line)
    finally:
        line.close()


def _name(source: Place) -> str:
    """What the archive calls it."""
    return "." if source.contents else posixpath.basename(source.inside.rstrip("/"))


def _pass_on(incoming: Incoming) -> Copied:
    size = 0
    while data := incoming.read(_CHUNK):
        sys.stdout.buffer.write(data)
        size += len(data)
    sys.stdout.buffer.flush()
    return Copied(files=1, size=size)


def _unpack(
    incoming: Incoming, source: Place, destination: str, *, keep: bool, room: int
) -> Copied:
    reader = ArchiveReader(incoming.read, max_bytes=_UNBOUNDED, max_entries=_MOST_ENTRIES)
    unpacker: Unpacker | None = None
    target: Target | None = None
    files = size = 0
    left_out: list[str] = []
    name = _name(source)
    try:
        for entry in reader.entries():
            if target is None or unpacker is None:
                target = find_target(destination, name, entry.kind)
                unpacker = Unpacker(target.root, owners=keep)
            parts = (*target.top, *_below(entry, name))
            if (why := _reason_against(entry, parts)) is not None:
                left_out.append(f"{target.root.joinpath(*parts)!s:.300} is left out: {why}")
                continue
            size += entry.size
            if size > room:
                raise StateError(
                    f"there is no room for {'/'.join(parts)[:300]!r}: it has {entry.size} bytes",
                    hint="what came before it was copied",
                )
            unpacker.put(parts, entry, reader)
            files += entry.kind is Kind.FILE
        if unpacker is not None:
            unpacker.finish()
    finally:
        if unpacker is not None:
            unpacker.close()
    tell(_printable(text) for text in left_out)
    return Copied(files, size, len(left_out))


def _below(entry: Entry, name: str) -> tuple[str, ...]:
    """An entry's path below the first one's."""
    if name == ".":
        return entry.parts
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


def find_target(destination: str, name: str, kind: Kind) -> Target:
    """Where a directory, file or link called ``name`` goes (``.``: what is in a directory), as
    docker's ``cp`` has it. Raises :class:`StateError` when it cannot go there."""
    path = Path(os.path.realpath(destination))
    status = _status(path)
    if status is not None and stat.S_ISDIR(status.st_mode):
        return Target(path, ()) if name == "." else _in_directory(path, name, kind)
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
