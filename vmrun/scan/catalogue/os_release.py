"""/etc/os-release (os-release(5))."""

from __future__ import annotations

import re
import shlex

from vmrun.model.scan import Distribution
from vmrun.scan.catalogue.records import Unreadable, decoded, lines, printable

PATHS = ("/etc/os-release", "/usr/lib/os-release")
_LARGEST = 64 * 1024
_FORM = re.compile(r"[a-z0-9._-]{0,64}")


def parse_os_release(data: bytes) -> Distribution:
    """The distribution that the file names."""
    if len(data) > _LARGEST:
        raise Unreadable(f"it has {len(data)} bytes, the limit is {_LARGEST}")
    fields: dict[str, str] = {}
    for line in lines(decoded(data)):
        key, equals, value = line.strip().partition("=")
        if not equals or key.startswith("#"):
            continue
        try:
            fields[key] = "".join(shlex.split(value))
        except ValueError:
            raise Unreadable(f"line {line[:80]!r} is not an assignment") from None
    found = Distribution(
        id=fields.get("ID", "linux"),
        version_id=fields.get("VERSION_ID", ""),
        codename=fields.get("VERSION_CODENAME", ""),
        name=printable(fields.get("PRETTY_NAME", ""))[:200],
    )
    for text in (found.id, found.version_id, found.codename):
        if not _FORM.fullmatch(text):
            raise Unreadable(f"{text[:80]!r} cannot name a distribution")
    return found
