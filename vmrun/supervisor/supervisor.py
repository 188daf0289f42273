"""The owner of one detached guest: brings it up, keeps it, answers for it, and tears it down."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import time
from dataclasses import dataclass, replace

from vmrun.journal.journal import Journal
from vmrun.model.errors import ChannelError, GuestError, Interrupted, StateError, VmrunError
from vmrun.model.plan import Plan
from vmrun.model.report import Assertion, Receipt
from vmrun.model.run_record import RunRecord, RunState
from vmrun.run.clock import PhaseClock
from vmrun.run.signals import SignalGuard, signal_guard
from vmrun.run.state import GuestDirectory, inherited
from vmrun.run.teardown import Teardown, remove_guest
from vmrun.supervisor.again import delay_after, start_over
from vmrun.supervisor.answers import Answers
from vmrun.supervisor.data import GuestData, note
from vmrun.supervisor.launch import Launch, StartReport
from vmrun.supervisor.live import LiveGuest, bring_up
from vmrun.supervisor.protocol import SOCKET
from vmrun.supervisor.records import Runs
from vmrun.supervisor.server import Server
from vmrun.supervisor.service import Surroundings
from vmrun.supervisor.services import Services
from vmrun.supervisor.wires import Wires

_TICK = 1.0


@dataclass(slots=True)
class _Fate:
    """How it went so far."""

    error: VmrunError | None = None
    record: RunRecord | None = None
    live: LiveGuest | None = None
    started: bool = False


def supervise(told: Launch) -> int:
    """Own the guest until it ends; returns the process's exit status."""
    directory = inherited(told.directories, told.guest, told.lock)
    directory.adopt()
    report = StartReport(told.report)
    clock = PhaseClock(report.phase)
    teardown = Teardown()
    runs = Runs(told.directories.runs)
    journal = Journal(told.directories.journal)
    own = told.own
    if own is not None:
        runs.hold(own.record.run_id)
    fate = _Fate(record=own.record if own else None)
    services: Services | None = None
    with signal_guard() as guard:
        try:
            wires = Wires(lambda: _live(fate).connection(1), journal.append)
            teardown.add("ports", wires.close)
            if own is not None:
                fate.record = replace(own.record, ports=wires.reserve(own.plan))
            data = GuestData(told, directory, teardown, live=lambda: _live(fate))
            live, assertions = bring_up(
                told.order,
                directory,
                told.directories,
                clock,
                teardown,
                prepare=data.prepare,
                unlocked=data.unlocked,
            )
            fate.live = live
            if own is None:
                with clock.phase("mount"):
                    data.mount()
            around = Surroundings(runs, journal.append, wires, data.populate, data.collect)
            services = Services(live, around, runs, own=own is not None)
            server = Server(directory.path / SOCKET, Answers(services, data.entrusted).table())
            teardown.add("control socket", lambda: _close(server))
            if own is not None:
                _start(own.plan, fate.record or own.record, services, clock, assertions)
            report.started()
            fate.started = True
            _let_go_of_memory()
            _keep(live, services, guard)
        except VmrunError as error:
            guard.protect()
            fate.error = error
        finally:
            guard.protect()
            if services is not None:
                services.stop_all()
                fate.record = services.last or fate.record
            with clock.phase("teardown"):
                removed = teardown.run()
                _maybe_start_over(told, directory, runs, journal, fate, guard)
                receipt = Receipt((*removed, *remove_guest(directory)))
    try:
        _write_down(told, runs, journal, fate, receipt, clock)
    except StateError as error:
        # Its record says so by having no receipt: the next command writes the last word.
        note(f"the end of this run is not written down: {error.message}")
    if fate.error is not None and not fate.started:
        report.failed(fate.error)
    return 0 if receipt.clean else 1


def _maybe_start_over(
    told: Launch,
    directory: GuestDirectory,
    runs: Runs,
    journal: Journal,
    fate: _Fate,
    guard: SignalGuard,
) -> None:
    """Start over when the guest has died and the run is to be kept running. Returns when not."""
    record = fate.record
    delay = delay_after(told, record, fate.error) if record is not None else None
    if record is None or delay is None or not (fate.started or told.attempt):
        return
    with contextlib.suppress(VmrunError):
        journal.append(
            "run.restart",
            {
                "run": record.run_id,
                "name": record.name,
                "tenant": record.tenant,
                "error": fate.error.message.partition(":")[0] if fate.error else "",
                "delay": f"{delay:g}",
                "guest": "anew",
            },
        )
        runs.update(replace(record, state=RunState.RESTARTING, exit_status=None, finished=0.0))
    wanted_until = time.monotonic() + delay
    while not guard.received and time.monotonic() < wanted_until:
        time.sleep(0.05)
    if not guard.received:
        start_over(told, directory, record)


def _let_go_of_memory() -> None:
    """From here on little happens for a long time: give back what only the start has needed
    (malloc_trim(3))."""
    gc.collect()
    gc.freeze()
    ctypes.CDLL(None).malloc_trim(0)


def _start(
    plan: Plan,
    record: RunRecord,
    services: Services,
    clock: PhaseClock,
    assertions: tuple[Assertion, ...],
) -> None:
    """Start the workload that the guest lives for."""
    with clock.phase("start"):
        service = services.add(plan, record)
        service.wait_started()
    service.change(assertions=(*assertions, *service.record.assertions), phases=clock.phases)


def _keep(live: LiveGuest, services: Services, guard: SignalGuard) -> None:
    """Until there is nothing left to keep, or the guest is gone."""
    while not services.over.wait(_TICK):
        guard.check()
        services.flush()
        _must_live(live)
    if not services.stopping:
        _must_live(live)


def _must_live(live: LiveGuest) -> None:
    if live.lost.is_set():
        raise GuestError("the guest did not answer for a whole lease; it was destroyed")
    if not live.provisioned.guest.alive():
        raise GuestError("the guest ended by itself", details=live.console_tail())


def _live(fate: _Fate) -> LiveGuest:
    if fate.live is None:
        raise ChannelError("the guest is not up yet")
    return fate.live


def _close(server: Server) -> tuple[()]:
    server.close()
    return ()


def _write_down(
    told: Launch, runs: Runs, journal: Journal, fate: _Fate, receipt: Receipt, clock: PhaseClock
) -> None:
    """The record's last word, and the journal's."""
    record = fate.record
    if record is None:
        journal.append(
            "guest.end",
            {
                "guest": told.guest,
                "tenant": told.order.metadata.get("tenant", ""),
                "accelerator": str(told.order.plan.accelerator),
                "base": str(told.order.base.digest),
                "error": fate.error.message.partition(":")[0] if fate.error else "",
                "clean": str(receipt.clean).lower(),
            },
        )
        return
    error = fate.error
    if error is not None and not isinstance(error, Interrupted):
        record = replace(
            record,
            state=RunState.DEAD,
            error=error.message,
            hint=error.hint,
            details=error.details,
            exit_status=record.exit_status or error.exit_status,
        )
    if not record.ended:
        status = error.exit_status if error else record.exit_status
        record = replace(record, state=RunState.DEAD, exit_status=status)
    record = replace(
        record,
        receipt=receipt,
        phases=clock.phases,
        finished=record.finished or time.time(),
    )
    # The journal first: a record with its last word is asked about no more.
    journal.append("run.end", record.last_word(clean=receipt.clean))
    if record.remove or not fate.started:
        runs.remove(record.run_id)
    else:
        runs.update(record)
