"""Quotas: whether one more container or guest fits beside what its tenant has already. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from vmrun.model.errors import Refused
from vmrun.model.quantity import format_size
from vmrun.model.tenant import Share, Taken, Tenant


def check_guest(tenant: Tenant, others: Sequence[Taken]) -> None:
    """Refuse one more guest than ``tenant`` may have; ``others`` is all that it has."""
    guests = sum(1 for other in others if other.own or other.shared)
    if guests >= tenant.quota.guests:
        raise Refused(
            f"tenant {tenant.name!r} may have {tenant.quota.guests} guests, and has {guests}",
            hint="end a run that has a guest of its own (vmrun ps), or run without --own-guest",
        )


def check_container(tenant: Tenant, others: Sequence[Taken], new: Share) -> None:
    """Refuse a container that does not fit into the quota of ``tenant`` beside all that it has.

    While its image is unpacked a container takes more; only one is at a time.
    """
    quota = tenant.quota
    if new.cpus > quota.cpus:
        raise Refused(
            f"--cpus {new.cpus:g} is above the quota of tenant {tenant.name!r}, {quota.cpus:g}",
            hint=f"ask for at most {quota.cpus:g}",
        )
    held = sum(other.share.memory for other in others)
    passing = max([new.passing, *(other.share.passing for other in others)])
    if held + new.memory + passing > quota.memory:
        raise Refused(
            f"the container takes {format_size(new.memory)} ({format_size(passing)} more while its"
            f" image is unpacked); tenant {tenant.name!r} has {format_size(held)} of"
            f" {format_size(quota.memory)} in use",
            hint="ask for less with --memory, or end another of its runs: vmrun ps",
        )


def check_own_guest(tenant: Tenant, others: Sequence[Taken], new: Share) -> None:
    """Refuse the processors of one more guest of a run's own."""
    held = sum(other.share.cpus for other in others if other.own)
    if held + new.cpus > tenant.quota.cpus:
        raise Refused(
            f"--cpus {new.cpus:g} does not fit: guests of their own have {held:g} of the"
            f" {tenant.quota.cpus:g} of tenant {tenant.name!r}",
            hint="ask for less with --cpus, or run without --own-guest",
        )


def check_disk(tenant: Tenant, others: Sequence[Taken], volumes: Sequence[int], new: int) -> None:
    """Refuse ``new`` bytes of a volume or of scratch space beside the ``volumes`` that there are
    (bytes each) and the scratch space of the runs that live."""
    if new == 0:
        return
    held = sum(volumes) + sum(other.share.disk for other in others)
    if held + new > tenant.quota.disk:
        raise Refused(
            f"{format_size(new)} of disk do not fit: tenant {tenant.name!r} has"
            f" {format_size(held)} of {format_size(tenant.quota.disk)} in use",
            hint="make it smaller, or remove a volume: vmrun volume rm",
        )
