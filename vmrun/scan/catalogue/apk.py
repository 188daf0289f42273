"""apk's database: lib/apk/db/installed (Alpine's apk-tools, "Apk v2 installed database")."""

from __future__ import annotations

from collections.abc import Iterator

from vmrun.scan.catalogue.records import (
    Installed,
    Unreadable,
    checked,
    decoded,
    lines,
    short_licence,
)

DATABASES = ("/lib/apk/db/installed", "/usr/lib/apk/db/installed")


def parse_installed(data: bytes) -> Iterator[Installed]:
    """The packages of the database; its lines are ``LETTER:value``, blank lines part packages.

    Raises :class:`Unreadable`.
    """
    fields: dict[str, str] = {}
    seen: set[str] = set()
    for line in lines(decoded(data)):
        if not line:
            if fields:
                yield _package(fields, seen)
            fields = {}
            continue
        letter, colon, value = line.partition(":")
        if not colon or len(letter) != 1:
            raise Unreadable(f"line {line[:80]!r} is not a field")
        # Lists of files repeat their letters (F, M, R, a, Z); these describe the package.
        if letter in "PVAoL":
            if letter in fields:
                raise Unreadable(f"field {letter!r} comes twice in a package")
            fields[letter] = value
    if fields:
        yield _package(fields, seen)


def owned_files(data: bytes) -> Iterator[str]:
    """Absolute paths of the files of its packages: ``F:`` names a folder, ``R:`` a file in it."""
    folder = ""
    for line in lines(decoded(data)):
        if line.startswith("F:"):
            folder = line[2:]
        elif line.startswith("R:"):
            yield f"/{folder}/{line[2:]}" if folder else f"/{line[2:]}"


def _package(fields: dict[str, str], seen: set[str]) -> Installed:
    name = checked(fields.get("P", ""), "package name")
    if name in seen:
        raise Unreadable(f"package {name} comes twice")
    seen.add(name)
    version = checked(fields.get("V", ""), f"version of {name}")
    architecture = fields.get("A", "")
    return Installed(
        name=name,
        version=version,
        source=checked(fields.get("o") or name, f"origin of {name}"),
        source_version=version,
        architecture=checked(architecture, f"architecture of {name}") if architecture else "",
        licence=short_licence(fields.get("L", "")),
    )
