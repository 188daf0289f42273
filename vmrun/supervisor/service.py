"""One run in a live guest, from its delivery to its last end: restarts, health, log and record."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from vmrun.model.errors import DeadlineExceeded, GuestError, Interrupted, StateError, VmrunError
from vmrun.model.plan import Plan
from vmrun.model.run_record import Health, RunRecord, RunState
from vmrun.run.ports import Streams
from vmrun.supervisor.contained import Contained, Wire
from vmrun.supervisor.controls import Controls
from vmrun.supervisor.health import HealthProber
from vmrun.supervisor.live import LiveGuest
from vmrun.supervisor.logs import LogWriter
from vmrun.supervisor.records import Runs
from vmrun.supervisor.restart import ran_well, restart_delay
from vmrun.supervisor.tracked import Record, TrackedRun


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a run needs besides its guest. ``prepare`` brings its data into the guest before it is
    started, ``conclude`` takes it back when it has ended."""

    runs: Runs
    journal: Record
    wire: Wire
    prepare: Callable[[Plan], None]
    conclude: Callable[[Plan], None]


class Service(TrackedRun):
    """Runs one container in a thread of its own; :attr:`controls` is how it is told things."""

    def __init__(
        self,
        plan: Plan,
        record: RunRecord,
        live: LiveGuest,
        around: Surroundings,
        *,
        shared: bool,
        on_end: Callable[[Service], None],
        discard: Callable[[Service, Contained], None] = lambda _service, _contained: None,
        streams: Streams | None = None,
        number: int = 0,
    ) -> None:
        """Without ``streams`` the output goes into the run's log. ``on_end`` is told of its last
        end; ``discard`` removes what its container leaves in the guest."""
        log: LogWriter | None = None
        if streams is None:
            log = LogWriter(around.runs.folder(plan.run_id), on_problem=self._log_problem)
            streams = Streams(None, log.stream("stdout"), log.stream("stderr"))
        contained = Contained(plan, live, streams, wire=around.wire, number=number)
        super().__init__(
            plan,
            record,
            Controls(contained, live, shared=shared),
            runs=around.runs,
            journal=around.journal,
        )
        self._on_end = on_end
        self._live = live
        self._around = around
        self._discard = discard
        self._log = log
        self._contained = contained
        self._first: queue.Queue[VmrunError | None] = queue.Queue()
        self._health: HealthProber | None = None
        self.expired = False
        """Whether it ran longer than it may, and was killed for that."""

    def begin(self) -> None:
        """Start its thread."""
        threading.Thread(target=self._live_on, name=f"run-{self.plan.run_id}", daemon=True).start()

    def wait_started(self) -> None:
        """Return when the workload's first instruction has run; raises what kept it from that."""
        error = self._first.get()
        self._first.put(error)
        if error is not None:
            raise error

    def _live_on(self) -> None:
        status = 0
        error: VmrunError | None = None
        try:
            with self._live.turn:
                moved = self._contained.deliver()
            self.change(delivered_bytes=moved)
            self._around.prepare(self.plan)
            status = self._run_and_run_again()
        except VmrunError as failed:
            error = failed
            status = failed.exit_status
        self._conclude(status, error)

    def _run_and_run_again(self) -> int:
        options = self.plan.workload.service
        restarts = 0
        while True:
            if self.controls.asked_to_stop.is_set():
                raise Interrupted("it was stopped before it had started")
            started = self._start()
            status = self._wait()
            ran_for = time.monotonic() - started
            self.tell("run.exit", status=str(status))
            delay = restart_delay(
                options.restart,
                status=status,
                asked_to_stop=self.controls.asked_to_stop.is_set() or self.expired,
                restarts=restarts,
                ran_for=ran_for,
            )
            if delay is None:
                return status
            restarts = 1 if ran_well(ran_for) else restarts + 1
            self.change(
                state=RunState.RESTARTING,
                exit_status=status,
                restarts=self.record.restarts + 1,
                health=Health.NONE,
            )
            self.tell("run.restart", status=str(status), delay=f"{delay:g}")
            if self.controls.asked_to_stop.wait(delay):
                return status

    def _start(self) -> float:
        with self._live.turn:
            assertions = self._contained.start()
        begun = time.monotonic()
        check = self.plan.workload.service.health
        self.change(
            state=RunState.RUNNING,
            started=time.time(),
            assertions=assertions,
            health=Health.STARTING if check else Health.NONE,
        )
        if check is not None:
            self._health = HealthProber(
                check, self._contained.execute, self._healthy, lambda: self.controls.paused
            )
        if self._first.empty():
            self.tell("run.started")
            self._first.put(None)
        return begun

    def _wait(self) -> int:
        timer: threading.Timer | None = None
        limit = self.plan.container.limits.timeout
        if limit is not None:
            timer = threading.Timer(limit, self._expire)
            timer.daemon = True
            timer.start()
        try:
            status = self._contained.wait()
        except VmrunError:
            if not self.expired:
                raise
            status = DeadlineExceeded.exit_status
        finally:
            if timer is not None:
                timer.cancel()
            if self._health is not None:
                self._health.stop()
        if self.expired:
            raise DeadlineExceeded(
                f"the workload was killed: it ran longer than {limit:g} s",
                hint="allow more with --timeout",
            )
        return status

    def _expire(self) -> None:
        self.expired = True
        self._contained.end()

    def _conclude(self, status: int, error: VmrunError | None) -> None:
        """Its last end: data back, the record, and the news."""
        with contextlib.suppress(VmrunError):
            self.change(usage=self._contained.usage())
        self._around.wire.detach(self.plan)
        try:
            self._around.conclude(self.plan)
            self._discard(self, self._contained)
        except VmrunError as failed:
            error = error or failed
            status = status or failed.exit_status
        if self._log is not None:
            self._log.close()
        if self._live.lost.is_set():
            error = GuestError("the guest did not answer for a whole lease; it was destroyed")
        self.change(
            state=RunState.EXITED if error is None else RunState.DEAD,
            finished=time.time(),
            exit_status=status,
            error=error.message if error else "",
            hint=error.hint if error else "",
            details=error.details if error else "",
            health=Health.NONE,
        )
        if self._first.empty():
            self._first.put(error or StateError("it ended before it had started"))
        self.controls.end(status)
        self._on_end(self)

    def _healthy(self, health: Health) -> None:
        self.change(health=health)
        self.tell("run.health", health=health.value)

    def _log_problem(self, problem: str) -> None:
        if problem != self.record.log_problem:
            self.change(log_problem=problem)
