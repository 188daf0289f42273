"""Recipes of guest bases: what goes into the root and the initrd of a flavour."""

from __future__ import annotations

import hashlib
import json
import stat
import sys
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import vmrun
from vmrun.model.base import Flavour
from vmrun.model.digest import Digest
from vmrun.model.errors import BaseError

_LISTS = ("files", "packages", "programs", "applets", "services")
_KEYS = {"extends", "flavour", "suite", "modules", "links", *_LISTS}


@dataclass(frozen=True, slots=True)
class Recipe:
    """One flavour's recipe.

    ``programs`` are absolute paths in the unpacked packages; the libraries they need come along.
    ``applets`` are links to busybox, ``links`` maps paths to targets, ``services`` are command
    lines that the init keeps running. ``files`` are directories whose content is laid over the
    root. ``initrd_modules`` and ``root_modules`` name kernel modules.
    """

    flavour: Flavour
    suite: str
    packages: tuple[str, ...]
    programs: tuple[str, ...]
    applets: tuple[str, ...]
    services: tuple[str, ...]
    files: tuple[Path, ...]
    links: Mapping[str, str]
    initrd_modules: tuple[str, ...]
    root_modules: tuple[str, ...]
    sources: Path
    sysctls: Path
    digest: Digest


def recipe_directory() -> Path:
    """Where the recipes are: in a checkout, or where an installation puts them."""
    places = (
        Path(vmrun.__file__).resolve().parents[1] / "images" / "base",
        Path(sys.prefix) / "share" / "vmrun" / "images" / "base",
    )
    for place in places:
        if (place / f"{Flavour.MINIMAL}.toml").is_file():
            return place
    raise BaseError(
        "the recipes of the guest bases are not installed",
        hint=f"expected them in {places[-1]}",
    )


def load_recipe(directory: Path, flavour: Flavour) -> Recipe:
    """Read a flavour's recipe, merged with the one it extends."""
    table = _load_table(directory, flavour)
    modules = table.get("modules", {})
    return Recipe(
        flavour=Flavour(table["flavour"]),
        suite=table["suite"],
        files=tuple(directory / "files" / name for name in table["files"]),
        links=dict(table.get("links", {})),
        initrd_modules=tuple(modules.get("initrd", ())),
        root_modules=tuple(modules.get("root", ())),
        sources=directory / "src",
        sysctls=directory / "sysctl.conf",
        digest=_digest(directory, table),
        **{name: tuple(table[name]) for name in _LISTS if name != "files"},
    )


def _load_table(directory: Path, flavour: str) -> dict[str, Any]:
    path = directory / f"{flavour}.toml"
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BaseError(f"cannot read the recipe {path}: {error}") from error
    _check(path, table)
    if "extends" not in table:
        return table
    below = _load_table(directory, table.pop("extends"))
    return _merge(below, table)


def _merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """``above`` on top of ``below``: lists are joined, tables merged, other values replaced."""
    merged = dict(below)
    for key, value in above.items():
        if isinstance(value, list):
            merged[key] = [*below.get(key, []), *value]
        elif isinstance(value, dict):
            merged[key] = _merge(below.get(key, {}), value)
        else:
            merged[key] = value
    return merged


def _check(path: Path, table: Mapping[str, Any]) -> None:
    """Refuse what no recipe has."""

    def refuse(what: str) -> None:
        raise BaseError(f"malformed recipe {path}: {what}")

    def is_strings(value: object) -> bool:
        return isinstance(value, list) and all(isinstance(item, str) for item in value)

    for key, value in table.items():
        if key not in _KEYS:
            refuse(f"unknown key {key}")
        elif key in _LISTS:
            if not is_strings(value):
                refuse(f"{key} is not a list of strings")
        elif key == "modules":
            if not isinstance(value, dict) or set(value) - {"initrd", "root"}:
                refuse("[modules] knows initrd and root")
            elif not all(is_strings(names) for names in value.values()):
                refuse("[modules] holds lists of strings")
        elif key == "links":
            if not isinstance(value, dict) or not is_strings(list(value.values())):
                refuse("[links] maps paths to targets")
        elif not isinstance(value, str):
            refuse(f"{key} is not a string")
    if table.get("flavour") not in set(Flavour):
        refuse("no such flavour")
    if "extends" not in table and not {"suite", *_LISTS} <= set(table):
        refuse("a key is missing")


def _digest(directory: Path, table: Mapping[str, Any]) -> Digest:
    """The digest of the merged recipe and of every file that it may put into a base."""
    total = hashlib.sha256(json.dumps(table, sort_keys=True).encode())
    for top in ("files", "src", "sysctl.conf"):
        place = directory / top
        for path in sorted([place, *place.rglob("*")]):
            status = path.lstat()
            if stat.S_ISREG(status.st_mode):
                content = hashlib.sha256(path.read_bytes()).hexdigest()
                executable = bool(status.st_mode & 0o100)
                total.update(f"{path.relative_to(directory)} {executable} {content}\n".encode())
    return Digest("sha256", total.hexdigest())
