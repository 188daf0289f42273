"""The runs of one live guest: its own one, or all those of a tenant's guest."""

from __future__ import annotations

import contextlib
import threading

from vmrun.model.errors import NameInUse, StateError, VmrunError
from vmrun.model.plan import Plan
from vmrun.model.run_record import RunRecord
from vmrun.model.signals import TERM, signal_number
from vmrun.run.ports import Streams
from vmrun.supervisor.live import LiveGuest
from vmrun.supervisor.records import Runs
from vmrun.supervisor.service import Service, Surroundings
from vmrun.supervisor.tracked import TrackedRun


class Services:
    """``own``: the guest lives for its first run, and ends with it; a tenant's guest goes on."""

    def __init__(self, live: LiveGuest, around: Surroundings, runs: Runs, *, own: bool) -> None:
        self.live = live
        self.over = threading.Event()
        self.stopping = False
        """Whether the guest was asked to end."""
        self._around = around
        self._runs = runs
        self._own = own
        self._services: dict[str, Service] = {}
        self._lock = threading.Lock()
        self._count = 0
        self.last: RunRecord | None = None
        """The record of the guest's own run, as it was at its end."""

    def add(self, plan: Plan, record: RunRecord, streams: Streams | None = None) -> Service:
        """Begin a run. Raises :class:`NameInUse`, :class:`StateError`."""
        with self._lock:
            if self.over.is_set():
                raise StateError("the guest is ending", hint="see 'vmrun ps'")
            if any(s.record.name == record.name for s in self._services.values()):
                raise NameInUse(f"the name {record.name!r} is in use", hint="choose another --name")
            service = Service(
                plan,
                record,
                self.live,
                self._around,
                shared=not self._own,
                streams=streams,
                number=self._count,
                on_end=self._ended,
            )
            self._count += 1
            self._services[plan.run_id] = service
        service.change()
        service.begin()
        return service

    def get(self, run_id: object) -> Service:
        """The run with that id. Raises :class:`StateError` when it is not here (any more)."""
        with self._lock:
            service = self._services.get(str(run_id))
        if service is None:
            raise StateError(f"run {str(run_id)[:40]!r} is not running", hint="see 'vmrun ps -a'")
        return service

    def all(self) -> tuple[Service, ...]:
        """Every run that has not ended."""
        with self._lock:
            return tuple(self._services.values())

    def flush(self) -> None:
        """Write the records that could not be written before."""
        for service in self.all():
            service.flush()

    def end(self) -> None:
        """Let the guest end."""
        self.stopping = True
        self.over.set()

    def stop_all(self) -> None:
        """Stop every run, all at the same time, each with its own patience."""
        self.over.set()
        threads = [
            threading.Thread(target=_stop, args=(service,), daemon=True) for service in self.all()
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _ended(self, service: Service) -> None:
        if self._own:
            self.last = service.record
            self.stopping = service.controls.asked_to_stop.is_set()
            self.over.set()
            return
        with self._lock:
            self._services.pop(service.plan.run_id, None)
        if service.record.remove:
            self._runs.remove(service.plan.run_id)


def _stop(service: Service) -> None:
    if service.controls.ended.is_set():
        return
    with contextlib.suppress(VmrunError):
        service.controls.stop(
            service.plan.workload.service.stop_timeout, number=stop_signal(service)
        )


def stop_signal(service: TrackedRun) -> int:
    """What asks a run to end: its own, its image's, or SIGTERM."""
    plan = service.plan
    name = plan.workload.service.stop_signal or plan.image.config.stop_signal
    try:
        return signal_number(name)
    except VmrunError:
        return TERM
