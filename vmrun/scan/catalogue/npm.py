"""Installed npm packages: ``node_modules/**/package.json`` (npm, package.json)."""

from __future__ import annotations

import json
import re

from vmrun.scan.catalogue.records import Installed, Unreadable, checked, short_licence

_PACKAGE = re.compile(r".*/node_modules/(?:@[^/]+/)?[^/@.][^/]*/package\.json")
FOLDER = re.compile(r".*/node_modules(?:/@[^/]+)?")
"""A folder of packages, which may be a link."""


def is_package(path: str) -> bool:
    """Whether a file of an image is the package.json of an installed package."""
    return _PACKAGE.fullmatch(path) is not None


def parse_package(data: bytes) -> Installed | None:
    """The package; None for a package.json without a name and version, such as those that only
    tell Node how to load a folder."""
    fields = _read(data)
    name, version = fields.get("name"), fields.get("version")
    if name is None or version is None:
        return None
    if not isinstance(name, str) or not isinstance(version, str):
        raise Unreadable("its name or version is not text")
    name, version = checked(name, "name"), checked(version, f"version of {name[:80]}")
    licence = fields.get("license")
    return Installed(
        name,
        version,
        name,
        version,
        licence=short_licence(licence) if isinstance(licence, str) else "",
    )


def _read(data: bytes) -> dict[str, object]:
    """The document, as Node reads it: with a byte order mark, and with fields of no interest here
    that come twice. A name or version that comes twice, in whichever object, is Unreadable:
    readers disagree about which one counts."""
    if not data.strip():
        return {}
    try:
        value = json.loads(data.decode("utf-8-sig"), object_pairs_hook=_fields)
    except RecursionError:
        raise Unreadable("malformed JSON: nested too deeply") from None
    except ValueError as error:
        raise Unreadable(f"malformed JSON: {str(error)[:120]}") from None
    return value if isinstance(value, dict) else {}


def _fields(pairs: list[tuple[str, object]]) -> dict[str, object]:
    fields: dict[str, object] = {}
    for key, value in pairs:
        if key in ("name", "version") and key in fields:
            raise Unreadable(f"field {key!r} comes twice")
        fields[key] = value
    return fields
