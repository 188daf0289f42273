"""``vmrun run``: one straight line from a workload to its report.

Everything before *provision* only reads, and writes nothing but the private copy of the image,
so a denied image creates no guest.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field

from vmrun.base.store import find_base, verify_base
from vmrun.channel.control import Identity
from vmrun.channel.keys import ClientKey
from vmrun.channel.ssh import SshConnection, open_connection
from vmrun.engine.selection import make_engine
from vmrun.hypervisor.guest import Hypervisor
from vmrun.model.errors import DeadlineExceeded, GuestError, HardeningError, VmrunError
from vmrun.model.image import Image
from vmrun.model.plan import EMBEDDED, Plan
from vmrun.model.report import Assertion, Receipt, Removed, Report, Usage
from vmrun.model.scan import BillOfHealth
from vmrun.model.trust import Trust
from vmrun.model.workload import ProfileName, Workload
from vmrun.planning.domain_xml import Sockets, domain_xml, guest_metadata
from vmrun.planning.planner import RunIdentity, make_plan
from vmrun.policy.admission import admit
from vmrun.policy.chain import chain
from vmrun.policy.confinement import check_container, check_qemu, failed
from vmrun.run.accelerator import host_facts
from vmrun.run.clock import PhaseClock
from vmrun.run.health import must_be_healthy, summary
from vmrun.run.images import ImageOptions, find, verify
from vmrun.run.keep import keep_guest
from vmrun.run.ports import RunningContainer, Streams
from vmrun.run.provision import Provisioned, boot_failure, create_guest, wait_for_hello
from vmrun.run.remember import Memory
from vmrun.run.signals import signal_guard
from vmrun.run.state import GuestDirectory, StateDirectories, claim
from vmrun.run.teardown import Teardown, reclaim, remove_guest

_IDENTIFY_TIMEOUT = 60.0
_GATE_TIMEOUT = 60.0


@dataclass(slots=True)
class Outcome:
    """What is known of a run so far; becomes its report whatever happens."""

    plan: Plan | None = None
    guest: ReachedGuest | None = None
    lineage: tuple[str, ...] = ()
    trust: Trust | None = None
    health: BillOfHealth | None = None
    assertions: tuple[Assertion, ...] = ()
    usage: Usage = field(default_factory=Usage)
    delivered: int = 0
    qemu_memory: int | None = None
    exit_status: int = 0
    error: VmrunError | None = None


@dataclass(frozen=True, slots=True)
class ReachedGuest:
    """A guest that has its identity, and what only this process knows of it."""

    provisioned: Provisioned
    client_key: ClientKey
    host_key: str


@dataclass(frozen=True, slots=True)
class RunOptions:
    """How to run, as opposed to what: ``floor`` is the site's least strict profile,
    ``announce`` is told each phase, ``note`` what a user should read, ``on_error`` what failed."""

    directories: StateDirectories
    floor: ProfileName
    images: ImageOptions
    memory: Memory
    announce: Callable[[str], None]
    note: Callable[[str], None]
    on_error: Callable[[VmrunError], None]


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
            for run_id, receipt in reclaim(options.directories):
                options.note(_reclaimed(run_id, receipt))
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
    directories, intent = options.directories, directory.intent
    with clock.phase("resolve"):
        base = find_base(directories.bases, workload.base or workload.engine.flavour)
        host = host_facts(base, directories, connect=intent.connect)
    with clock.phase("admit"):
        profile = admit(workload, host, floor=options.floor)
    with clock.phase("verify base"):
        verify_base(base)
    image = _admitted_image(workload, options, directory, clock, outcome)
    with clock.phase("plan"):
        identity = RunIdentity(intent.run_id, intent.uuid, intent.slot)
        plan = make_plan(
            workload, image=image, base=base, host=host, profile=profile, identity=identity
        )
        outcome.plan = plan
        for warning in plan.warnings:
            options.note(warning)
    if outcome.trust is not None:
        fields = {"accelerator": str(host.accelerator), "profile": str(workload.profile)}
        options.memory.starts(intent.run_id, image, outcome.trust, fields)
    with clock.phase("provision"):
        provisioned = _provision(plan, directory, directories, teardown)
    with clock.phase("boot"):
        wait_for_hello(provisioned, plan.guest.boot_deadline)
    with clock.phase("identify"):
        outcome.guest = _identify(plan, provisioned)
    with clock.phase("connect"):
        connection = _connect(plan, directory, outcome.guest, teardown)
        outcome.assertions = _must_hold(check_qemu(plan.guest, provisioned.guest.qemu()))
    engine = make_engine(workload.engine, scratch=directory.path)
    with clock.phase("deliver"):
        outcome.delivered = engine.deliver(plan, connection)
    with clock.phase("start"):
        container = engine.start(plan, connection, streams)
        teardown.add("container", lambda: _kill(container))
        reading = container.reading(_GATE_TIMEOUT)
        outcome.assertions += _must_hold(check_container(plan, reading))
        container.release()
    with clock.phase("workload"):
        outcome.exit_status = _wait(container, workload.limits.timeout)
    with clock.phase("collect"):
        outcome.qemu_memory = provisioned.guest.qemu().pss
        outcome.usage = container.usage()


def _admitted_image(
    workload: Workload,
    options: RunOptions,
    directory: GuestDirectory,
    clock: PhaseClock,
    outcome: Outcome,
) -> Image:
    """The image, if policy lets it run. What may not run is not even downloaded."""
    directories = options.directories
    layers = options.images.layers()
    with ExitStack() as stack:
        with clock.phase("find"):
            found = stack.enter_context(
                find(workload.image, directory.image, directories, options.images)
            )
            outcome.lineage = tuple(str(digest) for digest in found.digests.lineage)
        with clock.phase("verify"):
            verified = verify(workload.image, found.digests, layers, directories, options.images)
            outcome.trust = verified.trust
            for text in (*verified.notes, *chain(workload.image, found.digests, verified.trust)):
                options.note(text)
        with clock.phase("fetch"):
            image = found.fetch()
    with clock.phase("scan"):
        bill = must_be_healthy(image, layers, directories, options.images)
        if bill is not None:
            outcome.health = bill
            options.note(summary(workload.image, bill))
            options.memory.scanned(workload.image, bill)
    verified.remember(directories)
    directory.note_image(
        str(workload.image),
        str(image.digest),
        digests=tuple(str(digest) for digest in image.digests.all),
        keys=tuple(sorted({claim.key_id for claim in verified.trust.claims})),
    )
    return image


def _provision(
    plan: Plan, directory: GuestDirectory, directories: StateDirectories, teardown: Teardown
) -> Provisioned:
    sockets = Sockets.within(directory.path, ssh_ports=plan.guest.ssh_ports)
    xml = domain_xml(plan.guest, plan.base, sockets, metadata=guest_metadata(plan))
    hypervisor = Hypervisor.open(
        directory.intent.connect,
        root=directory.hypervisor_root,
        cache=directories.cache / "capabilities",
    )
    return create_guest(hypervisor, xml, plan.guest, sockets, teardown)


def _identify(plan: Plan, provisioned: Provisioned) -> ReachedGuest:
    client_key = ClientKey.generate()
    identity = Identity(
        name=plan.container.hostname,
        entropy=os.urandom(64),
        client_key=client_key.public_line,
        lease=plan.guest.lease,
    )
    try:
        host_key = provisioned.control.identify(identity, time.monotonic() + _IDENTIFY_TIMEOUT)
    except GuestError as error:
        raise boot_failure(error, provisioned.guest.console_tail()) from error
    provisioned.control.keep_lease(plan.guest.lease)
    return ReachedGuest(provisioned, client_key, host_key)


def _connect(
    plan: Plan, directory: GuestDirectory, guest: ReachedGuest, teardown: Teardown
) -> SshConnection:
    sockets = Sockets.within(directory.path, ssh_ports=plan.guest.ssh_ports)
    connection = open_connection(sockets.ssh, client_key=guest.client_key, host_key=guest.host_key)
    teardown.add("connection", lambda: _close(connection))
    return connection


def _must_hold(assertions: tuple[Assertion, ...]) -> tuple[Assertion, ...]:
    """The assertions, if all of them hold; the workload is not started otherwise."""
    if broken := failed(assertions):
        raise HardeningError(
            "the confinement that was planned is not the one that was read: "
            + "; ".join(f"{a.subject} {a.name} is {a.actual}, not {a.expected}" for a in broken),
            hint="nothing of the workload was executed; see 'vmrun doctor'",
        )
    return assertions


def _wait(container: RunningContainer, timeout: float | None) -> int:
    """The container's exit status; kills it when ``timeout`` seconds have passed."""
    if timeout is None:
        return container.wait()
    expired = threading.Event()

    def expire() -> None:
        expired.set()
        container.kill()

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


def _kill(container: RunningContainer) -> tuple[Removed, ...]:
    container.kill()
    return ()


def _close(connection: SshConnection) -> tuple[Removed, ...]:
    connection.close()
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


def _reclaimed(run_id: str, receipt: Receipt) -> str:
    if receipt.clean:
        return f"reclaimed what run {run_id} had left"
    return f"could not reclaim all that run {run_id} had left; the next command tries again"


def _report(
    workload: Workload,
    directory: GuestDirectory,
    clock: PhaseClock,
    outcome: Outcome,
    receipt: Receipt,
) -> Report:
    plan = outcome.plan
    host = plan.host if plan else None
    return Report(
        run_id=directory.intent.run_id,
        name=directory.intent.name,
        tenant=workload.tenant,
        image=str(workload.image),
        image_digest=outcome.lineage[-1] if outcome.lineage else "",
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
        lineage=outcome.lineage,
        trust=outcome.trust,
        health=outcome.health,
    )
