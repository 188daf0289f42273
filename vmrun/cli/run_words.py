"""How runs are told to people: docker's words for states, ages and ports. Pure."""

from __future__ import annotations

from json import dumps
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vmrun.model.network import Publish
    from vmrun.model.run_record import Health
    from vmrun.run.survey import Seen

_EXIT_UNKNOWN = 137


def status_words(seen: Seen, now: float) -> str:
    """``Up 5 minutes (healthy)``, ``Exited (0) 2 hours ago`` …"""
    from vmrun.model.run_record import RunState

    record = seen.record
    if seen.kept_until:
        return f"Kept for {duration_words(seen.kept_until - now)}"
    match seen.state:
        case RunState.CREATED:
            return "Created"
        case RunState.RUNNING:
            return f"Up {duration_words(now - record.started)}{_health(record.health)}"
        case RunState.PAUSED:
            return f"Up {duration_words(now - record.started)} (Paused)"
        case RunState.RESTARTING:
            return f"Restarting ({record.exit_status})"
        case RunState.EXITED:
            ago = duration_words(now - record.finished)
            return f"Exited ({record.exit_status}) {ago} ago"
        case RunState.DEAD:
            ago = f" {duration_words(now - record.finished)} ago" if record.finished else ""
            return f"Dead ({exit_status(seen)}){ago}"


def exit_status(seen: Seen) -> int:
    """The status of a run that has ended; 137, as after SIGKILL, where nobody saw it."""
    from vmrun.model.run_record import RunState

    status = seen.record.exit_status
    if seen.state is RunState.DEAD and not seen.record.ended:
        return _EXIT_UNKNOWN
    return _EXIT_UNKNOWN if status is None else status


def _health(health: Health) -> str:
    from vmrun.model.run_record import Health

    if health is Health.NONE:
        return ""
    return " (health: starting)" if health is Health.STARTING else f" ({health})"


def duration_words(seconds: float) -> str:
    """``5 minutes``, ``About an hour``, ``2 weeks``: docker's words (go-units)."""
    whole = int(seconds)
    if whole < 1:
        return "Less than a second"
    if whole == 1:
        return "1 second"
    if whole < 60:
        return f"{whole} seconds"
    minutes = whole // 60
    if minutes == 1:
        return "About a minute"
    if minutes < 60:
        return f"{minutes} minutes"
    hours = round(seconds / 3600)
    if hours == 1:
        return "About an hour"
    if hours < 48:
        return f"{hours} hours"
    for unit, length in (("days", 24), ("weeks", 24 * 7), ("months", 24 * 30)):
        following = {"days": 24 * 14, "weeks": 24 * 60, "months": 24 * 365 * 2}[unit]
        if hours < following:
            return f"{hours // length} {unit}"
    return f"{hours // (24 * 365)} years"


def port_words(ports: tuple[Publish, ...]) -> str:
    """``127.0.0.1:8080->80/tcp``, by commas."""
    return ", ".join(f"{endpoint(port)}->{port.container_port}/tcp" for port in ports)


def endpoint(port: Publish) -> str:
    """The host's side of a published port."""
    address = f"[{port.address}]" if ":" in port.address else port.address
    return f"{address}:{port.host_port}"


def shortened(text: str, longest: int) -> str:
    """At most ``longest`` characters, an ellipsis among them."""
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


def printable(text: str) -> str:
    """``text`` if nothing in it could be anything but text to a terminal, else as JSON: images and
    labels are other people's."""
    return text if text.isprintable() else dumps(text)
