"""What a reader remembers of a catalogue: python-tuf's folder of trusted metadata."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tuf.api.metadata import Metadata
from tuf.api.serialization import DeserializationError

from vmrun.image.durable import locked_directory
from vmrun.model.errors import StateError
from vmrun.trust.tuf_errors import unusable_state


@contextmanager
def remembered(state: Path) -> Iterator[None]:
    """The folder of trusted metadata, ours alone and locked: python-tuf's client is not made for
    two processes in one folder."""
    try:
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = os.stat(state)
        if status.st_uid != os.geteuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise StateError(
                f"trusted metadata in {state} can be changed by others",
                hint=f"make it yours: chown {os.geteuid()} {state}; chmod 0700 {state}",
            )
        with locked_directory(state):
            _must_be_whole(state)
            yield
            _make_durable(state)
    except OSError as error:
        raise unusable_state(error) from error


def _must_be_whole(state: Path) -> None:
    """What was seen before is what a rollback is noticed by: damage must not pass for absence."""
    for role in ("root", "timestamp", "snapshot"):
        path = state / f"{role}.json"
        try:
            Metadata.from_bytes(path.read_bytes())
        except FileNotFoundError:
            continue
        except DeserializationError:
            raise StateError(
                f"trusted metadata {path} is damaged",
                hint=f"find out what happened to it; to start anew remove {state}",
            ) from None


def _make_durable(state: Path) -> None:
    """python-tuf replaces files atomically, and leaves it to the kernel when they are written."""
    for path in (*state.glob("*.json"), state / "root_history", state):
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
