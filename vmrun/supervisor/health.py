"""Health checks: a command in the container, again and again, and what its answers mean."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from vmrun.engine.watchdog import Watchdog
from vmrun.model.errors import VmrunError
from vmrun.model.run_record import Health
from vmrun.model.service import HealthCheck
from vmrun.run.ports import RemoteProcess

_CHUNK = 4096
_LONGEST_OUTPUT = 4096


@dataclass(frozen=True, slots=True)
class Pulse:
    """How healthy it was seen to be, and how many probes in a row have failed."""

    health: Health = Health.STARTING
    failures: int = 0

    def after(self, check: HealthCheck, *, good: bool, running_for: float) -> Pulse:
        """What one more probe makes of it (docker's rules: a failure within the start period does
        not count unless it has been healthy before)."""
        if good:
            return Pulse(Health.HEALTHY)
        if self.health is Health.STARTING and running_for < check.start_period:
            return self
        failures = self.failures + 1
        if failures >= check.retries:
            return Pulse(Health.UNHEALTHY, failures)
        return Pulse(self.health, failures)


class HealthProber:
    """Probes from a thread until :meth:`stop`; ``told`` hears of each change."""

    def __init__(
        self,
        check: HealthCheck,
        execute: Callable[[tuple[str, ...]], RemoteProcess],
        told: Callable[[Health], None],
        paused: Callable[[], bool] = lambda: False,
    ) -> None:
        """While ``paused`` nothing is asked: it could not answer."""
        self._check = check
        self._execute = execute
        self._told = told
        self._paused = paused
        self._stop = threading.Event()
        threading.Thread(target=self._run, name="health", daemon=True).start()

    def stop(self) -> None:
        """Probe no more."""
        self._stop.set()

    def _run(self) -> None:
        pulse = Pulse()
        started = time.monotonic()
        while not self._stop.wait(self._interval(pulse, started)):
            if self._paused():
                continue
            good = self._probe()
            if self._stop.is_set():
                return
            if self._paused():
                continue
            running_for = time.monotonic() - started
            before, pulse = pulse, pulse.after(self._check, good=good, running_for=running_for)
            if pulse.health is not before.health:
                self._told(pulse.health)

    def _interval(self, pulse: Pulse, started: float) -> float:
        """Until it is healthy for the first time it is asked more often, as docker does with
        ``start_interval``."""
        young = time.monotonic() - started < self._check.start_period
        if pulse.health is Health.STARTING and young:
            return min(self._check.interval, 5.0)
        return self._check.interval

    def _probe(self) -> bool:
        """Whether the command exits with 0 in time; what it prints is of no interest."""
        try:
            process = self._execute(self._check.command)
        except VmrunError:
            return False
        try:
            with Watchdog(self._check.timeout, process.close, "the health check did not end"):
                seen = 0
                while seen < _LONGEST_OUTPUT and (data := process.read(_CHUNK)):
                    seen += len(data)
                return process.wait(self._check.timeout) == 0
        except VmrunError:
            return False
        finally:
            process.close()
