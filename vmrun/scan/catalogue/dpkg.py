"""dpkg's database: /var/lib/dpkg/status, and status.d as images without dpkg itself have it
(dpkg(1), deb-src-control(5))."""

from __future__ import annotations

import re
from collections.abc import Iterator

from vmrun.scan.catalogue.records import Installed, Unreadable, checked, decoded, stanzas

STATUS = "/var/lib/dpkg/status"
STATUS_D = "/var/lib/dpkg/status.d/"
_SOURCE = re.compile(r"(\S+)(?:\s+\((\S+)\))?")


def is_database(path: str) -> bool:
    """Whether a file of an image is part of dpkg's database."""
    if path == STATUS:
        return True
    return path.startswith(STATUS_D) and not path.endswith((".md5sums", ".preinst", ".postinst"))


def parse_status(data: bytes, *, partial: bool) -> Iterator[Installed]:
    """The packages that are installed. ``partial``: a file of status.d, which holds one package
    and does not say in which state it is."""
    for fields in stanzas(decoded(data)):
        state = fields.get("status", "install ok installed" if partial else "").split()
        if len(state) != 3:
            raise Unreadable(f"package {fields.get('package', '')[:80]!r} is in no known state")
        # Half-installed and triggers-pending packages have their files in place, too.
        if state[2] in ("not-installed", "config-files"):
            continue
        name = checked(fields.get("package", ""), "package name")
        version = checked(fields.get("version", ""), f"version of {name}")
        match = _SOURCE.fullmatch(fields.get("source", name))
        if match is None:
            raise Unreadable(f"source of {name} {fields['source'][:80]!r} is not one")
        yield Installed(
            name=name,
            version=version,
            source=match[1],
            source_version=match[2] or version,
            architecture=fields.get("architecture", ""),
        )
