"""A run that lives: its controls, its record, and what the journal hears of it."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from vmrun.model.errors import StateError, VmrunError
from vmrun.model.plan import Plan
from vmrun.model.run_record import RunRecord, RunState
from vmrun.supervisor.controls import Controls
from vmrun.supervisor.records import Runs

Record = Callable[[str, Mapping[str, str]], object]
"""Writes an event into the journal."""


class TrackedRun:
    """One run; whoever changes its state says so here."""

    def __init__(
        self, plan: Plan, record: RunRecord, controls: Controls, *, runs: Runs, journal: Record
    ) -> None:
        self.plan = plan
        self.controls = controls
        self._record = record
        self._runs = runs
        self._journal = journal
        self._written = False
        self._unwritten = False
        self._lock = threading.RLock()

    @property
    def record(self) -> RunRecord:
        """What is known of it now."""
        with self._lock:
            return self._record

    def change(self, **fields: Any) -> None:
        """Change the record. When it cannot be written it is tried again by :meth:`flush`."""
        with self._lock:
            self._record = replace(self._record, **fields)
            try:
                if self._written:
                    # What was removed meanwhile must not come back.
                    self._runs.update(self._record)
                else:
                    self._runs.write(self._record)
                self._written = True
                self._unwritten = False
            except StateError:
                self._unwritten = True

    def flush(self) -> None:
        """Write the record if that failed before."""
        if self._unwritten:
            self.change()

    def pause(self) -> None:
        """Stop it where it is."""
        self.controls.pause()
        self.change(state=RunState.PAUSED)
        self.tell("run.pause")

    def unpause(self) -> None:
        """Let it go on."""
        self.controls.unpause()
        self.change(state=RunState.RUNNING)
        self.tell("run.unpause")

    def tell(self, event: str, **fields: str) -> None:
        """Put an event of this run into the journal. What cannot be written there ends no workload
        that already runs."""
        known = {"run": self.plan.run_id, "name": self.record.name, "tenant": self.record.tenant}
        with contextlib.suppress(VmrunError):
            self._journal(event, {**known, **fields})
