"""What the reader of a compose file needs besides the file itself."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from vmrun.compose.field import Field
from vmrun.model.network import Allow


class Files(Protocol):
    """The files beside a compose file."""

    def read(self, path: Path, limit: int) -> bytes | None:
        """A file's first bytes, ``limit`` and one more at most; None if there is no such file.
        Raises :class:`~vmrun.model.errors.UsageError` if it cannot be read."""

    def real(self, path: Path) -> Path:
        """The path with its links followed, as far as it exists."""


@dataclass(frozen=True, slots=True)
class Context:
    """``folder`` is absolute. ``variables`` are the environment's and those of ``.env``;
    ``parse_allow`` reads a destination for egress, as ``vmrun run --allow`` does."""

    project: str
    folder: Path
    variables: Mapping[str, str]
    files: Files
    parse_allow: Callable[[str], Allow]
    notes: list[str] = field(default_factory=list)

    def host_path(self, value: Field) -> Path:
        """A path of the host, relative to the compose file's folder. One that leads out of that
        folder, be it through a link, is used and noted: the file may be somebody else's."""
        text = value.word()
        if text.startswith("~"):
            raise value.wrong(f"{text[:80]!r} begins with ~", "write ${HOME} in its place")
        # As compose does: a relative path loses its '..', an absolute one stays as it is written.
        absolute = os.path.isabs(text)
        path = Path(text if absolute else os.path.normpath(self.folder / text))
        if not self.files.real(path).is_relative_to(self.files.real(self.folder)):
            self.notes.append(f"{value.where}: {path} is outside the project's folder")
        return path
