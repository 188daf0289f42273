"""Checkpoints of this host's journal: made, and held against it."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Sequence
from pathlib import Path

from vmrun.journal.journal import Head, Journal
from vmrun.model.errors import StateError, TrustError
from vmrun.model.record import as_text
from vmrun.run.directories import StateDirectories
from vmrun.trust.checkpoint import LARGEST, Checkpoint, read_checkpoint, sign_checkpoint
from vmrun.trust.keys import PrivateKey, PublicKey
from vmrun.trust.signing import rfc3339

EVENT = "audit.checkpoint"


def make_checkpoint(directories: StateDirectories, key: PrivateKey) -> tuple[Checkpoint, bytes]:
    """Verify the whole journal and sign where it ends; what was signed, and the envelope. That a
    checkpoint was made is an entry itself, and the one that is signed.

    Raises :class:`StateError` when the journal is broken or cannot be written.
    """
    journal = Journal(directories.journal)
    # Nobody should vouch for a broken chain, and neither should the entry be added to one.
    journal.verify()
    entry = journal.append(EVENT, {"key": key.public.key_id})
    head = journal.verify()
    checkpoint = Checkpoint(
        seq=head.seq,
        hash=head.hash,
        time=rfc3339(time.time()),
        host=_printable(socket.gethostname()),
        user=_printable(entry.user),
    )
    return checkpoint, sign_checkpoint(checkpoint, key)


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in as_text(text))[:255] or "?"


def must_be_new(path: Path) -> None:
    """Raises :class:`StateError` when there is something at ``path``."""
    if os.path.lexists(path):
        raise StateError(f"{path} exists", hint="an old checkpoint is evidence: name another file")


def write_checkpoint(path: Path, envelope: bytes) -> None:
    """Keep it in a file of its own; one that is there is not replaced. Raises
    :class:`StateError`."""
    must_be_new(path)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(envelope)
                file.flush()
                os.fsync(descriptor)
        except OSError:
            path.unlink()  # half of one is none
            raise
    except OSError as error:
        raise StateError(
            f"cannot write {path}: {error.strerror or error}", hint="choose another --output"
        ) from None


def verify_journal(
    directories: StateDirectories,
    checkpoints: Sequence[Path],
    key: PublicKey | None,
    expected: Head | None,
) -> tuple[Head, tuple[Checkpoint, ...]]:
    """The journal's head, once its chain and each checkpoint have been verified, and all that they
    say is in it.

    Raises :class:`TrustError` for a checkpoint that ``key`` did not sign, :class:`StateError` for
    a journal that is broken, cut, or another one.
    """
    said = tuple(_read(path, key) for path in checkpoints)
    heads = [Head(checkpoint.seq, checkpoint.hash) for checkpoint in said]
    return Journal(directories.journal).verify(expected, *heads), said


def _read(path: Path, key: PublicKey | None) -> Checkpoint:
    if key is None:
        raise TrustError(f"no key to verify checkpoint {path} with", hint="give --key FILE")
    try:
        with path.open("rb") as file:
            data = file.read(LARGEST + 1)
    except OSError as error:
        raise TrustError(
            f"cannot read checkpoint {path}: {error.strerror or error}",
            hint="name a file that 'vmrun audit checkpoint' wrote",
        ) from None
    return read_checkpoint(data, f"checkpoint {path}", key)
