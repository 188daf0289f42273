"""How a detached workload is kept running: its restart policy and its health check."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class RestartWhen(StrEnum):
    """docker's restart policies."""

    NO = "no"
    ON_FAILURE = "on-failure"
    ALWAYS = "always"
    UNLESS_STOPPED = "unless-stopped"


@dataclass(frozen=True, slots=True)
class RestartPolicy:
    """``attempts``: how often at most after failures, 0 for without end."""

    when: RestartWhen = RestartWhen.NO
    attempts: int = 0


@dataclass(frozen=True, slots=True)
class HealthCheck:
    """A command that is executed in the container; times in seconds. ``retries`` failures in a row
    make it unhealthy; failures within ``start_period`` of the start do not count."""

    command: tuple[str, ...]
    interval: float = 30.0
    timeout: float = 30.0
    retries: int = 3
    start_period: float = 0.0


@dataclass(frozen=True, slots=True)
class ServiceOptions:
    """How it is kept; ``stop_timeout`` is the seconds between the stop signal and SIGKILL."""

    restart: RestartPolicy = RestartPolicy()
    health: HealthCheck | None = None
    stop_signal: str = ""
    stop_timeout: float = 10.0
    remove: bool = False


NO_SERVICE = ServiceOptions()
