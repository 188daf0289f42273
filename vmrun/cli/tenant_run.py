"""What ``run`` does for a tenant that was created: its quota, its own stores, its guest."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from vmrun.cli.attached import attach, wanted_terminal
from vmrun.cli.output import print_json
from vmrun.model.tenant import DEFAULT_TENANT, Tenant, checked_tenant
from vmrun.model.workload import EngineName, Workload
from vmrun.policy.profiles import PROFILES
from vmrun.run.directories import StateDirectories
from vmrun.run.state import GuestDirectory
from vmrun.settings import Settings

if TYPE_CHECKING:
    from vmrun.model.plan import Plan
    from vmrun.run.decide import RunOptions


@dataclass(frozen=True, slots=True)
class Owner:
    """Whose run it is; ``shares_guest``: it goes into the tenant's guest."""

    tenant: Tenant | None = None
    shares_guest: bool = False

    @property
    def engine(self) -> EngineName | None:
        """The engine of a run that names none; None where the settings say it."""
        return self.tenant.engine if self.tenant is not None and self.shares_guest else None

    def reserve(self, directories: StateDirectories) -> Callable[[Plan, GuestDirectory], None]:
        """What takes a run's share of the quota, if there is one."""
        if self.tenant is None:
            return lambda _plan, _directory: None
        from vmrun.run.shares import Shares

        return Shares(directories, self.tenant.name).reserve


def of_tenant(settings: Settings, name: str) -> tuple[Owner, Settings]:
    """The tenant of that name, and the settings as they are for it. Raises :class:`StateError` for
    one that was never created."""
    if checked_tenant(name) == DEFAULT_TENANT:
        return Owner(), settings
    from vmrun.tenant.store import TenantStore

    tenant = TenantStore(settings.directories.tenants).get(name)
    floors = [settings.floor, *([tenant.floor] if tenant.floor else [])]
    own = replace(
        settings,
        directories=settings.directories.for_tenant(name),
        floor=max(floors, key=lambda floor: PROFILES[floor].strictness),
    )
    return Owner(tenant, shares_guest=True), own


def run_for_tenant(
    workload: Workload, options: RunOptions, tenant: Tenant, *, detach: bool, json: bool
) -> int:
    """Run it in the guest of ``tenant``, attended or not; returns the status to exit with."""
    from vmrun.run.tenant_run import Attachment, run_in_tenant

    attachment = None
    if not detach:
        interactive, terminal = workload.interactive, workload.terminal
        attachment = Attachment(
            {
                "interactive": interactive,
                "terminal": wanted_terminal(interactive=interactive, terminal=terminal),
            },
            lambda line: attach(
                line, interactive=interactive, terminal=terminal, stdout_is_stderr=json
            ),
        )
    entered = run_in_tenant(
        workload, options, tenant, attachment=attachment, keep_record=detach or json
    )
    if json:
        print_json(entered.record)
    elif detach:
        print(entered.record.run_id, file=sys.stdout)
    return entered.status
