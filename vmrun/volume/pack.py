"""Into the guest: directories and files of the host as one tar stream, and secrets with them.

Everything belongs to one user there, mostly the container's, or to whom it belongs here. Symbolic
links are sent as they are; devices, sockets and FIFOs stay behind. A directory is walked by
descriptors, so that nobody who may write to it leads the walk elsewhere.
"""

from __future__ import annotations

import os
import stat
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from vmrun.model.errors import StateError
from vmrun.volume.secrets import SecretBytes

MAX_ENTRIES = 500_000
DEEPEST = 128
CHUNK = 64 << 10
END = bytes(2 * tarfile.BLOCKSIZE)
"""What ends an archive."""

_WHITEOUT = ".wh."
_MOST_NOTES = 5


@dataclass(frozen=True, slots=True)
class Owner:
    """Whose it will be in the guest."""

    uid: int
    gid: int


@dataclass(frozen=True, slots=True)
class _Found:
    """Something below a source: ``path`` relative to it, empty for the source itself; ``name`` in
    the open directory ``parent``."""

    path: str
    status: os.stat_result
    parent: int
    name: str


def measure(source: Path, size_of: Callable[[int], int], *, note: Callable[[str], None]) -> int:
    """How much memory a copy of ``source`` takes, ``size_of`` each file's size.

    Raises :class:`StateError` for what cannot be read or copied.
    """
    total, left_out = 0, 0
    for found in _walk(source):
        if _kind(found.status) is None:
            left_out += 1
            if left_out <= _MOST_NOTES:
                note(f"{source / found.path} is not copied: it is no file, directory or link")
            continue
        total += size_of(found.status.st_size if stat.S_ISREG(found.status.st_mode) else 0)
    if left_out > _MOST_NOTES:
        note(f"{source}: {left_out - _MOST_NOTES} more that are no files are not copied")
    return total


def pack(source: Path, name: str, owner: Owner | None, limit: int) -> Iterator[bytes]:
    """A tar of ``source`` as ``name``, without its end; without an ``owner`` everything belongs to
    whom it belongs here. Raises :class:`StateError` when there is more than ``limit`` bytes in it,
    or a file changes its size meanwhile."""
    moved = 0
    for found in _walk(source):
        kind = _kind(found.status)
        if kind is None:
            continue
        full = f"{name}/{found.path}" if found.path else name
        where = source / found.path
        if kind == tarfile.SYMTYPE:
            with _readable(where):
                target = os.readlink(found.name, dir_fd=found.parent)
            yield _header(full, kind, 0o777, owner, found.status, target=target)
        elif kind == tarfile.DIRTYPE:
            yield _header(full, kind, found.status.st_mode, owner, found.status)
        else:
            moved += found.status.st_size
            if moved > limit:
                raise StateError(f"{source} has grown while it was copied", hint="run it again")
            yield from _file(found, full, owner, where)


def pack_secrets(secrets: tuple[SecretBytes, ...], name: str, owner: Owner) -> Iterator[bytes]:
    """A tar of ``secrets`` in the directory ``name``, each for its owner alone."""
    yield _header(name, tarfile.DIRTYPE, 0o500, owner, None)
    for secret in secrets:
        yield _header(
            f"{name}/{secret.name}", tarfile.REGTYPE, 0o400, owner, None, size=len(secret.data)
        )
        yield secret.data + _padding(len(secret.data))


def _walk(source: Path) -> Iterator[_Found]:
    """``source`` first, then what is below it, parents first and in the order of names."""
    with _readable(source):
        parent = os.open(source.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with _readable(source):
            status = os.stat(source.name, dir_fd=parent, follow_symlinks=False)
        first = _Found("", status, parent, source.name)
        for count, found in enumerate(_below(first, source)):
            if count >= MAX_ENTRIES:
                raise StateError(
                    f"{source} has more than {MAX_ENTRIES} files", hint="copy a part of it"
                )
            if found.path and found.name.startswith(_WHITEOUT):
                raise StateError(
                    f"{source / found.path} cannot be copied: images use names with {_WHITEOUT!r} "
                    "in front for files that were removed",
                    hint="rename it",
                )
            yield found
    finally:
        os.close(parent)


def _below(found: _Found, source: Path) -> Iterator[_Found]:
    yield found
    if not stat.S_ISDIR(found.status.st_mode):
        return
    if found.path.count("/") >= DEEPEST:
        raise StateError(
            f"{source / found.path} is more than {DEEPEST} directories deep", hint="copy a part"
        )
    with _readable(source / found.path):
        directory = os.open(
            found.name,
            os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC,
            dir_fd=found.parent,
        )
    try:
        with _readable(source / found.path):
            names = sorted(os.listdir(directory))
        for name in names:
            path = f"{found.path}/{name}" if found.path else name
            with _readable(source / path):
                status = os.stat(name, dir_fd=directory, follow_symlinks=False)
            yield from _below(_Found(path, status, directory, name), source)
    finally:
        os.close(directory)


def _kind(status: os.stat_result) -> bytes | None:
    if stat.S_ISREG(status.st_mode):
        return tarfile.REGTYPE
    if stat.S_ISDIR(status.st_mode):
        return tarfile.DIRTYPE
    return tarfile.SYMTYPE if stat.S_ISLNK(status.st_mode) else None


def _file(found: _Found, name: str, owner: Owner | None, where: Path) -> Iterator[bytes]:
    with _readable(where):
        # Should it have become a FIFO, opening it must not wait for a writer.
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        descriptor = os.open(found.name, flags, dir_fd=found.parent)
    with os.fdopen(descriptor, "rb", buffering=0) as file:
        status = os.fstat(descriptor)
        size = status.st_size
        if not stat.S_ISREG(status.st_mode) or size > found.status.st_size:
            raise StateError(f"{where} has changed while it was copied", hint="run it again")
        yield _header(name, tarfile.REGTYPE, status.st_mode, owner, status, size=size)
        left = size
        while left:
            with _readable(where):
                data = file.read(min(CHUNK, left))
            if not data:
                raise StateError(f"{where} has shrunk while it was copied", hint="run it again")
            left -= len(data)
            yield data
    yield _padding(size)


def _header(
    name: str,
    kind: bytes,
    mode: int,
    owner: Owner | None,
    status: os.stat_result | None,
    *,
    size: int = 0,
    target: str = "",
) -> bytes:
    entry = tarfile.TarInfo(name)
    entry.type, entry.mode, entry.size, entry.linkname = kind, mode & 0o777, size, target
    if owner is not None:
        entry.uid, entry.gid = owner.uid, owner.gid
    elif status is not None:
        entry.uid, entry.gid = status.st_uid, status.st_gid
    entry.mtime = 0 if status is None else max(0, int(status.st_mtime))
    return entry.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")


def _padding(size: int) -> bytes:
    return bytes(-size % tarfile.BLOCKSIZE)


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StateError(
            f"cannot copy {path}: {error.strerror or error}", hint="name what you may read"
        ) from error
