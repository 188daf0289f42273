"""The bytes of secrets: read when a run starts, kept in memory, sent to the guest, never shown."""

from __future__ import annotations

import os
import shlex
import stat
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from vmrun.model.errors import StateError, UsageError
from vmrun.model.storage import Secret

LARGEST = 1 << 20


@dataclass(frozen=True, slots=True)
class SecretBytes:
    """A secret with its bytes, which ``repr`` does not show."""

    name: str
    data: bytes = field(repr=False)


def read_secrets(
    secrets: Iterable[Secret], environment: Mapping[bytes, bytes], *, note: Callable[[str], None]
) -> tuple[SecretBytes, ...]:
    """Read each from its file or from ``environment``.

    Raises :class:`UsageError` for a variable that is not set, :class:`StateError` for a file that
    cannot be read or is larger than 1 MiB. Files that others may read are told to ``note``.
    """
    return tuple(SecretBytes(item.name, _read(item, environment, note)) for item in secrets)


def check_given(secrets: Iterable[Secret], given: Mapping[str, bytes]) -> tuple[SecretBytes, ...]:
    """The bytes that another process has read: of each secret, and of no other. Raises
    :class:`StateError`."""
    names = [secret.name for secret in secrets]
    if sorted(names) != sorted(given):
        raise StateError("the secrets that were sent are not those of the run")
    for name, value in given.items():
        _must_be_small(name, value)
    return tuple(SecretBytes(name, given[name]) for name in names)


def _read(secret: Secret, environment: Mapping[bytes, bytes], note: Callable[[str], None]) -> bytes:
    if secret.source is not None:
        data = _of_file(secret.name, secret.source, note)
    else:
        found = environment.get(secret.variable.encode())
        if found is None:
            raise UsageError(
                f"secret {secret.name!r}: the environment has no {secret.variable}",
                hint=f"set it, or read a file: --secret id={secret.name},src=FILE",
            )
        data = found
    _must_be_small(secret.name, data)
    return data


def _must_be_small(name: str, data: bytes) -> None:
    if len(data) > LARGEST:
        raise StateError(f"secret {name!r} is larger than 1 MiB", hint="use a volume for it")


def _of_file(name: str, path: Path, note: Callable[[str], None]) -> bytes:
    try:
        # A FIFO is as good as a file (a shell's <(…)); nothing else has an end.
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            if not (stat.S_ISREG(mode) or stat.S_ISFIFO(mode)):
                raise StateError(f"secret {name!r}: {path} is no file", hint="name a file")
            if stat.S_ISREG(mode) and mode & (stat.S_IROTH | stat.S_IRGRP):
                note(
                    f"secret {name!r}: {path} can be read by others: "
                    f"chmod 600 {shlex.quote(str(path))}"
                )
            return file.read(LARGEST + 1)
    except OSError as error:
        raise StateError(
            f"secret {name!r}: cannot read {path}: {error.strerror}",
            hint="name a file that you may read",
        ) from None
