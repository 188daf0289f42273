"""What each tenant has of its quota, read from the guests that live, and shares added to it."""

from __future__ import annotations

from vmrun.model.plan import Plan
from vmrun.model.tenant import Taken, Tenant
from vmrun.planning.share import share_of
from vmrun.policy.quota import check_container, check_disk, check_guest, check_own_guest
from vmrun.run.directories import StateDirectories
from vmrun.run.intent import Intent
from vmrun.run.state import GuestDirectory, alive
from vmrun.tenant.store import TenantStore
from vmrun.volume.store import VolumeStore


def taken(directories: StateDirectories, tenant: str, *, but: str = "") -> tuple[Taken, ...]:
    """All that a tenant has now, except for the run with the id ``but``. Raises
    :class:`StateError` when that cannot be found out."""
    return tuple(
        _taken(intent)
        for intent in alive(directories)
        if intent.tenant == tenant and intent.run_id != but
    )


def _taken(intent: Intent) -> Taken:
    own = not intent.shared and not intent.guest
    return Taken(intent.run_id, intent.name, intent.share, own=own, shared=intent.shared)


def volume_sizes(directories: StateDirectories, tenant: str) -> tuple[int, ...]:
    """The bytes of each named volume of a tenant. Raises :class:`StateError`."""
    return tuple(volume.size for volume in VolumeStore(directories.volumes, tenant).list())


class Shares:
    """The quota of one tenant; looking and adding are one, whatever else goes on."""

    def __init__(self, directories: StateDirectories, tenant: str) -> None:
        self._directories = directories
        self._store = TenantStore(directories.tenants)
        self._tenant = tenant

    def reserve(self, plan: Plan, directory: GuestDirectory) -> None:
        """Take what a run needs, until its ``directory`` is removed. Raises :class:`Refused` with
        the figures, :class:`StateError` when the tenant has gone."""
        share = share_of(plan)
        own = not directory.intent.guest
        with self._store.locked():
            tenant = self._store.get(self._tenant)
            others = taken(self._directories, tenant.name, but=directory.intent.run_id)
            if own:
                check_guest(tenant, others)
                check_own_guest(tenant, others, share)
            check_container(tenant, others, share)
            check_disk(tenant, others, volume_sizes(self._directories, tenant.name), share.disk)
            directory.note_share(share)

    def must_have_room(self, tenant: Tenant, size: int) -> None:
        """Refuse a volume of ``size`` bytes for which the tenant has no room."""
        others = taken(self._directories, tenant.name)
        check_disk(tenant, others, volume_sizes(self._directories, tenant.name), size)
