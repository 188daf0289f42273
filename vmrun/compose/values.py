"""The small grammars of a compose file: names, paths, durations, sizes."""

from __future__ import annotations

import posixpath
import re

from vmrun.compose.field import Field
from vmrun.model.errors import UsageError
from vmrun.model.quantity import parse_size

_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9])?")
_LONG_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")
_PROJECT = re.compile(r"[a-z0-9][a-z0-9_-]{0,39}")
_PORT = re.compile(r"[0-9]{1,5}")
_DURATION = re.compile(r"(?:[0-9]{1,9}(?:\.[0-9]{1,9})?(?:us|ms|s|m|h))+")
_DURATION_PART = re.compile(r"([0-9.]+)(us|ms|s|m|h)")
_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_LONGEST = 30 * 86_400.0
_PATH_MAX = 4095
_KERNEL = ("/proc", "/sys", "/dev")


def is_name(text: str) -> bool:
    """Whether it can name a service: it is a host name on its network, so it has no dots."""
    return _NAME.fullmatch(text) is not None and text.lower() != "localhost"


def is_long_name(text: str) -> bool:
    """Whether it can name a network, a volume or a secret."""
    return _LONG_NAME.fullmatch(text) is not None


def is_project_name(text: str) -> bool:
    """Whether it can name a project (Compose specification, 04-version-and-name.md)."""
    return _PROJECT.fullmatch(text) is not None


def project_name_of(folder: str) -> str:
    """The name of a project in a folder of that name, as compose makes it; may be empty."""
    return re.sub(r"[^a-z0-9_-]", "", folder.lower()).lstrip("_-")[:40]


def host_name_of(name: str) -> str:
    """A service's name as a host name."""
    return name.lower().replace("_", "-")


def port_number(text: str) -> int | None:
    """A port in decimal digits, None if it is none."""
    return int(text) if _PORT.fullmatch(text) and 0 < int(text) < 65_536 else None


def duration(field: Field, *, zero: bool = False) -> float:
    """Seconds of ``1m30s``, ``500ms`` or ``1.5h`` (11-extension.md, "Specifying durations")."""
    text = field.word()
    seconds = -1.0
    if text == "0":
        seconds = 0.0
    elif _DURATION.fullmatch(text):
        seconds = 0.0
        for amount, unit in _DURATION_PART.findall(text):
            seconds += float(amount) * _SECONDS[unit]
    if seconds < 0 or (seconds == 0 and not zero) or seconds > _LONGEST:
        raise field.unusable(
            "a duration" + ("" if zero else " above 0"),
            "write numbers and units: 30s, 1m30s, 500ms",
        )
    return seconds


def size(field: Field) -> int:
    """Bytes of ``512m``, ``1gb`` or a bare number (11-extension.md, "Specifying byte values")."""
    text = field.word()
    try:
        found = parse_size(text, option="size")
    except UsageError:
        found = 0
    if not 0 < found < 1 << 50:
        raise field.unusable("a size above 0", "write a number and a unit: 512m, 1gb")
    return found


def container_path(field: Field) -> str:
    """An absolute path in the container, without ``..`` and not the root."""
    text = field.word()
    return checked_path(field, text)


def checked_path(field: Field, text: str) -> str:
    """``text``, a part of ``field``, as such a path."""
    if not text.startswith("/") or ".." in text.split("/") or len(text.encode()) > _PATH_MAX:
        raise field.wrong(
            f"not a path in the container: {text[:80]!r}", "absolute, below /, without '..'"
        )
    return "/" + posixpath.normpath(text).lstrip("/")


def mount_point(field: Field, text: str) -> str:
    """``text`` as a path where something can be mounted: not the root, nothing of the kernel's."""
    path = checked_path(field, text)
    inside = path == "/" or any(path == top or path.startswith(f"{top}/") for top in _KERNEL)
    if inside and path != "/dev/shm":  # noqa: S108 - the container's, not ours
        raise field.wrong(
            f"nothing can be mounted at {path[:80]!r}", "choose a path of the workload's own"
        )
    return path
