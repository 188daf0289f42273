"""What there is of runs now: their records, held against the owners' locks.

A record that says it runs is only believed when its guest has an owner.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from vmrun.model.errors import StateError
from vmrun.model.run_record import RunRecord, RunState
from vmrun.run.directories import StateDirectories
from vmrun.run.intent import Intent
from vmrun.run.state import alive
from vmrun.supervisor.records import Runs


@dataclass(frozen=True, slots=True)
class Seen:
    """A run as it was found: ``state`` is the true one, whatever the record says. ``kept_until`` is
    the time to which a failed guest is kept for a look, 0.0 for others; ``owner`` the process that
    owns its guest, 0 without one."""

    record: RunRecord
    state: RunState
    owner: int = 0
    kept_until: float = 0.0

    @property
    def lives(self) -> bool:
        """Whether it runs, is about to, or is kept."""
        return bool(self.kept_until) or self.state not in (RunState.EXITED, RunState.DEAD)


def survey(
    directories: StateDirectories, *, on_damage: Callable[[StateError], None]
) -> tuple[Seen, ...]:
    """Every run, the newest first; damaged records are told and left out. Raises
    :class:`StateError` when it cannot be found out which guests live."""
    runs = Runs(directories.runs)
    records = runs.all(on_damage=on_damage)
    # Looked at after the records, so that a guest that is just being made is seen.
    living = {intent.run_id: intent for intent in alive(directories)}
    seen = (_see(runs, record, living) for record in records)
    return tuple(one for one in seen if one is not None)


def see(directories: StateDirectories, record: RunRecord) -> Seen | None:
    """One run; None when its record has gone meanwhile."""
    living = {intent.run_id: intent for intent in alive(directories)}
    return _see(Runs(directories.runs), record, living)


def guest_lives(directories: StateDirectories, guest: str) -> bool:
    """Whether the guest with that run id has an owner, or is kept."""
    return any(intent.run_id == guest for intent in alive(directories))


def _see(runs: Runs, record: RunRecord, living: Mapping[str, Intent]) -> Seen | None:
    intent = living.get(record.run_id)
    if intent is not None and intent.kept_until > time.time():
        return Seen(record, RunState.EXITED, 0, intent.kept_until)
    if intent is not None:
        return Seen(record, record.state, intent.owner)
    if record.ended:
        return Seen(record, record.state)
    # It may have ended in an orderly way since the record was read.
    now = runs.read(record.run_id)
    if now is None:
        return None
    # Whoever holds it has still to write its last word.
    true = now.ended or runs.held(now.run_id)
    return Seen(now, now.state if true else RunState.DEAD)
