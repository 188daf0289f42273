"""What people and programs see: results on stdout, everything else on stderr."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from enum import Enum, IntEnum
from pathlib import Path
from typing import Any, TextIO

from vmrun.model.digest import Digest
from vmrun.model.errors import VmrunError


def as_json(value: object) -> Any:
    """A value of the model as JSON's own types; field names are the schema."""
    if isinstance(value, Digest | Path):
        return str(value)
    if isinstance(value, IntEnum):
        return value.name.lower()  # the numbers only order them
    if isinstance(value, Enum):
        return value.value
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: as_json(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): as_json(item) for key, item in value.items()}
    if isinstance(value, tuple | list | frozenset):
        return [as_json(item) for item in value]
    return value


def print_json(value: object, file: TextIO | None = None) -> None:
    """Print as indented JSON."""
    print(json.dumps(as_json(value), indent=2), file=file or sys.stdout)


def note(text: str) -> None:
    """One line for the user, on stderr."""
    print(f"vmrun: {text}", file=sys.stderr)


def print_error(error: VmrunError) -> None:
    """An error, its details and its hint, on stderr."""
    style = _style(sys.stderr)
    print(f"{style.red}vmrun: {error.message}{style.off}", file=sys.stderr)
    for line in error.details.splitlines():
        print(f"  | {line}", file=sys.stderr)
    if error.hint:
        print(f"{style.dim}hint: {error.hint}{style.off}", file=sys.stderr)


class _Style:
    def __init__(self, *, colour: bool) -> None:
        self.red = "\x1b[31m" if colour else ""
        self.green = "\x1b[32m" if colour else ""
        self.dim = "\x1b[2m" if colour else ""
        self.off = "\x1b[0m" if colour else ""


def _style(file: TextIO) -> _Style:
    return _Style(colour=file.isatty() and not os.environ.get("NO_COLOR"))


def table(rows: Sequence[tuple[str, ...]], *, header: tuple[str, ...]) -> str:
    """Left-aligned columns, as docker prints them."""
    lines = [tuple(cell.upper() for cell in header), *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )
