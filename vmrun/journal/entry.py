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
_LONGEST_VALUE = 4096
_KEYS = ("seq", "time", "user", "event", "fields", "previous")


@dataclass(frozen=True, slots=True)
class Entry:
    """What happened: ``time`` is RFC 3339 in UTC, ``user`` the name and uid on this host,
    ``previous`` the SHA-256 of the line before, without its newline."""

    seq: int
    time: str
    user: str
    event: str
    fields: Mapping[str, str]
    previous: str

    def line(self) -> bytes:
        """The entry as it is written, without a newline."""
        document = {key: getattr(self, key) for key in _KEYS}
        document["fields"] = {
            key: str(value)[:_LONGEST_VALUE] for key, value in self.fields.items()
        }
        return json.dumps(document, separators=(",", ":"), ensure_ascii=True).encode()


def line_hash(line: bytes) -> str:
    """What the next entry says of this one."""
    return hashlib.sha256(line).hexdigest()


def parse_entry(line: bytes, where: str) -> Entry:
    """Read a line; :class:`StateError` for anything that :meth:`Entry.line` did not write."""
    try:
        if len(line) > LONGEST_LINE:
            raise ValueError("too long")
        value = json.loads(line)
        entry = Entry(**value)
        if entry.line() != line:
            raise ValueError("not as it was written")
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise StateError(f"{where}: {str(error)[:120]}", hint="see 'vmrun audit verify'") from None
    return entry
