"""Where vmrun keeps things on the host."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from vmrun.model.tenant import DEFAULT_TENANT


@dataclass(frozen=True, slots=True)
class StateDirectories:
    """Where vmrun keeps things: ``guests`` and ``cache`` are this user's, ``bases`` are looked
    through in order and the first is built into. What an image brought, or was found out about it,
    is kept apart for each ``tenant``; empty is the default one."""

    guests: Path
    cache: Path
    bases: tuple[Path, ...]
    tenant: str = ""

    def for_tenant(self, name: str) -> StateDirectories:
        """The same for a tenant."""
        return replace(self, tenant="" if name == DEFAULT_TENANT else name)

    @property
    def _own(self) -> Path:
        return self.tenants / self.tenant if self.tenant else self.guests.parent

    @property
    def images(self) -> Path:
        """Pulled blobs, and what is known of each image."""
        return self._own / "images"

    @property
    def scans(self) -> Path:
        """What scans have found, by image digest."""
        return self._own / "scans"

    @property
    def ledger(self) -> Path:
        """The newest signature seen for each name."""
        return self._own / "ledger"

    @property
    def catalogues(self) -> Path:
        """Trusted metadata of TUF catalogues."""
        return self.guests.parent / "catalogues"

    @property
    def journal(self) -> Path:
        """What happened, for good."""
        return self.guests.parent / "journal"

    @property
    def runs(self) -> Path:
        """Records and logs of runs, also of those that have ended."""
        return self.guests.parent / "runs"

    @property
    def volumes(self) -> Path:
        """Named volumes, by tenant."""
        return self.guests.parent / "volumes"

    @property
    def tenants(self) -> Path:
        """Tenants and what they may use."""
        return self.guests.parent / "tenants"

    @property
    def advisories(self) -> Path:
        """Offline databases of advisories, unless the settings name others."""
        return self.guests.parent / "advisories"
