"""``vmrun run``: one straight line from a workload to its report.

Everything before *provision* only reads (:mod:`vmrun.run.decide`), so a denied image creates no
guest; everything after is undone at the end.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field, replace

from vmrun.channel.ssh import SshConnection
from vmrun.journal.journal import Journal
from vmrun.model.errors import ChannelError, DeadlineExceeded, VmrunError
from vmrun.model.plan import EMBEDDED
from vmrun.model.report import Assertion, Receipt, Removed, Report, Usage
from vmrun.model.run_record import RunState
from vmrun.model.workload import Workload
from vmrun.run.attended import AttendedRun
from vmrun.run.clock import PhaseClock
from vmrun.run.decide import Decision, RunOptions, decide
from vmrun.run.keep import keep_guest
from vmrun.run.ports import Streams
from vmrun.run.reclaim import reclaim_all
from vmrun.run.record import first_record
from vmrun.run.signals import signal_guard
from vmrun.run.state import GuestDirectory, claim
from vmrun.run.storage import RunStorage
from vmrun.run.teardown import Teardown, remove_guest
from vmrun.supervisor.answers import Answers
from vmrun.supervisor.contained import Contained
from vmrun.supervisor.controls import Controls
from vmrun.supervisor.live import LiveGuest, bring_up, order_of
from vmrun.supervisor.protocol import SOCKET
from vmrun.supervisor.records import Runs
from vmrun.supervisor.server import Server
from vmrun.supervisor.tracked import TrackedRun
from vmrun.supervisor.wires import Wires

__all__ = ["RunOptions", "run"]


@dataclass(slots=True)
class Outcome:
    """What is known of a run so far; becomes its report whatever happens."""

    decision: Decision = field(default_factory=Decision)
    guest: LiveGuest | None = None
    assertions: tuple[Assertion, ...] = ()
    usage: Usage = field(default_factory=Usage)
    delivered: int = 0
    qemu_memory: int | None = None
    exit_status: int = 0
    error: VmrunError | None = None


def run(workload: Workload, options: RunOptions, streams: Streams) -> Report:
    """Run ``workload`` in a guest of its own and tear everything down again.

    Once the run has an identity nothing is raised: the report carries the error.
    """
    with signal_guard() as guard:

        def announce(phase: str) -> None:
            guard.check()
            options.announce(phase)

        clock = PhaseClock(announce)
        with clock.phase("reclaim"):
            reclaim_all(options.directories, options.note)
        Runs(options.directories.runs).must_be_free(workload.name)
        directory = claim(
            options.directories,
            name=workload.name,
            tenant=workload.tenant,
            connect=workload.connect or EMBEDDED,
        )
        outcome = Outcome()
        teardown = Teardown()
        teardown.add("guest directory", lambda: remove_guest(directory))
        try:
            _execute(workload, options, streams, directory, clock, outcome, teardown)
        except VmrunError as error:
            guard.protect()
            options.on_error(error)
            outcome.error = error
            outcome.exit_status = error.exit_status
        finally:
            guard.protect()
            with clock.phase("teardown"):
                receipt = _tear_down(workload, directory, outcome, teardown)
    report = _report(workload, directory, clock, outcome, receipt)
    try:
        options.memory.ended(report)
        # Last of all: while there is a record, the next command tells of an end that nobody told.
        if not receipt.kept:
            Runs(options.directories.runs).remove(report.run_id)
    except VmrunError as error:
        options.on_error(error)
        options.note(f"the end of this run is not in the journal: {error.message}")
    return report


def _execute(
    workload: Workload,
    options: RunOptions,
    streams: Streams,
    directory: GuestDirectory,
    clock: PhaseClock,
    outcome: Outcome,
    teardown: Teardown,
) -> None:
    storage = RunStorage(workload, options.directories.volumes, note=options.note)
    plan = decide(workload, options, directory, clock, outcome.decision, storage)
    runs = Runs(options.directories.runs)
    journal = Journal(options.directories.journal)
    wires = Wires(lambda: _connection(outcome), journal.append)
    teardown.add("ports", wires.close)
    ports = wires.reserve(plan)
    record = replace(first_record(plan, directory.intent, detached=False), ports=ports)
    runs.write(record)
    runs.hold(record.run_id)
    live, outcome.assertions = bring_up(
        order_of(plan),
        directory,
        options.directories,
        clock,
        teardown,
        prepare=lambda: storage.prepare(plan, directory, teardown),
        unlocked=storage.unlocked,
    )
    outcome.guest = live
    contained = Contained(plan, live, streams, wire=wires)
    with clock.phase("deliver"):
        outcome.delivered = contained.deliver()
        outcome.delivered += storage.populate(plan, live.connection(), teardown)
    with clock.phase("start"):
        teardown.add("container", lambda: _kill(contained))
        outcome.assertions += contained.start()
        tracked = TrackedRun(
            plan,
            record,
            Controls(contained, live, shared=False),
            runs=runs,
            journal=journal.append,
        )
        server = Server(directory.path / SOCKET, Answers(AttendedRun(tracked)).table())
        teardown.add("control socket", lambda: _close(server))
        tracked.change(state=RunState.RUNNING, started=time.time())
    with clock.phase("workload"):
        outcome.exit_status = _wait(contained, workload.limits.timeout)
        tracked.controls.end(outcome.exit_status)
    with clock.phase("collect"):
        outcome.qemu_memory = live.provisioned.guest.qemu().pss
        outcome.usage = contained.usage()
        storage.collect(plan, live.connection())


def _connection(outcome: Outcome) -> SshConnection:
    """The connection that networks use: the guest's second one, so that neither waits for what the
    other moves."""
    if outcome.guest is None:
        raise ChannelError("the guest is not up yet")
    return outcome.guest.connection(1)


def _wait(container: Contained, timeout: float | None) -> int:
    """The container's exit status; kills it when ``timeout`` seconds have passed."""
    if timeout is None:
        return container.wait()
    expired = threading.Event()

    def expire() -> None:
        expired.set()
        container.end()

    timer = threading.Timer(timeout, expire)
    timer.daemon = True
    timer.start()
    try:
        status = container.wait()
    except VmrunError:
        if not expired.is_set():
            raise
        status = DeadlineExceeded.exit_status
    finally:
        timer.cancel()
    if expired.is_set():
        raise DeadlineExceeded(
            f"the workload was killed: it ran longer than {timeout:g} s",
            hint="allow more with --timeout",
        )
    return status


