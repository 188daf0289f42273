"""Health checks: what answers in a row mean, and a prober that does not hang on any of them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from vmrun.model.errors import ChannelError, DeadlineExceeded
from vmrun.model.run_record import Health
from vmrun.model.service import HealthCheck
from vmrun.run.ports import RemoteProcess, TerminalSize
from vmrun.supervisor.health import HealthProber, Pulse

CHECK = HealthCheck(("true",), retries=3, start_period=10.0)


def after(*answers: bool, running_for: float = 60.0, check: HealthCheck = CHECK) -> Pulse:
    pulse = Pulse()
    for good in answers:
        pulse = pulse.after(check, good=good, running_for=running_for)
    return pulse


@pytest.mark.parametrize(
    ("answers", "health"),
    [
        ((), Health.STARTING),
        ((True,), Health.HEALTHY),
        ((False, False), Health.STARTING),
        ((False, False, False), Health.UNHEALTHY),
        ((True, False, False), Health.HEALTHY),
        ((True, False, False, False), Health.UNHEALTHY),
        ((True, False, False, True, False, False), Health.HEALTHY),
        ((False, False, False, True), Health.HEALTHY),
    ],
)
def test_failures_in_a_row_make_it_unhealthy(answers: tuple[bool, ...], health: Health) -> None:
    assert after(*answers).health is health


def test_the_start_period_forgives_until_it_was_healthy_once() -> None:
    assert after(*[False] * 9, running_for=5.0).health is Health.STARTING
    assert after(True, *[False] * 3, running_for=5.0).health is Health.UNHEALTHY


class FakeProcess:
    """Answers with a status after a while; an endless one ends when it is closed."""

    def __init__(self, status: int | None, output: bytes = b"") -> None:
        self._status = status
        self._output = output
        self._closed = threading.Event()

    def write(self, data: bytes) -> None: ...

    def close_stdin(self) -> None: ...

    def resize(self, size: TerminalSize) -> None: ...

    def read(self, size: int) -> bytes:
        data, self._output = self._output[:size], self._output[size:]
        if not data and self._status is None:
            self._closed.wait(5)
        return data

    def read_error(self, size: int) -> bytes:
        return b""

    def wait(self, timeout: float | None = None) -> int:
        if self._status is None:
            raise DeadlineExceeded("it does not end")
        return self._status

    def close(self) -> None:
        self._closed.set()


def probe(
    answer: Callable[[], RemoteProcess], *, timeout: float = 5.0, retries: int = 2
) -> list[Health]:
    """What a prober tells until it has told something."""
    told: list[Health] = []
    first = threading.Event()

    def hear(health: Health) -> None:
        told.append(health)
        first.set()

    check = HealthCheck(("check",), interval=0.01, timeout=timeout, retries=retries)
    prober = HealthProber(check, lambda _: answer(), hear)
    assert first.wait(5)
    prober.stop()
    return told


def test_status_zero_is_healthy_and_nothing_else() -> None:
    assert probe(lambda: FakeProcess(0))[0] is Health.HEALTHY
    assert probe(lambda: FakeProcess(1))[0] is Health.UNHEALTHY


def test_one_that_prints_without_end_is_cut_off() -> None:
    assert probe(lambda: FakeProcess(0, b"x" * 10_000_000))[0] is Health.HEALTHY


def test_one_that_hangs_has_failed() -> None:
    start = time.monotonic()
    assert probe(lambda: FakeProcess(None), timeout=0.1)[0] is Health.UNHEALTHY
    assert time.monotonic() - start < 3


def test_one_that_cannot_be_executed_has_failed() -> None:
    def broken() -> RemoteProcess:
        raise ChannelError("no connection")

    assert probe(broken)[0] is Health.UNHEALTHY


def test_a_prober_that_was_stopped_tells_nothing() -> None:
    told: list[Health] = []
    begun, go_on = threading.Event(), threading.Event()

    def execute(_: tuple[str, ...]) -> RemoteProcess:
        begun.set()
        go_on.wait(5)
        return FakeProcess(0)

    prober = HealthProber(HealthCheck(("x",), interval=0.01), execute, told.append)
    assert begun.wait(5)
    prober.stop()
    go_on.set()
    time.sleep(0.1)
    assert told == []
