"""Files that are there with all of their bytes or as they were, whatever is killed meanwhile."""

from __future__ import annotations

import errno
import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PARTIAL = ".partial-"
"""How the names of files begin that are not complete yet."""


def replace_file(path: Path, data: bytes, *, mode: int = 0o600) -> None:
    """Write ``path`` atomically and durably: also after a power failure it has all of ``data`` or
    what it had before. Raises :class:`OSError`."""
    descriptor, partial = tempfile.mkstemp(prefix=PARTIAL, dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(partial)
        raise
    _sync_directory(path.parent)


def _sync_directory(directory: Path) -> None:
    """Let a new name last, too (rename(2) says nothing of that)."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # File systems that cannot do that for directories have no order to keep.
        if error.errno != errno.EINVAL:
            raise
    finally:
        os.close(descriptor)


@contextmanager
def locked_directory(directory: Path) -> Iterator[None]:
    """One writer at a time: an flock(2) on the directory itself, so there is no lock file that
    could stay behind. Raises :class:`OSError`."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
