"""Asking the process that owns a guest to end it, when it does not answer on its socket: it is only
making the guest, or making it anew."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path


def ask_owner(guest: Path, owner: int) -> None:
    """Send SIGTERM to ``owner`` if that process holds the lock of the guest whose directory is
    ``guest``, and to no other that may have its number by now. Never raises."""
    with contextlib.suppress(OSError):
        descriptor = os.pidfd_open(owner)
        try:
            lock = os.stat(guest / "owner")
            held = Path(f"/proc/{owner}/fd")
            if any(_is_file(held / name, lock) for name in os.listdir(held)):
                signal.pidfd_send_signal(descriptor, signal.SIGTERM)
        finally:
            os.close(descriptor)


def _is_file(path: Path, other: os.stat_result) -> bool:
    try:
        return os.path.samestat(path.stat(), other)
    except OSError:
        return False
