"""When a container that has ended is started again: docker's rules."""

from __future__ import annotations

import pytest

from vmrun.model.service import RestartPolicy, RestartWhen
from vmrun.supervisor.restart import ran_well, restart_delay


def delay(
    when: RestartWhen,
    *,
    attempts: int = 0,
    status: int = 1,
    asked: bool = False,
    restarts: int = 0,
    ran_for: float = 0.5,
) -> float | None:
    policy = RestartPolicy(when, attempts)
    return restart_delay(
        policy, status=status, asked_to_stop=asked, restarts=restarts, ran_for=ran_for
    )


@pytest.mark.parametrize(
    ("when", "after_success", "after_failure"),
    [
        (RestartWhen.NO, False, False),
        (RestartWhen.ON_FAILURE, False, True),
        (RestartWhen.ALWAYS, True, True),
        (RestartWhen.UNLESS_STOPPED, True, True),
    ],
)
def test_what_each_policy_does(
    when: RestartWhen, *, after_success: bool, after_failure: bool
) -> None:
    assert (delay(when, status=0) is not None) == after_success
    assert (delay(when, status=3) is not None) == after_failure
    assert delay(when, asked=True) is None, "who stops it means it"


def test_attempts_are_counted() -> None:
    tries = [delay(RestartWhen.ON_FAILURE, attempts=2, restarts=n) for n in range(4)]
    assert [one is not None for one in tries] == [True, True, False, False]


def test_the_delay_doubles_up_to_a_minute() -> None:
    delays = [delay(RestartWhen.ALWAYS, restarts=n) for n in range(12)]
    assert delays[:4] == [0.1, 0.2, 0.4, 0.8]
    assert delays[-1] == 60
    assert delay(RestartWhen.ALWAYS, restarts=100_000) == 60


def test_who_ran_well_begins_anew() -> None:
    assert delay(RestartWhen.ALWAYS, restarts=9, ran_for=10) == 0.1
    assert ran_well(10)
    assert not ran_well(9.9)
