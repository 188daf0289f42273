"""TUF catalogues for tests: real ones, published and read by python-tuf, on throw-away keys."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from vmrun.model.digest import Digest
from vmrun.trust.catalogue import CatalogueEntry, look_up
from vmrun.trust.catalogue_publish import Lifetimes, Publisher, create_catalogue
from vmrun.trust.tuf_keys import KeyFolder

NAME = "registry.example.com/team/app:1.0"
OLD, NEW = Digest.of(b"old"), Digest.of(b"new")
DAY = 24 * 3600.0


def passphrase() -> bytes:
    return b"correct horse"


@dataclass
class Catalogue:
    """A catalogue in ``folder``; ``state`` is what one reader remembers."""

    folder: Path
    now: float = field(default_factory=time.time)

    @property
    def directory(self) -> Path:
        return self.folder / "catalogue"

    @property
    def state(self) -> Path:
        return self.folder / "reader"

    @property
    def keys(self) -> KeyFolder:
        return KeyFolder(self.folder / "catalogue.keys", passphrase)

    @property
    def first_root(self) -> bytes:
        return (self.directory / "1.root.json").read_bytes()

    def init(
        self, *, root_keys: int = 1, threshold: int = 1, lifetimes: Lifetimes | None = None
    ) -> Catalogue:
        create_catalogue(
            self.directory,
            self.keys,
            now=self.now,
            root_keys=root_keys,
            root_threshold=threshold,
            lifetimes=lifetimes,
        )
        return self

    def publisher(self, *, later: float = 0.0) -> Publisher:
        return Publisher(self.directory, self.keys, now=self.now + later)

    def add(self, digest: Digest, name: str = NAME) -> None:
        self.publisher().add(name, digest, 500)

    def read(
        self,
        name: str = NAME,
        *,
        source: str | None = None,
        root: bytes | None = None,
        state: Path | None = None,
        later: float = 0.0,
    ) -> CatalogueEntry:
        return look_up(
            name,
            source=source or str(self.directory),
            root=root if root is not None else self.first_root,
            state=state or self.state,
            now=time.time() + later,
        )

    def copy(self, name: str) -> Path:
        """The published files as they are now."""
        target = self.folder / name
        shutil.copytree(self.directory, target)
        return target

    def restore(self, saved: Path, *names: str) -> None:
        """Put published files back: those, or all."""
        for path in saved.iterdir():
            if not names or path.name in names:
                shutil.copy(path, self.directory / path.name)


Make = Callable[..., Catalogue]
