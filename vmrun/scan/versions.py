"""Comparing versions as the makers of packages do, by univers.

An order that is not known is not guessed: whoever asks gets None and must say 'unknown'.
"""

from __future__ import annotations

import re
from functools import lru_cache

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


# Of version-apk(5): what univers does not know of. Both sort after the version without them, and
# among themselves in an order that is only told where both are of the same kind.
_APK_SNAPSHOT = re.compile(r"_(cvs|svn|git|hg|p)(?=[0-9]|-r|$)")
# semver.org, with what npm tolerates: fewer numbers, a leading v.
_SEMVER = re.compile(
    r"v?[0-9]+(?:\.[0-9]+){0,2}(?:-[0-9A-Za-z-]+(?:\.[0-9A-Za-z-]+)*)?(?:\+[0-9A-Za-z.-]+)?"
)


@lru_cache(maxsize=100_000)
def parse_version(ecosystem: str, text: str) -> Version | None:
    """The version in an OSV ecosystem (``Debian:12``, ``PyPI``); None if it is none there."""
    kind = _KINDS.get(ecosystem.partition(":")[0])
    if kind is None or not text or len(text) > 256 or not text.isprintable():
        return None
    if kind is SemverVersion:
        if not _SEMVER.fullmatch(text):
            return None
        text = text.partition("+")[0]  # a build does not count in the order
    elif kind is AlpineLinuxVersion:
        text = _APK_SNAPSHOT.sub("_p", text)
    try:
        return kind(text)
    except Exception:
        return None


def compare(ecosystem: str, one: str, other: str) -> int | None:
    """-1, 0 or 1 as ``one`` is before, at or after ``other``; None when that is not known."""
    snapshots = {m for text in (one, other) for m in _APK_SNAPSHOT.findall(text)}
    if ecosystem.startswith("Alpine") and len(snapshots) > 1:
        return None
    first, second = parse_version(ecosystem, one), parse_version(ecosystem, other)
    if first is None or second is None:
        return None
    try:
        if first == second:
            return 0
        return -1 if first < second else 1
    except Exception:
        return None
