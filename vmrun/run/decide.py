"""Everything of a run before its guest exists: resolved, admitted, verified, scanned, planned.

It only reads, and writes nothing but the private copy of the image, so that a denied image creates
no guest; whether the guest is to end with the command or to outlive it makes no difference here.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

from vmrun.base.store import find_base, verify_base
from vmrun.model.errors import VmrunError
from vmrun.model.image import Image
from vmrun.model.network import NetworkPlan
from vmrun.model.plan import Plan
from vmrun.model.scan import BillOfHealth
from vmrun.model.trust import Trust
from vmrun.model.workload import ProfileName, Workload
from vmrun.planning.planner import RunIdentity, make_plan
from vmrun.policy.admission import admit
from vmrun.policy.chain import chain
from vmrun.run.accelerator import host_facts
from vmrun.run.clock import PhaseClock
from vmrun.run.directories import StateDirectories
from vmrun.run.health import must_be_healthy, summary
from vmrun.run.images import ImageOptions, find, verify
from vmrun.run.remember import Memory
from vmrun.run.state import GuestDirectory
from vmrun.run.storage import RunStorage
from vmrun.supervisor.live import GuestOrder


@dataclass(frozen=True, slots=True)
class RunOptions:
    """How to run, as opposed to what: ``floor`` is the site's least strict profile,
    ``announce`` is told each phase, ``note`` what a user should read, ``on_error`` what failed.
    ``network`` is the wire of a container that shares one with others, ``guest`` the tenant's that
    it is to live in; ``reserve`` takes its share of the tenant's quota."""

    directories: StateDirectories
    floor: ProfileName
    images: ImageOptions
    memory: Memory
    announce: Callable[[str], None]
    note: Callable[[str], None]
    on_error: Callable[[VmrunError], None]
    network: NetworkPlan | None = None
    guest: GuestOrder | None = None
    reserve: Callable[[Plan, GuestDirectory], None] = lambda _plan, _directory: None


@dataclass(slots=True)
class Decision:
    """What is known so far; whatever was decided stays known when the next thing is refused."""

    plan: Plan | None = None
    lineage: tuple[str, ...] = ()
    trust: Trust | None = None
    health: BillOfHealth | None = None


def decide(
    workload: Workload,
    options: RunOptions,
    directory: GuestDirectory,
    clock: PhaseClock,
    decision: Decision,
    storage: RunStorage,
) -> Plan:
    """The plan of a run that may go ahead, which the journal knows of from here on.

    Raises :class:`VmrunError` for whatever stands in the way.
    """
    directories, intent = options.directories, directory.intent
    with clock.phase("resolve"):
        if options.guest is None:
            base = find_base(directories.bases, workload.base or workload.engine.flavour)
        else:
            base = options.guest.base
        host = host_facts(base, directories, connect=intent.connect)
    with clock.phase("admit"):
        profile = admit(workload, host, floor=options.floor)
    if options.guest is None:
        with clock.phase("verify base"):
            verify_base(base)
    image = _admitted_image(workload, options, directory, clock, decision)
    with clock.phase("plan"):
        identity = RunIdentity(intent.run_id, intent.uuid, intent.slot)
        plan = make_plan(
            workload,
            image=image,
            base=base,
            host=host,
            profile=profile,
            identity=identity,
            stored=storage.look(directory.path),
            network=options.network,
            guest=options.guest.plan if options.guest else None,
        )
        options.reserve(plan, directory)
        decision.plan = plan
        for warning in plan.warnings:
            options.note(warning)
    if decision.trust is not None:
        fields = {
            "tenant": workload.tenant,
            "accelerator": str(host.accelerator),
            "profile": str(workload.profile),
        }
        options.memory.starts(intent.run_id, image, decision.trust, fields)
    return plan


def _admitted_image(
    workload: Workload,
    options: RunOptions,
    directory: GuestDirectory,
    clock: PhaseClock,
    decision: Decision,
) -> Image:
    """The image, if policy lets it run. What may not run is not even downloaded."""
    directories = options.directories
    layers = options.images.layers()
    with ExitStack() as stack:
        with clock.phase("find"):
            found = stack.enter_context(
                find(workload.image, directory.image, directories, options.images)
            )
            decision.lineage = tuple(str(digest) for digest in found.digests.lineage)
        with clock.phase("verify"):
            verified = verify(workload.image, found.digests, layers, directories, options.images)
            decision.trust = verified.trust
            for text in (*verified.notes, *chain(workload.image, found.digests, verified.trust)):
                options.note(text)
        with clock.phase("fetch"):
            image = found.fetch()
    with clock.phase("scan"):
        bill = must_be_healthy(image, layers, directories, options.images)
        if bill is not None:
            decision.health = bill
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
