"""When a service starts, how it is kept, and how it ends (05-services.md)."""

from __future__ import annotations

import re
import signal
from collections.abc import Mapping

from vmrun.compose.field import Field
from vmrun.compose.model import Condition, Dependency
from vmrun.compose.values import duration
from vmrun.model.service import HealthCheck, RestartPolicy, RestartWhen

_ON_FAILURE = re.compile(r"on-failure(?::([0-9]{1,6}))?")
_SIGNAL = re.compile(r"SIGRT(?:MIN(?:\+[0-9]{1,2})?|MAX(?:-[0-9]{1,2})?)")
_HEALTH = ("test", "interval", "timeout", "retries", "start_period", "disable")
_HEALTH_REFUSED = {"start_interval": "checks are 'interval' apart from the start"}
_CHECK_FORMS = 'write ["CMD", "PROGRAM", "ARGUMENT"], ["CMD-SHELL", "COMMAND"] or ["NONE"]'
_SHELL = "/bin/sh"
_ARGUMENTS = 1_000


def read_restart(field: Field) -> RestartPolicy:
    """``no``, ``always``, ``unless-stopped``, ``on-failure`` or ``on-failure:N``."""
    text = field.word()
    if match := _ON_FAILURE.fullmatch(text):
        attempts = int(match[1]) if match[1] else 0
        if match[1] and attempts == 0:
            raise field.wrong(
                "on-failure:0 restarts without end", "write on-failure, or restart: no"
            )
        return RestartPolicy(RestartWhen.ON_FAILURE, attempts)
    if text not in set(RestartWhen):
        raise field.unusable('one of "no", always, unless-stopped, on-failure, on-failure:N')
    return RestartPolicy(RestartWhen(text))


def read_stop_signal(field: Field) -> str:
    """The name of a signal, ``SIGTERM``; also written ``TERM`` or ``15``."""
    text = field.word().upper()
    if text.isdecimal() and len(text) < 3:
        try:
            return signal.Signals(int(text)).name
        except ValueError:
            raise field.unusable("a signal", "e.g. SIGTERM, SIGINT, SIGUSR1") from None
    name = text if text.startswith("SIG") else f"SIG{text}"
    if name not in signal.Signals.__members__ and _SIGNAL.fullmatch(name) is None:
        raise field.unusable("a signal", "e.g. SIGTERM, SIGINT, SIGUSR1")
    return name


def read_healthcheck(field: Field) -> HealthCheck | None:
    """The check, None if it is disabled."""
    fields = field.section(_HEALTH, _HEALTH_REFUSED)
    if "disable" in fields and fields["disable"].boolean():
        if len(fields) > 1:
            raise fields["disable"].wrong("a check that is disabled has settings", "remove either")
        return None
    if "test" not in fields:
        raise field.wrong("has no 'test'", _CHECK_FORMS)
    command = _test(fields["test"])
    if not command:
        if len(fields) > 1:
            raise fields["test"].wrong("a check that is disabled has settings", "remove either")
        return None
    found = HealthCheck(command)
    return HealthCheck(
        command,
        interval=duration(fields["interval"]) if "interval" in fields else found.interval,
        timeout=duration(fields["timeout"]) if "timeout" in fields else found.timeout,
        retries=fields["retries"].integer(1, 1_000) if "retries" in fields else found.retries,
        start_period=(
            duration(fields["start_period"], zero=True)
            if "start_period" in fields
            else found.start_period
        ),
    )


def _test(field: Field) -> tuple[str, ...]:
    """The command; empty for NONE."""
    if not field.is_list:
        return (_SHELL, "-c", field.text())
    words = [item.text(empty=True) for item in field.items(_ARGUMENTS)]
    kind, arguments = (words[0], words[1:]) if words else ("", [])
    if kind == "NONE" and not arguments:
        return ()
    if kind == "CMD" and arguments and arguments[0]:
        return tuple(arguments)
    if kind == "CMD-SHELL" and len(arguments) == 1 and arguments[0]:
        return (_SHELL, "-c", arguments[0])
    raise field.wrong("not a check", _CHECK_FORMS)


def read_dependencies(field: Field) -> tuple[Dependency, ...]:
    """Both forms, in the order of the file."""
    if field.is_mapping:
        return tuple(_dependency(name, item) for name, item in field.named().items())
    found: dict[str, Dependency] = {}
    for item in field.items():
        name = item.word()
        if name in found:
            raise item.wrong(f"{name[:80]!r} stands there twice", "remove one of them")
        found[name] = Dependency(name)
    return tuple(found.values())


def _dependency(name: str, field: Field) -> Dependency:
    fields: Mapping[str, Field] = field.section(("condition", "required", "restart"))
    if "required" in fields and not fields["required"].boolean():
        raise fields["required"].wrong(
            "not supported: what a service depends on must start", "write true, or remove the line"
        )
    if "restart" in fields and fields["restart"].boolean():
        raise fields["restart"].wrong(
            "not supported: a service is restarted by its own policy only",
            "write false, or remove the line",
        )
    if "condition" not in fields:
        raise field.wrong("has no 'condition'", "one of " + ", ".join(Condition))
    return Dependency(name, fields["condition"].choice({str(kind): kind for kind in Condition}))
