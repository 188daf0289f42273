"""What dead runs left, removed; and what the records say of them, put right."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from vmrun.hypervisor.capabilities import sweep_probes
from vmrun.journal.journal import Journal
from vmrun.model.errors import StateError
from vmrun.model.report import Receipt
from vmrun.model.run_record import RunRecord, RunState
from vmrun.run.directories import StateDirectories
from vmrun.run.state import alive
from vmrun.run.teardown import reclaim
from vmrun.supervisor.records import Runs

EXIT_KILLED = 137
_KILLED = "its supervisor was killed"


@dataclass(frozen=True, slots=True)
class Reclaimed:
    """What was done: a receipt for each guest, by run id; the records that were put right; the ids
    of runs of which there was a folder and nothing else."""

    receipts: tuple[tuple[str, Receipt], ...]
    settled: tuple[RunRecord, ...]
    swept: tuple[str, ...]


def reclaim_all(directories: StateDirectories, note: Callable[[str], None]) -> Reclaimed:
    """Reclaim, and say in a line each what was reclaimed; the journal has it for good, and had it
    before the last trace went: a crash in here loses nothing, the next command goes on.

    Raises :class:`StateError` when something cannot be read, or the journal not be written; what
    takes room on the disk is gone by then.
    """
    journal = Journal(directories.journal)

    def tell(run_id: str) -> None:
        journal.append("guest.reclaim", {"guest": run_id, "clean": "true"})

    receipts = reclaim(directories, tell=tell)
    for run_id, receipt in receipts:
        note(reclaimed(run_id, receipt))
        if not receipt.clean:
            journal.append("guest.reclaim", {"guest": run_id, "clean": "false"})
    settled = settle(directories, dict(receipts))
    for record in settled:
        note(f"run {record.name} ({record.run_id}) had ended without a word: {record.error}")
    swept = Runs(directories.runs).sweep()
    sweep_probes(directories.cache / "capabilities")
    return Reclaimed(receipts, settled, swept)


def reclaimed(run_id: str, receipt: Receipt) -> str:
    """One line for people."""
    if receipt.clean:
        return f"reclaimed what run {run_id} had left"
    return f"could not reclaim all that run {run_id} had left; the next command tries again"


def settle(directories: StateDirectories, receipts: dict[str, Receipt]) -> tuple[RunRecord, ...]:
    """Find records of runs whose last word was never written, in guests that are gone, and write
    it: into the journal first. Those of runs that leave no record are removed. Returns the ones
    that were not."""
    runs = Runs(directories.runs)
    journal = Journal(directories.journal)
    unsettled = [r for r in runs.all(on_damage=lambda _: None) if not is_settled(r)]
    if not unsettled:
        return ()
    # Looked at after the records, so that a guest that is just being made is seen.
    living = {intent.run_id for intent in alive(directories)}
    written = []
    for record in unsettled:
        # One in a tenant's guest has an intent of its own there.
        if record.run_id in living or runs.held(record.run_id):
            continue
        # It may have ended in an orderly way since.
        now = runs.read(record.run_id)
        if now is None or is_settled(now):
            continue
        last = _last_word(now, receipts.get(now.guest))
        journal.append(
            "run.lost",
            {
                "run": last.run_id,
                "name": last.name,
                "tenant": last.tenant,
                "error": last.error or _KILLED,
            },
        )
        if not last.detached or last.remove:
            runs.remove(last.run_id)
            continue
        with contextlib.suppress(StateError):  # the next command tries again
            if runs.update(last):
                written.append(last)
    return tuple(written)


def is_settled(record: RunRecord) -> bool:
    """Whether all was said of it. A run with a guest of its own has ended when that was removed."""
    own_guest = record.guest == record.run_id
    return record.ended and (record.receipt is not None or not own_guest)


def _last_word(record: RunRecord, receipt: Receipt | None) -> RunRecord:
    if record.ended:
        return replace(record, receipt=receipt or Receipt(()))
    return replace(
        record,
        state=RunState.DEAD,
        error=_KILLED,
        hint="the journal has what is known: vmrun audit show",
        exit_status=EXIT_KILLED,
        finished=time.time(),
        receipt=receipt or Receipt(()),
    )
