"""A guest base: kernel, initrd and read-only root, and the manifest that names them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from vmrun.model.digest import Digest


class Flavour(StrEnum):
    """What a base can run: one container directly, or a dockerd with several."""

    MINIMAL = "minimal"
    DOCKER = "docker"


@dataclass(frozen=True, slots=True)
class Verity:
    """dm-verity parameters of the root (kernel docs, admin-guide/device-mapper/verity).

    ``root_hash`` and ``salt`` are hex; ``data_blocks`` counts 4096-byte blocks of the
    erofs; ``hash_start`` is the block of the same file where the hash tree begins.
    """

    root_hash: str
    salt: str
    data_blocks: int
    hash_start: int


@dataclass(frozen=True, slots=True)
class BaseFile:
    """One file of a base, as the manifest states it (``size`` in bytes)."""

    name: str
    digest: Digest
    size: int


@dataclass(frozen=True, slots=True)
class Base:
    """A base as its manifest describes it; ``digest`` is the digest of that manifest."""

    digest: Digest
    flavour: Flavour
    architecture: str
    kernel_release: str
    contract: str
    verity: Verity
    files: Mapping[str, BaseFile]
    packages: Mapping[str, str]
    directory: Path
    recipe: Digest
    """Digest of the recipe and sources that it was built from."""

    @property
    def kernel(self) -> Path:
        """The kernel image for direct boot."""
        return self.directory / "vmlinuz"

    @property
    def initrd(self) -> Path:
        """The initrd that opens dm-verity."""
        return self.directory / "initrd.img"

    @property
    def root(self) -> Path:
        """The erofs with its hash tree."""
        return self.directory / "root.img"
