"""Reading on where the journal has ended, as others append to it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import BinaryIO

from vmrun.journal.chain import CHANGED
from vmrun.journal.entry import Entry, line_hash, parse_entry
from vmrun.journal.files import ACTIVE, is_at, lines_of, open_to_read, segments
from vmrun.model.errors import StateError


def follow(directory: Path, last: Entry | None, pause: Callable[[], None]) -> Iterator[Entry]:
    """The entries after ``last`` (None: from the first on), and those to come; never ends.
    ``pause`` is called whenever there are none.

    Each must carry the hash of the one before: raises :class:`StateError` where it does not.
    """
    path = directory / ACTIVE
    while True:
        try:
            file = open_to_read(path)
        except FileNotFoundError:
            pause()
            continue
        except OSError as error:
            raise StateError(f"cannot read the journal {path}: {error.strerror or error}") from None
        with closing(file):
            for entry in _put_aside_since(directory, last):
                last = entry
                yield entry
            for entry in _grow(file, path, last, pause):
                last = entry
                yield entry


def _put_aside_since(directory: Path, last: Entry | None) -> Iterator[Entry]:
    """What was appended to files that are full by now."""
    seq = last.seq if last is not None else 0
    for segment in segments(directory):
        if segment.last > seq:
            with open_to_read(segment.path) as file:
                size = os.fstat(file.fileno()).st_size
                for line in lines_of(file, size, segment.path):
                    entry = _next(line, last, segment.path)
                    if entry is not None:
                        last = entry
                        yield entry


def _grow(
    file: BinaryIO, path: Path, last: Entry | None, pause: Callable[[], None]
) -> Iterator[Entry]:
    """What is in ``file`` and comes into it, until it is put aside."""
    rest = b""
    while True:
        # Asked before the last look: nothing is written to it after it was put aside.
        over = not is_at(file, path)
        data = file.read()
        if data:
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                entry = _next(line, last, path)
                if entry is not None:
                    last = entry
                    yield entry
        elif over:
            return
        else:
            pause()


def _next(line: bytes, last: Entry | None, path: Path) -> Entry | None:
    """The line's entry if it comes after ``last``; None for older ones and for what a crash has
    left."""
    entry = parse_entry(line)
    if entry is None or (last is not None and entry.seq <= last.seq):
        return None
    if last is not None and entry.previous != line_hash(last.line()):
        raise StateError(f"{path}: the chain is broken before entry {entry.seq}", hint=CHANGED)
    return entry
