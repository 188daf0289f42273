"""Which files of an image came with a package of its distribution, which then answers for them."""

from __future__ import annotations

from collections.abc import Iterable

from vmrun.image.tree import join, parent
from vmrun.scan.catalogue.places import Places
from vmrun.scan.catalogue.records import Unreadable

_MOST_LINES = 1_000_000


class Owners:
    """The files among ``candidates`` (real paths) that some package lists as its own."""

    def __init__(self, candidates: Iterable[str], places: Places) -> None:
        self._candidates = frozenset(candidates)
        self._names = frozenset(path.rpartition("/")[2] for path in self._candidates)
        self._places = places
        self._lines = 0
        self.owned: set[str] = set()

    def add(self, listed: Iterable[str]) -> None:
        """Take in a package's list. Its folders may be links (a merged /usr), its files have
        their own names. Raises :class:`Unreadable` beyond any sensible number of lines."""
        for path in listed:
            self._lines += 1
            if self._lines > _MOST_LINES:
                raise Unreadable(f"packages list more than {_MOST_LINES} files")
            name = path.rpartition("/")[2]
            if name in self._names:
                folder = self._places.real_folder(parent(path))
                if folder and (real := join(folder, name)) in self._candidates:
                    self.owned.add(real)
