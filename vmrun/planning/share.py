"""What a run takes of its tenant's quota. Pure."""

from __future__ import annotations

from vmrun.model.plan import Plan
from vmrun.model.tenant import Share
from vmrun.planning.memory import beside


def share_of(plan: Plan) -> Share:
    """What a run takes of its tenant's quota: the memory that its limit, its image, its data and,
    in a guest that has others, its container's processes take."""
    memory = plan.guest.memory
    passing = beside(
        plan.base.flavour,
        plan.image.tree.unpacked_bytes,
        [layer.blob.size for layer in plan.image.layers],
    )
    shared = plan.guest.name != f"vmrun-{plan.run_id}"
    return Share(
        memory=memory.workload + memory.image - passing + (memory.reserve if shared else 0),
        passing=passing,
        cpus=plan.container.limits.cpus,
        disk=plan.workload.storage.scratch or 0,
    )
