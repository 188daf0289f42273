"""Proving an accelerator: boot the real base with KVM and see whether it says hello.

The trial runs in a process of its own, because one process can open one embedded root.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from vmrun.base.store import find_base, verify_base
from vmrun.host.accelerator import Verdict, recall, remember
from vmrun.host.facts import read_facts
from vmrun.hypervisor.guest import Hypervisor
from vmrun.model.base import Base
from vmrun.model.errors import VmrunError
from vmrun.model.plan import EMBEDDED, Accelerator, HostFacts
from vmrun.model.quantity import MIB
from vmrun.planning.domain_xml import Sockets, domain_xml
from vmrun.planning.memory import plan_memory
from vmrun.planning.planner import RunIdentity, plan_guest
from vmrun.run.directories import StateDirectories
from vmrun.run.provision import create_guest, wait_for_hello
from vmrun.run.signals import SignalGuard, signal_guard
from vmrun.run.state import claim
from vmrun.run.teardown import Teardown, remove_guest

TRIAL_DEADLINE = 15.0
"""Seconds for a KVM guest to boot; it takes one or two where KVM works."""


def host_facts(
    base: Base, directories: StateDirectories, *, connect: str, may_try: bool = True
) -> HostFacts:
    """Facts of this host with the accelerator that is known, or found out now, to work."""
    verdict = recall(directories.cache, base)
    if verdict is None and may_try:
        verdict = prove(base, directories)
    if verdict is None:
        verdict = Verdict(
            Accelerator.KVM, "/dev/kvm exists; no guest has been booted with it yet", proved=False
        )
    return read_facts(connect, accelerator=verdict.accelerator, reason=verdict.reason)


def prove(base: Base, directories: StateDirectories) -> Verdict:
    """Boot ``base`` with KVM in another process, and remember the verdict."""
    try:
        answer = json.loads(_trial(base, directories))
        booted, reason = answer["booted"], str(answer["reason"])
    except (subprocess.TimeoutExpired, ValueError, KeyError, TypeError):
        # Nothing was found out, so nothing is remembered.
        return Verdict(Accelerator.TCG, "KVM could not be tried", proved=False)
    verdict = Verdict(
        Accelerator.KVM if booted else Accelerator.TCG,
        reason if not booted else "a guest booted with KVM",
        proved=True,
    )
    remember(directories.cache, base, verdict)
    return verdict


def _trial(base: Base, directories: StateDirectories) -> str:
    """What the trial says; when we are interrupted it tears its guest down before it ends."""
    arguments = [
        str(base.digest),
        str(directories.guests),
        str(directories.cache),
        *map(str, directories.bases),
    ]
    with subprocess.Popen(
        [sys.executable, "-m", "vmrun.run.accelerator", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as trial:
        try:
            return trial.communicate(timeout=TRIAL_DEADLINE * 4)[0]
        finally:
            trial.terminate()
            try:
                trial.wait(TRIAL_DEADLINE)
            except subprocess.TimeoutExpired:
                trial.kill()


def _try_kvm(selector: str, directories: StateDirectories) -> str:
    """Boot the base with KVM; why it did not work, or empty."""
    base = find_base(directories.bases, selector)
    verify_base(base)
    facts = read_facts(EMBEDDED, accelerator=Accelerator.KVM, reason="")
    with signal_guard() as guard:
        return _boot_with_kvm(base, facts, directories, guard)


def _boot_with_kvm(
    base: Base, facts: HostFacts, directories: StateDirectories, guard: SignalGuard
) -> str:
    directory = claim(directories, name=None, tenant="trial", connect=EMBEDDED)
    teardown = Teardown()
    teardown.add("guest directory", lambda: remove_guest(directory))
    try:
        intent = directory.intent
        memory = plan_memory(
            workload=32 * MIB,
            unpacked=0,
            blobs=(),
            flavour=base.flavour,
            accelerator=facts.accelerator,
        )
        guest = plan_guest(
            base, facts, memory, RunIdentity(intent.run_id, intent.uuid, intent.slot), cpus=1
        )
        sockets = Sockets.within(directory.path, ssh_ports=guest.ssh_ports)
        xml = domain_xml(guest, base, sockets, metadata={"run": intent.run_id, "purpose": "trial"})
        hypervisor = Hypervisor.open(
            EMBEDDED, root=directory.hypervisor_root, cache=directories.cache / "capabilities"
        )
        provisioned = create_guest(hypervisor, xml, guest, sockets, teardown)
        wait_for_hello(provisioned, TRIAL_DEADLINE)
    except VmrunError as error:
        return f"a guest does not boot with KVM: {error.message.splitlines()[-1][-200:]}"
    finally:
        guard.protect()
        teardown.run()
    return ""


if __name__ == "__main__":
    _, chosen, guests, cache, *bases = sys.argv
    places = StateDirectories(Path(guests), Path(cache), tuple(map(Path, bases)))
    why = _try_kvm(chosen, places)
    json.dump({"booted": not why, "reason": why}, sys.stdout)
