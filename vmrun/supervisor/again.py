"""A guest that has died under a workload that is to be kept running: made anew, from the start.

The supervisor executes itself again: libvirt's embedded driver can be opened once in a process, and
a process that owned a guest which may have been taken over is not the one to trust with the next.
Its pid, the lock that says who owns the guest's directory, and the verified image stay.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from dataclasses import replace

from vmrun.hypervisor.remains import remains, remove_remains
from vmrun.model.errors import ChannelError, GuestError, VmrunError
from vmrun.model.network import Publish
from vmrun.model.plan import Plan
from vmrun.model.run_record import Health, RunRecord, RunState
from vmrun.model.wire import dumps
from vmrun.run.state import GuestDirectory
from vmrun.supervisor.launch import Launch, OwnRun, supervisor_command
from vmrun.supervisor.restart import ran_well, restart_delay

_KEPT = ("intent.json", "owner", "image")
NOBODY = -1
"""In place of the descriptor of a command that waits for the start."""


def delay_after(told: Launch, record: RunRecord, error: VmrunError | None) -> float | None:
    """Seconds until a run whose guest has died gets another one; None when it does not."""
    if told.own is None or not isinstance(error, GuestError | ChannelError) or not record.started:
        return None
    return restart_delay(
        told.own.plan.workload.service.restart,
        status=error.exit_status,
        asked_to_stop=False,
        restarts=told.attempt,
        ran_for=time.time() - record.started,
    )


def start_over(told: Launch, directory: GuestDirectory, record: RunRecord) -> None:
    """Execute this process again for the same run; returns only if something of the dead guest
    cannot be removed."""
    if told.own is None or not _cleared(directory):
        return
    attempt = 1 if ran_well(time.time() - record.started) else told.attempt + 1
    anew = replace(
        record,
        state=RunState.RESTARTING,
        restarts=record.restarts + 1,
        health=Health.NONE,
        error="",
        hint="",
        details="",
        exit_status=None,
        finished=0.0,
    )
    own = OwnRun(_with_ports(told.own.plan, record.ports), anew)
    words = os.memfd_create("vmrun-launch", 0)
    with os.fdopen(os.dup(words), "wb") as file:
        file.write(dumps(replace(told, own=own, attempt=attempt, report=NOBODY)).encode())
    os.lseek(words, 0, os.SEEK_SET)
    os.dup2(words, 0)
    os.close(words)
    os.set_inheritable(directory.lock, True)
    os.execv(sys.executable, supervisor_command())


def _with_ports(plan: Plan, ports: tuple[Publish, ...]) -> Plan:
    """The plan with the ports that the run has: whoever uses one that was any free one finds the
    new guest there."""
    network = plan.container.network
    if network is None:
        return plan
    network = replace(network, publish=ports)
    return replace(plan, container=replace(plan.container, network=network))


def _cleared(directory: GuestDirectory) -> bool:
    """Remove what the dead guest left; whether nothing of it remains."""
    intent = directory.intent
    remove_remains(domain=intent.domain, uuid=intent.uuid)
    if remains(domain=intent.domain, uuid=intent.uuid):
        return False
    for path in directory.path.iterdir():
        if path.name in _KEPT:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    return {path.name for path in directory.path.iterdir()} <= {*_KEPT}
