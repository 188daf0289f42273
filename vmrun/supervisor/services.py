"""The runs of one live guest: its own one, or all those of a tenant's guest."""

from __future__ import annotations

import contextlib
import threading
from dataclasses import replace

from vmrun.model.errors import NameInUse, StateError, VmrunError
from vmrun.model.plan import Plan
from vmrun.model.run_record import RunRecord
from vmrun.model.signals import TERM, signal_number
from vmrun.run.containers import ContainerDirectory, hold_container, sweep_containers
from vmrun.run.ports import Streams
from vmrun.supervisor.contained import Contained
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
        self._ports: dict[str, int] = {}
        self._directories: dict[str, ContainerDirectory] = {}
        self._discarded: set[str] = set()
        self._unclean: set[str] = set()
        self._lock = threading.Lock()
        self.last: RunRecord | None = None
        """The record of the guest's own run, as it was at its end."""

    def add(self, plan: Plan, record: RunRecord, streams: Streams | None = None) -> Service:
        """Begin a run. Raises :class:`NameInUse`, :class:`StateError`, :class:`UsageError`."""
        if not self._own:
            record = self._admit(plan, record)
        try:
            service = self._enter(plan, record, streams)
        except BaseException:
            self._around.wire.detach(plan)
            self._let_go(plan)
            raise
        service.change()
        service.begin()
        return service

    def _admit(self, plan: Plan, record: RunRecord) -> RunRecord:
        """Hold what one more container of a tenant's guest needs on the host."""
        guest = self.live.directory.path
        if record.guest != guest.name or plan.run_id != record.run_id:
            raise StateError(f"run {record.run_id[:40]!r} was not planned for this guest")
        with self._lock:
            sweep_containers(guest)
            if plan.run_id in self._directories:
                raise StateError(f"run {plan.run_id} is here already", hint="see 'vmrun ps'")
            self._directories[plan.run_id] = hold_container(guest, plan.run_id)
        try:
            return replace(record, ports=self._around.wire.reserve(plan))
        except BaseException:
            self._let_go(plan)
            raise

    def _enter(self, plan: Plan, record: RunRecord, streams: Streams | None) -> Service:
        with self._lock:
            if self.over.is_set():
                raise StateError("the guest is ending", hint="see 'vmrun ps'")
            if any(s.record.name == record.name for s in self._services.values()):
                raise NameInUse(f"the name {record.name!r} is in use", hint="choose another --name")
            port = self._quietest_port()
            service = Service(
                plan,
                record,
                self.live,
                self._around,
                shared=not self._own,
                streams=streams,
                number=port,
                on_end=self._ended,
                discard=self._discard,
            )
            self._ports[plan.run_id] = port
            self._services[plan.run_id] = service
            return service

    def _quietest_port(self) -> int:
        """The SSH connection that the fewest containers use."""
        used = list(self._ports.values())
        return min(range(self.live.order.plan.ssh_ports), key=used.count)

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
        record = service.record
        clean = self._let_go(service.plan) and record.run_id not in self._unclean
        self._discarded.discard(record.run_id)
        if record.remove:
            self._runs.remove(record.run_id)
        with contextlib.suppress(VmrunError):  # as for any event of what ran
            self._around.journal("run.end", record.last_word(clean=clean))

    def _discard(self, service: Service, contained: Contained) -> None:
        """Remove what a container leaves; with its guest, where that ends."""
        if self._own or self.over.is_set():
            return
        digest = service.plan.image.config_blob.digest
        with self.live.turn:
            # Another one that ends now may have had its turn, but is still among the others.
            self._discarded.add(service.plan.run_id)
            used = any(
                other.plan.image.config_blob.digest == digest
                for other in self.all()
                if other.plan.run_id not in self._discarded
            )
            try:
                contained.discard(image=not used)
            except VmrunError:
                self._unclean.add(service.plan.run_id)
                raise

    def _let_go(self, plan: Plan) -> bool:
        """Give back what it held on the host; whether all of that is gone."""
        with self._lock:
            self._services.pop(plan.run_id, None)
            self._ports.pop(plan.run_id, None)
            directory = self._directories.pop(plan.run_id, None)
        if directory is None:
            return True
        gone = directory.remove()
        directory.release()
        return gone


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
