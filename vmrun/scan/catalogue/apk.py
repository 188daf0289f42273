"""apk's database: lib/apk/db/installed (Alpine's apk-tools, "Apk v2 installed database")."""

from __future__ import annotations

from collections.abc import Iterator

from vmrun.scan.catalogue.records import Installed, Unreadable, checked, decoded

DATABASES = ("/lib/apk/db/installed", "/usr/lib/apk/db/installed")


def parse_installed(data: bytes) -> Iterator[Installed]:
    """The packages of the database; its lines are ``LETTER:value``, blank lines part packages."""
    fields: dict[str, str] = {}
    for line in [*decoded(data).split("\n"), ""]:
        if line:
            letter, colon, value = line.partition(":")
            if not colon or len(letter) != 1:
                raise Unreadable(f"line {line[:80]!r} is not a field")
            # File lists repeat their letters; what matters here comes once, before them.
            if letter in "PVAoL" and letter not in fields:
                fields[letter] = value
        elif fields:
            name = checked(fields.get("P", ""), "package name")
            version = checked(fields.get("V", ""), f"version of {name}")
            origin = checked(fields.get("o") or name, f"origin of {name}")
            yield Installed(
                name, version, origin, version, fields.get("A", ""), fields.get("L", "")
            )
            fields = {}