def _kill(container: Contained) -> tuple[Removed, ...]:
    container.kill()
    return ()


def _close(server: Server) -> tuple[Removed, ...]:
    server.close()
    return ()


def _tear_down(
    workload: Workload, directory: GuestDirectory, outcome: Outcome, teardown: Teardown
) -> Receipt:
    guest = outcome.guest
    if workload.keep and guest is not None and outcome.exit_status != 0:
        kept = keep_guest(
            directory,
            guest.provisioned.control,
            client_key=guest.client_key,
            host_key=guest.host_key,
        )
        if kept:
            return Receipt((), kept)
    if guest is not None:
        guest.provisioned.control.close()
    return Receipt(teardown.run())


def _report(
    workload: Workload,
    directory: GuestDirectory,
    clock: PhaseClock,
    outcome: Outcome,
    receipt: Receipt,
) -> Report:
    decision = outcome.decision
    plan = decision.plan
    host = plan.host if plan else None
    return Report(
        run_id=directory.intent.run_id,
        name=directory.intent.name,
        tenant=workload.tenant,
        image=str(workload.image),
        image_digest=decision.lineage[-1] if decision.lineage else "",
        base=str(plan.base.digest) if plan else "",
        engine=workload.engine,
        profile=workload.profile,
        accelerator=host.accelerator if host else "",
        isolated=bool(host and host.accelerator.isolates),
        emulation_allowed=workload.allow_emulation,
        exit_status=outcome.exit_status,
        error=outcome.error.message if outcome.error else "",
        hint=outcome.error.hint if outcome.error else "",
        details=outcome.error.details if outcome.error else "",
        phases=clock.phases,
        assertions=outcome.assertions,
        usage=outcome.usage,
        receipt=receipt,
        delivered_bytes=outcome.delivered,
        qemu_memory=outcome.qemu_memory,
        warnings=plan.warnings if plan else (),
        lineage=decision.lineage,
        trust=decision.trust,
        health=decision.health,
    )
