"""The options of ``run`` that say how a detached workload is kept running, as docker names them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from vmrun.model.errors import UsageError
from vmrun.model.quantity import parse_duration
from vmrun.model.service import HealthCheck, RestartPolicy, RestartWhen, ServiceOptions

_LONGEST_STOP = 3600

Restart = Annotated[
    str | None,
    typer.Option(help="no, on-failure[:N], always or unless-stopped.", show_default=False),
]
HealthCmd = Annotated[
    str | None,
    typer.Option(help="A shell command in the container; exit status 0 is healthy."),
]
HealthInterval = Annotated[
    str | None, typer.Option(help="Between two health checks; default 30s.", show_default=False)
]
HealthTimeout = Annotated[
    str | None, typer.Option(help="A health check that takes longer has failed; default 30s.")
]
HealthRetries = Annotated[
    int | None, typer.Option(help="Failures in a row until it is unhealthy; default 3.")
]
HealthStartPeriod = Annotated[
    str | None, typer.Option(help="Failures in this time after the start do not count.")
]
StopSignal = Annotated[
    str | None, typer.Option(help="What asks it to stop; default: what its image says.")
]
StopTimeout = Annotated[
    int | None, typer.Option(help="Seconds until it is killed when it does not stop; default 10.")
]
Label = Annotated[
    list[str] | None, typer.Option("--label", "-l", help="KEY=VALUE, to be found by ps --filter.")
]


def service_options(
    *,
    restart: str | None,
    command: str | None,
    interval: str | None,
    timeout: str | None,
    retries: int | None,
    start_period: str | None,
    stop_signal: str | None,
    stop_timeout: int | None,
    remove: bool,
) -> ServiceOptions:
    """Parse what was typed. Raises :class:`UsageError` naming the option and the value."""
    policy = restart_policy(restart or "no")
    if remove and policy.when is not RestartWhen.NO:
        raise UsageError("--rm and --restart exclude each other", hint="leave one of them out")
    health = None
    given = {"interval": interval, "timeout": timeout, "start-period": start_period}
    if command is not None:
        health = HealthCheck(
            command=("/bin/sh", "-c", command),
            interval=_seconds(interval, "interval", 30.0),
            timeout=_seconds(timeout, "timeout", 30.0),
            retries=_retries(retries),
            start_period=_seconds(start_period, "start-period", 0.0),
        )
    elif retries is not None or any(value is not None for value in given.values()):
        raise UsageError("health options without a check", hint="add --health-cmd COMMAND")
    if stop_timeout is not None and not 0 <= stop_timeout <= _LONGEST_STOP:
        raise UsageError(
            f"--stop-timeout {stop_timeout} is not possible", hint=f"0 to {_LONGEST_STOP} seconds"
        )
    return ServiceOptions(
        restart=policy,
        health=health,
        stop_signal=checked_signal(stop_signal),
        stop_timeout=10.0 if stop_timeout is None else float(stop_timeout),
        remove=remove,
    )


def restart_policy(text: str) -> RestartPolicy:
    """``no``, ``on-failure[:N]``, ``always``, ``unless-stopped``. Raises :class:`UsageError`."""
    word, colon, count = text.partition(":")
    good = word in list(RestartWhen) and (
        not colon or (word == "on-failure" and re.fullmatch("[0-9]{1,4}", count))
    )
    if not good:
        raise UsageError(
            f"--restart: not a restart policy: {text[:60]!r}",
            hint="no, on-failure[:N], always or unless-stopped",
        )
    return RestartPolicy(RestartWhen(word), int(count) if colon else 0)


def labels(texts: list[str]) -> tuple[tuple[str, str], ...]:
    """``KEY=VALUE`` or ``KEY``. Raises :class:`UsageError`."""
    found = {}
    for text in texts:
        key, _, value = text.partition("=")
        if not key or "\0" in text or len(text) > 4096:
            raise UsageError(f"--label: not a label: {text[:60]!r}", hint="KEY=VALUE")
        found[key] = value
    return tuple(found.items())


def checked_signal(name: str | None) -> str:
    """The name of a signal that there is; empty for none. Raises :class:`UsageError`."""
    if name is None:
        return ""
    from vmrun.model.signals import signal_number

    signal_number(name)
    return name


def check_detached(*, interactive: bool, terminal: bool, keep: bool, report: Path | None) -> None:
    """What makes no sense with nobody there. Raises :class:`UsageError`."""
    for given, option in ((interactive, "-i"), (terminal, "-t"), (keep, "--keep")):
        if given:
            raise UsageError(
                f"-d and {option} exclude each other",
                hint="'vmrun exec' and 'vmrun logs' reach a detached run",
            )
    if report is not None:
        raise UsageError("-d and --report exclude each other", hint="use 'vmrun inspect'")


def check_attended(*, restart: str | None, health: str | None) -> None:
    """What only a supervisor does. Raises :class:`UsageError`."""
    if health is not None or (restart is not None and restart != "no"):
        raise UsageError(
            "--restart and --health-cmd are for detached runs", hint="add -d, or leave them out"
        )


def _seconds(text: str | None, name: str, default: float) -> float:
    return default if text is None else parse_duration(text, option=f"--health-{name}")


def _retries(count: int | None) -> int:
    if count is None:
        return 3
    if not 1 <= count <= 1000:
        raise UsageError(f"--health-retries {count} is not possible", hint="1 to 1000")
    return count
