"""A run in its tenant's guest: the same decisions as any other, and then the guest's owner is asked
to begin one more container."""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from vmrun.model.errors import Interrupted, NameInUse, UsageError, VmrunError
from vmrun.model.plan import Plan
from vmrun.model.report import Removed
from vmrun.model.run_record import RunRecord
from vmrun.model.signals import KILL
from vmrun.model.tenant import Tenant
from vmrun.model.wire import encode
from vmrun.model.workload import Workload
from vmrun.run.clock import PhaseClock
from vmrun.run.containers import ContainerDirectory, claim_container
from vmrun.run.decide import Decision, RunOptions, decide
from vmrun.run.detach import give_up, write_verdict
from vmrun.run.directories import StateDirectories
from vmrun.run.intent import Intent
from vmrun.run.reclaim import reclaim_all
from vmrun.run.record import first_record
from vmrun.run.shares import Shares
from vmrun.run.signals import signal_guard
from vmrun.run.state import alive, checked_name
from vmrun.run.storage import RunStorage
from vmrun.run.tenant import TenantGuest, guest_of
from vmrun.supervisor.client import ask, dial, request
from vmrun.supervisor.launch import without_tree
from vmrun.supervisor.protocol import Line
from vmrun.supervisor.records import Runs
from vmrun.supervisor.sealed import sealed

_KILL_TIMEOUT = 10.0


@dataclass(frozen=True, slots=True)
class Attachment:
    """How the user of an attended run is connected: what the guest's owner is told of that, and who
    moves the frames until the run has ended and returns its exit status."""

    asked: Mapping[str, Any]
    talk: Callable[[Line], int]


@dataclass(frozen=True, slots=True)
class Entered:
    """A run that was started: its record as it is now, and its exit status if it was attended."""

    record: RunRecord
    status: int = 0


def run_in_tenant(
    workload: Workload,
    options: RunOptions,
    tenant: Tenant,
    *,
    attachment: Attachment | None = None,
    keep_record: bool = False,
) -> Entered:
    """Start ``workload`` in the guest of ``tenant``. Detached it returns once its first instruction
    has run, attended when it has ended; its record is then removed, and returned as it was at the
    end only if ``keep_record``, since who keeps it for that must outlive the run.

    Raises :class:`VmrunError` for what kept it from starting, and then nothing is left.
    """
    directories = options.directories
    runs = Runs(directories.runs)
    with signal_guard() as guard, ExitStack() as stack:

        def announce(phase: str) -> None:
            guard.check()
            options.announce(phase)

        clock = PhaseClock(announce)
        with clock.phase("reclaim"):
            reclaim_all(directories, options.note)
        _must_fit(workload, tenant)
        guest = guest_of(directories, tenant.name)
        _name_must_be_free(workload.name, directories, runs)
        directory = claim_container(guest.path, _intent(workload, guest))
        intent, decision = directory.intent, Decision()
        try:
            storage = RunStorage(workload, directories.volumes, note=options.note)
            joining = _joining(options, guest, tenant)
            plan = decide(workload, joining, directory, clock, decision, storage)
            record = first_record(plan, intent, guest=guest.path.name, detached=attachment is None)
            record = replace(record, remove=record.remove and not keep_record)
            runs.write(record)
            write_verdict(runs, intent.run_id, decision)
            secrets = sealed(storage.secrets())
            line = dial(guest.path)
            stack.callback(line.close)
        except VmrunError as error:
            guard.protect()
            give_up(workload, options, intent, decision, error, partial(_undo, directory))
            raise
        # Its owner holds the directory from here on, and has the last word on what became of it.
        stack.callback(directory.release)
        with clock.phase("start"):
            _begin(line, guest, plan, record, attachment, runs, secrets)
        announce("workload")
        status = attachment.talk(line) if attachment else 0
    last = runs.read(intent.run_id) or record
    if attachment is not None:
        runs.remove(intent.run_id)
    return Entered(last, status)


def _must_fit(workload: Workload, tenant: Tenant) -> None:
    """Refuse what is a property of the guest, which is there already."""
    if workload.engine is not tenant.engine:
        raise UsageError(
            f"--engine {workload.engine}: the guest of tenant {tenant.name!r} has {tenant.engine}",
            hint="leave --engine out, or add --own-guest",
        )
    asked = (
        (workload.base is not None, "--base"),
        (workload.keep, "--keep"),
    )
    for given, option in asked:
        if given:
            raise UsageError(
                f"{option} is not possible in the guest of a tenant", hint="add --own-guest"
            )


def _name_must_be_free(name: str | None, directories: StateDirectories, runs: Runs) -> None:
    runs.must_be_free(name)
    for other in alive(directories):
        if name is not None and other.name == name:
            raise NameInUse(
                f"the name {name!r} is in use by run {other.run_id}", hint="choose another --name"
            )


def _intent(workload: Workload, guest: TenantGuest) -> Intent:
    run_id = uuid.uuid4().hex[:12]
    return replace(
        guest.intent,
        run_id=run_id,
        name=checked_name(workload.name or run_id),
        uuid=str(uuid.uuid4()),
        domain=f"vmrun-{run_id}",
        created=time.time(),
        shared=False,
        guest=guest.intent.run_id,
    )


def _joining(options: RunOptions, guest: TenantGuest, tenant: Tenant) -> RunOptions:
    shares = Shares(options.directories, tenant.name)
    return replace(options, guest=guest.order, reserve=shares.reserve)


def _begin(
    line: Line,
    guest: TenantGuest,
    plan: Plan,
    record: RunRecord,
    attachment: Attachment | None,
    runs: Runs,
    secrets: Mapping[str, str],
) -> None:
    """Let the guest's owner begin it; returns when its first instruction has run."""
    asked = {"attach": dict(attachment.asked)} if attachment else {}
    try:
        ask(
            line,
            "run",
            timeout=None,
            plan=encode(without_tree(plan)),
            record=encode(record),
            secrets=dict(secrets),
            **asked,
        )
    except Interrupted:
        # It may have begun by now, or may be about to.
        with contextlib.suppress(VmrunError):
            request(guest.path, "signal", timeout=_KILL_TIMEOUT, run=plan.run_id, signal=KILL)
        raise
    except VmrunError:
        runs.remove(plan.run_id)
        raise


def _undo(directory: ContainerDirectory) -> tuple[Removed, ...]:
    gone = directory.remove()
    directory.release()
    return (Removed("directory", str(directory.path), gone),)
