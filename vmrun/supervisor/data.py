"""The data of what runs in a guest: prepared before the guest is made, populated when it is up."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager

from vmrun.model.errors import StateError
from vmrun.model.plan import Plan
from vmrun.run.guest_volumes import GuestVolumes
from vmrun.run.state import GuestDirectory
from vmrun.run.storage import RunStorage
from vmrun.run.teardown import Teardown
from vmrun.supervisor.launch import Launch
from vmrun.supervisor.live import LiveGuest


def note(text: str) -> None:
    """For whoever reads the supervisor's log."""
    print(f"vmrun: {text}", file=sys.stderr, flush=True)


class GuestData:
    """The data of the run that the guest lives for; in a tenant's guest its named volumes, and the
    data of each run, from its start to its end."""

    def __init__(
        self,
        told: Launch,
        directory: GuestDirectory,
        teardown: Teardown,
        *,
        live: Callable[[], LiveGuest],
    ) -> None:
        """``live`` gives the guest, once it is up; until then it raises :class:`ChannelError`."""
        self._directory = directory
        self._teardown = teardown
        self._live = live
        self._storage: RunStorage | None = None
        self._plan: Plan | None = None
        self._place = told.directories.volumes
        self._shared: dict[str, RunStorage] = {}
        self._secrets: dict[str, Mapping[str, bytes]] = {}
        tenant = directory.intent.tenant
        self._volumes = GuestVolumes(told.order.plan, tenant, self._place, note=note)
        if told.own is None:
            return
        self._plan = told.own.plan
        self._storage = RunStorage(self._plan.workload, self._place, note=note)
        self._storage.look(directory.path)

    def prepare(self) -> None:
        """Make what the guest needs on the host before it is made itself."""
        if self._storage is not None and self._plan is not None:
            self._storage.prepare(self._plan, self._directory, self._teardown)
        else:
            self._volumes.prepare(self._directory, self._teardown)

    def unlocked(self) -> AbstractContextManager[None]:
        """See :meth:`RunStorage.unlocked`."""
        return (self._storage or self._volumes).unlocked()

    def mount(self) -> None:
        """Mount the volumes of a tenant's guest, which is up."""
        self._volumes.mount(self._live().connection(), self._teardown)

    @contextlib.contextmanager
    def entrusted(self, run_id: str, secrets: Mapping[str, bytes]) -> Iterator[None]:
        """Keep the bytes of the secrets of a run in a tenant's guest until it takes them, or is
        not started after all."""
        if run_id in self._secrets:
            raise StateError(f"run {run_id} is being started already", hint="see 'vmrun ps'")
        self._secrets[run_id] = secrets
        del secrets  # whoever is attached stays here until the run has ended
        try:
            yield
        finally:
            self._secrets.pop(run_id, None)

    def populate(self, plan: Plan) -> None:
        """Bring a run's data into the guest."""
        if self._storage is not None:
            self._storage.populate(plan, self._live().connection(), self._teardown)
            return
        storage = RunStorage(plan.workload, self._place, note=note)
        storage.look(self._directory.path, given=self._secrets.pop(plan.run_id, {}))
        self._shared[plan.run_id] = storage
        # Nothing to undo on the host; in the guest it is undone by collecting.
        storage.populate(plan, self._live().connection(), Teardown())

    def collect(self, plan: Plan) -> None:
        """Take it back."""
        storage = self._storage or self._shared.pop(plan.run_id, None)
        if storage is not None:
            storage.collect(plan, self._live().connection())
