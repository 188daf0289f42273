"""Out of the guest: what it sends back, written below one directory of the host and nowhere else.

Every name is looked up from a descriptor of that directory, one component at a time, and no
symbolic link is followed. Files appear whole or not at all. Nothing is deleted: a file that the
workload removed stays on the host.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from vmrun.model.errors import GuestError, StateError
from vmrun.volume.archive import CHUNK, ArchiveReader, Entry, Kind, split_path

_LATEST = 1 << 33
"""Seconds since 1970 that every file system can keep."""

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Unpacker:
    """Writes entries below ``root``, a directory. Files are the caller's own; of their modes the
    permissions count, never setuid, setgid or the sticky bit.

    With ``owners`` they get the guest's uid and gid, as far as the caller may give them away.
    """

    def __init__(self, root: Path, *, owners: bool = False) -> None:
        self._root_path = root
        self._owners = owners
        with self._explained(()):
            self._root = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._made: list[tuple[tuple[str, ...], Entry]] = []
        self.written = 0
        """Files that were new or had changed."""

    def put(self, parts: Sequence[str], entry: Entry, archive: ArchiveReader) -> bool:
        """Write an entry to the path ``parts``; whether that was possible: FIFOs stay behind.

        Raises :class:`GuestError` for what must not be written, :class:`StateError` for what
        cannot.
        """
        where = tuple(parts)
        with self._explained(where):
            if entry.kind is Kind.DIRECTORY:
                self._directory(where, entry)
            elif entry.kind is Kind.FILE:
                self._file(where, entry, archive)
            elif entry.kind is Kind.SYMLINK:
                self._symlink(where, entry)
            elif entry.kind is Kind.LINK:
                self._link(where, entry, parts)
            elif entry.kind is Kind.FIFO:
                return False
            else:
                raise self._refused(where, "it is a device")
        return True

    def finish(self) -> None:
        """Give new directories their modes, now that nothing more is written into them."""
        for parts, entry in reversed(self._made):
            with self._explained(parts), self._parent(parts) as parent:
                descriptor = os.open(parts[-1], _DIRECTORY, dir_fd=parent)
                try:
                    self._give(descriptor, entry)
                    os.fchmod(descriptor, entry.mode)
                finally:
                    os.close(descriptor)
        self._made.clear()

    def close(self) -> None:
        """Give the directory back."""
        os.close(self._root)

    def _directory(self, parts: tuple[str, ...], entry: Entry) -> None:
        if not parts:
            return
        with self._parent(parts) as parent:
            status = _status(parts[-1], parent)
            if status is not None and stat.S_ISDIR(status.st_mode):
                return
            if status is not None:
                os.unlink(parts[-1], dir_fd=parent)
            os.mkdir(parts[-1], 0o700, dir_fd=parent)
        self._made.append((parts, entry))

    def _file(self, parts: tuple[str, ...], entry: Entry, archive: ArchiveReader) -> None:
        with self._parent(parts) as parent, _partial(parent) as partial:
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            descriptor = os.open(partial, flags, 0o600, dir_fd=parent)
            with os.fdopen(descriptor, "r+b", buffering=0):
                for data in archive.content():
                    _write_all(descriptor, data)
                if not self._owners and _same_as(descriptor, entry, parts[-1], parent):
                    return
                self._give(descriptor, entry)
                os.fchmod(descriptor, entry.mode)
                moment = min(entry.mtime, _LATEST)
                os.utime(descriptor, (moment, moment))
                # Whole also after a power failure: the name must not come before the content.
                os.fsync(descriptor)
            self._replace(partial, parts, parent)
        self.written += 1

    def _symlink(self, parts: tuple[str, ...], entry: Entry) -> None:
        with self._parent(parts) as parent:
            with contextlib.suppress(OSError):
                if not self._owners and os.readlink(parts[-1], dir_fd=parent) == entry.target:
                    return
            if not stays_inside(entry.target, depth=len(parts) - 1):
                raise self._refused(parts, f"it links to {entry.target[:80]!r}, which is elsewhere")
            with _partial(parent) as partial:
                os.symlink(entry.target, partial, dir_fd=parent)
                if self._owners:
                    with contextlib.suppress(PermissionError):
                        os.chown(
                            partial, entry.uid, entry.gid, dir_fd=parent, follow_symlinks=False
                        )
                self._replace(partial, parts, parent)
        self.written += 1

    def _link(self, parts: tuple[str, ...], entry: Entry, asked: Sequence[str]) -> None:
        """A hard link to a file below the same directory; its target is named from where the
        archive begins, as the entry itself is."""
        above = len(entry.parts) - len(asked)
        target = split_path(os.fsencode(entry.target))
        if above < 0 or target[:above] != entry.parts[:above] or not target[above:]:
            raise self._refused(parts, f"it is linked to {entry.target[:80]!r}, which is elsewhere")
        target = target[above:]
        with self._parent(target) as source, self._parent(parts) as parent:
            status = _status(target[-1], source)
            if status is None or not stat.S_ISREG(status.st_mode):
                raise self._refused(parts, f"{entry.target[:80]!r} is no file")
            with _partial(parent) as partial:
                os.link(
                    target[-1],
                    partial,
                    src_dir_fd=source,
                    dst_dir_fd=parent,
                    follow_symlinks=False,
                )
                self._replace(partial, parts, parent)

    def _give(self, descriptor: int, entry: Entry) -> None:
        if self._owners:
            with contextlib.suppress(PermissionError):
                os.fchown(descriptor, entry.uid, entry.gid)

    def _replace(self, partial: str, parts: tuple[str, ...], parent: int) -> None:
        status = _status(parts[-1], parent)
        if status is not None and stat.S_ISDIR(status.st_mode):
            # Goes only while it is empty: nothing of the host's is deleted.
            os.rmdir(parts[-1], dir_fd=parent)
        os.rename(partial, parts[-1], src_dir_fd=parent, dst_dir_fd=parent)

    @contextlib.contextmanager
    def _parent(self, parts: Sequence[str]) -> Iterator[int]:
        """The open directory that holds the last of ``parts``."""
        if not parts:
            raise self._refused((), "it must be a directory")
        here = os.dup(self._root)
        try:
            for part in parts[:-1]:
                below = os.open(part, _DIRECTORY, dir_fd=here)
                os.close(here)
                here = below
            yield here
        finally:
            os.close(here)

    def _refused(self, parts: Sequence[str], why: str) -> GuestError:
        return GuestError(
            f"{self._root_path.joinpath(*parts)} is not copied back: {why}",
            hint="what came before it was copied; nothing was deleted",
        )

    @contextlib.contextmanager
    def _explained(self, parts: Sequence[str]) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StateError(
                f"cannot copy back {self._root_path.joinpath(*parts)}: {error.strerror or error}",
                hint="what came before it was copied; nothing was deleted",
            ) from error


def stays_inside(target: str, *, depth: int) -> bool:
    """Whether a symbolic link with this text, ``depth`` directories below the root, leads nowhere
    but below it: ``..`` only in front and no more of them than that, so that no other link can
    bend it."""
    if not target or target.startswith("/") or "\0" in target:
        return False
    parts = [part for part in target.split("/") if part not in ("", ".")]
    up = 0
    while up < len(parts) and parts[up] == "..":
        up += 1
    return up <= depth and ".." not in parts[up:]


def _status(name: str, parent: int) -> os.stat_result | None:
    try:
        return os.stat(name, dir_fd=parent, follow_symlinks=False)
    except FileNotFoundError:
        return None


@contextlib.contextmanager
def _partial(parent: int) -> Iterator[str]:
    """A name of its own in ``parent``; what is left under it afterwards is removed. That is also
    so when it was renamed to another link of the same file, which does nothing (rename(2))."""
    name = f".vmrun-partial-{os.urandom(8).hex()}"
    try:
        yield name
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=parent)


def _same_as(descriptor: int, entry: Entry, name: str, parent: int) -> bool:
    """Whether the host's file ``name`` has the content and permissions already: then it stays."""
    try:
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        existing = os.open(name, flags, dir_fd=parent)
    except OSError:
        return False
    try:
        status = os.fstat(existing)
        if not stat.S_ISREG(status.st_mode) or status.st_size != entry.size:
            return False
        if status.st_mode & 0o777 != entry.mode:
            return False
        for offset in range(0, entry.size, CHUNK):
            if os.pread(existing, CHUNK, offset) != os.pread(descriptor, CHUNK, offset):
                return False
        return True
    finally:
        os.close(existing)


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
