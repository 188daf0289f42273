"""Sizes, durations and counts as people write them on a command line."""

from __future__ import annotations

import re

from vmrun.model.errors import UsageError

MIB = 1 << 20

CPU_PERIOD = 100_000
"""Microseconds of one accounting period of cpu.max, the kernel's default (cgroups(7))."""

_SIZE = re.compile(r"([0-9]{1,15})([bkmgt]?)(?:i?b)?", re.IGNORECASE)
_SHIFT = {"": 0, "b": 0, "k": 10, "m": 20, "g": 30, "t": 40}
_DURATION = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)(ms|s|m|h|d)?")
_SECONDS = {None: 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def parse_size(text: str, *, option: str) -> int:
    """Bytes of ``64m``, ``1g``, ``512MiB`` or a bare number (docker's units, powers of 1024)."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise UsageError(
            f"{option}: not a size: {text!r}", hint="write a number and a unit: 64m, 1g, 512MiB"
        )
    return int(match[1]) << _SHIFT[match[2].lower()]


def parse_duration(text: str, *, option: str) -> float:
    """Seconds of ``30``, ``30s``, ``500ms``, ``5m``, ``1h`` or ``7d``; zero is refused."""
    match = _DURATION.fullmatch(text.strip())
    seconds = float(match[1]) * _SECONDS[match[2]] if match else 0.0
    if seconds <= 0:
        raise UsageError(
            f"{option}: not a duration: {text!r}", hint="write a number and a unit: 30s, 5m, 1h"
        )
    return seconds


def format_size(size: int) -> str:
    """``size`` bytes for people, in binary units: ``1.9 MiB``."""
    value = float(size)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def format_age(seconds: float) -> str:
    """How long something took or is ago, in its largest unit: ``3 d``."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"


def cpu_quota(cpus: float) -> int:
    """Microseconds of processor time in each :data:`CPU_PERIOD` for ``cpus`` cores, at least
    the kernel's least (1 ms; kernel docs, scheduler/sched-bwc)."""
    return max(1_000, round(cpus * CPU_PERIOD))
