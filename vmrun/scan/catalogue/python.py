"""Installed Python distributions: ``*.dist-info/METADATA`` and ``*.egg-info`` (PyPA, Recording
installed projects; Core metadata)."""

from __future__ import annotations

import re

from vmrun.scan.catalogue.records import Installed, Unreadable, checked, decoded

_DIST_INFO = re.compile(r".*/[^/]+\.dist-info/METADATA")
_EGG_INFO = re.compile(r".*/[^/]+\.egg-info(?:/PKG-INFO)?")


def is_metadata(path: str) -> bool:
    """Whether a file of an image records an installed distribution."""
    return bool(_DIST_INFO.fullmatch(path) or _EGG_INFO.fullmatch(path))


def parse_metadata(data: bytes) -> Installed:
    """The distribution. Only the headers are looked at: descriptions may hold anything."""
    fields: dict[str, str] = {}
    for line in decoded(data).split("\n"):
        if not line.strip():
            break
        name, colon, value = line.partition(":")
        if colon and line[0] not in " \t":
            fields.setdefault(name.strip().lower(), value.strip())
    name = checked(fields.get("name", ""), "name")
    version = checked(fields.get("version", ""), f"version of {name}")
    if not re.fullmatch(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?", name):
        raise Unreadable(f"name {name[:80]!r} is not one")
    normal = re.sub(r"[-_.]+", "-", name).lower()
    licence = fields.get("license-expression", "")
    return Installed(normal, version, normal, version, licence=licence)
