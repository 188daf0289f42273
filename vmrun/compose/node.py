"""A YAML document as it was written: texts, lists and mappings, each with its line.

Nothing is converted on the way. A scalar stays the text of the file, so that ``22:22`` is never
a number to base 60, ``0400`` never 256, and ``no`` never false where a string is meant: whoever
reads a field says what it is.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeAlias


@dataclass(frozen=True, slots=True)
class Scalar:
    """A text; ``plain`` when it stood without quotes, and only then can it mean null."""

    text: str
    plain: bool
    line: int

    @property
    def null(self) -> bool:
        """Whether it is YAML's null (core schema, YAML 1.2.2 section 10.3.2)."""
        return self.plain and self.text in ("", "~", "null", "Null", "NULL")


@dataclass(frozen=True, slots=True)
class Sequence:
    """A list. ``weight`` counts all nodes below it, aliases expanded; ``height`` their nesting."""

    items: tuple[Node, ...]
    line: int
    weight: int = field(default=1, compare=False)
    height: int = field(default=1, compare=False)


@dataclass(frozen=True, slots=True)
class Entry:
    """A key of a mapping, and its value."""

    key: str
    line: int
    value: Node


@dataclass(frozen=True, slots=True)
class Mapping:
    """Keys in the order of the file, none twice; what ``<<`` merged in comes after them."""

    entries: tuple[Entry, ...]
    line: int
    weight: int = field(default=1, compare=False)
    height: int = field(default=1, compare=False)


Node: TypeAlias = Scalar | Sequence | Mapping


def weight(node: Node) -> int:
    """How many nodes it is, aliases expanded."""
    return 1 if isinstance(node, Scalar) else node.weight


def height(node: Node) -> int:
    """How deep it is nested; 0 for a text."""
    return 0 if isinstance(node, Scalar) else node.height
