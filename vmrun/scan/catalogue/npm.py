"""Installed npm packages: ``node_modules/**/package.json`` (npm, package.json)."""

from __future__ import annotations

import re

from vmrun.image.document import parse_object
from vmrun.image.limits import ImageLimits
from vmrun.model.errors import ImageError
from vmrun.scan.catalogue.records import Installed, Unreadable, checked

_PACKAGE = re.compile(r".*/node_modules/(?:@[^/]+/)?[^/@.][^/]*/package\.json")
_LIMITS = ImageLimits(document=4 << 20, depth=64)


def is_package(path: str) -> bool:
    """Whether a file of an image is the package.json of an installed package."""
    return _PACKAGE.fullmatch(path) is not None


def parse_package(data: bytes, path: str) -> Installed | None:
    """The package; None for a package.json without a name and version, such as those that only
    tell Node how to load a folder."""
    try:
        document = parse_object(data, path, _LIMITS)
        if "name" not in document or "version" not in document:
            return None
        name, version = document.text("name"), document.text("version")
    except ImageError as error:
        raise Unreadable(error.message) from None
    name = checked(name, "name")
    return Installed(name, checked(version, f"version of {name}"), name, version)
