"""Installed Python distributions: ``*.dist-info/METADATA``, ``*.egg-info`` and unpacked eggs
(PyPA, Recording installed projects; Core metadata; Name normalization)."""

from __future__ import annotations

import re

from vmrun.scan.catalogue.records import (
    Installed,
    Unreadable,
    checked,
    decoded,
    lines,
    short_licence,
)

_METADATA = re.compile(
    r".*/(?:[^/]+\.dist-info/METADATA|[^/]+\.egg-info(?:/PKG-INFO)?|[^/]+\.egg/EGG-INFO/PKG-INFO)"
)
_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?")


def is_metadata(path: str) -> bool:
    """Whether a file of an image records an installed distribution."""
    return _METADATA.fullmatch(path) is not None


def parse_metadata(data: bytes) -> Installed:
    """The distribution. Only the headers are looked at: descriptions may hold anything."""
    fields: dict[str, str] = {}
    for line in lines(decoded(data.removeprefix(b"\xef\xbb\xbf"))):
        if not line.strip():
            break
        name, colon, value = line.partition(":")
        name = name.strip().lower()
        if not colon or line[0] in " \t" or name not in ("name", "version", "license-expression"):
            continue
        if name in fields:
            raise Unreadable(f"field {name!r} comes twice")
        fields[name] = value.strip()
    name = checked(fields.get("name", ""), "name")
    version = checked(fields.get("version", ""), f"version of {name}")
    if not _NAME.fullmatch(name):
        raise Unreadable(f"name {name[:80]!r} is not one")
    normal = re.sub(r"[-_.]+", "-", name).lower()
    licence = short_licence(fields.get("license-expression", ""))
    return Installed(normal, version, normal, version, licence=licence)
