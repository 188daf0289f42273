"""Reading compose files and what stands beside them. The only module here that touches files."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Mapping
from pathlib import Path

from vmrun.compose.document import MAX_BYTES
from vmrun.compose.model import Project
from vmrun.compose.parse import parse_project
from vmrun.model.errors import UsageError
from vmrun.model.network import Allow

NAMES = ("compose.yaml", "compose.yml", "docker-compose.yaml", "docker-compose.yml")
"""What a compose file is called (Compose specification, 03-compose-file.md)."""

_OVERRIDES = tuple(name.replace(".y", ".override.y") for name in NAMES)


class HostFiles:
    """The host's files."""

    def read(self, path: Path, limit: int) -> bytes | None:
        """See :class:`~vmrun.compose.context.Files`. Regular files only; a pipe would block."""
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise _unreadable(path, error) from None
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise UsageError(f"{path}: not a file", hint="name a regular file")
            with open(descriptor, "rb", closefd=False) as file:
                return file.read(limit + 1)
        except OSError as error:
            raise _unreadable(path, error) from None
        finally:
            os.close(descriptor)

    def real(self, path: Path) -> Path:
        """See :class:`~vmrun.compose.context.Files`."""
        return Path(os.path.realpath(path))


def load_project(
    path: Path | None,
    *,
    environment: Mapping[str, str],
    parse_allow: Callable[[str], Allow],
    name: str | None = None,
) -> Project:
    """The project of a file, or of the one in the current folder when ``path`` is None.

    Raises :class:`UsageError` when there is none, when it cannot be read, and for everything that
    :func:`~vmrun.compose.parse.parse_project` refuses.
    """
    chosen = _find(environment) if path is None else path
    files = HostFiles()
    data = files.read(chosen, MAX_BYTES)
    if data is None:
        raise UsageError(f"no such file: {chosen}", hint="name a compose file with -f")
    return parse_project(
        data,
        path=chosen,
        environment=environment,
        files=files,
        parse_allow=parse_allow,
        name=name,
    )


def _find(environment: Mapping[str, str]) -> Path:
    if environment.get("COMPOSE_FILE"):
        raise UsageError(
            f"COMPOSE_FILE is not used: {environment['COMPOSE_FILE'][:200]!r}",
            hint="name the file with -f, or unset the variable",
        )
    found = [name for name in NAMES if os.path.lexists(name)]
    if not found:
        raise UsageError(
            "no compose file in this folder", hint=f"make {NAMES[0]}, or name a file with -f"
        )
    if len(found) > 1:
        raise UsageError(
            f"several compose files: {', '.join(found)}", hint="name one of them with -f"
        )
    # Compose would merge it in; to leave it out silently could drop what it restricts.
    for override in _OVERRIDES:
        if os.path.lexists(override):
            raise UsageError(
                f"{override} is not merged in: vmrun reads one file",
                hint=f"name the file alone with -f {found[0]}, or put both into one",
            )
    return Path(found[0])


def _unreadable(path: Path, error: OSError) -> UsageError:
    return UsageError(f"{path}: {error.strerror}", hint="name a readable file")
