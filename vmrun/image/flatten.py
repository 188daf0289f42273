"""Applying layers in order to one tree, refusing entries that act outside of it.

The order is that of the guest's unpacker: the whiteouts of a layer first, which therefore
only hide what lower layers brought, then its other entries as they come. Directories
above an entry are looked up as chroot(2) would, through links such as ``/bin`` to
``usr/bin``; a path that leaves the root on its way is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from vmrun.image.layer import Change, LayerEntry, unsafe
from vmrun.image.tree import BeyondRoot, LookupFailed, NoEntry, TooManyLinks, join, parent, walk
from vmrun.model.image import FileContent, FileEntry

GATE = "/.vmrun-gate"
"""Where vmrun binds its gate in the container (docs/reference/guest-contract.md)."""

_PAGE = 4096
_IMPLIED = FileEntry(kind="dir", mode=0o755, uid=0, gid=0, size=0)


@dataclass(slots=True, eq=False)
class Content:
    """Where a file's bytes are: in which layer's tar, and how many paths share them."""

    layer: int
    offset: int
    size: int
    links: int = 1

    @property
    def on_disk(self) -> int:
        return -(-self.size // _PAGE) * _PAGE


class Flattener:
    """The tree as it grows. ``peak_bytes`` is the most that ever lay on disk."""

    def __init__(self) -> None:
        self.entries: dict[str, FileEntry] = {"/": _IMPLIED}
        self.contents: dict[str, Content] = {}
        self.peak_bytes = 0
        self._bytes = 0
        self._children: dict[str, set[str]] = {"/": set()}
        self._layer = -1
        self._where = ""

    def located(self) -> dict[str, FileContent]:
        """Where the bytes of each file of the tree are."""
        return {
            path: FileContent(content.layer, content.offset, content.size)
            for path, content in self.contents.items()
        }

    def apply(self, entries: Sequence[LayerEntry], where: str) -> None:
        """Apply the next layer; ``where`` names it in errors."""
        self._layer += 1
        self._where = where
        for entry in entries:
            if entry.change in (Change.WHITEOUT, Change.OPAQUE):
                self._hide(entry)
        for entry in entries:
            if entry.change not in (Change.WHITEOUT, Change.OPAQUE):
                self._put(entry)

    def _hide(self, entry: LayerEntry) -> None:
        try:
            path = self._place(entry)
        except NoEntry:
            return  # there is nothing below that could be hidden
        if path not in self.entries:
            return
        if entry.change is Change.WHITEOUT:
            self._remove(path)
        elif self.entries[path].kind == "dir":
            for name in tuple(self._children[path]):
                self._remove(join(path, name))

    def _put(self, entry: LayerEntry) -> None:
        try:
            path = self._place(entry, imply=self._imply)
        except NoEntry:
            raise unsafe(
                self._where, entry.path, "lies below something that is not a directory"
            ) from None
        if entry.change is Change.HARDLINK:
            self._link(entry, path)
        elif entry.change is Change.DIRECTORY:
            self._put_directory(entry, path)
        else:
            self._remove(path)
            self._add(path, _entry("file" if entry.change is Change.FILE else "symlink", entry))
            if entry.change is Change.FILE:
                self._occupy(path, Content(self._layer, entry.offset, entry.size))

    def _put_directory(self, entry: LayerEntry, path: str) -> None:
        if path in self.entries and self.entries[path].kind == "dir":
            self.entries[path] = _entry("dir", entry)
            return
        self._remove(path)
        self._add(path, _entry("dir", entry))

    def _link(self, entry: LayerEntry, path: str) -> None:
        source = "/" + entry.target
        try:
            real = walk(self.entries, source, follow_last=False, strict=True)
        except LookupFailed:
            real = ""
        if not real or real.startswith(f"{path}/"):
            raise unsafe(
                self._where,
                entry.path,
                f"is a hard link to {entry.target[:200]!r}, not in the tree",
            )
        if real != source:
            raise unsafe(
                self._where, entry.path, f"is a hard link through a symbolic link {source[:200]!r}"
            )
        target = self.entries[real]
        if target.kind != "file":
            raise unsafe(self._where, entry.path, f"is a hard link to a {target.kind}")
        if real == path:
            return
        content = self.contents[real]
        content.links += 1
        self._remove(path)
        self._add(path, target)
        self.contents[path] = content

    def _place(self, entry: LayerEntry, imply: Callable[[str], None] | None = None) -> str:
        """The real path to act on: links in the parents are followed, the last part is not."""
        if not entry.path:
            return "/"
        directory, _, name = entry.path.rpartition("/")
        try:
            real = walk(self.entries, "/" + directory, strict=True, imply=imply)
        except BeyondRoot:
            raise unsafe(
                self._where, entry.path, "leads out of the image through a symbolic link"
            ) from None
        except TooManyLinks:
            raise unsafe(self._where, entry.path, "goes through too many links") from None
        if self.entries[real].kind != "dir":
            raise NoEntry(entry.path)
        return join(real, name)

    def _imply(self, path: str) -> None:
        """Create a directory that no layer mentions, as unpackers do."""
        self._add(path, _IMPLIED)

    def _add(self, path: str, entry: FileEntry) -> None:
        if path == GATE:
            raise unsafe(self._where, path, "takes the place of vmrun's own gate")
        self.entries[path] = entry
        self._children[parent(path)].add(path.rpartition("/")[2])
        if entry.kind == "dir":
            self._children[path] = set()

    def _occupy(self, path: str, content: Content) -> None:
        self.contents[path] = content
        self._bytes += content.on_disk
        self.peak_bytes = max(self.peak_bytes, self._bytes)

    def _remove(self, path: str) -> None:
        """Remove ``path`` and what is below it, if it is there."""
        if path not in self.entries:
            return
        self._children[parent(path)].discard(path.rpartition("/")[2])
        doomed = [path]
        while doomed:
            gone = doomed.pop()
            doomed += [join(gone, name) for name in self._children.pop(gone, ())]
            del self.entries[gone]
            content = self.contents.pop(gone, None)
            if content is not None:
                content.links -= 1
                self._bytes -= 0 if content.links else content.on_disk


def _entry(kind: str, entry: LayerEntry) -> FileEntry:
    return FileEntry(kind, entry.mode, entry.uid, entry.gid, entry.size, entry.target)
