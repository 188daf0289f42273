"""The two sides of a copy, as they are written."""

from __future__ import annotations

import posixpath
from collections.abc import Iterable
from dataclasses import dataclass

from vmrun.cli.output import note
from vmrun.model.errors import UsageError

STREAM = "-"
_MOST_NOTES = 20


@dataclass(frozen=True, slots=True)
class Place:
    """One side of a copy: ``path`` on this host, or in ``run``'s container."""

    run: str
    path: str

    @property
    def contents(self) -> bool:
        """Whether what is in a directory is meant, and not the directory itself."""
        return self.path in ("", ".", "/") or self.path.endswith("/.")

    @property
    def must_be_directory(self) -> bool:
        """Whether it says so by its end."""
        return self.path.endswith("/") or self.contents

    @property
    def inside(self) -> str:
        """The path in a container: absolute, with a slash behind what must be a directory."""
        clean = posixpath.normpath("/" + self.path.lstrip("/"))
        return clean + "/" if self.must_be_directory and clean != "/" else clean


@dataclass(frozen=True, slots=True)
class Copied:
    """What was copied: ``entries`` counts files, directories and links, 0 for a tar that was passed
    on as it is; ``left_out`` those that stayed behind although they were asked for."""

    entries: int
    size: int
    left_out: int = 0


def parse_place(text: str) -> Place:
    """``RUN:PATH`` or a path of this host: what begins with a slash or a dot is one, and so is
    what has no colon. Raises :class:`UsageError`."""
    run, colon, path = text.partition(":")
    if text.startswith(("/", ".")) or not colon:
        if not text or "\0" in text:
            raise UsageError(f"not a path: {text[:80]!r}", hint="vmrun cp RUN:PATH DEST")
        return Place("", text)
    if not run or not path:
        raise UsageError(
            f"not RUN:PATH: {text[:80]!r}", hint=f"./{text[:80]} is a file of this host"
        )
    if not path.isprintable():
        raise UsageError(
            f"not a path that can be asked for: {path[:80]!r}", hint="copy its directory"
        )
    return Place(run, path)


def tell(notes: Iterable[str]) -> None:
    """What is to be known of a copy, and not more of it than anyone would read."""
    known = list(notes)
    for text in known[:_MOST_NOTES]:
        note(text)
    if len(known) > _MOST_NOTES:
        note(f"and {len(known) - _MOST_NOTES} more")
