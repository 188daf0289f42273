"""Looking things up in a flattened image as a process inside it would."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from vmrun.model.image import FileEntry, FileTree

MAX_LINKS = 40
"""Symbolic links that one lookup may follow, as in Linux (path_resolution(7))."""

MAX_STEPS = 1024
"""Components that one lookup may pass, those of links included. Linux has no such bound;
without one a small image could make its judge walk for hours."""


class LookupFailed(Exception):
    """A path does not lead to anything. Never leaves :mod:`vmrun.image`."""


class NoEntry(LookupFailed):
    """ENOENT or ENOTDIR: a component is missing or is not a directory."""


class TooManyLinks(LookupFailed):
    """ELOOP: more links or steps than one lookup may take."""


class BeyondRoot(LookupFailed):
    """``..`` leads above the root, where the caller does not allow that."""


@dataclass(frozen=True, slots=True)
class Found:
    """An entry and the path that it has once all links are followed."""

    path: str
    entry: FileEntry


def resolve(
    tree: FileTree, path: str, *, working_dir: str = "/", follow_last: bool = True
) -> Found:
    """Look ``path`` up as the kernel would inside the image: links are followed in the
    root, ``..`` at the root stays there. Raises :class:`LookupFailed`."""
    full = path if path.startswith("/") else f"{working_dir}/{path}"
    found = walk(tree.entries, full, follow_last=follow_last)
    return Found(found, tree.entries[found])


def walk(
    entries: Mapping[str, FileEntry],
    path: str,
    *,
    follow_last: bool = True,
    strict: bool = False,
    imply: Callable[[str], None] | None = None,
) -> str:
    """The real path of ``path`` in ``entries``.

    ``strict`` refuses ``..`` at the root. ``imply`` adds a missing directory to ``entries``;
    it is called for components of ``path`` only, not for those of a link's target.
    """
    todo = path.split("/")[::-1]
    own = len(todo)
    here = "/"
    links = 0
    for _ in range(MAX_STEPS):
        if not todo:
            return here
        part = todo.pop()
        if entries[here].kind != "dir":
            raise NoEntry(path)
        is_own, own = len(todo) < own, min(own, len(todo))
        if part in ("", "."):
            continue
        if part == "..":
            if here == "/" and strict:
                raise BeyondRoot(path)
            here = parent(here)
            continue
        there = join(here, part)
        if there not in entries:
            if imply is None or not is_own:
                raise NoEntry(path)
            imply(there)
        entry = entries[there]
        if entry.kind == "symlink" and (follow_last or any(todo)):
            links += 1
            if links > MAX_LINKS:
                break
            if entry.target.startswith("/"):
                here = "/"
            todo += entry.target.split("/")[::-1]
        else:
            here = there
    raise TooManyLinks(path)


def join(directory: str, name: str) -> str:
    """``name`` in ``directory``."""
    return f"/{name}" if directory == "/" else f"{directory}/{name}"


def parent(path: str) -> str:
    """The directory that holds ``path``; the root holds itself."""
    return path.rpartition("/")[0] or "/"
