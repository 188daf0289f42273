"""Comparing versions as the makers of packages do, by univers.

An order that is not known is not guessed: whoever asks gets None and must say 'unknown'.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Protocol

from univers.versions import (
    AlpineLinuxVersion,
    DebianVersion,
    PypiVersion,
    SemverVersion,
    Version,
)

_KINDS: dict[str, type[Version]] = {
    "Debian": DebianVersion,
    "Ubuntu": DebianVersion,
    "Alpine": AlpineLinuxVersion,
    "PyPI": PypiVersion,
    "npm": SemverVersion,
}


class Ordered(Protocol):
    """A version that knows its place."""

    def __lt__(self, other: object) -> bool: ...


@lru_cache(maxsize=100_000)
def parse_version(ecosystem: str, text: str) -> Version | None:
    """The version in an OSV ecosystem (``Debian:12``, ``PyPI``); None if it is none there."""
    kind = _KINDS.get(ecosystem.partition(":")[0])
    if kind is None or not text or len(text) > 256:
        return None
    try:
        return kind(text)
    except Exception:
        return None


def compare(ecosystem: str, one: str, other: str) -> int | None:
    """-1, 0 or 1 as ``one`` is before, at or after ``other``; None when that is not known."""
    first, second = parse_version(ecosystem, one), parse_version(ecosystem, other)
    if first is None or second is None:
        return None
    try:
        if first == second:
            return 0
        return -1 if first < second else 1
    except Exception:
        return None
