"""A run whose user waits for it, as the other commands see it: they can stop it, look at it and
execute more in it like in any other."""

from __future__ import annotations

from vmrun.model.errors import StateError
from vmrun.model.plan import Plan
from vmrun.model.run_record import RunRecord
from vmrun.run.ports import Streams
from vmrun.supervisor.service import Service
from vmrun.supervisor.tracked import TrackedRun


class AttendedRun:
    """The only run of its guest; see :class:`vmrun.supervisor.answers.Living`."""

    def __init__(self, run: TrackedRun) -> None:
        self._run = run

    def add(self, plan: Plan, record: RunRecord, streams: Streams | None = None) -> Service:
        """Nothing else runs in this guest."""
        raise StateError(f"the guest of run {self._run.record.name!r} is its own")

    def get(self, run_id: object) -> TrackedRun:
        """The run. Raises :class:`StateError` for any other."""
        if run_id != self._run.plan.run_id:
            raise StateError(f"run {str(run_id)[:40]!r} is not here", hint="see 'vmrun ps -a'")
        return self._run

    def all(self) -> tuple[TrackedRun, ...]:
        """The run."""
        return (self._run,)

    def end(self) -> None:
        """End it: its guest ends with it."""
        self._run.controls.asked_to_stop.set()
        self._run.controls.contained.kill()
