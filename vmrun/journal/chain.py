"""Reading the journal's lines as a chain, one at a time, from first to last."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from vmrun.journal.entry import GENESIS, LONGEST_LINE, TORN, Entry, line_hash, parse_entry
from vmrun.model.errors import StateError

CHANGED = "somebody changed the journal; compare it with an exported copy"
_HEAD = re.compile(r"([0-9]{1,12}):([0-9a-f]{64})")


@dataclass(frozen=True, slots=True)
class Head:
    """The last entry: its number (0: none) and its line's hash. ``torn``: after it stands a line
    that is not complete, as a crash leaves one, or somebody who cut the journal."""

    seq: int
    hash: str
    torn: bool = False

    def __str__(self) -> str:
        return f"{self.seq}:{self.hash}"

    @classmethod
    def parse(cls, text: str) -> Head:
        """Read ``SEQ:HASH``. Raises :class:`StateError`."""
        match = _HEAD.fullmatch(text)
        if match is None or (int(match[1]) == 0 and match[2] != GENESIS):
            raise StateError(f"not a head: {text[:100]!r}", hint="'vmrun audit verify' prints it")
        return cls(int(match[1]), match[2])


class Chain:
    """Takes the lines of all files in order, and is at its head when there are no more.

    Each of ``expected`` has to be met on the way.
    """

    def __init__(self, expected: Sequence[Head] = ()) -> None:
        self._where = ""
        self._number = 0
        self._seq = 0
        self._hash = GENESIS
        self._torn: list[bytes] = []
        self._torn_size = 0
        self._expected = sorted((head for head in expected if head.seq), key=_seq, reverse=True)

    def begins(self, where: str) -> None:
        """The lines that follow are in this file."""
        self._where, self._number = where, 0

    def ends(self, seq: int) -> None:
        """The file is over; :class:`StateError` unless its last entry had this number."""
        if self._seq != seq:
            raise StateError(
                f"{self._where} ends with entry {self._seq}, not with entry {seq}", hint=CHANGED
            )

    def take(self, line: bytes) -> Entry | None:
        """The next line's entry; None for what a crash has left of one.

        Raises :class:`StateError` when the line is not what was once written there.
        """
        self._number += 1
        entry = parse_entry(line)
        if entry is None:
            self._tear(line)
            return None
        if torn_hash(self._torn) != entry.fields.get(TORN, ""):
            raise self._wrong(f"what stands before entry {entry.seq} was changed")
        if entry.seq != self._seq + 1:
            raise self._wrong(f"entry {entry.seq} follows entry {self._seq}")
        if entry.previous != self._hash:
            raise self._wrong(f"the chain is broken before entry {entry.seq}")
        self._seq, self._hash = entry.seq, line_hash(line)
        self._torn, self._torn_size = [], 0
        while self._expected and self._seq == self._expected[-1].seq:
            if self._hash != self._expected.pop().hash:
                raise self._wrong(f"entry {self._seq} is not the expected one")
        return entry

    def head(self) -> Head:
        """Where the chain ends; :class:`StateError` when that is before an expected head."""
        if self._expected:
            missing = self._expected[-1].seq
            raise StateError(
                f"{self._where} ends with entry {self._seq}; entry {missing} was cut off",
                hint=CHANGED,
            )
        return Head(self._seq, self._hash, torn=bool(self._torn))

    def _tear(self, line: bytes) -> None:
        self._torn.append(line)
        self._torn_size += len(line) + 1
        if self._torn_size > 2 * LONGEST_LINE:
            raise self._wrong("no entry, and more than a crash leaves")

    def _wrong(self, why: str) -> StateError:
        return StateError(f"{self._where}:{self._number}: {why}", hint=CHANGED)


def _seq(head: Head) -> int:
    return head.seq


def torn_hash(lines: Sequence[bytes]) -> str:
    """What the entry after broken lines has in its field :data:`TORN`; empty for none."""
    return line_hash(b"\n".join(lines)) if lines else ""
