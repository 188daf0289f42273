"""dpkg's database: /var/lib/dpkg/status, and status.d as images without dpkg itself have it
(dpkg(1), deb-src-control(5))."""

from __future__ import annotations

import re
from collections.abc import Iterator

from vmrun.scan.catalogue.records import (
    Installed,
    Unreadable,
    checked,
    decoded,
    lines,
    stanzas,
)

FOLDER = "/var/lib/dpkg"
STATUS = f"{FOLDER}/status"
STATUS_D = f"{FOLDER}/status.d"
INFO = f"{FOLDER}/info"

# What dpkg itself accepts (lib/dpkg/parsehelp.c, pkg_name_is_illegal).
_NAME = r"[A-Za-z0-9][A-Za-z0-9+._-]*"
_SOURCE = re.compile(rf"({_NAME})(?:\s+\((\S+)\))?")
_NOT_THERE = ("not-installed", "config-files")
_NO_PARAGRAPH = (".md5sums", ".preinst", ".postinst", ".prerm", ".postrm", ".conffiles", ".list")
_LISTS = re.compile(
    rf"{INFO}/(?P<list>[^/:]+)(?::[^/:]+)?\.list|{STATUS_D}/(?P<sums>[^/:]+)\.md5sums"
)


def is_database(path: str) -> bool:
    """Whether a file of an image is part of dpkg's database."""
    if path == STATUS:
        return True
    directory, _, name = path.rpartition("/")
    return directory == STATUS_D and not name.endswith(_NO_PARAGRAPH)


def parse_status(data: bytes, *, partial: bool) -> Iterator[Installed]:
    """The packages that are installed. ``partial``: a file of status.d, which holds one package
    and does not say in which state it is. Raises :class:`Unreadable`."""
    seen = set()
    for fields in stanzas(decoded(data)):
        shown = fields.get("package", "")[:80]
        state = fields.get("status", "install ok installed" if partial else "").split()
        if len(state) != 3:
            raise Unreadable(f"package {shown!r} is in no known state")
        # Those that are half-installed, or wait for triggers, have their files in place, too.
        if state[2] in _NOT_THERE:
            continue
        name = fields.get("package", "")
        if not re.fullmatch(_NAME, checked(name, "package name")):
            raise Unreadable(f"package name {shown!r} is not one")
        version = checked(fields.get("version", ""), f"version of {name}")
        architecture = fields.get("architecture", "")
        source = _SOURCE.fullmatch(fields.get("source") or name)
        if source is None:
            raise Unreadable(f"source {fields['source'][:80]!r} of {name} is not one")
        if (name, architecture) in seen:
            raise Unreadable(f"package {name} comes twice")
        seen.add((name, architecture))
        yield Installed(
            name=name,
            version=version,
            source=checked(source[1], f"source of {name}"),
            source_version=checked(source[2] or version, f"source version of {name}"),
            architecture=checked(architecture, f"architecture of {name}") if architecture else "",
        )


def lists_files_of(path: str) -> str:
    """The package whose files a file of an image lists; empty if it is no such list."""
    match = _LISTS.fullmatch(path)
    return "" if match is None else match["list"] or match["sums"]


def owned_files(data: bytes, path: str) -> Iterator[str]:
    """Absolute paths in such a list: one a line, or with a checksum before it."""
    for line in lines(decoded(data)):
        if path.endswith(".md5sums"):
            _, _, line = line.partition("  ")
            line = "/" + line.removeprefix("./").lstrip("/") if line else ""
        if line.startswith("/"):
            yield line
