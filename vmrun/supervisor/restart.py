"""When a container that has ended is started again: docker's rules. Pure."""

from __future__ import annotations

from vmrun.model.service import RestartPolicy, RestartWhen

_FIRST = 0.1
_LONGEST = 60.0
_STEADY = 10.0
"""Seconds after which a container that ran is taken to have been well."""


def restart_delay(
    policy: RestartPolicy, *, status: int, asked_to_stop: bool, restarts: int, ran_for: float
) -> float | None:
    """Seconds until it is started again; None when it is not.

    ``restarts`` counts those since it last ran well. The delay doubles with each, from 100 ms to a
    minute (docker run reference, "Restart policies").
    """
    if asked_to_stop or policy.when is RestartWhen.NO:
        return None
    if policy.when is RestartWhen.ON_FAILURE:
        if status == 0:
            return None
        if policy.attempts and restarts >= policy.attempts:
            return None
    exponent = 0 if ran_well(ran_for) else restarts
    return float(min(_LONGEST, _FIRST * 2 ** min(exponent, 16)))


def ran_well(ran_for: float) -> bool:
    """Whether a container ran so long that its next end is a new story."""
    return ran_for >= _STEADY
