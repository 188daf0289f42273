"""Folders of this user's own, the content of which is trusted as if it had just been made."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from vmrun.model.errors import StateError


def make_private(directory: Path) -> None:
    """Make a folder that is there for this user alone. Raises :class:`StateError` for one that is
    another user's or that others can write, and :class:`OSError`."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = directory.stat()
    if found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o022:
        raise StateError(
            f"others can write {directory}",
            hint="remove it, or set VMRUN_STATE_DIR to a directory of your own",
        )
