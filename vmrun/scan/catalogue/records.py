"""What the readers of package databases share: a parsed entry, and text that may be printed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

LONGEST_NAME = 256
MOST_PACKAGES = 100_000


class Unreadable(Exception):
    """A package database that cannot be read: whatever is in it was not checked. Never leaves
    :mod:`vmrun.scan.catalogue`."""


@dataclass(frozen=True, slots=True)
class Installed:
    """A package as its database has it."""

    name: str
    version: str
    source: str
    source_version: str
    architecture: str = ""
    licence: str = ""


def checked(text: str, what: str) -> str:
    """A name or version that is short, printable and there."""
    if not text or len(text) > LONGEST_NAME or not text.isprintable() or " " in text:
        raise Unreadable(f"{what} {text[:80]!r} is not one")
    return text


def decoded(data: bytes) -> str:
    """Text of a database; what is not UTF-8 in it (maintainers' names) does not matter."""
    return data.decode("utf-8", "replace")


def stanzas(text: str) -> Iterator[Mapping[str, str]]:
    """The paragraphs of a deb822(5) file or of headers in the manner of RFC 822: fields by their
    names in lower case, continuation lines joined. A field that comes twice is Unreadable."""
    fields: dict[str, str] = {}
    last = ""
    for line in text.split("\n"):
        line = line.rstrip("\r")
        if not line.strip():
            if fields:
                yield fields
            fields, last = {}, ""
        elif line[0] in " \t":
            if last:
                fields[last] += "\n" + line.strip()
        else:
            name, colon, value = line.partition(":")
            if not colon:
                raise Unreadable(f"line {line[:80]!r} is not a field")
            last = name.strip().lower()
            if last in fields:
                raise Unreadable(f"field {last[:80]!r} comes twice in a paragraph")
            fields[last] = value.strip()
    if fields:
        yield fields
