"""The first record of a run, when all is decided and nothing is made."""

from __future__ import annotations

from vmrun.model.plan import Plan
from vmrun.model.run_record import RunRecord, RunState
from vmrun.run.intent import Intent


def first_record(plan: Plan, intent: Intent, *, guest: str = "", detached: bool) -> RunRecord:
    """What is known of a run before it is started; ``guest`` is the id of the guest that it will
    live in, unless it has one of its own."""
    workload = plan.workload
    return RunRecord(
        run_id=plan.run_id,
        name=intent.name,
        tenant=workload.tenant,
        guest=guest or plan.run_id,
        image=str(workload.image),
        image_digest=str(plan.image.digest),
        command=plan.container.argv[0],
        engine=str(workload.engine),
        profile=str(workload.profile),
        accelerator=str(plan.host.accelerator),
        isolated=plan.host.accelerator.isolates,
        base=str(plan.base.digest),
        state=RunState.CREATED,
        created=intent.created,
        detached=detached,
        remove=workload.service.remove or not detached,
        labels=workload.labels,
        ports=workload.publish,
        warnings=plan.warnings,
        address=plan.container.network.address if plan.container.network else "",
    )
