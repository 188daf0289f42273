"""``vmrun run --detach``: the same decisions, and then a supervisor that owns the guest."""

from __future__ import annotations

import contextlib
import json
import os
from functools import partial

from vmrun.model.errors import StateError, VmrunError
from vmrun.model.plan import EMBEDDED
from vmrun.model.report import Receipt, Report, Usage
from vmrun.model.run_record import RunRecord
from vmrun.model.wire import encode
from vmrun.model.workload import Workload
from vmrun.run.clock import PhaseClock
from vmrun.run.decide import Decision, RunOptions, decide
from vmrun.run.intent import Intent
from vmrun.run.reclaim import reclaim_all
from vmrun.run.record import first_record
from vmrun.run.signals import signal_guard
from vmrun.run.state import claim
from vmrun.run.storage import RunStorage
from vmrun.run.teardown import Teardown, Undo, remove_guest
from vmrun.supervisor.launch import OwnRun, launch
from vmrun.supervisor.live import order_of
from vmrun.supervisor.records import Runs

SUPERVISOR_LOG = "supervisor.log"
VERDICT = "verdict.json"


def detach(workload: Workload, options: RunOptions) -> RunRecord:
    """Start ``workload`` in a guest of its own and leave it to a supervisor.

    Returns its record once its first instruction has run. Raises :class:`VmrunError`, and then
    nothing is left.
    """
    runs = Runs(options.directories.runs)
    with signal_guard() as guard:

        def announce(phase: str) -> None:
            guard.check()
            options.announce(phase)

        clock = PhaseClock(announce)
        with clock.phase("reclaim"):
            reclaim_all(options.directories, options.note)
        runs.must_be_free(workload.name)
        directory = claim(
            options.directories,
            name=workload.name,
            tenant=workload.tenant,
            connect=workload.connect or EMBEDDED,
        )
        decision = Decision()
        try:
            storage = RunStorage(workload, options.directories.volumes, note=options.note)
            plan = decide(workload, options, directory, clock, decision, storage)
            record = first_record(plan, directory.intent, detached=True)
            runs.write(record)
            write_verdict(runs, record.run_id, decision)
            launch(
                order_of(plan),
                directory,
                options.directories,
                log=runs.folder(record.run_id) / SUPERVISOR_LOG,
                own=OwnRun(plan, record),
                announce=announce,
            )
        except VmrunError as error:
            guard.protect()
            if not directory.released:
                undo = partial(remove_guest, directory)
                give_up(workload, options, directory.intent, decision, error, undo)
            else:
                # What a supervisor that was killed has left; one that still tears down is let be.
                with contextlib.suppress(VmrunError):
                    reclaim_all(options.directories, options.note)
            raise
    return runs.read(record.run_id) or record


def write_verdict(runs: Runs, run_id: str, decision: Decision) -> None:
    """Why the image may run, for ``inspect``: the supervisor has no use for it."""
    verdict = {
        "lineage": list(decision.lineage),
        "trust": encode(decision.trust),
        "health": encode(decision.health),
    }
    path = runs.folder(run_id) / VERDICT
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            json.dump(verdict, file)
    except OSError as error:
        raise StateError(
            f"cannot write {path}: {error.strerror}", hint="free disk space"
        ) from error


def give_up(
    workload: Workload,
    options: RunOptions,
    intent: Intent,
    decision: Decision,
    error: VmrunError,
    undo: Undo,
) -> None:
    """Nothing was started: remove what there is, and tell the journal why."""
    Runs(options.directories.runs).remove(intent.run_id)
    teardown = Teardown()
    teardown.add("directory", undo)
    receipt = Receipt(teardown.run())
    report = Report(
        run_id=intent.run_id,
        name=intent.name,
        tenant=workload.tenant,
        image=str(workload.image),
        image_digest=decision.lineage[-1] if decision.lineage else "",
        base="",
        engine=workload.engine,
        profile=workload.profile,
        accelerator="",
        isolated=False,
        emulation_allowed=workload.allow_emulation,
        exit_status=error.exit_status,
        error=error.message,
        phases=(),
        assertions=(),
        usage=Usage(),
        receipt=receipt,
    )
    with contextlib.suppress(VmrunError):
        options.memory.ended(report)
