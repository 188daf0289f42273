"""``vmrun plan``: everything of a run up to its plan, in a scratch directory that goes away."""

from __future__ import annotations

from dataclasses import dataclass

from vmrun.base.store import find_base
from vmrun.model.plan import EMBEDDED, Plan
from vmrun.model.scan import BillOfHealth
from vmrun.model.trust import Trust
from vmrun.model.workload import ProfileName, Workload
from vmrun.planning.domain_xml import Sockets, domain_xml, guest_metadata
from vmrun.planning.planner import RunIdentity, make_plan
from vmrun.policy.admission import admit
from vmrun.run.accelerator import host_facts
from vmrun.run.directories import StateDirectories
from vmrun.run.health import must_be_healthy
from vmrun.run.images import ImageOptions, find_briefly, verify
from vmrun.run.storage import RunStorage

_IDENTITY = RunIdentity(run_id="000000000000", uuid="00000000-0000-4000-8000-000000000000", slot=0)
"""Stands where a run would draw its own; two plans of the same input are equal."""


@dataclass(frozen=True, slots=True)
class Preview:
    """A plan and the domain XML that it leads to."""

    plan: Plan
    domain_xml: str
    trust: Trust
    health: BillOfHealth | None
    notes: tuple[str, ...]


def preview(
    workload: Workload,
    directories: StateDirectories,
    images: ImageOptions,
    *,
    floor: ProfileName,
) -> Preview:
    """Plan ``workload``. An accelerator that was not tried yet is not tried now, and the ledger
    stays as it is: nothing has run."""
    base = find_base(directories.bases, workload.base or workload.engine.flavour)
    connect = workload.connect or EMBEDDED
    host = host_facts(base, directories, connect=connect, may_try=False)
    profile = admit(workload, host, floor=floor)
    layers = images.layers()
    with find_briefly(workload.image, directories, images) as found:
        verified = verify(workload.image, found.digests, layers, directories, images)
        image = found.fetch()
        health = must_be_healthy(image, layers, directories, images)
    notes = list(verified.notes)
    storage = RunStorage(workload, directories.volumes, note=notes.append)
    plan = make_plan(
        workload,
        image=image,
        base=base,
        host=host,
        profile=profile,
        identity=_IDENTITY,
        stored=storage.look(directories.guests / _IDENTITY.run_id),
    )
    sockets = Sockets.within(directories.guests / plan.run_id, ssh_ports=plan.guest.ssh_ports)
    xml = domain_xml(plan.guest, base, sockets, metadata=guest_metadata(plan))
    return Preview(plan, xml, verified.trust, health, tuple(notes))
