"""What dead runs left, removed; and what the records say of them, put right."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

from vmrun.journal.journal import Journal
from vmrun.model.errors import StateError
from vmrun.model.report import Receipt
from vmrun.model.run_record import RunRecord, RunState
from vmrun.run.state import StateDirectories, alive
from vmrun.run.teardown import reclaim
from vmrun.supervisor.records import Runs

EXIT_KILLED = 137


def reclaim_all(directories: StateDirectories, note: Callable[[str], None]) -> None:
    """Reclaim, and say in a line each what was reclaimed; the journal has it for good."""
    journal = Journal(directories.journal)
    receipts = reclaim(directories)
    for run_id, receipt in receipts:
        note(reclaimed(run_id, receipt))
        journal.append("guest.reclaim", {"guest": run_id, "clean": str(receipt.clean).lower()})
    for record in settle(directories, dict(receipts)):
        note(f"run {record.name} ({record.run_id}) had ended without a word: {record.error}")
        journal.append(
            "run.lost",
            {"run": record.run_id, "name": record.name, "error": record.error},
        )


def reclaimed(run_id: str, receipt: Receipt) -> str:
    """One line for people."""
    if receipt.clean:
        return f"reclaimed what run {run_id} had left"
    return f"could not reclaim all that run {run_id} had left; the next command tries again"


def settle(directories: StateDirectories, receipts: dict[str, Receipt]) -> tuple[RunRecord, ...]:
    """Find records of runs that say they run, in guests that do not, and write down that they are
    dead; those of runs that leave no record are removed. Returns the ones that were not."""
    runs = Runs(directories.runs)
    unsettled = [r for r in runs.all(on_damage=lambda _: None) if not r.ended]
    if not unsettled:
        return ()
    # Looked at after the records, so that a guest that is just being made is seen.
    living = {intent.run_id for intent in alive(directories)}
    settled = []
    for record in unsettled:
        # It may have ended in an orderly way since.
        now = runs.read(record.run_id)
        if record.guest in living or now is None or now.ended:
            continue
        if not record.detached or record.remove:
            runs.remove(record.run_id)
            continue
        record = replace(
            now,
            state=RunState.DEAD,
            error="its supervisor was killed",
            hint="the journal has what is known: vmrun audit show",
            exit_status=EXIT_KILLED,
            finished=time.time(),
            receipt=receipts.get(record.guest),
        )
        try:
            runs.write(record)
        except StateError:
            continue  # the next command tries again
        settled.append(record)
    return tuple(settled)
