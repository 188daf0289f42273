"""One line of the journal, and how lines are chained."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass

from vmrun.model.errors import StateError

LONGEST_LINE = 64 * 1024
GENESIS = "0" * 64
"""Stands for the hash of the line before the first."""
TORN = "torn"
"""The field in which an entry has the hash of the broken lines before it."""
_LONGEST_VALUES = (4096, 1024, 256, 64)
_KEYS = ("seq", "time", "user", "event", "fields", "previous")


@dataclass(frozen=True, slots=True)
class Entry:
    """What happened: ``time`` is RFC 3339 in UTC, ``user`` the name and uid on this host,
    ``previous`` the SHA-256 of the last entry's line, without its newline."""

    seq: int
    time: str
    user: str
    event: str
    fields: Mapping[str, str]
    previous: str

    def line(self) -> bytes:
        """The entry as it is written, without a newline."""
        document = {key: getattr(self, key) for key in _KEYS} | {"fields": dict(self.fields)}
        return json.dumps(document, separators=(",", ":"), ensure_ascii=True).encode()


def capped(entry: Entry) -> Entry:
    """The entry with its values so short that its line can be read again; a value that was cut
    ends with ``…``. Raises :class:`StateError` when there are too many."""
    for longest in _LONGEST_VALUES:
        fields = {
            key: value if len(value) <= longest else f"{value[: longest - 1]}…"
            for key, value in entry.fields.items()
        }
        short = Entry(entry.seq, entry.time, entry.user, entry.event, fields, entry.previous)
        if len(short.line()) <= LONGEST_LINE:
            return short
    raise StateError(f"an entry with {len(entry.fields)} fields is too long for the journal")


def line_hash(line: bytes) -> str:
    """What the next entry says of this one."""
    return hashlib.sha256(line).hexdigest()


def parse_entry(line: bytes) -> Entry | None:
    """Read a line; None for anything that :meth:`Entry.line` did not write."""
    if len(line) > LONGEST_LINE:
        return None
    try:
        value = json.loads(line)
        if not isinstance(value, dict) or tuple(value) != _KEYS or not _typed(value):
            return None
        entry = Entry(**value)
        return entry if entry.line() == line else None
    except (ValueError, RecursionError):
        return None


def _typed(value: Mapping[str, object]) -> bool:
    fields = value["fields"]
    return (
        type(value["seq"]) is int
        and value["seq"] > 0
        and isinstance(fields, dict)
        and all(isinstance(item, str) for item in fields.values())
        and all(isinstance(value[key], str) for key in ("time", "user", "event", "previous"))
    )
