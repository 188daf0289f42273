"""Into a container: files of this host, or a tar on stdin."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from vmrun.cli.copy_place import STREAM, Copied, Place, tell
from vmrun.model.errors import StateError, UsageError
from vmrun.supervisor.client import ask, dial
from vmrun.supervisor.copying import send_archive
from vmrun.volume.pack import END, Owner, measure, pack

_CHUNK = 256 << 10
_SOMEBODY = Owner(0, 0)
"""Whose it is in an archive that is unpacked by the container's user, whose it becomes."""


class _Count:
    """Entries and bytes, as they are measured."""

    def __init__(self) -> None:
        self.entries = 0
        self.size = 0

    def add(self, size: int) -> int:
        self.entries += 1
        self.size += size
        return size


def copy_in(
    guest: Path, run_id: str, source: Place, destination: Place, *, keep: bool, follow: bool
) -> Copied:
    """Copy from this host into the container of a run in ``guest``, a directory.

    Raises :class:`StateError` for what is not there or cannot be written.
    """
    streamed = source.path == STREAM
    count = _Count()
    chunks = _stdin(count) if streamed else _files(source, count, keep=keep, follow=follow)
    line = dial(guest)
    try:
        path = destination.inside
        ask(line, "copy-in", run=run_id, path=path, directory=streamed, keep=keep)
        tell(send_archive(line, chunks, f"copy to {destination.run}:{destination.path}"))
    finally:
        line.close()
    return Copied(count.entries, count.size)


def _stdin(count: _Count) -> Iterator[bytes]:
    if os.isatty(sys.stdin.fileno()):
        raise UsageError("a tar is not typed", hint="tar -c FILES | vmrun cp - RUN:PATH")
    return iter(lambda: _read(count), b"")


def _read(count: _Count) -> bytes:
    try:
        data = os.read(sys.stdin.fileno(), _CHUNK)
    except OSError as error:
        raise StateError(f"cannot read stdin: {error.strerror}", hint="it must be a tar") from error
    count.size += len(data)
    return data


def _files(source: Place, count: _Count, *, keep: bool, follow: bool) -> Iterator[bytes]:
    # A name that says it is a directory means what is there, link or not.
    plain = os.path.abspath(source.path)
    path = Path(os.path.realpath(plain) if follow or source.must_be_directory else plain)
    try:
        mode = os.lstat(path).st_mode
    except OSError as error:
        raise StateError(
            f"cannot copy {source.path}: {error.strerror or error}", hint="see 'vmrun cp --help'"
        ) from error
    if source.must_be_directory and not stat.S_ISDIR(mode):
        raise StateError(f"{source.path} is no directory", hint="leave the slash out")
    if not (stat.S_ISDIR(mode) or stat.S_ISREG(mode) or stat.S_ISLNK(mode)):
        raise StateError(
            f"{source.path} is no file, directory or link", hint="'-' is a tar on stdin"
        )
    notes: list[str] = []
    measure(path, count.add, note=notes.append)
    tell(notes)
    name = "." if source.contents else os.path.basename(plain)
    owner = None if keep else _SOMEBODY
    return chain(pack(path, name, owner, count.size), [END])
