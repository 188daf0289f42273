"""What the readers of package databases share: a parsed entry, and text that may be printed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

LONGEST_NAME = 256
LONGEST_LICENCE = 200
MOST_PACKAGES = 100_000
_BLOCK = 64 * 1024


class Unreadable(Exception):
    """A package database that cannot be read: whatever is in it was not checked. Never leaves
    :mod:`vmrun.scan`."""


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
    bad = " " in text or "\ufffd" in text or not text.isprintable()
    if not text or bad or len(text) > LONGEST_NAME:
        raise Unreadable(f"{what} {text[:80]!r} is not one")
    return text


def printable(text: str) -> str:
    """Text for people, such as a path or a licence: what a terminal would act upon, and bytes
    that are not UTF-8, as escapes."""
    return "".join(
        char if char.isprintable() else ascii(char)[1:-1] for char in text.replace("\ufffd", "?")
    )


def short_licence(text: str) -> str:
    """A licence as the record has it, on one line."""
    return printable(" ".join(text.split()))[:LONGEST_LICENCE]


def decoded(data: bytes) -> str:
    """Text of a database; what is not UTF-8 in it (maintainers' names) does not matter."""
    return data.decode("utf-8", "replace")


def lines(text: str) -> Iterator[str]:
    """The lines, by blocks: a list of all those of a large file would take many times its size."""
    start = 0
    while start < len(text):
        end = text.rfind("\n", start, start + _BLOCK)
        if end < 0:
            end = text.find("\n", start)
        if end < 0:
            end = len(text)
        yield from text[start:end].split("\n")
        start = end + 1


def stanzas(text: str) -> Iterator[Mapping[str, str]]:
    """The paragraphs of a deb822(5) file or of headers in the manner of RFC 822: fields by their
    names in lower case, continuation lines joined. A field that comes twice is Unreadable."""
    fields: dict[str, list[str]] = {}
    last: list[str] | None = None
    for line in lines(text):
        line = line.rstrip("\r")
        if not line.strip():
            if fields:
                yield _joined(fields)
            fields, last = {}, None
        elif line[0] in " \t":
            if last is not None:
                last.append(line.strip())
        else:
            name, colon, value = line.partition(":")
            if not colon:
                raise Unreadable(f"line {line[:80]!r} is not a field")
            name = name.strip().lower()
            if name in fields:
                raise Unreadable(f"field {name[:80]!r} comes twice in a paragraph")
            last = fields[name] = [value.strip()]
    if fields:
        yield _joined(fields)


def _joined(fields: Mapping[str, list[str]]) -> Mapping[str, str]:
    return {name: "\n".join(values) for name, values in fields.items()}
