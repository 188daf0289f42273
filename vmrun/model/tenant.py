"""Tenants: who owns guests, and how much of the host they may take."""

from __future__ import annotations

import re
from dataclasses import dataclass

from vmrun.model.errors import UsageError
from vmrun.model.workload import EngineName, ProfileName

DEFAULT_TENANT = "default"
"""The tenant of whoever names none: it is there without being created, and has no quota."""

RESERVED = frozenset({DEFAULT_TENANT, "doctor", "trial"})
"""No tenant can be created under these: vmrun's own short-lived guests bear the others."""

_NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")


@dataclass(frozen=True, slots=True)
class Quota:
    """What a tenant may take at once: ``memory`` bytes for all of its containers together, wherever
    they run, ``cpus`` for the largest of them and for all that have guests of their own together,
    ``disk`` bytes of volumes and scratch space, ``guests`` with the tenant's guest among them."""

    cpus: float
    memory: int
    disk: int
    guests: int


@dataclass(frozen=True, slots=True)
class Tenant:
    """``created`` in seconds since 1970; ``engine`` starts the containers of the tenant's guest;
    ``floor`` is the least strict profile that its workloads may have, where that is stricter than
    the site's."""

    name: str
    created: float
    engine: EngineName
    quota: Quota
    floor: ProfileName | None = None


@dataclass(frozen=True, slots=True)
class Share:
    """What one run takes of its tenant's quota: ``memory`` bytes for as long as it lives,
    ``passing`` bytes more while its image is unpacked, ``disk`` bytes of scratch space."""

    memory: int = 0
    passing: int = 0
    cpus: float = 0.0
    disk: int = 0


@dataclass(frozen=True, slots=True)
class Taken:
    """The share of a run that lives, or of the guest of a tenant, which takes none itself. ``own``:
    the run has a guest of its own; ``shared``: it is the tenant's guest."""

    run_id: str
    name: str
    share: Share
    own: bool = False
    shared: bool = False


def checked_tenant(name: str) -> str:
    """``name``, if it is one DNS label in lower case. Raises :class:`UsageError`."""
    if _NAME.fullmatch(name) is None:
        raise UsageError(
            f"not a tenant's name: {name[:80]!r}",
            hint="lower-case letters, digits and hyphens, at most 63, no hyphen at an end",
        )
    return name
