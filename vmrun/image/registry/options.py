"""How to reach a registry: what a user can say about it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


class Progress(Protocol):
    """Told how far a transfer is; several threads do so at the same time."""

    def expect(self, size: int) -> None:
        """About ``size`` bytes are going to move."""
        ...

    def advance(self, size: int) -> None:
        """``size`` more bytes have moved."""
        ...


@dataclass(frozen=True, slots=True)
class RegistryOptions:
    """``plain_http`` allows HTTP, and only to a loopback address. ``cert_dirs`` hold
    ``HOST[:PORT]/*.crt`` as docker's certs.d(5) does; the first that has the registry counts.
    ``auth_file`` is docker's config.json; None means ``$DOCKER_CONFIG`` or ``~/.docker``."""

    plain_http: bool = False
    cert_dirs: tuple[Path, ...] = ()
    auth_file: Path | None = None
    progress: Progress | None = None
